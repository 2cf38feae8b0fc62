//! Limits as they stand in the files of a group, for who else writes them: systemd writes all that it knows of a
//! group again, whenever it is told of a part.

use std::os::unix::fs::MetadataExt;

use super::error::{Context, Result};
use super::group::Group;
use super::member::Member;

const PROCESSES: &str = "pids.max";
/// Files that systemd writes, with the controller that they belong to in version 1.
const FIRST: [(&str, &str); 5] = [
    ("memory", "memory.limit_in_bytes"),
    ("cpu", SHARES),
    ("cpu", "cpu.cfs_period_us"),
    ("cpu", "cpu.cfs_quota_us"),
    ("pids", PROCESSES),
];
/// What can be written in version 2 and is no limit of its own: a file that shows another one in other words, and one
/// that shows more than can be written.
const OTHER: [&str; 2] = ["cpu.weight.nice", "cpuset.cpus.partition"];
/// Ends of those that are about the one who has opened them.
const OF_READERS: [&str; 2] = [".pressure", ".peak"];
const IDLE: &str = "cpu.idle";
const WEIGHT: &str = "cpu.weight";
const SHARES: &str = "cpu.shares";

/// Files of a group and what was in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing(pub(crate) Vec<(String, String)>);

impl Standing {
    /// What is in a file; none where the host does not have it, or nothing is.
    #[must_use]
    pub fn of(&self, file: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == file);
        found.map(|(_, text)| text.as_str()).filter(|text| !text.is_empty())
    }
}

impl Group {
    /// What stands in the files that systemd writes.
    pub fn standing(&self) -> Result<Standing> {
        let mut all = Standing::default();
        for (member, file) in self.managed()? {
            if let Some(text) = member.read(&file)? {
                all.0.push((file, text.trim().to_owned()));
            }
        }
        let first = self.v1("cpu").map(|member| member.read(IDLE)).transpose()?.flatten();
        if all.of(IDLE) == Some("1") || first.is_some_and(|text| text.trim() == "1") {
            // What is shown of it cannot be written.
            all.0.retain(|(file, _)| ![WEIGHT, SHARES].contains(&file.as_str()));
        }
        Ok(all)
    }

    /// Writes what does not stand any more.
    pub fn restore(&self, standing: &Standing) -> Result<()> {
        for (member, file) in self.managed()? {
            let Some((_, value)) = standing.0.iter().find(|(name, _)| *name == file) else { continue };
            if member.read(&file)?.is_some_and(|now| now.trim() != value) {
                // Of those that have a line for each device the kernel takes one at a time.
                let lines: Vec<String> = value.lines().map(str::to_owned).collect();
                let lines = if lines.is_empty() { vec!["\n".to_owned()] } else { lines };
                member.write_each(&file, &lines)?;
            }
        }
        Ok(())
    }

    /// Lets one process more be there than its limit says; what it says, where there is one.
    pub fn make_room(&self) -> Result<Option<u64>> {
        let Some(member) = self.v1("pids").or_else(|| self.v2()) else { return Ok(None) };
        let limit = member.read(PROCESSES)?.and_then(|text| text.trim().parse::<u64>().ok());
        if let Some(limit) = limit {
            member.write(PROCESSES, &(limit + 1).to_string())?;
        }
        Ok(limit)
    }

    /// Ends what [`Group::make_room`] has begun.
    pub fn take_room(&self, limit: Option<u64>) -> Result<()> {
        match (self.v1("pids").or_else(|| self.v2()), limit) {
            (Some(member), Some(limit)) => member.write(PROCESSES, &limit.to_string()),
            _ => Ok(()),
        }
    }

    /// The files of version 1 that systemd knows, and all limits of version 2. What the idle have no weight of their own
    /// by comes before that.
    fn managed(&self) -> Result<Vec<(&Member, String)>> {
        let first =
            FIRST.into_iter().filter_map(|(controller, file)| Some((self.v1(controller)?, file.to_owned())));
        let mut all: Vec<(&Member, String)> = first.collect();
        if let Some(member) = self.v2() {
            let mut files = limits(member)?;
            files.sort_unstable();
            all.extend(files.into_iter().map(|file| (member, file)));
        }
        Ok(all)
    }
}

