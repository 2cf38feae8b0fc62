//! The one call of the mount API that rustix lacks: mount_setattr(2).

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Result;

use crate::process::{check, last};

/// Attributes of a mount to set; what is not named stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct MountAttributes<'a> {
    pub readonly: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    /// User namespace whose mapping is put between the file system and who looks.
    pub idmap: Option<BorrowedFd<'a>>,
    pub propagation: Option<Propagation>,
}

/// Propagation types of mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Private,
    Slave,
    Shared,
    Unbindable,
}

impl Propagation {
    const fn bits(self) -> u64 {
        match self {
            Self::Private => libc::MS_PRIVATE,
            Self::Slave => libc::MS_SLAVE,
            Self::Shared => libc::MS_SHARED,
            Self::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// Changes the mount that `mount` (from open_tree or fsmount) is the root of, and all below it
/// when `recursive`.
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: MountAttributes<'_>, recursive: bool) -> Result<()> {
    let mut set = 0;
    for (on, bit) in [
        (attributes.readonly, libc::MOUNT_ATTR_RDONLY),
        (attributes.nosuid, libc::MOUNT_ATTR_NOSUID),
        (attributes.nodev, libc::MOUNT_ATTR_NODEV),
        (attributes.noexec, libc::MOUNT_ATTR_NOEXEC),
        (attributes.idmap.is_some(), libc::MOUNT_ATTR_IDMAP),
    ] {
        if on {
            set |= bit;
        }
    }
    let raw = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: attributes.propagation.map_or(0, Propagation::bits),
        userns_fd: attributes.idmap.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    set_raw(mount, &raw, recursive)
}

/// Sets and clears `MOUNT_ATTR_…` bits of a mount, and of all below it when `recursive`. Those for times of
/// access are one number, not bits: all of them are to be cleared when one is set.
pub fn change_attributes(mount: BorrowedFd<'_>, set: u64, clear: u64, recursive: bool) -> Result<()> {
    let raw = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    set_raw(mount, &raw, recursive)
}

fn set_raw(mount: BorrowedFd<'_>, raw: &libc::mount_attr, recursive: bool) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty string, `raw` lives past the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(raw),
            std::mem::size_of::<libc::mount_attr>(),
        )
    };
    if result == -1 { Err(last()) } else { check(0) }
}
