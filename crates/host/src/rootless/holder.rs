//! The process that keeps the namespaces while no daemon runs. It does nothing and has nothing.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use insula_sys::process::{self, Clone, CloneFlags};
use rustix::process::{Pid, PidfdFlags};

use super::error::{Context, Error};
use crate::process::Process;

/// One that ends unless it is told to stay.
#[derive(Debug)]
pub(super) struct Held {
    pid: i32,
    order: UnixStream,
}

/// Clones it, with namespaces in which nothing is mapped yet.
pub(super) fn make() -> Result<Held, Error> {
    let (order, theirs) = UnixStream::pair().context("socketpair", "for the holder of namespaces")?;
    let flags = CloneFlags::NEWUSER | CloneFlags::NEWNS | CloneFlags::NEWNET;
    match process::clone(flags, None) {
        Ok(Clone::Child) => {
            drop(order);
            hold(theirs)
        }
        Ok(Clone::Parent { pid, .. }) => Ok(Held { pid, order }),
        Err(error) => Err(Error::Refused { hint: hint(), source: error.into() }),
    }
}

/// What of the host forbids it, in its own words.
fn hint() -> String {
    let says = |path: &str, value: &str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    for (name, value, path) in [
        ("user.max_user_namespaces", "0", "/proc/sys/user/max_user_namespaces"),
        ("kernel.unprivileged_userns_clone", "0", "/proc/sys/kernel/unprivileged_userns_clone"),
        (
            "kernel.apparmor_restrict_unprivileged_userns",
            "1",
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        ),
    ] {
        if says(path, value) {
            return format!(" ({name} is {value}: this host allows ordinary users none)");
        }
    }
    String::new()
}

fn hold(mut order: UnixStream) -> ! {
    let stays = matches!(order.read(&mut [0]), Ok(1));
    if !stays || settle().is_err() {
        process::exit_now(1);
    }
    // The order's socket, the log and whatever else the daemon had.
    process::close_from_3_but(&[]);
    loop {
        rustix::event::pause();
    }
}

fn settle() -> std::io::Result<()> {
    process::ignore_endings();
    process::detach()?;
    rustix::stdio::dup2_stderr(rustix::stdio::stdout())?;
    // Its text is looked at by whoever lists processes; a name is all that is wanted.
    process::set_title(c"insula: namespaces")
}

impl Held {
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn process(&self) -> Result<Process, Error> {
        let started = Process::start_time(self.pid).ok_or(std::io::ErrorKind::NotFound);
        let started = started.map_err(std::io::Error::from).context("look at", "the holder of namespaces")?;
        Ok(Process { pid: self.pid, started })
    }

    /// It outlives this process from now on.
    pub(super) fn stay(mut self) -> Result<(), Error> {
        self.order.write_all(b"s").context("write to", "the holder of namespaces")?;
        // The end of the socket says that it has let go of all that it had of this process.
        match self.order.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(std::io::ErrorKind::InvalidData.into()),
            Err(error) => Err(error),
        }
        .context("wait for", "the holder of namespaces")
    }
}

/// For setns(2). Its start time is that of the record: it was looked at before.
pub(super) fn open(holder: Process) -> Result<OwnedFd, Error> {
    let pid = Pid::from_raw(holder.pid).ok_or(std::io::ErrorKind::NotFound);
    let pid = pid.map_err(std::io::Error::from).context("look at", "the holder of namespaces")?;
    let opened = rustix::process::pidfd_open(pid, PidfdFlags::empty());
    let pidfd = opened.context("pidfd_open", "the holder of namespaces")?;
    Ok(pidfd)
}
