//! Ethernet interfaces whose other end is a descriptor: Documentation/networking/tuntap.rst of the kernel.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};

use crate::process::check;

/// From linux/if_tun.h; `libc` has the request's number for other targets only.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

/// Makes the tap interface `name` (at most 15 bytes), which lives as long as the descriptor is open.
/// Packets have a virtio header of 12 bytes before them. EEXIST or EBUSY if there is one of that name.
pub fn open_tap(name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let tap = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || bytes.contains(&0) {
        return Err(Errno::INVAL);
    }
    // SAFETY: a struct of plain integers and a union of the same, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    // IFF_TUN_EXCL: one that exists is not joined. The flags fit 16 bits.
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which lives past the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    let header: libc::c_int = 12;
    // SAFETY: TUNSETVNETHDRSZ reads an int, which lives past the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const header) })?;
    Ok(tap)
}
