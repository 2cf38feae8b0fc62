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

fn read(pid: i32) -> Option<ProcessText> {
    let file = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
    let text = |name: &str| file(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let mut command = file("cmdline")?;
    command.truncate(LONGEST);
    Some(ProcessText { pid, stat: text("stat")?, status: text("status")?, command })
}
