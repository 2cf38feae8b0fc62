//! The processes of a pid namespace, pid_namespaces(7).

use insula_host::cgroup::Stats;

use crate::{Error, Result};

/// Those in the namespace of this process, as `/proc` shows them here. What cannot be looked at is somebody
/// else's.
pub(super) fn of_namespace(first: i32) -> Result<Vec<i32>> {
    let place = |pid: i32| format!("/proc/{pid}/ns/pid");
    let fail = |source| Error::Call { call: "readlink", on: "a pid namespace", source };
    let namespace = match std::fs::read_link(place(first)) {
        Ok(namespace) => namespace,
        // The last process has gone, and the namespace with it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let entries = std::fs::read_dir("/proc").map_err(fail)?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    Ok(pids.filter(|pid| std::fs::read_link(place(*pid)).is_ok_and(|other| other == namespace)).collect())
}

/// What processes use, for who has no groups to count it: CPU time with that of children that have ended, and resident
/// memory, in which what is shared counts for each (proc_pid_stat(5)). Who has just ended counts for nothing.
pub(super) fn use_of(pids: &[i32]) -> Stats {
    let found: Vec<Use> = pids.iter().filter_map(|pid| Use::of(*pid)).collect();
    let ticks = |part: fn(&Use) -> u64| Some(found.iter().map(part).sum::<u64>() * TICK);
    Stats {
        cpu_total: ticks(|found| found.user + found.system),
        cpu_user: ticks(|found| found.user),
        cpu_system: ticks(|found| found.system),
        memory_usage: Some(found.iter().map(|found| found.resident).sum()),
        pids: Some(found.len() as u64),
        ..Stats::default()
    }
}

/// Nanoseconds of a clock tick: fixed for programs on every Linux in use.
const TICK: u64 = 10_000_000;

struct Use {
    /// Ticks.
    user: u64,
    system: u64,
    /// Bytes.
    resident: u64,
}

impl Use {
    fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may hold anything; the state, field 3, comes behind it.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            user: field(14)? + field(16)?,
            system: field(15)? + field(17)?,
            resident: field(24)? * rustix::param::page_size() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_its_processes() {
        let own = std::process::id() as i32;
        assert!(of_namespace(own).unwrap().contains(&own));
        assert!(of_namespace(i32::MAX).unwrap().is_empty());
        let used = use_of(&[own, i32::MAX]);
        assert_eq!(used.pids, Some(1));
        assert!(used.memory_usage > Some(4096));
    }
}
