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
        propagation: match attributes.propagation {
            None => 0,
            Some(Propagation::Private) => libc::MS_PRIVATE,
            Some(Propagation::Slave) => libc::MS_SLAVE,
            Some(Propagation::Shared) => libc::MS_SHARED,
        },
        userns_fd: attributes.idmap.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty string, `raw` lives past the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const raw,
            std::mem::size_of::<libc::mount_attr>(),
        )
    };
    if result == -1 { Err(last()) } else { check(0) }
}
