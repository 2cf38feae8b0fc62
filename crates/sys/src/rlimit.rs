//! Resource limits of another process: prlimit(2).

use rustix::io::{Errno, Result};
use rustix::process::{Pid, Resource};

/// The hard limit of a process; `u64::MAX` is unlimited.
pub fn hard(process: Pid, resource: Resource) -> Result<u64> {
    let mut current = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the new limit is absent, so nothing is set; the old one is written to a local of
    // the type that prlimit64 expects, which lives until the call returns.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            process.as_raw_nonzero().get(),
            resource as u32,
            std::ptr::null::<libc::rlimit64>(),
            &raw mut current,
        )
    };
    if answer == 0 {
        return Ok(current.rlim_max);
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_getrlimit() {
        let expected = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        assert_eq!(hard(rustix::process::getpid(), Resource::Nofile), Ok(expected));
    }
}
