//! A program of ours beside a container, with as little of the host as it can do with: namespaces of its
//! own without anything in them, a user that owns nothing, no way to gain privileges, and an end with who
//! started it.

use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use insula_host::cgroup::Entry;
use insula_sys::process::{self, Clone, CloneFlags};
use rustix::io::FdFlags;
use rustix::mount::MountPropagationFlags;
use rustix::thread::{Gid, Uid};

use crate::build::{Cloned, Guard};
use crate::error::{Context, Error, Result};
use crate::handshake::{self, Channel, Report};

const SIGKILL: i32 = 9;

/// What to execute, and as whom.
#[derive(Debug)]
pub struct JailPlan<'a> {
    pub program: &'a Path,
    pub args: &'a [String],
    /// Open in the program, under the numbers that they have here.
    pub kept: &'a [BorrowedFd<'a>],
    /// Its standard error; without one it is the caller's.
    pub stderr: Option<BorrowedFd<'a>>,
    pub uid: u32,
    pub gid: u32,
    pub entry: &'a Entry,
}

/// A process in a jail; a child of who made it.
#[derive(Debug)]
pub struct Jailed {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

impl Jailed {
    /// Ends it and reaps it. That it has ended already is no error.
    pub fn end(self) {
        drop(Guard(Some(Cloned { pid: self.pid, pidfd: self.pidfd })));
    }
}

/// Executes a program in a jail. For a process of one thread.
pub fn jail(plan: &JailPlan<'_>) -> Result<Jailed> {
    let (outside, inside) = handshake::pair()?;
    let flags =
        [CloneFlags::NEWNS, CloneFlags::NEWPID, CloneFlags::NEWNET, CloneFlags::NEWIPC, CloneFlags::NEWUTS]
            .into_iter()
            .fold(CloneFlags::empty(), |all, flag| all | flag);
    match process::clone(flags, plan.entry.birthplace()).context("clone3", plan.program.display())? {
        Clone::Child => {
            let Err(error) = enter(plan, &inside);
            inside.report_failure(&error);
            process::exit_now(1)
        }
        Clone::Parent { pid, pidfd } => {
            drop(inside);
            listen(&outside, Guard(Some(Cloned { pid, pidfd })))
        }
    }
}

/// Waits for the word that the program is executed.
pub(crate) fn listen(outside: &Channel, child: Guard) -> Result<Jailed> {
    match outside.await_report()? {
        Report::Executed => {
            let Cloned { pid, pidfd } = child.disarm()?;
            Ok(Jailed { pid, pidfd })
        }
        _ => Err(Error::Lost),
    }
}

fn enter(plan: &JailPlan<'_>, channel: &Channel) -> Result<std::convert::Infallible> {
    plan.entry.enter()?;
    if let Some(stderr) = plan.stderr {
        rustix::stdio::dup2_stderr(stderr).context("dup2", "standard error")?;
    }
    keep(plan.kept, channel)?;
    let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", alone).context("mount", "the namespace as private")?;
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    rustix::thread::set_thread_groups(&[]).context("setgroups", plan.program.display())?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).context("setresgid", plan.gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).context("setresuid", plan.uid)?;
    process::no_new_privileges().context("prctl", "PR_SET_NO_NEW_PRIVS")?;
    // After the change of user, which takes it back.
    process::parent_death_signal(SIGKILL).context("prctl", "PR_SET_PDEATHSIG")?;
    execute(plan.program, plan.args)
}

/// Leaves the standard streams and `kept` open, the latter over execve too.
pub(crate) fn keep(kept: &[BorrowedFd<'_>], channel: &Channel) -> Result<()> {
    use std::os::fd::AsFd;
    let mut open = kept.to_vec();
    open.push(channel.as_fd());
    process::close_from_3_but(&open);
    for descriptor in kept {
        rustix::io::fcntl_setfd(descriptor, FdFlags::empty()).context("fcntl F_SETFD", "a descriptor")?;
    }
    Ok(())
}

/// execve(2) with no environment but a plain `PATH`; returns only on failure.
pub(crate) fn execute(program: &Path, args: &[String]) -> Result<std::convert::Infallible> {
    let text = |bytes: &[u8]| {
        CString::new(bytes)
            .map_err(|_| Error::Invalid(format!("{} has a zero byte in it", program.display())))
    };
    let path = text(program.as_os_str().as_bytes())?;
    let mut arguments = vec![path.clone()];
    for argument in args {
        arguments.push(text(argument.as_bytes())?);
    }
    process::unblock_signals().context("sigprocmask", program.display())?;
    process::default_signals();
    let errno = process::execve(&path, &arguments, &[c"PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned()]);
    Err(errno).context("execve", program.display())
}
