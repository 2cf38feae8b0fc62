//! Which hierarchies there are, from `/proc/self/mountinfo`, proc_pid_mountinfo(5).

use std::path::{Path, PathBuf};

use super::error::{Context, Error, Result};

/// Controllers that are turned on for groups of version 2 whose limits may need any.
pub(super) const EVERY: [&str; 7] = ["cpuset", "cpu", "io", "memory", "pids", "hugetlb", "rdma"];

/// Those that hold the limits which containers have as a rule.
pub(super) const USUAL: [&str; 5] = ["cpuset", "cpu", "io", "memory", "pids"];

/// Version 1 controllers that insula uses; named hierarchies are kept apart.
const CONTROLLERS: [&str; 9] =
    ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb"];

/// Version 1 controllers of limits that bundles alone can ask for.
const RARE: [&str; 3] = ["net_cls", "net_prio", "rdma"];

/// Every hierarchy of the host, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub hierarchies: Vec<Hierarchy>,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    pub version: Version,
    /// Where its root is mounted.
    pub root: PathBuf,
    /// Whether limits can be set in it.
    pub limits: bool,
}

/// What a hierarchy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// Controllers that are mounted together, in the kernel's order.
    V1(Vec<String>),
    /// Version 1 without controllers, by its name (`systemd`).
    Named(String),
    V2,
}

impl Version {
    /// Whether it is version 1 with this controller.
    pub(super) fn has(&self, controller: &str) -> bool {
        matches!(self, Self::V1(controllers) if controllers.iter().any(|known| known == controller))
    }

    /// Whether it is version 1 with nothing that containers have as a rule.
    pub(super) fn is_rare(&self) -> bool {
        matches!(self, Self::V1(controllers) if controllers.iter().all(|known| RARE.contains(&known.as_str())))
    }
}

impl Layout {
    /// Looks at the mounts of this process, for groups that it makes itself.
    pub fn probe() -> Result<Self> {
        let mut layout = Self::probe_all()?;
        if insula_sys::process::in_user_namespace() {
            // Groups of the host are not ours to make. Without any there are no limits, and it is said.
            layout
                .hierarchies
                .retain(|each| rustix::fs::access(&each.root, rustix::fs::Access::WRITE_OK).is_ok());
        }
        Ok(layout)
    }

    /// The same for groups that somebody with the right to it makes.
    pub fn probe_all() -> Result<Self> {
        let path = "/proc/self/mountinfo";
        let text = std::fs::read(path).context("read", path)?;
        let mut layout = Self::parse(&String::from_utf8_lossy(&text));
        for second in layout.hierarchies.iter_mut().filter(|each| each.version == Version::V2) {
            let path = second.root.join("cgroup.controllers");
            let controllers = std::fs::read_to_string(&path).context("read", path.display())?;
            second.limits = controllers.split_whitespace().any(|name| USUAL.contains(&name));
        }
        if layout.hierarchies.is_empty() {
            return Err(Error::NoHierarchy);
        }
        Ok(layout)
    }

    /// A hierarchy may be mounted in several places, in a container read-only or without the groups above
    /// its own: the first of the best serves.
    fn parse(mountinfo: &str) -> Self {
        let mut mounts: Vec<(Rank, Hierarchy)> = Vec::new();
        for (rank, hierarchy) in mountinfo.lines().filter_map(parse_line) {
            match mounts.iter_mut().find(|(_, known)| known.version == hierarchy.version) {
                Some(known) if known.0 < rank => *known = (rank, hierarchy),
                Some(_) => {}
                None => mounts.push((rank, hierarchy)),
            }
        }
        Self { hierarchies: mounts.into_iter().map(|(_, hierarchy)| hierarchy).collect() }
    }

    /// Whether version 2 is all there is.
    #[must_use]
    pub fn unified(&self) -> bool {
        !self.is_empty() && self.hierarchies.iter().all(|hierarchy| hierarchy.version == Version::V2)
    }

