//! System call filters: seccomp(2), `SECCOMP_SET_MODE_FILTER`.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, Result};

/// One instruction of a classic BPF program, as the kernel reads it (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub k: u32,
}

/// The longest program that the kernel takes (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// Puts a filter before every later system call of this thread and of what it forks and executes.
/// Filters add up and never go away.
///
/// Needs `no_new_privs` or `CAP_SYS_ADMIN` in the thread's user namespace (EACCES), and a program
/// of 1 to [`MAX_INSTRUCTIONS`] instructions (EINVAL). Makes one system call, allocates nothing.
pub fn set_filter(program: &[Instruction], flags: u32) -> Result<()> {
    match install(program, flags)? {
        0 => Ok(()),
        _ => Err(Errno::INVAL),
    }
}

/// The same with `SECCOMP_FILTER_FLAG_NEW_LISTENER` among the flags: the descriptor, close-on-exec, by which
/// calls are told whose action is `SECCOMP_RET_USER_NOTIF`. seccomp_unotify(2).
pub fn set_filter_with_listener(program: &[Instruction], flags: u32) -> Result<OwnedFd> {
    if u64::from(flags) & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Err(Errno::INVAL);
    }
    let number = i32::try_from(install(program, flags)?).map_err(|_| Errno::INVAL)?;
    // SAFETY: with this flag the answer is a new descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn install(program: &[Instruction], flags: u32) -> Result<libc::c_long> {
    let Ok(length) = u16::try_from(program.len()) else { return Err(Errno::INVAL) };
    let header = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the header lives until the call returns and points to `length` instructions, whose
    // layout is that of `sock_filter` (same fields, repr(C)); the kernel only reads them.
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const header) };
    match answer {
        -1 => Err(last_errno()),
        answer => Ok(answer),
    }
}

/// A call that waits for somebody's decision: seccomp_unotify(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    pub id: u64,
    /// As the pid namespace of who asks sees it.
    pub pid: u32,
    pub number: i32,
    pub arguments: [u64; 6],
}

/// Waits for the next call that the filter behind a listener leaves to others.
pub fn next_notification(listener: BorrowedFd<'_>) -> Result<Notification> {
    let mut told = libc::seccomp_notif {
        id: 0,
        pid: 0,
        flags: 0,
        data: libc::seccomp_data { nr: 0, arch: 0, instruction_pointer: 0, args: [0; 6] },
    };
    // SAFETY: the kernel fills a structure of this layout, which is zero as it wants it and lives past the call.
    let answer = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut told) };
    crate::process::check(answer)?;
    Ok(Notification { id: told.id, pid: told.pid, number: told.data.nr, arguments: told.data.args })
}

/// Has a call that waits return this, without being made; an error is its number.
pub fn answer_notification(listener: BorrowedFd<'_>, id: u64, result: Result<i64>) -> Result<()> {
    let (val, error) = match result {
        Ok(value) => (value, 0),
        Err(errno) => (0, -errno.raw_os_error()),
    };
    let said = libc::seccomp_notif_resp { id, val, error, flags: 0 };
    // SAFETY: the kernel reads a structure of this layout, which lives past the call.
    crate::process::check(unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const said)
    })
}

/// Whether the kernel knows a filter action (`SECCOMP_RET_…` without data).
pub fn action_available(action: u32) -> Result<bool> {
    // SAFETY: the pointer is to an u32 that lives until the call returns; the kernel only reads it.
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0_u32, &raw const action) };
    if answer == 0 {
        return Ok(true);
    }
    match last_errno() {
        Errno::OPNOTSUPP => Ok(false),
        error => Err(error),
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_that_of_sock_filter() {
        assert_eq!(size_of::<Instruction>(), size_of::<libc::sock_filter>());
        assert_eq!(align_of::<Instruction>(), align_of::<libc::sock_filter>());
    }

    #[test]
    fn an_empty_program_is_refused() {
        assert_eq!(set_filter(&[], 0), Err(Errno::INVAL));
    }

    #[test]
    fn a_program_that_is_too_long_is_refused() {
        let allow = Instruction { code: 0x06, jump_true: 0, jump_false: 0, k: 0x7fff_0000 };
        assert_eq!(set_filter(&vec![allow; MAX_INSTRUCTIONS + 1], 0), Err(Errno::INVAL));
        assert_eq!(set_filter(&vec![allow; 70_000], 0), Err(Errno::INVAL));
    }

    #[test]
    fn actions_are_told_apart() {
        assert_eq!(action_available(0x7fff_0000), Ok(true));
        assert_eq!(action_available(0x1234_0000), Ok(false));
    }
}
