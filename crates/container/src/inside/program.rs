//! The last steps of a process: streams, folder, user, confinement, execution.

use std::convert::Infallible;
use std::ffi::CString;
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use insula_spec::bundle::document::Hook;
use insula_spec::bundle::{ExactPlan, IoPriorityPlan, MemoryPolicyPlan, SchedulerPlan, State};
use insula_spec::plan::ProcessPlan;
use insula_sys::process::{self, Schedule};
use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::{Errno, FdFlags};
use rustix::thread::CpuSet;

use super::confinement::Confinement;
use super::{places, terminal};
use crate::error::{Context, Error, Result};
use crate::hooks;
use crate::streams::{self, Ends};
use crate::users::{self, Identity};

/// A process that is about to become its program. Its root is the container's already.
pub(crate) struct Program<'a> {
    pub(crate) process: &'a ProcessPlan,
    pub(crate) confinement: &'a Confinement,
    pub(crate) ends: &'a Ends,
    /// Its terminal, where it has one.
    pub(crate) terminal: Option<BorrowedFd<'a>>,
    /// Whether a working folder that is not there is made, as Docker does for a container's first process.
    pub(crate) make_folder: bool,
    /// Left open in the program, under the numbers that they have.
    pub(crate) preserved: &'a [OwnedFd],
    /// What who decides about system calls hears: the container, and the number of this process.
    pub(crate) told: Option<(&'a State, i32)>,
    /// What runs right before it, with no more rights than it has: the files are the container's.
    pub(crate) hooks: Option<(&'a [Hook], &'a State)>,
}