    /// Whether no group can be made: in a user namespace that was handed none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hierarchies.is_empty()
    }

    /// `1`, `2`, `hybrid` or `none`, as `info` shows it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        if self.is_empty() {
            return "none";
        }
        let second = self.hierarchies.iter().any(|hierarchy| hierarchy.version == Version::V2);
        match (self.unified(), second) {
            (true, _) => "2",
            (false, true) => "hybrid",
            (false, false) => "1",
        }
    }

    /// The hierarchy that has a version 1 controller.
    #[must_use]
    pub fn v1(&self, controller: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.has(controller))
    }
}

impl Hierarchy {
    /// Whether it is a version 1 hierarchy with this controller.
    #[must_use]
    pub fn has(&self, controller: &str) -> bool {
        self.version.has(controller)
    }
}

/// Whether a mount is writable, and whether it shows the whole hierarchy; more is better.
type Rank = (bool, bool);

fn parse_line(line: &str) -> Option<(Rank, Hierarchy)> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let (root, point, own) = (fields.nth(3)?, fields.next()?, fields.next()?);
    let mut fields = after.split(' ');
    let (kind, options) = (fields.next()?, fields.nth(1)?);
    let writable = [own, options].iter().all(|each| each.split(',').all(|word| word != "ro"));
    let version = match kind {
        "cgroup2" => Version::V2,
        "cgroup" => {
            let mut words = options.split(',');
            match words.clone().find_map(|word| word.strip_prefix("name=")) {
                Some(name) => Version::Named(name.to_owned()),
                None => {
                    let known = |word: &&str| CONTROLLERS.contains(word) || RARE.contains(word);
                    let controllers: Vec<String> = words.by_ref().filter(known).map(str::to_owned).collect();
                    if controllers.is_empty() {
                        return None;
                    }
                    Version::V1(controllers)
                }
            }
        }
        _ => return None,
    };
    let limits = matches!(version, Version::V1(_));
    Some(((writable, root == "/"), Hierarchy { version, root: unescape(point), limits }))
}

/// Blanks and backslashes are written in octal.
fn unescape(text: &str) -> PathBuf {
    let plain =
        text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
    Path::new(&plain).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_hosts_are_read() {
        let layout = Layout::parse(
            "25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
             26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct\n\
             27 25 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             28 25 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             29 25 0:26 /x /mnt/part rw - cgroup cgroup rw,memory\n\
             31 25 0:26 / /mnt/closed ro - cgroup cgroup rw,memory\n\
             32 25 0:26 /y /mnt/late rw - cgroup cgroup rw,memory\n\
             33 25 0:25 / /mnt/again rw - cgroup2 cgroup2 rw\n\
             30 25 0:27 / /mnt/with\\040blank rw - cgroup cgroup rw,pids\n",
        );
        let versions: Vec<_> = layout.hierarchies.iter().map(|h| h.version.clone()).collect();
        assert_eq!(
            versions,
            [
                Version::V1(vec!["cpu".into(), "cpuacct".into()]),
                Version::Named("systemd".into()),
                Version::V2,
                Version::V1(vec!["memory".into()]),
                Version::V1(vec!["pids".into()]),
            ]
        );
        assert_eq!(layout.name(), "hybrid");
        assert_eq!(layout.v1("cpuacct").unwrap().root, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(layout.v1("pids").unwrap().root, Path::new("/mnt/with blank"));
        assert_eq!(layout.v1("memory").unwrap().root, Path::new("/mnt/part"));
        assert_eq!(layout.hierarchies[2].root, Path::new("/sys/fs/cgroup/unified"));
        assert!(layout.v1("blkio").is_none());
    }

    #[test]
    fn unified_hosts_are_read() {
        let layout = Layout::parse("30 25 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(layout.unified());
        assert_eq!(layout.name(), "2");
    }
}
