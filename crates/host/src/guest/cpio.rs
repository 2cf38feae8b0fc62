//! cpio archives in the `newc` format, as the kernel unpacks them (Documentation/driver-api/early-userspace/
//! buffer-format.rst).

use std::collections::BTreeSet;

/// An archive in the making. Everything in it belongs to root; times are 0, so that the same content is the
/// same archive.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// A file; the folders above it come with it. Names have no slash in front.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.parents(name);
        self.entry(name, 0o100_000 | mode, 0, content);
    }

    /// A folder with those above it.
    pub fn folder(&mut self, name: &str) {
        self.parents(&format!("{name}/"));
    }

    /// A character device.
    pub fn device(&mut self, name: &str, mode: u32, major: u32, minor: u32) {
        self.parents(name);
        self.entry(name, 0o020_000 | mode, u64::from(major) << 32 | u64::from(minor), b"");
    }

    /// The whole archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, 0, b"");
        self.bytes
    }

    fn parents(&mut self, name: &str) {
        for (at, _) in name.match_indices('/') {
            if self.folders.insert(name[..at].to_owned()) {
                self.entry(&name[..at], 0o040_755, 0, b"");
            }
        }
    }

    /// Content past 4 GiB does not occur: it is read into memory from files that are bounded.
    fn entry(&mut self, name: &str, mode: u32, device: u64, content: &[u8]) {
        self.entries += 1;
        let (major, minor) = ((device >> 32) as u32, device as u32);
        let (size, length) = (content.len() as u32, name.len() as u32 + 1);
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, major, minor, length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_folders_come_first() {
        let mut archive = Archive::default();
        archive.file("a/b", 0o755, b"xyz");
        archive.device("dev/console", 0o600, 5, 1);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let at = |name: &str| text.find(&format!("{name}\0")).unwrap();
        assert!(at("a") < at("a/b") && at("dev") < at("dev/console") && at("dev/console") < at("TRAILER!!!"));
        assert!(bytes.starts_with(b"07070100000001000041ED"), "the first entry is a folder of mode 755");
        assert_eq!(text.matches("070701").count(), 5);
    }
}
