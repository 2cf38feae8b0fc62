//! The set of descriptors that the monitor waits for, epoll(7), each with a token.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use crate::error::{Context, Result};

/// Names a registered descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Token(pub(crate) u64);

/// Which process' streams something belongs to; 0 is the container's first process.
pub(crate) type ProcessKey = u32;

/// What a registered descriptor is to the monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The socket that daemons connect to.
    Listener,
    /// The wall's own events.
    Sandbox,
    /// A daemon's connection, by its number.
    Connection(u64),
    /// An output of a process.
    Output(ProcessKey),
    /// The standard input of a process, when it could not take everything at once.
    Input(ProcessKey),
    /// A client of a process' streams.
    Client(ProcessKey),
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interest {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Interest {
    pub(crate) const READ: Self = Self { read: true, write: false };
    /// Only the end of the other side, which is always told.
    pub(crate) const NONE: Self = Self { read: false, write: false };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        if self.read {
            flags |= EventFlags::IN | EventFlags::RDHUP;
        }
        if self.write {
            flags |= EventFlags::OUT;
        }
        flags
    }
}

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    Some(Duration),
    /// For as long as it takes, ready to act at once.
    Ready,
    /// For as long as it takes: memory that waiting does not need is given back.
    Endless,
}

/// A descriptor that is ready.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    pub(crate) token: Token,
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// Both directions are closed, or the descriptor is broken.
    pub(crate) gone: bool,
}

#[derive(Debug)]
pub(crate) struct Poll {
    epoll: OwnedFd,
    next: u64,
    /// A handful at most: searched in order.
    places: Vec<(Token, Place)>,
}

impl Poll {
    pub(crate) fn new() -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("epoll_create1", "")?;
        Ok(Self { epoll, next: 1, places: Vec::new() })
    }

    pub(crate) fn add(&mut self, descriptor: impl AsFd, interest: Interest, place: Place) -> Result<Token> {
        let token = Token(self.next);
        self.next += 1;
        epoll::add(&self.epoll, descriptor, EventData::new_u64(token.0), interest.flags())
            .context("epoll_ctl", "to add a descriptor")?;
        self.places.push((token, place));
        Ok(token)
    }

    pub(crate) fn change(&self, descriptor: impl AsFd, token: Token, interest: Interest) -> Result<()> {
        epoll::modify(&self.epoll, descriptor, EventData::new_u64(token.0), interest.flags())
            .context("epoll_ctl", "to change a descriptor")
    }

    /// What a token stands for; none if it was removed since the wait.
    pub(crate) fn place(&self, token: Token) -> Option<Place> {
        self.places.iter().find(|(known, _)| *known == token).map(|(_, place)| *place)
    }

    /// To be called before the descriptor is closed: a duplicate elsewhere would keep it alive here.
    pub(crate) fn remove(&mut self, descriptor: impl AsFd, token: Token) -> Result<()> {
        self.places.retain(|(known, _)| *known != token);
        match epoll::delete(&self.epoll, descriptor) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).context("epoll_ctl", "to remove a descriptor"),
        }
    }

    /// Waits for something to be ready; after [`Patience::Some`] nothing is.
    pub(crate) fn wait(&self, patience: Patience) -> Result<Vec<Ready>> {
        let mut events = Vec::with_capacity(16);
        let patience = match patience {
            Patience::Some(time) => Some(Timespec {
                // Patience is seconds.
                tv_sec: time.as_secs() as i64,
                tv_nsec: time.subsec_nanos().into(),
            }),
            Patience::Ready => None,
            Patience::Endless => {
                // Right before the call, so that little comes back.
                insula_sys::memory::drop_pages();
                None
            }
        };
        rustix::io::retry_on_intr(|| {
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), patience.as_ref())
        })
        .context("epoll_wait", "")?;
        Ok(events
            .iter()
            .map(|event: &epoll::Event| {
                // The kernel's struct is packed: fields are copied before they are looked at.
                let (flags, data) = (event.flags, event.data);
                Ready {
                    token: Token(data.u64()),
                    read: flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                    write: flags.contains(EventFlags::OUT),
                    gone: flags.intersects(EventFlags::HUP | EventFlags::ERR),
                }
            })
            .collect())
    }
}
