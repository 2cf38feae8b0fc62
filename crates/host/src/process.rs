//! A process of the host that is told from a later one with the same pid by its start time.

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A pid and when it began, in clock ticks since the boot (proc_pid_stat(5), field 22).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    pub started: u64,
}

impl Process {
    /// When the process began, if there is one with this pid.
    #[must_use]
    pub fn start_time(pid: i32) -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        fields(&stat).map(|(_, started)| started)
    }

    /// Whether it still runs; a zombie does not.
    #[must_use]
    pub fn alive(self) -> bool {
        self.state().is_some()
    }

    /// Whether it has ended for sure: what cannot be looked at may run.
    #[must_use]
    pub fn gone(self) -> bool {
        match std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(stat) => fields(&stat)
                .is_some_and(|(state, started)| started != self.started || state.starts_with(['Z', 'X'])),
            Err(error) => {
                error.kind() == std::io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
            }
        }
    }

    /// The letter of what it does (proc_pid_stat(5), field 3), if it still runs.
    #[must_use]
    pub fn state(self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let (state, started) = fields(&stat)?;
        let state = state.chars().next().filter(|state| !matches!(state, 'Z' | 'X'))?;
        (started == self.started).then_some(state)
    }

    /// Kills it, if it still runs.
    pub fn kill(self) -> rustix::io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        // What has its number from here on is not meant.
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(()),
            process => process?,
        };
        if !self.alive() {
            return Ok(());
        }
        match pidfd_send_signal(&process, Signal::KILL) {
            Err(Errno::SRCH) => Ok(()),
            killed => killed,
        }
    }
}

/// State and start time. The name of the program, in brackets, may hold anything.
fn fields(stat: &str) -> Option<(&str, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_its_successor() {
        let pid = std::process::id() as i32;
        let started = Process::start_time(pid).unwrap();
        assert!(Process { pid, started }.alive());
        assert!(!Process { pid, started: started + 1 }.alive());
        assert!(matches!(Process { pid, started }.state(), Some('R' | 'S')));
        assert!(!Process { pid, started }.gone() && Process { pid, started: started + 1 }.gone());
        assert!(Process { pid: i32::MAX, started }.gone());
        // A successor is not meant.
        Process { pid, started: started + 1 }.kill().unwrap();
        assert_eq!(Process::start_time(i32::MAX), None);
    }

    #[test]
    fn names_of_programs_do_not_confuse() {
        let stat = "7 (a) S 1 (b) R 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 10";
        assert_eq!(fields(stat), Some(("R", 4242)));
    }
}
