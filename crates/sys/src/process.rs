//! Processes: clone3(2), execve(2), waiting, signals, namespaces.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, Result};

/// Namespace and parentage flags of clone(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CloneFlags(u64);

impl CloneFlags {
    pub const NEWNS: Self = Self(libc::CLONE_NEWNS as u64);
    pub const NEWUTS: Self = Self(libc::CLONE_NEWUTS as u64);
    pub const NEWIPC: Self = Self(libc::CLONE_NEWIPC as u64);
    pub const NEWUSER: Self = Self(libc::CLONE_NEWUSER as u64);
    pub const NEWPID: Self = Self(libc::CLONE_NEWPID as u64);
    pub const NEWNET: Self = Self(libc::CLONE_NEWNET as u64);
    pub const NEWCGROUP: Self = Self(libc::CLONE_NEWCGROUP as u64);
    /// With unshare(2) and setns(2) alone, not with clone3(2): offsets can be set until a process is inside.
    pub const NEWTIME: Self = Self(0x80);
    /// The child becomes a sibling of the caller.
    pub const PARENT: Self = Self(libc::CLONE_PARENT as u64);

    /// No flag: the child shares nothing and is a child of the caller.
    #[must_use]
    pub const fn empty() -> Self {
        Self(0)
    }

    /// The flags of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether no flag is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all flags of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for CloneFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::ops::BitOrAssign for CloneFlags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// clone3(2), since Linux 5.7; the constant of `libc` does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Set in what [`clone`] made: it has one thread, and may be where `/proc` does not know it.
static CLONED: AtomicBool = AtomicBool::new(false);

/// Which side of [`clone`] the caller is on.
#[derive(Debug)]
pub enum Clone {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// fork(2) with namespaces. Refused with `EBUSY` in a process of several threads: the child would
/// inherit locks that nobody releases.
pub fn clone(flags: CloneFlags, cgroup: Option<BorrowedFd<'_>>) -> Result<Clone> {
    if !CLONED.load(Ordering::Relaxed) && !single_threaded()? {
        return Err(Errno::BUSY);
    }
    let mut pidfd: libc::c_int = -1;
    let mut raw = flags.0 | libc::CLONE_PIDFD as u64;
    if cgroup.is_some() {
        raw |= CLONE_INTO_CGROUP;
    }
    let arguments = libc::clone_args {
        flags: raw,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        // With CLONE_PARENT the signal is that of the caller and this field must be 0.
        exit_signal: if flags.contains(CloneFlags::PARENT) { 0 } else { libc::SIGCHLD as u64 },
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: without CLONE_VM and with stack 0 the child runs on its own copy of this stack; the
    // process has one thread, so no lock is held by another; `arguments` and `pidfd` live past the call.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, &raw const arguments, std::mem::size_of::<libc::clone_args>())
    };
    match pid {
        -1 => Err(last()),
        0 => {
            CLONED.store(true, Ordering::Relaxed);
            Ok(Clone::Child)
        }
        pid => {
            // SAFETY: the kernel stored a fresh descriptor in `pidfd` because CLONE_PIDFD was given.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Clone::Parent { pid: pid as i32, pidfd })
        }
    }
}

/// Whether the process has one thread: `/proc/self/task` has a link for each and two of its own.
fn single_threaded() -> Result<bool> {
    Ok(rustix::fs::stat("/proc/self/task")?.st_nlink == 3)
}

/// execve(2); returns only on failure.
#[must_use]
pub fn execve(path: &CStr, arguments: &[CString], environment: &[CString]) -> Errno {
    let terminated =
        |list: &[CString]| list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (argv, envp) = (terminated(arguments), terminated(environment));
    // SAFETY: both arrays end in null and hold pointers to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    last()
}

/// _exit(2): no destructors, no buffers, for the child of [`clone`].
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; nothing of it is used after.
    unsafe { libc::_exit(code) }
}

/// Joins the namespaces of a process, setns(2) with a pidfd and the flags of those to join.
pub fn join_namespaces(pidfd: BorrowedFd<'_>, which: CloneFlags) -> Result<()> {
    // SAFETY: no memory is passed; the flags are namespace flags.
    check(unsafe { libc::setns(pidfd.as_raw_fd(), which.0 as libc::c_int) })
}

/// Joins one namespace by its file, whatever its kind.
pub fn join_namespace(file: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no memory is passed; 0 accepts every kind of namespace.
    check(unsafe { libc::setns(file.as_raw_fd(), 0) })
}

/// unshare(2) of namespaces; file descriptor tables are not touched.
pub fn unshare(which: CloneFlags) -> Result<()> {
    // SAFETY: no memory is passed and only namespace flags can be in `which`.
    check(unsafe { libc::unshare(which.0 as libc::c_int) })
}

/// Marks every descriptor from `first` on close-on-exec, close_range(2).
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: changes flags only; descriptors stay open in this process.
    check(unsafe { libc::close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) })
}

