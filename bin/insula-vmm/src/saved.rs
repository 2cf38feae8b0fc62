//! A machine that is saved when it is told to.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use anyhow::Context;
use insula_vmm_core::{Running, Stop};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Serves a machine until it stops, or until `control` asks for its state, which ends it too.
pub(crate) fn run(running: &mut Running, mut control: UnixStream) -> anyhow::Result<Stop> {
    loop {
        let asked = {
            let (machine, control) = (running.event_fd(), control.as_fd());
            let mut polled = [PollFd::new(&machine, PollFlags::IN), PollFd::new(&control, PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let timeout = running.has_more().then_some(&now);
            rustix::io::retry_on_intr(|| poll(&mut polled, timeout)).context("poll")?;
            !polled[1].revents().is_empty()
        };
        if let Some(stop) = running.turn()? {
            return Ok(stop);
        }
        if asked {
            return save(running, &mut control);
        }
    }
}

fn save(running: &Running, control: &mut UnixStream) -> anyhow::Result<Stop> {
    match control.read_exact(&mut [0]) {
        Ok(()) => {}
        // Nobody wants it any more.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Stop::PowerOff),
        Err(error) => return Err(error).context("read the control"),
    }
    running.pause()?;
    let state = running.state()?;
    control.write_all(&(state.len() as u64).to_le_bytes()).context("write to the control")?;
    control.write_all(&state).context("write to the control")?;
    Ok(Stop::PowerOff)
}
