//! The kernel's random number generator: random(4).

use std::os::fd::AsRawFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};

use crate::process::check;

/// From linux/random.h, which `libc` has not.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Bytes that one call takes.
const MOST: usize = 64;

/// `struct rand_pool_info` with room for what it carries.
#[repr(C)]
struct PoolInfo {
    /// Bits.
    entropy_count: libc::c_int,
    /// Bytes.
    buf_size: libc::c_int,
    buf: [u8; MOST],
}

/// Mixes up to 64 bytes in, counts every bit of them, and has the kernel draw from a new state at once: two
/// copies of one machine differ from here on. EINVAL if there are more; needs CAP_SYS_ADMIN.
pub fn reseed(bytes: &[u8]) -> Result<()> {
    let mut info = PoolInfo { entropy_count: 0, buf_size: 0, buf: [0; MOST] };
    info.buf.get_mut(..bytes.len()).ok_or(Errno::INVAL)?.copy_from_slice(bytes);
    // At most 64 bytes.
    info.buf_size = bytes.len() as libc::c_int;
    info.entropy_count = info.buf_size * 8;
    let device = rustix::fs::open("/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: RNDADDENTROPY reads the two numbers and as many bytes as the second says, all in `info`.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    // SAFETY: RNDRESEEDCRNG takes nothing.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_fits_is_refused() {
        assert_eq!(reseed(&[0; MOST + 1]), Err(Errno::INVAL));
    }
}
