//! An init that is cloned before its container is known: most of what a start takes the kernel to make, a
//! network namespace first of all, is there by then.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use insula_host::cgroup::Entry;
use insula_spec::plan::{ContainerPlan, Namespace, StdioPlan, UserNamespace};
use insula_sys::process::{self, Clone, CloneFlags};

use crate::build::{Cloned, Guard};
use crate::error::{Context, Error, Result};
use crate::handshake::{self, Channel, Order};
use crate::inside::{Confinement, Inside};
use crate::streams::Ends;

/// What a container has of its own if nobody asks for less. The mount namespace is made later: a copy of the
/// host's would keep in use what is unmounted there meanwhile.
const AHEAD: CloneFlags = CloneFlags::NEWUSER
    .union(CloneFlags::NEWPID)
    .union(CloneFlags::NEWNET)
    .union(CloneFlags::NEWIPC)
    .union(CloneFlags::NEWUTS);

const SIGKILL: i32 = 9;

/// An init that waits for its plan, with no ids mapped. It ends with its maker.
#[derive(Debug)]
pub struct Spare {
    cloned: Guard,
    channel: Channel,
    /// It was born in the group that it is to be in.
    born: bool,
}

impl Spare {
    /// For a process of one thread whose umask is 0, as [`crate::create`]. It is born in its group, where that is
    /// there already and processes can be.
    pub fn make(entry: Option<&Entry>) -> Result<Self> {
        let (outside, inside) = handshake::pair_with_bell()?;
        let birthplace = entry.and_then(Entry::birthplace);
        match process::clone(AHEAD, birthplace).context("clone3", "an init to come")? {
            Clone::Parent { pid, pidfd } => {
                let cloned = Guard(Some(Cloned { pid, pidfd }));
                Ok(Self { cloned, channel: outside, born: birthplace.is_some() })
            }
            Clone::Child => wait(&inside),
        }
    }

    /// Whether it can be the init of no container but of that whose group it was born in.
    #[must_use]
    pub fn is_born_in_a_group(&self) -> bool {
        self.born
    }

    /// Gives it the plan of a container that it can become the init of, which it reads while others make the groups; it
    /// ends otherwise.
    #[must_use]
    pub fn told(self, plan: &ContainerPlan) -> Option<Told> {
        if suits(plan) && self.tell(plan).is_ok() {
            return Some(Told(self));
        }
        // In its group nobody else is to find it.
        if self.born {
            drop(self)
        } else {
            self.abandon()
        }
        None
    }

    fn tell(&self, plan: &ContainerPlan) -> Result<()> {
        let text = serde_json::to_vec(plan).map_err(|_| Error::Lost)?;
        // The text may be more than the socket takes before somebody reads.
        self.channel.order(&Order::Become { length: text.len() })?;
        self.channel.give_text(&text)
    }

    /// Ends it without waiting for that.
    fn abandon(self) {
        if let Ok(Cloned { pidfd, .. }) = self.cloned.disarm() {
            // It may have ended by itself.
            let _ = process::signal(pidfd.as_fd(), SIGKILL);
        }
    }
}

/// A spare that knows its plan.
#[derive(Debug)]
pub struct Told(Spare);

impl Told {
    /// Itself, unless the init has to be born in its group: on version 2 of control groups to be moved there is slow.
    pub(crate) fn suited(self, entry: &Entry) -> Option<Self> {
        if self.0.born || entry.birthplace().is_none() {
            return Some(self);
        }
        self.0.abandon();
        None
    }

    /// Makes it the init of its container, in a mount namespace of its own. It reports when it has entered that and its
    /// groups.
    pub(crate) fn become_init(self, ends: &Ends, entry: &Entry) -> Result<(Cloned, Channel)> {
        let Self(spare) = self;
        let gift: Vec<BorrowedFd<'_>> =
            ends.descriptors().into_iter().chain(entry.tasks().iter().map(AsFd::as_fd)).collect();
        spare.channel.give(&gift)?;
        spare.channel.ring()?;
        Ok((spare.cloned.disarm()?, spare.channel))
    }
}

/// Whether a spare can become the init of this container.
fn suits(plan: &ContainerPlan) -> bool {
    let namespaces = &plan.namespaces;
    let own = [&namespaces.pid, &namespaces.network, &namespaces.ipc, &namespaces.uts];
    matches!(namespaces.user, UserNamespace::Private { .. })
        && own.into_iter().all(|namespace| *namespace == Namespace::Private)
        && !matches!(namespaces.cgroup, Namespace::Path(_))
        && plan.bundle.is_none()
}

/// The clone, from its first moment. What its maker has open is not its business.
fn wait(channel: &Channel) -> ! {
    process::close_from_3_but(&channel.descriptors().collect::<Vec<_>>());
    // If it fails here it is tried again, and its failure told, when there is a container.
    let loopback = insula_host::netlink::configure_loopback().is_ok();
    // Nobody wants it any more, most likely.
    let Ok(Order::Become { length }) = channel.await_order() else { process::exit_now(0) };
    let Err(error) = serve(channel, length, loopback);
    channel.report_failure(&error);
    process::exit_now(1)
}

fn serve(channel: &Channel, length: usize, loopback: bool) -> Result<std::convert::Infallible> {
    let text = channel.take_text(length)?;
    let plan: ContainerPlan = serde_json::from_slice(&text).map_err(|_| Error::Lost)?;
    let confinement = Confinement::prepare(&plan, &plan.process, &plan.security.seccomp)?;
    let hierarchies = channel.await_any()?;
    let (ends, tasks) = split(&plan.stdio, hierarchies)?;
    let entry = Entry::received(tasks);
    let inside = Inside {
        plan: &plan,
        ends: &ends,
        confinement: &confinement,
        channel,
        entry: &entry,
        loopback,
        bundle: None,
    };
    inside.enter_group()?;
    process::unshare(CloneFlags::NEWNS).context("unshare", "the mount namespace")?;
    channel.report_entered()?;
    inside.run()
}

/// The ends of the streams, as [`Ends::descriptors`] has them, and what comes after them.
fn split(stdio: &StdioPlan, descriptors: Vec<OwnedFd>) -> Result<(Ends, Vec<OwnedFd>)> {
    let mut rest = descriptors.into_iter();
    if stdio.tty {
        return Ok((Ends::Terminal { columns: stdio.columns, rows: stdio.rows }, rest.collect()));
    }
    let stdin = if stdio.open_stdin { Some(rest.next().ok_or(Error::Lost)?) } else { None };
    let (Some(stdout), Some(stderr)) = (rest.next(), rest.next()) else { return Err(Error::Lost) };
    Ok((Ends::Pipes { stdin, stdout, stderr }, rest.collect()))
}
