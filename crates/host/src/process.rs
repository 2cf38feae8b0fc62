//! A process of the host that is told from a later one with the same pid by its start time.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
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

    /// What it does (proc_pid_stat(5), field 3), if it runs; a zombie does not. An error says that it cannot be looked
    /// at for the moment: it may run.
    pub fn look(self) -> rustix::io::Result<Option<char>> {
        self.read(std::fs::read_to_string(format!("/proc/{}/stat", self.pid)))
    }

    fn read(self, stat: std::io::Result<String>) -> rustix::io::Result<Option<char>> {
        let stat = match stat.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)) {
            Err(Errno::NOENT | Errno::SRCH) => return Ok(None),
            stat => stat?,
        };
        let (state, started) = fields(&stat).ok_or(Errno::BADMSG)?;
        let state = state.chars().next().filter(|state| !matches!(state, 'Z' | 'X'));
        Ok(state.filter(|_| started == self.started))
    }

    /// Whether it runs for sure.
    #[must_use]
    pub fn runs(self) -> bool {
        matches!(self.look(), Ok(Some(_)))
    }

    /// Whether it has ended for sure.
    #[must_use]
    pub fn gone(self) -> bool {
        self.look() == Ok(None)
    }

    /// What can be read as soon as it has ended; nothing if it has.
    pub fn pidfd(self) -> rustix::io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        // What has its number from here on is not meant.
        let opened = pidfd_open(pid, PidfdFlags::empty());
        match (self.look(), opened) {
            // Its number may be a thread's by now, of which there is none.
            (Ok(None), _) | (_, Err(Errno::SRCH)) => Ok(None),
            (Ok(Some(_)), opened) => opened.map(Some),
            (Err(errno), _) => Err(errno),
        }
    }

    /// Waits for its end; whether it came in time.
    pub fn ended_within(self, patience: Duration) -> rustix::io::Result<bool> {
        let Some(pidfd) = self.pidfd()? else { return Ok(true) };
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => {}
                ended => return Ok(ended? > 0),
            }
        }
    }

    /// Kills it, if it still runs.
    pub fn kill(self) -> rustix::io::Result<()> {
        let Some(process) = self.pidfd()? else { return Ok(()) };
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
        let (this, successor) = (Process { pid, started }, Process { pid, started: started + 1 });
        assert!(matches!(this.look(), Ok(Some('R' | 'S'))) && this.runs() && !this.gone());
        assert_eq!(successor.look(), Ok(None));
        assert!(!successor.runs() && successor.gone());
        let nobody = Process { pid: i32::MAX, started };
        assert!(nobody.gone() && nobody.pidfd().unwrap().is_none());
        // A successor is not meant.
        successor.kill().unwrap();
        assert_eq!(Process::start_time(i32::MAX), None);
    }

    #[test]
    fn what_cannot_be_looked_at_may_run() {
        let process = Process { pid: 7, started: 4242 };
        let stat = |state: &str, started: u64| {
            format!("7 (a) {state} 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 {started} 9 10")
        };
        assert_eq!(process.read(Ok(stat("T", 4242))), Ok(Some('T')));
        assert_eq!(process.read(Ok(stat("Z", 4242))), Ok(None));
        assert_eq!(process.read(Ok(stat("R", 4243))), Ok(None));
        for gone in [Errno::NOENT, Errno::SRCH] {
            assert_eq!(process.read(Err(gone.into())), Ok(None));
        }
        assert_eq!(process.read(Err(Errno::MFILE.into())), Err(Errno::MFILE));
        assert_eq!(process.read(Ok("7 (a) R".into())), Err(Errno::BADMSG));
    }

    #[test]
    fn an_end_can_be_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id() as i32;
        let process = Process { pid, started: Process::start_time(pid).unwrap() };
        assert!(!process.ended_within(Duration::ZERO).unwrap());
        process.kill().unwrap();
        assert!(process.ended_within(Duration::from_secs(60)).unwrap());
        // A zombie.
        assert!(process.gone() && process.pidfd().unwrap().is_none());
        child.wait().unwrap();
    }

    #[test]
    fn a_thread_that_has_its_number_is_another() {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let own = std::fs::read_link("/proc/thread-self").unwrap();
            tell.send(own.file_name().unwrap().to_str().unwrap().parse().unwrap()).unwrap();
            let _ = ended.recv();
        });
        let process = Process { pid: told.recv().unwrap(), started: 1 };
        assert!(process.gone() && process.pidfd().unwrap().is_none());
        assert!(process.ended_within(Duration::ZERO).unwrap());
        process.kill().unwrap();
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn names_of_programs_do_not_confuse() {
        let stat = "7 (a) S 1 (b) R 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 10";
        assert_eq!(fields(stat), Some(("R", 4242)));
    }
}
