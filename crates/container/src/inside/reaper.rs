//! PID 1 for programs that are not made to be it: forwards signals, reaps orphans, ends with its child.

use std::convert::Infallible;
use std::os::fd::AsFd;

use insula_sys::process;
use rustix::event::{PollFd, PollFlags};

use crate::error::{Context, Result};

const SIGCHLD: i32 = 17;

/// Everything that can be caught, SIGCHLD included.
fn signals() -> Vec<i32> {
    const SIGKILL: i32 = 9;
    const SIGSTOP: i32 = 19;
    (1..=31).filter(|signal| ![SIGKILL, SIGSTOP].contains(signal)).collect()
}

/// Serves as init until the child `main` ends, and ends with its code.
pub(crate) fn run(main: i32) -> Result<Infallible> {
    process::set_title(c"insula-init").context("name", "an init")?;
    let descriptor = process::signal_descriptor(&signals()).context("signalfd", "of an init")?;
    close_everything_but(&descriptor);
    loop {
        let mut poll = [PollFd::new(&descriptor, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, None)).context("poll", "for signals")?;
        while let Some(signal) = process::take_signal(descriptor.as_fd()).context("read", "a signal")? {
            if signal == SIGCHLD {
                reap_until(main)?;
            } else {
                // The child may have ended in between; its SIGCHLD follows.
                let _ = process::kill(main, signal);
            }
        }
    }
}

fn reap_until(main: i32) -> Result<()> {
    while let Some(reaped) = process::reap().context("waitpid", "for a child")? {
        if reaped.pid == main {
            process::exit_now(reaped.code);
        }
    }
    Ok(())
}

/// The channel to the builder above all: its end must be the child's execution.
fn close_everything_but(kept: &impl AsFd) {
    use std::os::fd::AsRawFd;
    let kept = kept.as_fd().as_raw_fd() as u32;
    process::close_all_but(kept);
}
