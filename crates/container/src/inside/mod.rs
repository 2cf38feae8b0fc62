//! What happens inside, between the clone and the execution of the program. This code runs with
//! full rights over the container's own namespaces and, without a user namespace, over the
//! host; nothing of the container's runs before it is done.

mod bundle;
mod cgroups;
mod clocks;
mod confinement;
mod copy_up;
mod labels;
mod mounts;
mod paths;
mod places;
mod program;
mod reaper;
mod terminal;

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

use insula_host::cgroup::Entry;
use insula_spec::bundle::document::Hook;
use insula_spec::bundle::{Keyring, State, TimePlan};
use insula_spec::plan::{ContainerPlan, InitPlan, Namespace, UserNamespace};
use insula_sys::process::{self, Clone, CloneFlags};
use rustix::io::Errno;
use rustix::thread::{Gid, Uid};

use crate::error::{Context, Error, Result};
use crate::handshake::{Channel, Order};
use crate::streams::Ends;

pub(crate) use bundle::Parking;
pub use confinement::warm_up;
pub(crate) use confinement::{Confinement, has_selinux};
pub(crate) use labels::{label_by_path, label_keyring_inside};
pub(crate) use mounts::{OPEN, attach_below, new_file_system};
pub(crate) use places::{make_folder, make_folder_as};
pub(crate) use program::{Program, run_on};
pub(crate) use terminal::open as open_terminal;

/// The init of a container.
pub(crate) struct Inside<'a> {
    pub(crate) plan: &'a ContainerPlan,
    pub(crate) ends: &'a Ends,
    pub(crate) confinement: &'a Confinement,
    pub(crate) channel: &'a Channel,
    pub(crate) entry: &'a Entry,
    /// The loopback of its network namespace is up.
    pub(crate) loopback: bool,
    /// The container is a bundle's, and waits for its start without its builder.
    pub(crate) bundle: Option<Parking<'a>>,
}

