//! Limits as they stand in the files of a group, for who else writes them: systemd writes all that it knows of a
//! group again, whenever it is told of a part.

use super::error::{Context, Result};
use super::group::Group;
use super::member::Member;

const PROCESSES: &str = "pids.max";
/// Files that systemd writes, with the controller that they belong to in version 1.
const FIRST: [(&str, &str); 5] = [
    ("memory", "memory.limit_in_bytes"),
    ("cpu", "cpu.shares"),
    ("cpu", "cpu.cfs_period_us"),
    ("cpu", "cpu.cfs_quota_us"),
    ("pids", PROCESSES),
];
const SECOND: [&str; 12] = [
    "memory.min",
    "memory.low",
    "memory.high",
    "memory.max",
    "memory.swap.max",
    "cpu.weight",
    "cpu.idle",
    "cpu.max",
    "cpuset.cpus",
    "cpuset.mems",
    "io.weight",
    PROCESSES,
];

/// Files of a group and what was in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing(pub(crate) Vec<(&'static str, String)>);

impl Standing {
    /// What is in a file; none where the host does not have it, or nothing is.
    #[must_use]
    pub fn of(&self, file: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| *name == file);
        found.map(|(_, text)| text.as_str()).filter(|text| !text.is_empty())
    }
}

impl Group {
    /// What stands in the files that systemd writes.
    pub fn standing(&self) -> Result<Standing> {
        let mut all = Standing::default();
        for (member, file) in self.managed() {
            if let Some(text) = member.read(file)? {
                all.0.push((file, text.trim().to_owned()));
            }
        }
        Ok(all)
    }

    /// Writes what does not stand any more.
    pub fn restore(&self, standing: &Standing) -> Result<()> {
        for (member, file) in self.managed() {
            let Some((_, value)) = standing.0.iter().find(|(name, _)| *name == file) else { continue };
            if member.read(file)?.is_some_and(|now| now.trim() != value) {
                member.write(file, value)?;
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

    fn managed(&self) -> impl Iterator<Item = (&Member, &'static str)> {
        let first = FIRST.into_iter().filter_map(|(controller, file)| Some((self.v1(controller)?, file)));
        let second = self.v2().into_iter().flat_map(|member| SECOND.map(|file| (member, file)));
        first.chain(second)
    }
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
