//! What a wall with a kernel of its own needs of whoever runs the machine. A backend is chosen in
//! [`start`]; nothing outside this folder knows which there are.

use std::fmt::Debug;
use std::os::fd::{BorrowedFd, OwnedFd};

use insula_host::cgroup::Entry;
use insula_spec::machine::{Backend, MachinePlan};
use insula_spec::plan::InterfacePlan;

use super::qemu;
use crate::Result;

/// What a machine is made of.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) plan: &'a MachinePlan,
    /// Connected to who serves the container's files, by the vhost-user protocol.
    pub(super) files: OwnedFd,
    pub(super) interfaces: Vec<Interface<'a>>,
    /// User and group of the process that is the machine.
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The control group that it runs in.
    pub(super) entry: &'a Entry,
}

/// A network interface of a machine.
#[derive(Debug)]
pub(super) struct Interface<'a> {
    pub(super) plan: &'a InterfacePlan,
    /// The host's end.
    pub(super) tap: OwnedFd,
}

/// A machine that runs: a process that is a child of this one.
pub(super) trait Machine: Debug {
    /// What runs it, for people.
    fn program(&self) -> &str;

    fn pid(&self) -> i32;

    /// Readable when it has ended.
    fn pidfd(&self) -> BorrowedFd<'_>;

    /// A stream to the agent.
    fn channel(&self) -> BorrowedFd<'_>;

    /// What the guest prints.
    fn console(&self) -> BorrowedFd<'_>;

    /// Ends it at once and frees what it holds. That it has ended already is no error.
    fn end(self: Box<Self>);
}

/// Starts a machine. It boots on its own; the agent's first word says that it has.
pub(super) fn start(parts: Parts<'_>) -> Result<Box<dyn Machine>> {
    match parts.plan.backend {
        Backend::Kvm | Backend::Qemu => Ok(Box::new(qemu::start(parts)?)),
    }
}