impl Inside<'_> {
    /// The first thing that the clone does: whatever it makes is accounted to the container.
    pub(crate) fn enter_group(&self) -> Result<()> {
        Ok(self.entry.enter()?)
    }

    /// Builds, executes, and on failure says why.
    pub(crate) fn run(&self) -> ! {
        self.let_go();
        let Err(error) = match &self.bundle {
            Some(parking) => self.build_and_park(parking),
            None => self.build_and_execute(),
        };
        self.channel.report_failure(&error);
        process::exit_now(i32::from(error.exit_code().unwrap_or(1)))
    }

    /// Closes the descriptors of the builder. They would be closed by the execution, but until then paths
    /// like `/proc/self/fd/9` lead through them to the host.
    fn let_go(&self) {
        let mut kept = self.ends.descriptors();
        kept.extend(self.channel.descriptors());
        kept.extend(self.bundle.iter().flat_map(Parking::descriptors));
        kept.extend(self.confinement.listener());
        process::close_from_3_but(&kept);
    }

    fn build_and_execute(&self) -> Result<Infallible> {
        let Order::Prepare = self.channel.await_order()? else { return Err(Error::Lost) };
        self.take_identity()?;
        let own = mounts::prepare(self.plan)?;
        let Order::Build { start } = self.channel.await_order()? else { return Err(Error::Lost) };
        let mut gift = self.channel.take(2 + mounts::binds(self.plan))?.into_iter();
        let (Some(rootfs), Some(devices)) = (gift.next(), gift.next()) else {
            return Err(Error::Lost);
        };
        self.build(own, &rootfs, devices, gift.collect())?;
        drop(rootfs);
        let terminal = terminal::open(self.ends, self.channel)?;
        if let Some(slave) = &terminal {
            mounts::bind_console(slave.as_fd())?;
        }
        if !start {
            // Who waits to start it had better know now.
            program::look_up(&self.plan.process)?;
            self.channel.report_ready()?;
            self.channel.await_order()?;
        }
        self.execute(terminal, None, None)
    }

    /// Becomes root of the new user namespace, leader of a session, with keys of its own.
    fn take_identity(&self) -> Result<()> {
        if let Some(TimePlan::Private(offsets)) = self.bundle.as_ref().and_then(|own| own.plan.time.as_ref())
        {
            clocks::enter(offsets)?;
        }
        process::become_undumpable().context("prctl", "PR_SET_DUMPABLE")?;
        if self.plan.namespaces.user != UserNamespace::Host {
            become_root()?;
        }
        if self.plan.namespaces.cgroup == Namespace::Private {
            process::unshare(CloneFlags::NEWCGROUP).context("unshare", "the cgroup namespace")?;
        }
        labels::label_keyring(&self.plan.process)?;
        fresh_keyring(self.plan)
    }

    fn build(
        &self,
        own: mounts::Own,
        rootfs: &OwnedFd,
        devices: OwnedFd,
        sources: Vec<OwnedFd>,
    ) -> Result<()> {
        let built = mounts::build(own, rootfs, devices, sources)?;
        paths::set_sysctls(built.proc.as_ref(), &self.plan.sysctls)?;
        paths::protect(&self.plan.security, &built)?;
        mounts::enter(self.plan, rootfs)?;
        self.name()?;
        self.connect()
    }

    fn name(&self) -> Result<()> {
        if self.plan.namespaces.uts != Namespace::Private {
            return Ok(());
        }
        // A bundle may leave the name as it is.
        if !(self.plan.bundle.is_some() && self.plan.hostname.is_empty()) {
            rustix::system::sethostname(self.plan.hostname.as_bytes())
                .context("sethostname", &self.plan.hostname)?;
        }
        if !self.plan.domainname.is_empty() {
            rustix::system::setdomainname(self.plan.domainname.as_bytes())
                .context("setdomainname", &self.plan.domainname)?;
        }
        Ok(())
    }

    fn connect(&self) -> Result<()> {
        let done = self.loopback && self.plan.interfaces.is_empty();
        if self.plan.namespaces.network != Namespace::Private || done {
            return Ok(());
        }
        Ok(insula_host::netlink::configure_all(&self.plan.interfaces)?)
    }

    /// `told` is what who decides about system calls hears: the container, and the number of this process.
    fn execute(
        &self,
        terminal: Option<OwnedFd>,
        told: Option<(&State, i32)>,
        hooks: Option<(&[Hook], &State)>,
    ) -> Result<Infallible> {
        let program = Program {
            process: &self.plan.process,
            confinement: self.confinement,
            ends: self.ends,
            terminal: terminal.as_ref().map(AsFd::as_fd),
            make_folder: true,
            preserved: self.bundle.as_ref().map_or(&[], |parking| parking.preserved),
            told,
            hooks,
        };
        if self.plan.init != InitPlan::Reaper {
            return program.execute();
        }
        match process::clone(CloneFlags::empty(), None).context("clone3", "the program of an init")? {
            Clone::Child => program.execute(),
            Clone::Parent { pid, .. } => {
                self.confinement.apply_for_reaper()?;
                reaper::run(pid)
            }
        }
    }
}

/// Keys of the session are the container's own, unless a bundle wants those of who creates it.
pub(crate) fn fresh_keyring(plan: &ContainerPlan) -> Result<()> {
    match plan.bundle.as_ref().map(|bundle| bundle.keyring) {
        Some(Keyring::Inherited) => Ok(()),
        _ => process::fresh_keyring().context("keyctl", "a session keyring"),
    }
}

/// setgroups(2). A user namespace that an ordinary user has made without further ids denies it
/// (user_namespaces(7)): whoever is in it keeps the groups of that user, and can have no other than 0 anyway.
pub(crate) fn set_groups(groups: &[Gid]) -> rustix::io::Result<()> {
    match rustix::thread::set_thread_groups(groups) {
        Err(Errno::PERM)
            if groups.iter().all(|group| *group == Gid::ROOT) && process::in_user_namespace() =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Takes id 0 of the user namespace, with no supplementary groups. All capabilities in the namespace are
/// held already.
pub(crate) fn become_root() -> Result<()> {
    set_groups(&[]).context("setgroups", "to none")?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).context("setresgid", "to 0")?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).context("setresuid", "to 0")
}
