//! Staying in the foreground: signals are passed on, and the end is awaited.

use std::os::fd::AsFd;

use insula_sys::process;
use rustix::event::{PollFd, PollFlags};

use crate::error::{Context, Result};

const SIGCHLD: i32 = 17;
/// What is meant for who waits, or cannot be caught: KILL, STOP, CHLD, and SIGURG, TTIN, TTOU.
const OWN: [i32; 6] = [9, 19, SIGCHLD, 23, 21, 22];

/// Waits for a child, passing signals on; its code, 128 and more for one that a signal ended. Orphans that
/// fall to this process are reaped on the way. `ready` runs when signals are held: none is lost from then on.
pub fn wait(pid: i32, ready: impl FnOnce() -> Result<()>) -> Result<i32> {
    let mut signals: Vec<i32> = (1..=31).filter(|signal| !OWN.contains(signal)).collect();
    signals.push(SIGCHLD);
    let descriptor = process::signal_descriptor(&signals).context("signalfd", "to pass signals on")?;
    ready()?;
    loop {
        while let Some(reaped) = process::reap().context("waitpid", pid)? {
            if reaped.pid == pid {
                return Ok(reaped.code);
            }
        }
        let mut poll = [PollFd::new(&descriptor, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, None)).context("poll", "for signals")?;
        while let Some(signal) = process::take_signal(descriptor.as_fd()).context("read", "a signal")? {
            if signal != SIGCHLD {
                // It may have ended in between; its SIGCHLD follows.
                let _ = process::kill(pid, signal);
            }
        }
    }
}
