//! One daemon with its folders. Several run side by side (in tests for one), so whatever the host
//! has one namespace for (bridges, nft tables, cgroups) is named after the instance.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::env;

/// The folders of a user's engine where none are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    pub root: PathBuf,
    pub run: PathBuf,
    /// The daemon's configuration file; it need not be there.
    pub config: PathBuf,
}

impl Folders {
    /// Those of the host for root, and of their own for everybody else, as the XDG Base Directory Specification has
    /// them; `variable` is the environment's. `None` where it says neither those nor where the user is at home.
    #[must_use]
    pub fn usual(uid: u32, variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        if uid == 0 {
            return Some(Self {
                root: env::DEFAULT_ROOT.into(),
                run: env::DEFAULT_RUN.into(),
                config: env::DEFAULT_CONFIG.into(),
            });
        }
        // Relative ones are to be ignored, says the specification.
        let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let below_home = |name: &str, usual: &str| {
            absolute(name).or_else(|| Some(absolute(env::HOME)?.join(usual))).map(|path| path.join("insula"))
        };
        let session = absolute(env::XDG_RUNTIME_DIR);
        Some(Self {
            root: below_home(env::XDG_DATA_HOME, ".local/share")?,
            run: session.unwrap_or_else(|| format!("/run/user/{uid}").into()).join("insula"),
            config: below_home(env::XDG_CONFIG_HOME, ".config")?.join("insulad.toml"),
        })
    }
}

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

    /// Whether a table of nftables is an instance's, this one's or another's.
    #[must_use]
    pub fn has_table(name: &str) -> bool {
        let hex = |tag: &str| tag.len() == 6 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
        name == "insula" || name.strip_prefix("insula-").is_some_and(hex)
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
    fn ordinary_users_have_folders_of_their_own() {
        let with = |set: &'static [(&str, &str)]| {
            move |name: &str| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
            }
        };
        let text = |folders: Folders| {
            [folders.root, folders.run, folders.config].map(|path| path.display().to_string())
        };
        let root = Folders::usual(0, with(&[("HOME", "/root")])).unwrap();
        assert_eq!(root.root, Path::new(env::DEFAULT_ROOT));
        let plain = text(Folders::usual(7, with(&[("HOME", "/home/me")])).unwrap());
        let expected =
            ["/home/me/.local/share/insula", "/run/user/7/insula", "/home/me/.config/insula/insulad.toml"];
        assert_eq!(plain, expected);
        let set = with(&[("XDG_DATA_HOME", "/d"), ("XDG_RUNTIME_DIR", "/r"), ("XDG_CONFIG_HOME", "/c")]);
        let set = text(Folders::usual(7, set).unwrap());
        assert_eq!(set, ["/d/insula", "/r/insula", "/c/insula/insulad.toml"]);
        assert_eq!(Folders::usual(7, with(&[("HOME", "me")])), None);
    }

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
