//! Monitors that wait for a container: to start one takes longer than to build a container.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::program::Program;
use super::{Process, is_stopped};
use crate::{Error, Result};

/// How many wait. The next one is started when one is taken, beside its container's work.
const SPARES: usize = 2;

/// How long a missing one is waited with while another waits.
const PAUSE: Duration = Duration::from_millis(25);

/// A monitor that has nothing to do yet.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) process: Process,
    pub(crate) socket: UnixStream,
}

/// The pool, and the children to reap.
#[derive(Debug)]
pub(crate) struct Spares {
    program: Program,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Spare>,
    /// Somebody is about to refill.
    coming: bool,
    /// Every monitor that this daemon started and that has not ended.
    children: Vec<Child>,
}

impl Spares {
    pub(crate) fn new(program: PathBuf) -> Self {
        Self { program: Program::new(program), inner: Arc::default() }
    }

    /// Reaps monitors as they end, until the pool is gone.
    pub(crate) fn reap(&self) -> Result<()> {
        let mut ended =
            signal(SignalKind::child()).map_err(|e| Error::io("sigaction", Path::new("SIGCHLD"), e))?;
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            while ended.recv().await.is_some() {
                let Some(inner) = inner.upgrade() else { return };
                // An error is as final as an end: the child is not ours to wait for.
                lock(&inner).children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
            }
        });
        Ok(())
    }

    /// One that waits, or a new one.
    pub(crate) fn take(&self) -> Result<Spare> {
        loop {
            let Some(spare) = lock(&self.inner).waiting.pop_front() else { return self.spawn() };
            if is_stopped(spare.process) {
                // Another one begins sooner. This one would end as soon as somebody continues it.
                let _ = spare.process.kill();
            } else if spare.alive() {
                return Ok(spare);
            }
        }
    }

    /// Those that wait, and whether they still listen.
    pub(crate) fn waiting(&self) -> Vec<(Process, bool)> {
        lock(&self.inner).waiting.iter().map(|spare| (spare.process, spare.alive())).collect()
    }

    /// Forgets those that wait no more.
    pub(crate) fn drop_ended(&self) {
        lock(&self.inner).waiting.retain(Spare::alive);
    }

    /// When somebody should refill the pool; never while somebody is about to.
    pub(crate) fn wanted(&self) -> Option<Duration> {
        let mut inner = lock(&self.inner);
        let missing = inner.waiting.len() < SPARES;
        if !missing || std::mem::replace(&mut inner.coming, true) {
            return None;
        }
        Some(if inner.waiting.is_empty() { Duration::ZERO } else { PAUSE })
    }

    /// Starts as many as are missing. Takes a millisecond for each.
    pub(crate) fn refill(&self) -> Result<()> {
        lock(&self.inner).coming = false;
        while lock(&self.inner).waiting.len() < SPARES {
            let spare = self.spawn()?;
            lock(&self.inner).waiting.push_back(spare);
        }
        Ok(())
    }

    fn spawn(&self) -> Result<Spare> {
        let fail = |call, error| Error::io(call, self.program.path(), error);
        let (ours, theirs) = UnixStream::pair().map_err(|e| fail("socketpair", e))?;
        // Nothing that std would need fork(2) for, which copies the daemon's page tables: the
        // monitor leaves the daemon's session and folder by itself.
        let child = self
            .program
            .command()
            .arg("serve")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| fail("execute", e))?;
        // The kernel's pids fit.
        let pid = child.id() as i32;
        lock(&self.inner).children.push(child);
        let started = Process::start_time(pid).unwrap_or_default();
        Ok(Spare { process: Process { pid, started }, socket: ours })
    }
}

impl Spare {
    /// Whether the other end of its socket is open: a peer that has gone has sent an end.
    fn alive(&self) -> bool {
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        rustix::net::recv(&self.socket, &mut [0u8; 1][..], flags) == Err(rustix::io::Errno::AGAIN)
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    #[test]
    fn one_that_is_stopped_is_not_waited_for() {
        let spares = Spares::new("/bin/false".into());
        let mut ends = Vec::new();
        let mut wait = || {
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            let pid = child.id() as i32;
            let (socket, end) = UnixStream::pair().unwrap();
            let process = Process { pid, started: Process::start_time(pid).unwrap() };
            ends.push(end);
            lock(&spares.inner).children.push(child);
            lock(&spares.inner).waiting.push_back(Spare { process, socket });
            process
        };
        let (stopped, waits) = (wait(), wait());
        kill_process(Pid::from_raw(stopped.pid).unwrap(), Signal::STOP).unwrap();
        while !is_stopped(stopped) {
            std::thread::yield_now();
        }
        assert_eq!(spares.take().unwrap().process, waits);
        assert!(stopped.ended_within(Duration::from_secs(60)).unwrap());
        for child in &mut lock(&spares.inner).children {
            child.kill().and_then(|()| child.wait()).unwrap();
        }
    }
}