impl Program<'_> {
    /// Returns only on failure.
    pub(crate) fn execute(&self) -> Result<Infallible> {
        let identity = self.identity()?;
        rustix::process::setsid().context("setsid", "for the process")?;
        self.install_streams(&identity)?;
        self.enter_folder()?;
        let environment = environment(self.process, &identity)?;
        let arguments = strings(&self.process.args)?;
        process::close_on_exec_from(3).context("close_range", "from 3 on")?;
        for kept in self.preserved {
            rustix::io::fcntl_setfd(kept, FdFlags::empty())
                .context("fcntl F_SETFD", "a preserved descriptor")?;
        }
        // All others have their default action since the builder began.
        process::ignore_broken_pipes(false);
        process::unblock_signals().context("sigprocmask", "to none")?;
        // 0022 is what login(1) and container engines give.
        let umask = self.process.exact.as_ref().and_then(|exact| exact.umask).unwrap_or(0o022);
        rustix::process::umask(Mode::from_raw_mode(umask & 0o777));
        self.schedule()?;
        let letter = self.confinement.letter(self.told)?;
        let sets = self.confinement.apply_privileged(identity.uid == 0, &letter)?;
        become_user(&identity)?;
        self.confinement.apply_last(&sets, &letter)?;
        if let Some((hooks, state)) = self.hooks {
            hooks::run_all("startContainer", hooks, state)?;
        }
        Err(run(&self.process.args, &self.process.env, &arguments, &environment))
    }

    fn identity(&self) -> Result<Identity> {
        if let Some(exact) = &self.process.exact {
            return exact_identity(exact);
        }
        let numeric = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let passwd = read_inside("etc/passwd")?;
        let asked_group = self.process.user.split_once(':').map(|(_, group)| group);
        // `ann:` asks for no group, and has those of the user.
        let asked_group = asked_group.filter(|group| !group.is_empty());
        let group = if asked_group.is_some_and(numeric) && self.process.groups.iter().all(|g| numeric(g)) {
            String::new()
        } else {
            read_inside("etc/group")?
        };
        users::resolve(&self.process.user, &self.process.groups, &passwd, &group)
    }

    /// As a bundle says; with the rights of the builder, since most of it takes some.
    fn schedule(&self) -> Result<()> {
        let Some(exact) = &self.process.exact else { return Ok(()) };
        if let Some(SchedulerPlan { policy, flags, nice, priority, runtime, deadline, period }) =
            exact.scheduler
        {
            let schedule = Schedule { policy, flags, nice, priority, runtime, deadline, period };
            process::set_schedule(schedule).context("sched_setattr", "process.scheduler")?;
        }
        if let Some(IoPriorityPlan { class, level }) = exact.io_priority {
            process::set_io_priority(class, level).context("ioprio_set", "process.ioPriority")?;
        }
        if let Some(affinity) = &exact.affinity
            && !self.make_folder
        {
            run_on(&affinity.then)?;
        }
        if let Some(MemoryPolicyPlan { mode, nodes }) = &exact.memory_policy {
            process::set_memory_policy(*mode, nodes).context("set_mempolicy", "linux.memoryPolicy")?;
        }
        match exact.personality {
            Some(bits) => process::set_personality(bits).context("personality", "linux.personality"),
            None => Ok(()),
        }
    }

    fn install_streams(&self, identity: &Identity) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
        if let Some(slave) = self.terminal {
            // tty(4): the user of the session owns its terminal; its group stays that of devpts.
            identity.took("fchown", "the terminal", rustix::fs::fchown(slave, Some(uid), None))?;
            terminal::control(slave)?;
            return Ends::install(slave, slave, slave);
        }
        if matches!(self.ends, Ends::Inherited) {
            return streams::hand_over(identity.uid);
        }
        let Ends::Pipes { stdin, stdout, stderr } = self.ends else { return Err(Error::Lost) };
        if identity.uid != 0 {
            for stream in [stdout, stderr] {
                identity.took("fchown", "a stream", rustix::fs::fchown(stream, Some(uid), Some(gid)))?;
            }
        }
        let (stdout, stderr) = (stdout.as_fd(), stderr.as_fd());
        match stdin {
            Some(stdin) => Ends::install(stdin.as_fd(), stdout, stderr),
            None => Ends::install(streams::empty_input()?.as_fd(), stdout, stderr),
        }
    }

    /// Links of `/proc` that
    /// lead to open files instead of paths are not followed: none of them may be the host's.
    fn enter_folder(&self) -> Result<()> {
        let cwd = &self.process.cwd;
        if !cwd.starts_with('/') {
            return Err(Error::Invalid(format!("working directory {cwd:?} is not absolute")));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, Mode::empty()).context("open", "/")?;
        let folder = match places::open(&root, cwd.as_ref(), flags) {
            Err(Errno::NOENT) if self.make_folder => places::make_folder(&root, cwd)?,
            found => found.context("chdir", cwd)?,
        };
        rustix::process::fchdir(&folder).context("chdir", cwd)
    }
}

/// Lets the caller run on these processors alone; on all that it may where there are none.
pub(crate) fn run_on(processors: &[u32]) -> Result<()> {
    if processors.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for processor in processors.iter().filter(|processor| (**processor as usize) < CpuSet::MAX_CPU) {
        set.set(*processor as usize);
    }
    rustix::thread::sched_setaffinity(None, &set).context("sched_setaffinity", "process.execCPUAffinity")
}

/// The ids are as they are told; the container's files say at most where the user is at home.
fn exact_identity(exact: &ExactPlan) -> Result<Identity> {
    let passwd = read_inside("etc/passwd")?;
    Ok(Identity {
        uid: exact.uid,
        gid: exact.gid,
        groups: exact.groups.clone(),
        home: users::home_of(exact.uid, &passwd).to_owned(),
    })
}

fn become_user(identity: &Identity) -> Result<()> {
    let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    identity.took("setgroups", "of the user", super::set_groups(&groups))?;
    let result = rustix::thread::set_thread_res_gid(gid, gid, gid);
    identity.took("setresgid", identity.gid, result)?;
    let result = rustix::thread::set_thread_res_uid(uid, uid, uid);
    identity.took("setresuid", identity.uid, result)
}

