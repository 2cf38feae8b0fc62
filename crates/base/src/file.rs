//! Files are replaced, never edited in place.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What must survive what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Survives `kill -9` of every process: the page cache keeps it. No disk flush.
    Process,
    /// Survives power loss: the file and its folder are flushed.
    Machine,
}

/// Makes `path` hold `bytes`, mode `mode`: readers see the old content or the new, never a part.
pub fn replace(path: &Path, bytes: &[u8], mode: u32, durability: Durability) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file to replace has a folder"))?;
    let name = path.file_name().ok_or_else(|| io::Error::other("a file to replace has a name"))?;
    let temporary = folder.join(format!(".{}.{}", name.to_string_lossy(), crate::random_hex(6)));
    let result = write_new(&temporary, bytes, mode, durability)
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| match durability {
            Durability::Process => Ok(()),
            Durability::Machine => File::open(folder)?.sync_all(),
        });
    if result.is_err() {
        // The temporary may not exist; the first error is the one to report.
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

fn write_new(path: &Path, bytes: &[u8], mode: u32, durability: Durability) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    match durability {
        Durability::Process => Ok(()),
        Durability::Machine => file.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_and_leaves_nothing_behind() {
        let folder = std::env::temp_dir().join(format!("insula-base-{}", crate::random_hex(6)));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("f");
        replace(&path, b"one", 0o600, Durability::Process).unwrap();
        replace(&path, b"two", 0o600, Durability::Machine).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        assert!(replace(&folder.join("no/such"), b"", 0o600, Durability::Process).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
