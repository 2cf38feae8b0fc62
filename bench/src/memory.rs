//! What an engine costs beside the workloads, in KiB.

use std::fs;

use anyhow::Context;

/// Of one engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Proportional set size of the helper processes of one idle container, the mean over several.
    pub(crate) helper_pss: u64,
    /// Resident set size of the daemons without containers; `None` where there are none.
    pub(crate) daemon_rss: Option<u64>,
}

/// Proportional set size of a process.
pub(crate) fn pss(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    field(&text, "Pss:").with_context(|| format!("{path} has no Pss"))
}

/// Resident set size of a process.
pub(crate) fn rss(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    field(&text, "VmRSS:").with_context(|| format!("{path} has no VmRSS"))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn parent(pid: u32) -> anyhow::Result<u32> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    field(&text, "PPid:").map(|pid| pid as u32).with_context(|| format!("{path} has no PPid"))
}

/// The helpers of a container: the ancestors of its first process below the daemon, this program
/// or the host's own first process.
pub(crate) fn helpers(first: u32, daemons: &[u32]) -> anyhow::Result<Vec<u32>> {
    let mut helpers = Vec::new();
    let mut pid = parent(first)?;
    while pid > 1 && pid != std::process::id() && !daemons.contains(&pid) && !is_subreaper_of_others(pid) {
        helpers.push(pid);
        pid = parent(pid)?;
    }
    Ok(helpers)
}

/// Whether the process is above this program: orphans are handed to it where a session has a
/// reaper of its own.
fn is_subreaper_of_others(pid: u32) -> bool {
    let mut above = std::process::id();
    while above > 1 {
        match parent(above) {
            Ok(next) if next == pid => return true,
            Ok(next) => above = next,
            Err(_) => return false,
        }
    }
    false
}
