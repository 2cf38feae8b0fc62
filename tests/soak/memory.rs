//! Memory and descriptors of the daemon and of monitors.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use insula_tests::Daemon;
use serde_json::Value;

/// How long it is watched, and how often: the least counts, since a client may be there at any moment.
///
/// Threads of the daemon that have nothing to do end after ten seconds, and their stacks with them; what its
/// allocator has free goes back to the host every twenty.
const WATCHED: Duration = Duration::from_secs(45);
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone)]
pub(crate) struct Memory {
    /// KiB of its own: heap, stacks, what it has written to. Pages of files, of its program for one, are the
    /// kernel's to give and to take, and come as code runs for the first time.
    daemon: u64,
    /// Of all kept containers together.
    monitors: u64,
    /// Open files of the daemon.
    descriptors: usize,
}

impl Memory {
    /// What they have when they are idle; a monitor gives memory back a second after its last work.
    pub(crate) fn at_rest(daemon: &Daemon, kept: &[&str]) -> Self {
        let monitors: Vec<i64> = kept.iter().map(|name| monitor(daemon, name)).collect();
        let daemon = i64::from(daemon.pid());
        let began = Instant::now();
        let mut least = Self { daemon: u64::MAX, monitors: u64::MAX, descriptors: usize::MAX };
        while began.elapsed() < WATCHED {
            least.daemon = least.daemon.min(own(daemon));
            least.monitors = least.monitors.min(monitors.iter().map(|pid| own(*pid)).sum());
            least.descriptors = least.descriptors.min(descriptors(daemon));
            std::thread::park_timeout(PAUSE);
        }
        least
    }

    /// Of each the one of which there is more.
    pub(crate) fn most(self, other: &Self) -> Self {
        Self {
            daemon: self.daemon.max(other.daemon),
            monitors: self.monitors.max(other.monitors),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }

    /// Of each the one of which there is less.
    pub(crate) fn least(self, other: &Self) -> Self {
        Self {
            daemon: self.daemon.min(other.daemon),
            monitors: self.monitors.min(other.monitors),
            descriptors: self.descriptors.min(other.descriptors),
        }
    }

    /// What has grown by more than so many percent.
    pub(crate) fn grown(&self, after: &Self, percent: u64) -> Vec<String> {
        let much = |before: u64, after: u64| after * 100 > before * (100 + percent);
        let mut grown = Vec::new();
        if much(self.daemon, after.daemon) {
            grown.push(format!("insulad from {} to {} KiB", self.daemon, after.daemon));
        }
        if much(self.monitors, after.monitors) {
            grown.push(format!("monitors from {} to {} KiB", self.monitors, after.monitors));
        }
        if much(self.descriptors as u64, after.descriptors as u64) {
            grown.push(format!("descriptors from {} to {}", self.descriptors, after.descriptors));
        }
        grown
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { daemon, monitors, descriptors } = self;
        write!(f, "insulad {daemon} KiB, monitors {monitors} KiB, descriptors of insulad {descriptors}")
    }
}

fn monitor(daemon: &Daemon, name: &str) -> i64 {
    let id = daemon.inspect(name, "/Id");
    let sandbox = daemon.instance().run().join("sandboxes").join(id.as_str().unwrap());
    let launch: Value = serde_json::from_slice(&fs::read(sandbox.join("launch.json")).unwrap()).unwrap();
    launch["monitor"]["pid"].as_i64().unwrap()
}

/// `Pss_Anon` of proc_pid_smaps(5), in KiB.
pub(crate) fn own(pid: i64) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss_Anon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(pid: i64) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}
