//! What this kernel says of its processes, for a host that cannot see them.

use std::fs;

use insula_proto::{Elsewhere, ProcessText, Processes};

/// Processes and bytes of their command lines that are told at most: an answer has to fit a frame.
const MOST: usize = 1000;
const LONGEST: usize = 1024;

/// Adds the descriptions. A process that ends meanwhile is left out.
pub(crate) fn describe(processes: &mut Processes) {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let memory = text("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().trim_end_matches(" kB").parse().ok());
    let uptime = text("/proc/uptime").split('.').next().and_then(|word| word.parse().ok());
    processes.elsewhere = Some(Elsewhere {
        processes: processes.pids.iter().take(MOST).filter_map(|pid| read(*pid)).collect(),
        memory: memory.unwrap_or(0),
        uptime: uptime.unwrap_or(0),
    });
}

/// Whether files have pages that the host has not got yet.
pub(crate) fn left_pages() -> bool {
    // Otherwise some of the counts are with the processors: Documentation/admin-guide/sysctl/vm.rst.
    let gathered = fs::write("/proc/sys/vm/stat_refresh", "1");
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    gathered.is_err() || unwritten(&memory) != Some(0)
}

/// KiB that are written, or are to be, by meminfo's count.
fn unwritten(memory: &str) -> Option<u64> {
    let of = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    Some(of("Dirty:")? + of("Writeback:")?)
}

fn read(pid: i32) -> Option<ProcessText> {
    let file = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
    let text = |name: &str| file(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let mut command = file("cmdline")?;
    command.truncate(LONGEST);
    Some(ProcessText { pid, stat: text("stat")?, status: text("status")?, command })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_are_to_be_written_are_counted() {
        let memory = "MemTotal:  1 kB\nDirty:      12 kB\nWriteback:   4 kB\nWritebackTmp: 9 kB\n";
        assert_eq!(unwritten(memory), Some(16));
        assert_eq!(unwritten("Dirty: 0 kB\nWriteback: 0 kB\n"), Some(0));
        assert_eq!(unwritten("Dirty: 0 kB\n"), None);
    }
}