/// Closes every descriptor but one, for a process that keeps nothing else of its parent's. Owners of the
/// others in this process must not be used or dropped afterwards: it is for a loop that never returns.
pub fn close_all_but(kept: u32) {
    // SAFETY: closing ranges cannot touch memory; the caller gives up all owners, as documented.
    unsafe {
        if kept > 0 {
            libc::close_range(0, kept - 1, 0);
        }
        libc::close_range(kept + 1, u32::MAX, 0);
    }
}

/// Closes every descriptor but the standard streams and those of `kept`, for the child of [`clone`]. Owners
/// of the others must not be used or dropped afterwards: it is for what ends in execve or [`exit_now`].
pub fn close_from_3_but(kept: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = kept.iter().map(|kept| kept.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for last in kept.into_iter().chain([u32::MAX]) {
        if first < last {
            let last = if last == u32::MAX { last } else { last - 1 };
            // SAFETY: closing ranges cannot touch memory; the caller gives up all owners, as documented.
            unsafe { libc::close_range(first, last, 0) };
        }
        first = first.max(last.saturating_add(1));
    }
}

/// A descriptor that becomes readable when one of `signals` is pending; they are blocked for the
/// thread and, as the mask is inherited, for its children until [`unblock_signals`].
pub fn signal_descriptor(signals: &[i32]) -> Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset before it is read; pointers live past the calls.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
        let descriptor = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if descriptor < 0 { Err(last()) } else { Ok(OwnedFd::from_raw_fd(descriptor)) }
    }
}

/// Takes one pending signal from a [`signal_descriptor`]: its number, or none.
pub fn take_signal(descriptor: BorrowedFd<'_>) -> Result<Option<i32>> {
    let mut info = [0u8; std::mem::size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(descriptor, &mut info) {
        // ssi_signo is the first field.
        Ok(_) => Ok(Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Gives every signal its default action. What is ignored stays so over execve(2), and whoever started
/// this process may have ignored anything; glibc's posix_spawn(3) ignores the two signals that it keeps for itself, and
/// its signal(2) refuses to change them.
pub fn default_signals() {
    // A `struct sigaction` of the kernel, `SIG_DFL` without flags and mask, on every architecture.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no handler, and the kernel reads no more than that. SIGKILL and SIGSTOP are refused,
        // which is as it should be.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                8usize,
            );
        }
    }
}

/// Leaves only SIGKILL and SIGSTOP to end or stop this process: for one that others rely on.
pub fn ignore_endings() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGPIPE] {
        // SAFETY: SIG_IGN installs no handler.
        unsafe {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
}

/// Makes writing to a closed pipe an error rather than the end, or the reverse.
pub fn ignore_broken_pipes(ignore: bool) {
    // SAFETY: neither action is a handler.
    unsafe {
        libc::signal(libc::SIGPIPE, if ignore { libc::SIG_IGN } else { libc::SIG_DFL });
    }
}

/// Lets every signal through, sigprocmask(2).
pub fn unblock_signals() -> Result<()> {
    // SAFETY: `set` is initialised by sigemptyset before it is read; pointers live past the calls.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()))
    }
}

/// A child that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaped {
    pub pid: i32,
    /// As a shell shows it: 128 and the signal's number when a signal ended it.
    pub code: i32,
}