/// Files of a group of version 2 that can be read and written: those of its controllers, whichever this kernel has.
fn limits(member: &Member) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&member.path).context("open", member.path.display())? {
        let entry = entry.context("getdents64", member.path.display())?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let own = name.starts_with("cgroup.") || OTHER.contains(&name.as_str());
        if own || OF_READERS.iter().any(|end| name.ends_with(end)) {
            continue;
        }
        let found = entry.metadata().context("stat", member.path.join(&name).display())?;
        // Whose owner cannot read it, or not write it, gives an order or tells a number.
        if found.is_file() && found.mode() & 0o600 == 0o600 {
            files.push(name);
        }
    }
    Ok(files)
}

/// The group of this name that a process is in, from the root of systemd's hierarchy: proc_pid_cgroup(5). None where
/// it is in another one.
pub fn place(pid: i32, name: &str) -> Result<Option<String>> {
    let path = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&path).context("read", path)?;
    Ok(place_in(&text, name))
}

fn place_in(text: &str, name: &str) -> Option<String> {
    let paths = text.lines().filter_map(|line| {
        let (hierarchy, path) = line.split_once(':')?.1.split_once(':')?;
        matches!(hierarchy, "" | "name=systemd").then_some(path.trim_start_matches('/'))
    });
    paths.into_iter().find(|path| path.rsplit('/').next() == Some(name)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::layout::{Hierarchy, Layout, Version};

    /// A group of version 2 whose files are plain ones.
    fn group(files: &[(&str, &str)]) -> (tempfile::TempDir, Group) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("one")).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join("one").join(name), text).unwrap();
        }
        let root = folder.path().to_owned();
        let layout = Layout { hierarchies: vec![Hierarchy { version: Version::V2, root, limits: true }] };
        let group = Group::open(&layout, "one").unwrap();
        (folder, group)
    }

    #[test]
    fn what_is_written_over_is_put_right_again() {
        let files = [("memory.oom.group", "1\n"), ("memory.zswap.max", "max\n"), ("pids.max", "7\n")];
        let (folder, group) = group(&files);
        let path = |name: &str| folder.path().join("one").join(name);
        let standing = group.standing().unwrap();
        for (name, _) in files {
            std::fs::write(path(name), "0").unwrap();
        }
        group.restore(&standing).unwrap();
        for (name, text) in files {
            assert_eq!(std::fs::read_to_string(path(name)).unwrap(), text.trim());
        }
    }

    #[test]
    fn limits_are_what_can_be_read_and_written() {
        let names = [
            "hugetlb.2MB.max",
            "io.max",
            "memory.pressure",
            "memory.peak",
            "cpu.weight.nice",
            "cgroup.freeze",
        ];
        let files: Vec<(&str, &str)> =
            names.iter().chain(&["memory.reclaim", "memory.stat"]).map(|name| (*name, "1")).collect();
        let (folder, group) = group(&files);
        for (name, mode) in [("memory.reclaim", 0o200), ("memory.stat", 0o444)] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(folder.path().join("one").join(name), mode).unwrap();
        }
        let standing = group.standing().unwrap();
        let names: Vec<&str> = standing.0.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["hugetlb.2MB.max", "io.max"]);
    }

    #[test]
    fn devices_have_a_line_each() {
        let (folder, group) = group(&[("io.bfq.weight", "default 500\n8:0 20\n")]);
        let standing = group.standing().unwrap();
        let path = folder.path().join("one/io.bfq.weight");
        std::fs::write(&path, "").unwrap();
        group.restore(&standing).unwrap();
        // A write each: what is a device's replaces nothing in the kernel's file.
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "default 5008:0 20");
    }

    #[test]
    fn the_idle_have_no_weight() {
        let (_folder, group) = group(&[("cpu.idle", "1\n"), ("cpu.weight", "0\n")]);
        let idle = Standing(vec![("cpu.idle".to_owned(), "1".to_owned())]);
        assert_eq!(group.standing().unwrap(), idle);
    }

    #[test]
    fn the_group_of_a_unit_is_found_in_either_version() {
        let name = "insula-a:b.scope";
        let path = "system.slice/insula-a:b.scope";
        assert_eq!(place_in(&format!("0::/{path}\n"), name).as_deref(), Some(path));
        let first = format!("9:name=systemd:/{path}\n8:pids:/other/{name}\n0::/\n");
        assert_eq!(place_in(&first, name).as_deref(), Some(path));
        assert_eq!(place_in("9:name=systemd:/user.slice\n0::/user.slice\n", name), None);
    }
}
