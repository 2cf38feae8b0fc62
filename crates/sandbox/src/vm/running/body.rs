//! What a container has of a machine: all of it, or a seat in the machine of a tenant.

use std::os::fd::{AsFd, BorrowedFd};

use insula_spec::machine::{CardsChange, MachinePlan, MachineRecord};
use insula_spec::plan::{InterfacePlan, NetworkChange};

use super::super::backend::Machine;
use super::super::cards::Cards;
use super::super::console::Console;
use super::super::seat::Seat;
use super::super::sockets::Sockets;
use super::{ENDED, ready};
use crate::{Error, Result};

/// That the machine of a tenant has ended, where nothing else is known.
pub(in super::super) const TENANT_ENDED: &str = "the tenant's machine ended";

#[derive(Debug)]
pub(super) enum Body {
    Whole(Whole),
    Seat(Seat),
}

/// A machine of its own.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) machine: Machine,
    pub(super) cards: Cards,
    pub(super) console: Console,
    pub(super) sockets: Option<Sockets>,
}

impl Body {
    /// The stream to the agent.
    pub(super) fn channel(&self) -> BorrowedFd<'_> {
        match self {
            Self::Whole(whole) => whole.machine.channel.as_fd(),
            Self::Seat(seat) => seat.channel.as_fd(),
        }
    }

    /// What is waited for besides.
    pub(super) fn watched(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Whole(whole) => {
                let own = [whole.machine.console.as_fd(), whole.machine.process.pidfd.as_fd()];
                own.into_iter().chain(whole.sockets.as_ref().map(Sockets::watched)).collect()
            }
            Self::Seat(_) => Vec::new(),
        }
    }

    /// Of the process that is the machine.
    pub(super) fn pid(&self) -> i32 {
        match self {
            Self::Whole(whole) => whole.machine.process.pid,
            Self::Seat(seat) => seat.machine.pid,
        }
    }

    /// Takes what the guest prints.
    pub(super) fn read_console(&mut self) {
        if let Self::Whole(whole) = self {
            whole.console.read(whole.machine.console.as_fd());
        }
    }

    /// Connects the guest to who it wants on the host; false if the machine does not want that any more, and would be
    /// heard of again and again.
    pub(super) fn connect_sockets(&self) -> Result<bool> {
        match self {
            Self::Whole(Whole { sockets: Some(sockets), .. }) => sockets.serve(),
            Self::Whole(_) | Self::Seat(_) => Ok(true),
        }
    }

    /// Whether the machine's process has ended.
    pub(super) fn ended(&self) -> bool {
        match self {
            Self::Whole(whole) => ready(whole.machine.process.pidfd.as_fd()),
            // Its streams end with it.
            Self::Seat(_) => false,
        }
    }

    /// What is said of an end, with what the guest printed last.
    pub(super) fn last_words(&mut self, why: &str) -> String {
        match self {
            Self::Whole(whole) => {
                whole.console.finish(whole.machine.console.as_fd());
                whole.console.said(why)
            }
            Self::Seat(seat) => match seat.last_word() {
                Some(word) => word,
                None if why == ENDED => TENANT_ENDED.to_owned(),
                None => why.to_owned(),
            },
        }
    }

    /// The same while it runs.
    pub(super) fn said(&self, what: &str) -> String {
        match self {
            Self::Whole(whole) => whole.console.said(what),
            Self::Seat(_) => what.to_owned(),
        }
    }

    /// The host's part of other networks, as far as it goes: what the guest is to do.
    pub(super) fn plug(&mut self, change: &NetworkChange, cards: &mut CardsChange) -> Result<()> {
        match self {
            Self::Whole(whole) => {
                for name in &change.unplug {
                    let place = whole.cards.place(name);
                    cards.unplug.extend(place.map(|place| (place, name.clone())));
                }
                for plan in &change.plug {
                    cards.plug.push(whole.cards.plug(plan)?);
                }
            }
            Self::Seat(seat) => {
                for name in &change.unplug {
                    let place = seat.place(name);
                    cards.unplug.extend(place.map(|place| (place, name.clone())));
                }
                cards.plug = seat.wire(Vec::new(), change.plug.clone())?;
            }
        }
        Ok(())
    }

    /// Cards send at other rates.
    pub(super) fn shape(&mut self, plans: &[InterfacePlan]) -> Result<()> {
        match self {
            Self::Whole(whole) => {
                let placed = |plan: &InterfacePlan| Some((whole.cards.place(&plan.name)?, plan.rate));
                plans.iter().filter_map(placed).try_for_each(|(place, rate)| whole.cards.hold(place, rate))
            }
            Self::Seat(_) if plans.is_empty() => Ok(()),
            Self::Seat(seat) => seat.shape(plans),
        }
    }

    /// Takes cards out of their networks.
    pub(super) fn unplug(&mut self, places: &[usize]) -> Result<()> {
        match self {
            Self::Whole(whole) => {
                let unplugged: Vec<_> = places.iter().map(|place| whole.cards.unplug(*place)).collect();
                unplugged.into_iter().collect()
            }
            Self::Seat(_) if places.is_empty() => Ok(()),
            Self::Seat(seat) => seat.wire(places.to_vec(), Vec::new()).map(drop),
        }
    }

    /// What is known of it, but for the container's files.
    pub(super) fn record(&self, plan: &MachinePlan, kernel: &str, boot: u64) -> MachineRecord {
        let record = MachineRecord {
            backend: plan.backend,
            program: String::new(),
            pid: self.pid(),
            root: Default::default(),
            cpus: plan.cpus,
            memory: plan.memory,
            kernel: kernel.to_owned(),
            taps: Vec::new(),
            boot,
            template: plan.template.is_some(),
            refused: false,
            mapped: false,
            vsock: None,
        };
        match self {
            Self::Whole(whole) => MachineRecord {
                program: whole.machine.program.to_owned(),
                taps: whole.cards.names(),
                vsock: whole.sockets.as_ref().map(|sockets| sockets.path().to_owned()),
                ..record
            },
            Self::Seat(seat) => MachineRecord {
                backend: seat.machine.backend,
                program: seat.machine.program.clone(),
                cpus: seat.machine.cpus,
                memory: seat.machine.memory,
                taps: seat.names(),
                boot: seat.machine.boot,
                template: seat.machine.template,
                ..record
            },
        }
    }

    /// The seat, if it is one.
    pub(super) fn seat(&self) -> Result<&Seat> {
        match self {
            Self::Seat(seat) => Ok(seat),
            Self::Whole(_) => Err(Error::Phase { is: "in a machine of its own", needed: "in a tenant's" }),
        }
    }

    /// Ends the machine, or leaves it.
    pub(super) fn end(self) {
        match self {
            Self::Whole(whole) => whole.machine.process.end(),
            Self::Seat(seat) => seat.leave(),
        }
    }
}