/// Takes the status of one child that ended, if there is one; never waits.
pub fn reap() -> Result<Option<Reaped>> {
    let mut status = 0;
    // SAFETY: `status` lives past the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
    match pid {
        0 => Ok(None),
        -1 => match last() {
            Errno::CHILD => Ok(None),
            error => Err(error),
        },
        pid => Ok(Some(Reaped { pid, code: exit_code(status) })),
    }
}

/// Waits for one child to end.
pub fn wait_for(pid: i32) -> Result<Reaped> {
    let mut status = 0;
    loop {
        // SAFETY: `status` lives past the call.
        match unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } {
            -1 => match last() {
                Errno::INTR => {}
                error => return Err(error),
            },
            pid => return Ok(Reaped { pid, code: exit_code(status) }),
        }
    }
}

fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

/// Whether this process is in a user namespace that does not have all ids, user_namespaces(7): what it is
/// capable of is so for what belongs to that namespace, and not for the host. Asked once, and for its children
/// too.
pub fn in_user_namespace() -> bool {
    static KNOWN: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *KNOWN.get_or_init(|| {
        // Kernels without user namespaces have no such file.
        std::fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| map.split_whitespace().ne(["0", "0", "4294967295"]))
    })
}

/// The attribute by which overlayfs knows a folder that hides those below it: the one that processes in a
/// user namespace may set, of mounts with `userxattr`, or the usual one.
pub fn overlay_opaque() -> &'static str {
    if in_user_namespace() { "user.overlay.opaque" } else { "trusted.overlay.opaque" }
}

/// kill(2).
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::kill(pid, signal) })
}

/// pidfd_send_signal(2): never hits a recycled pid.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: no memory is passed (the info pointer is null).
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        ) as libc::c_int
    })
}

/// Leaves the session, the folder and the streams of who started this process: it works in `/`,
/// standard input and output become `/dev/null`; standard error stays for last words. SIGPIPE is ignored by Rust's start already.
pub fn detach() -> Result<()> {
    use rustix::fs::{Mode, OFlags};
    match rustix::process::setsid() {
        // A process that leads a group has left already.
        Ok(_) | Err(Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    rustix::process::chdir("/")?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)
}

/// Runs `work` with another user and group in front of file systems, setfsuid(2), all capabilities
/// kept: what a mount that is made there remembers of its maker. For a process of one thread.
pub fn with_file_system_id<T>(id: u32, work: impl FnOnce() -> T) -> Result<T> {
    const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    // SAFETY: these calls take numbers only.
    let set = |bits: libc::c_ulong, id: u32| unsafe {
        check(libc::prctl(libc::PR_SET_SECUREBITS, bits, 0, 0, 0))?;
        // They return the former id and cannot fail for a process that may set any.
        libc::setfsgid(id);
        libc::setfsuid(id);
        Ok(())
    };
    // SAFETY: takes numbers only.
    let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) };
    check(bits)?;
    let bits = bits as libc::c_ulong;
    set(bits | SECBIT_NO_SETUID_FIXUP, id)?;
    let result = work();
    set(bits | SECBIT_NO_SETUID_FIXUP, 0)?;
    set(bits, 0)?;
    Ok(result)
}

/// Orphans below this process become its children, PR_SET_CHILD_SUBREAPER.
pub fn become_subreaper() -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })
}

/// Hides `/proc/self` from other users' processes and forbids tracing, PR_SET_DUMPABLE 0. The
/// next execve undoes it.
pub fn become_undumpable() -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })
}

/// What sched_setattr(2) takes, by the kernel's numbers; times are in nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Schedule {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// How the calling thread gets its turns on processors, sched_setattr(2).
pub fn set_schedule(schedule: Schedule) -> Result<()> {
    /// Its first version, which every kernel takes.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let Schedule { policy, flags, nice, priority, runtime, deadline, period } = schedule;
    let size = size_of::<Attributes>() as u32;
    let attributes = Attributes { size, policy, flags, nice, priority, runtime, deadline, period };
    // SAFETY: the structure lives past the call, and says how large it is.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } as i32)
}

