//! One daemon with its folders. Several run side by side (in tests for one), so whatever the host
//! has one namespace for (bridges, nft tables, cgroups) is named after the instance.

use std::path::{Path, PathBuf};

use crate::env;

/// Persistent root, run-time root and the names that follow from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    root: PathBuf,
    run: PathBuf,
    tag: Option<String>,
}

impl Instance {
    /// An instance with these folders, absolute. The default folders give the plain names.
    #[must_use]
    pub fn new(root: PathBuf, run: PathBuf) -> Self {
        let default = root == Path::new(env::DEFAULT_ROOT);
        let tag = (!default).then(|| format!("{:06x}", fnv(root.as_os_str().as_encoded_bytes()) & 0xff_ffff));
        Self { root, run, tag }
    }

    /// Persistent state (`/var/lib/insula`).
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Run-time state (`/run/insula`).
    #[must_use]
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run.join("insula.sock")
    }

    /// The folder of one sandbox's run-time state.
    #[must_use]
    pub fn sandbox(&self, id: &crate::ContainerId) -> PathBuf {
        self.run.join("sandboxes").join(id.as_str())
    }

    /// Six digits that tell this instance from others on the host; `None` for the default one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Name of the default bridge, at most 15 bytes.
    #[must_use]
    pub fn bridge(&self) -> String {
        self.tag.as_ref().map_or_else(|| "insula0".to_owned(), |tag| format!("insula-{tag}"))
    }

    /// Name of the nftables table.
    #[must_use]
    pub fn table(&self) -> String {
        self.tag.as_ref().map_or_else(|| "insula".to_owned(), |tag| format!("insula-{tag}"))
    }

    /// Parent of every container's cgroup, below each hierarchy's root, no slashes.
    #[must_use]
    pub fn cgroup(&self) -> String {
        self.table()
    }
}

/// FNV-1a, 64 bit: stable over versions, which std's hasher is not.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_default_instance_has_plain_names() {
        let plain = Instance::new(env::DEFAULT_ROOT.into(), env::DEFAULT_RUN.into());
        assert_eq!(
            (plain.bridge().as_str(), plain.table().as_str(), plain.tag()),
            ("insula0", "insula", None)
        );
        let other = Instance::new("/tmp/a".into(), "/tmp/b".into());
        assert_eq!(other.bridge().len(), 13);
        assert_ne!(other.table(), Instance::new("/tmp/c".into(), "/tmp/b".into()).table());
    }
}
