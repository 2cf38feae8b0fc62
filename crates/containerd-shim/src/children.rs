//! Every process that falls to the shim is reaped in one place, and its end goes to who waits for it.
//!
//! A container's first process is a child of the program that created it, and comes to the shim, a subreaper,
//! with that program's end. It may have ended before anybody here knows its pid: while something is launched,
//! the ends of unknown processes are kept.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};

use insula_sys::process;
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags};

use crate::error::{Context, Error, Result};
use crate::lock;

const SIGCHLD: i32 = 17;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// 128 and the signal's number when a signal ended it.
    pub(crate) code: i32,
    pub(crate) at: Timestamp,
}

/// Who is told of an end.
pub(crate) trait Ended: Send + Sync {
    fn ended(&self, exit: Exit);
}

/// All children of this process.
#[derive(Default)]
pub struct Children {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    commands: HashMap<i32, Sender<i32>>,
    processes: HashMap<i32, Arc<dyn Ended>>,
    early: HashMap<i32, Exit>,
    launching: usize,
}

impl std::fmt::Debug for Children {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Children").field("launching", &lock(&self.known).launching).finish_non_exhaustive()
    }
}

/// While it lives, ends of unknown processes are kept.
pub(crate) struct Launch<'a>(&'a Children);

impl Drop for Launch<'_> {
    fn drop(&mut self) {
        let mut known = lock(&self.0.known);
        known.launching -= 1;
        if known.launching == 0 {
            known.early.clear();
        }
    }
}

impl Children {
    /// Reaps from now on. To be called before there is another thread: children's ends come as a signal that
    /// every thread has to hold.
    pub fn watch() -> Result<Arc<Self>> {
        process::become_subreaper().context("prctl", "PR_SET_CHILD_SUBREAPER")?;
        let signals = process::signal_descriptor(&[SIGCHLD]).context("signalfd", "for children")?;
        let children = Arc::new(Self::default());
        let reaping = Arc::clone(&children);
        let thread = std::thread::Builder::new().name("reaper".to_owned());
        thread.spawn(move || reaping.reap(&signals)).context("clone", "a thread that reaps")?;
        Ok(children)
    }

    fn reap(&self, signals: &OwnedFd) {
        loop {
            let mut poll = [PollFd::new(signals, PollFlags::IN)];
            let _ = rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, None));
            while let Ok(Some(_)) = process::take_signal(signals.as_fd()) {}
            while let Some(ended) = self.reap_one() {
                ended();
            }
        }
    }

    /// What is to be done for one that ended. A pid is free for others as soon as it is reaped, so who it was
    /// is settled before anybody can be told a new one.
    fn reap_one(&self) -> Option<Box<dyn FnOnce()>> {
        let mut known = lock(&self.known);
        let reaped = process::reap().ok().flatten()?;
        let exit = Exit { code: reaped.code, at: Timestamp::now() };
        if let Some(sender) = known.commands.remove(&reaped.pid) {
            // Nobody waits any more when the call has failed otherwise.
            let _ = sender.send(exit.code);
        } else if let Some(process) = known.processes.remove(&reaped.pid) {
            return Some(Box::new(move || process.ended(exit)));
        } else if known.launching > 0 {
            known.early.insert(reaped.pid, exit);
        }
        Some(Box::new(|| {}))
    }

    /// Runs a program to its end; its exit code.
    pub(crate) fn run(&self, command: &mut Command) -> Result<i32> {
        let (sender, receiver) = mpsc::channel();
        {
            let mut known = lock(&self.known);
            let child = command.spawn().context("execute", command.get_program().display())?;
            known.commands.insert(child.id().cast_signed(), sender);
        }
        receiver.recv().map_err(|_| Error::Invalid("the reaper has ended".to_owned()))
    }

    /// To be held from before a process is launched until it is adopted.
    pub(crate) fn launch(&self) -> Launch<'_> {
        lock(&self.known).launching += 1;
        Launch(self)
    }

    /// `process` is told when this pid ends, or has ended since the launch.
    pub(crate) fn adopt(&self, _launch: &Launch<'_>, pid: i32, process: Arc<dyn Ended>) {
        let early = {
            let mut known = lock(&self.known);
            match known.early.remove(&pid) {
                Some(exit) => Some(exit),
                None => {
                    known.processes.insert(pid, Arc::clone(&process));
                    None
                }
            }
        };
        if let Some(exit) = early {
            process.ended(exit);
        }
    }

    /// Sends a signal while the process cannot have been reaped; whether it could still be.
    pub(crate) fn signal(&self, pid: i32, signal: i32) -> Result<bool> {
        let known = lock(&self.known);
        if !known.processes.contains_key(&pid) {
            return Ok(false);
        }
        process::kill(pid, signal).context("kill", pid)?;
        Ok(true)
    }
}