impl Identity {
    /// What came of a call with its ids. EINVAL is that the container's user namespace has not all of them; which it
    /// has is looked at then.
    fn took(&self, call: &'static str, on: impl Display, result: Result<(), Errno>) -> Result<()> {
        if result == Err(Errno::INVAL) {
            let uids = users::mapped(&read_inside("proc/self/uid_map")?);
            let gids = users::mapped(&read_inside("proc/self/gid_map")?);
            users::check_mapped("user", [&self.uid], &uids)?;
            users::check_mapped("group", self.groups.iter().chain([&self.gid]), &gids)?;
        }
        result.context(call, on)
    }
}

/// A file of the container, bounded; absent reads as empty. The root is already the container's,
/// so links stay inside; a device or a pipe in its place is not read.
fn read_inside(path: &str) -> Result<String> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("open", "/")?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::openat2(
        &root,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    ) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(String::new()),
        Err(error) => return Err(error).context("openat2", path),
    };
    if !file.metadata().context("fstat", path)?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(users::LARGEST as u64).read_to_end(&mut bytes).context("read", path)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The plan's environment, with `HOME` of the user where it names none.
fn environment(process: &ProcessPlan, identity: &Identity) -> Result<Vec<CString>> {
    let mut environment = strings(&process.env)?;
    if !process.env.iter().any(|entry| entry.starts_with("HOME=")) {
        environment.extend(strings(&[format!("HOME={}", identity.home)])?);
    }
    Ok(environment)
}

fn strings(list: &[String]) -> Result<Vec<CString>> {
    list.iter()
        .map(|text| {
            CString::new(text.as_str()).map_err(|_| Error::Invalid(format!("{text:?} holds a zero byte")))
        })
        .collect()
}

/// Whether there is such a program, as far as it can be said before the working folder is entered and the user
/// changed: what is there may still be refused when it is executed.
pub(super) fn look_up(process: &ProcessPlan) -> Result<()> {
    search(&process.args, &process.env, |path| match rustix::fs::stat(path) {
        Err(error) if path.starts_with('/') && error != Errno::ACCESS => Err(error),
        _ => Ok(()),
    })
}

/// execve(2) of what is found.
fn run(args: &[String], env: &[String], arguments: &[CString], environment: &[CString]) -> Error {
    let Err(error) = search(args, env, |path| Err::<Infallible, _>(attempt(path, arguments, environment)));
    error
}

/// Tries the program where the container's `PATH` has it, as execvp(3) does.
fn search<T>(
    args: &[String],
    env: &[String],
    mut attempt: impl FnMut(&str) -> Result<T, Errno>,
) -> Result<T> {
    let Some(name) = args.first().filter(|name| !name.is_empty()) else {
        return Err(Error::Program {
            program: String::new(),
            reason: "no command specified",
            exit_code: 127,
        });
    };
    let failed = |reason, exit_code| Error::Program { program: name.clone(), reason, exit_code };
    if name.contains('/') {
        return attempt(name).map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR => failed("no such file or directory", 127),
            errno => refused(name, errno),
        });
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or("/usr/bin:/bin");
    let mut denied = None;
    for folder in path.split(':') {
        let folder = if folder.is_empty() { "." } else { folder };
        match attempt(&format!("{folder}/{name}")) {
            Ok(found) => return Ok(found),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => {}
            Err(Errno::ACCESS) => denied = Some(Errno::ACCESS),
            Err(errno) => return Err(refused(name, errno)),
        }
    }
    Err(match denied {
        Some(errno) => refused(name, errno),
        None => failed("executable file not found in $PATH", 127),
    })
}

fn attempt(path: &str, arguments: &[CString], environment: &[CString]) -> Errno {
    match CString::new(path) {
        Ok(path) => process::execve(&path, arguments, environment),
        Err(_) => Errno::NOENT,
    }
}

fn refused(program: &str, errno: Errno) -> Error {
    let reason = match errno {
        Errno::ACCESS | Errno::PERM => "permission denied",
        Errno::NOEXEC => "exec format error",
        Errno::TOOBIG => "argument list too long",
        Errno::ISDIR => "is a directory",
        Errno::NOMEM => "cannot allocate memory",
        _ => return Error::Call { call: "execve", on: program.to_owned(), source: errno.into() },
    };
    Error::Program { program: program.to_owned(), reason, exit_code: 126 }
}