/// How the calling thread gets its turns on disks, ioprio_set(2): class and level by the kernel's numbers.
pub fn set_io_priority(class: u8, level: u8) -> Result<()> {
    const OF_A_PROCESS: libc::c_int = 1;
    let priority = libc::c_int::from(class) << 13 | libc::c_int::from(level);
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, OF_A_PROCESS, 0, priority) } as i32)
}

/// How the kernel looks to the calling process, personality(2).
pub fn set_personality(bits: u32) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::personality(bits.into()) })
}

/// On which nodes memory of the calling thread is, set_mempolicy(2); mode with its flags, and nodes, by the
/// kernel's numbers.
pub fn set_memory_policy(mode: u32, nodes: &[u32]) -> Result<()> {
    const WORD: usize = u64::BITS as usize;
    let highest = nodes.iter().copied().max();
    let mut mask = vec![0_u64; highest.map_or(0, |node| node as usize / WORD + 1)];
    for node in nodes {
        mask[*node as usize / WORD] |= 1 << (*node as usize % WORD);
    }
    // The kernel looks at one bit less than it is told.
    let bits = if mask.is_empty() { 0 } else { mask.len() * WORD + 1 };
    // SAFETY: the mask lives past the call, and the kernel reads no more of it than the bits that it is told.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask.as_ptr(), bits) } as i32)
}

/// PR_SET_NO_NEW_PRIVS: execve grants nothing from now on.
pub fn no_new_privileges() -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

/// PR_SET_IO_FLUSHER: whether this process serves a file system, and must not wait for it when memory is short.
/// Inherited by children. Needs CAP_SYS_RESOURCE.
pub fn flush_io(on: bool) -> Result<()> {
    // From linux/prctl.h, which `libc` has not.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: no memory is passed.
    check(unsafe { libc::prctl(PR_SET_IO_FLUSHER, libc::c_ulong::from(on), 0, 0, 0) })
}

/// The signal that this process gets when its parent ends, PR_SET_PDEATHSIG.
pub fn parent_death_signal(signal: i32) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) })
}

/// A fresh session keyring, keyctl(2) KEYCTL_JOIN_SESSION_KEYRING: the keys of who started us stay
/// behind. A kernel without keyrings has none to leak.
pub fn fresh_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name is allowed and asks for an anonymous keyring.
    let result = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    match result {
        -1 if last() == Errno::NOSYS => Ok(()),
        -1 => Err(last()),
        _ => Ok(()),
    }
}

/// Names the thread (15 bytes), which is what `ps -o comm` shows.
pub fn set_name(name: &CStr) -> Result<()> {
    // SAFETY: the kernel reads at most 16 bytes of a terminated string.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) })
}

/// Names the process: what `ps` shows as its command line. The path of this program on the host, which was
/// there before, is nobody's business who looks from inside.
pub fn set_title(name: &CStr) -> std::io::Result<()> {
    set_name(name)?;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // arg_start and arg_end are fields 48 and 49 of proc_pid_stat(5), the third one follows the name.
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().skip(48 - 3);
    let mut address = || fields.next().and_then(|field| field.parse::<usize>().ok()).unwrap_or(0);
    let (start, end) = (address(), address());
    if start == 0 || end <= start {
        return Err(Errno::NODATA.into());
    }
    let name = name.to_bytes();
    let length = name.len().min(end - start - 1);
    // SAFETY: the kernel says that the strings of the arguments lie in these bytes, which are writable
    // stack of this process; Rust's own copies of them are elsewhere (std::env::args copies), and the
    // process has one thread, so nobody reads them meanwhile.
    unsafe {
        std::ptr::write_bytes(start as *mut u8, 0, end - start);
        std::ptr::copy_nonoverlapping(name.as_ptr(), start as *mut u8, length);
    }
    Ok(())
}

pub(crate) fn check(result: libc::c_int) -> Result<()> {
    if result < 0 { Err(last()) } else { Ok(()) }
}

pub(crate) fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_threads_must_not_clone() {
        // The test harness runs this on a thread of its own.
        assert!(matches!(clone(CloneFlags::empty(), None), Err(Errno::BUSY)));
    }

    #[test]
    fn statuses_read_as_in_a_shell() {
        assert_eq!(exit_code(3 << 8), 3);
        assert_eq!(exit_code(libc::SIGKILL), 137);
    }
}
