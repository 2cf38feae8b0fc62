//! What happens to a container, told as it happens.

use std::time::{Duration, Instant};

use insula_host::cgroup::Stats;
use insula_spec::bundle::Status;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::life::{Found, find};

/// What is told.
#[derive(Debug)]
pub enum Event {
    /// What the container uses, once every while.
    Stats(Box<Stats>),
    /// The kernel has killed a process of it for want of memory.
    OutOfMemory,
}

/// Tells of a container until it ends, or `tell` fails.
pub fn watch<E: From<Error>>(
    root: &std::path::Path,
    id: &str,
    interval: Duration,
    mut tell: impl FnMut(Event) -> Result<(), E>,
) -> Result<(), E> {
    let Found { record, status, .. } = find(root, id)?;
    let init = record.init()?.filter(|_| status != Status::Stopped).ok_or(Error::NotRunning)?;
    let group = record.group()?;
    let memory = group.oom_descriptor().map_err(Error::from)?;
    let mut killed = group.oom_kills().map_err(Error::from)?;
    let mut next = Instant::now() + interval;
    loop {
        let mut watched = vec![PollFd::new(&init, PollFlags::IN)];
        watched.extend(memory.as_ref().map(|memory| PollFd::new(memory, PollFlags::IN)));
        poll(&mut watched, next)?;
        let ended = !watched[0].revents().is_empty();
        if watched.get(1).is_some_and(|memory| !memory.revents().is_empty())
            && let Some(memory) = &memory
        {
            // What it says is how often it was told; what has happened is in the counter.
            let mut count = [0; 4096];
            rustix::io::read(memory, &mut count).context("read", "events of memory")?;
        }
        // The group may be gone with its container.
        let now = group.oom_kills().unwrap_or(killed);
        for _ in killed..now {
            tell(Event::OutOfMemory)?;
        }
        killed = now.max(killed);
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            tell(Event::Stats(Box::new(group.stats().map_err(Error::from)?)))?;
            next += interval;
        }
    }
}

fn poll(watched: &mut [PollFd<'_>], until: Instant) -> Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
    let left = Timespec { tv_sec: seconds, tv_nsec: i64::from(left.subsec_nanos()) };
    match rustix::event::poll(watched, Some(&left)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("poll", "for events"),
    }
}
