//! Which hierarchies there are, from `/proc/self/mountinfo`, proc_pid_mountinfo(5).

use std::path::{Path, PathBuf};

use super::error::{Context, Error, Result};

/// Version 1 controllers that insula uses; named hierarchies are kept apart.
const CONTROLLERS: [&str; 9] =
    ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb"];

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

impl Layout {
    /// Looks at the mounts of this process.
    pub fn probe() -> Result<Self> {
        let path = "/proc/self/mountinfo";
        let text = std::fs::read(path).context("read", path)?;
        let layout = Self::parse(&String::from_utf8_lossy(&text));
        if layout.hierarchies.is_empty() { Err(Error::NoHierarchy) } else { Ok(layout) }
    }

    fn parse(mountinfo: &str) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for hierarchy in mountinfo.lines().filter_map(parse_line) {
            // The same hierarchy may be mounted in several places; the first one serves.
            if !hierarchies.iter().any(|known| known.version == hierarchy.version) {
                hierarchies.push(hierarchy);
            }
        }
        Self { hierarchies }
    }

    /// Whether version 2 is all there is.
    #[must_use]
    pub fn unified(&self) -> bool {
        self.hierarchies.iter().all(|hierarchy| hierarchy.version == Version::V2)
    }

    /// `1`, `2` or `hybrid`, as `info` shows it.
    #[must_use]
    pub fn name(&self) -> &'static str {
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
        matches!(&self.version, Version::V1(controllers) if controllers.iter().any(|c| c == controller))
    }
}

fn parse_line(line: &str) -> Option<Hierarchy> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let (root, point) = (fields.nth(3)?, fields.next()?);
    let mut fields = after.split(' ');
    let (kind, options) = (fields.next()?, fields.nth(1)?);
    // A bind mount of a part shows paths that are not ours to make.
    if root != "/" {
        return None;
    }
    let version = match kind {
        "cgroup2" => Version::V2,
        "cgroup" => {
            let mut words = options.split(',');
            match words.clone().find_map(|word| word.strip_prefix("name=")) {
                Some(name) => Version::Named(name.to_owned()),
                None => {
                    let controllers: Vec<String> =
                        words.by_ref().filter(|word| CONTROLLERS.contains(word)).map(str::to_owned).collect();
                    if controllers.is_empty() {
                        return None;
                    }
                    Version::V1(controllers)
                }
            }
        }
        _ => return None,
    };
    Some(Hierarchy { version, root: unescape(point) })
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
             30 25 0:27 / /mnt/with\\040blank rw - cgroup cgroup rw,pids\n",
        );
        let versions: Vec<_> = layout.hierarchies.iter().map(|h| h.version.clone()).collect();
        assert_eq!(
            versions,
            [
                Version::V1(vec!["cpu".into(), "cpuacct".into()]),
                Version::Named("systemd".into()),
                Version::V2,
                Version::V1(vec!["pids".into()]),
            ]
        );
        assert_eq!(layout.name(), "hybrid");
        assert_eq!(layout.v1("cpuacct").unwrap().root, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(layout.v1("pids").unwrap().root, Path::new("/mnt/with blank"));
        assert!(layout.v1("memory").is_none());
    }

    #[test]
    fn unified_hosts_are_read() {
        let layout = Layout::parse("30 25 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(layout.unified());
        assert_eq!(layout.name(), "2");
    }
}
