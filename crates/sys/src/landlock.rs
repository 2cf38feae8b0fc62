//! Landlock, landlock(7): what even a process without privileges can give up for good.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, Result};

use crate::process::check;

/// `LANDLOCK_CREATE_RULESET_VERSION`
const VERSION: libc::c_uint = 1;

/// `struct landlock_ruleset_attr`; kernels take one that is longer than theirs if the rest is zero.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attributes {
    files: u64,
    network: u64,
    scopes: u64,
}

/// Everything that a version of Landlock can forbid, by the bits of linux/landlock.h.
fn everything(version: libc::c_long) -> Attributes {
    let bits = |count: u32| (1 << count) - 1;
    let files = match version {
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    Attributes {
        files: bits(files),
        network: if version >= 4 { bits(2) } else { 0 },
        scopes: if version >= 6 { bits(2) } else { 0 },
    }
}

/// Forbids this thread, and those that it starts from now on, everything that Landlock knows: to open a file
/// by its path, to bind and to connect by TCP, to reach processes outside. What is open stays so. False where
/// the kernel has no Landlock.
///
/// Needs `no_new_privs` or `CAP_SYS_ADMIN` (EPERM).
pub fn forbid_everything() -> Result<bool> {
    // SAFETY: without attributes and with this flag the kernel reads and writes nothing.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Attributes>(), 0_usize, VERSION)
    };
    if version < 0 {
        return match Errno::from_io_error(&std::io::Error::last_os_error()) {
            // Not built in, or not switched on.
            Some(Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
            error => Err(error.unwrap_or(Errno::INVAL)),
        };
    }
    let attributes = everything(version);
    let size = size_of::<Attributes>();
    // SAFETY: the kernel reads `size` bytes of the attributes, which live past the call.
    let made = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0 as libc::c_uint)
    };
    // A descriptor, or -1.
    let number = libc::c_int::try_from(made).unwrap_or(-1);
    check(number)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(number) };
    // SAFETY: takes two numbers.
    let done =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0 as libc::c_uint) };
    check(libc::c_int::try_from(done).unwrap_or(-1))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_versions_forbid_more() {
        assert_eq!(everything(1), Attributes { files: 0x1fff, network: 0, scopes: 0 });
        assert_eq!(everything(3), Attributes { files: 0x7fff, network: 0, scopes: 0 });
        assert_eq!(everything(9), Attributes { files: 0xffff, network: 3, scopes: 3 });
    }

    #[test]
    fn a_thread_that_gave_files_up_opens_none() {
        let forbidden = std::thread::spawn(|| {
            let before = std::fs::File::open("/proc/thread-self/status").unwrap();
            crate::process::no_new_privileges().unwrap();
            let there = forbid_everything().unwrap();
            let opened = std::fs::File::open("/proc/self/status").map_err(|error| error.kind());
            // What is open stays so.
            assert!(std::io::read_to_string(before).unwrap().contains("NoNewPrivs:\t1"));
            (there, opened.err())
        });
        let (there, refused) = forbidden.join().unwrap();
        if there {
            assert_eq!(refused, Some(std::io::ErrorKind::PermissionDenied));
        } else {
            eprintln!("skipped: this kernel has no Landlock");
        }
        std::fs::File::open("/proc/self/status").expect("other threads have lost nothing");
    }
}
