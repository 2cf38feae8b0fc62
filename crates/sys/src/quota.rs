//! Project quotas: what a tree of files may take. quotactl(2), quotactl_fd(2), ioctl_fsgetxattr(2).

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

use crate::process::{check, last};

/// From linux/fs.h.
const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;
const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
const FS_XFLAG_PROJINHERIT: u32 = 0x200;
/// From linux/quota.h and linux/dqblk_xfs.h. These commands are for every file system with quotas, not for XFS
/// alone.
const PRJQUOTA: u32 = 2;
const Q_XGETQUOTA: u32 = (b'X' as u32) << 8 | 3;
const Q_XSETQLIM: u32 = (b'X' as u32) << 8 | 4;
const Q_XGETQSTATV: u32 = (b'X' as u32) << 8 | 8;
const Q_XGETNEXTQUOTA: u32 = (b'X' as u32) << 8 | 9;
const FS_QUOTA_PDQ_ENFD: u16 = 1 << 5;
const FS_PROJ_QUOTA: i8 = 2;
const FS_DQ_ISOFT: u16 = 1;
const FS_DQ_IHARD: u16 = 1 << 1;
const FS_DQ_BSOFT: u16 = 1 << 2;
const FS_DQ_BHARD: u16 = 1 << 3;
/// Bytes of what these commands call a block.
const BASIC_BLOCK: u64 = 512;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    pad: [u8; 8],
}

/// `struct fs_quota_statv`.
#[repr(C)]
struct State {
    version: i8,
    pad1: u8,
    flags: u16,
    in_core: u32,
    files: [[u64; 3]; 3],
    limits: [i32; 3],
    warnings: [u16; 4],
    pad4: u32,
    pad2: [u64; 7],
}

/// `struct fs_disk_quota`.
#[repr(C)]
#[derive(Default)]
struct Quota {
    version: i8,
    flags: i8,
    fields: u16,
    id: u32,
    bytes_hard: u64,
    bytes_soft: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    blocks: u64,
    inodes: u64,
    timers: [i32; 2],
    warnings: [u16; 2],
    timers_high: [i8; 4],
    realtime: [u64; 3],
    realtime_timer: i32,
    realtime_warnings: u16,
    pad3: i16,
    pad4: [u8; 8],
}

const _: () =
    assert!(size_of::<Attributes>() == 28 && size_of::<State>() == 160 && size_of::<Quota>() == 112);

/// What a project takes and may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Project {
    pub id: u32,
    /// Bytes on the disk, and the most of them; 0 is no limit.
    pub bytes: u64,
    pub bytes_max: u64,
    /// Files and folders, and the most of them; 0 is no limit.
    pub inodes: u64,
    pub inodes_max: u64,
}

/// The project that a file or folder belongs to. ENOTTY or EOPNOTSUPP where the file system knows of none.
pub fn project_of(file: BorrowedFd<'_>) -> Result<u32> {
    attributes(file).map(|attributes| attributes.project)
}

/// Has an empty folder and all that will be made in it belong to a project.
pub fn set_project(folder: BorrowedFd<'_>, id: u32) -> Result<()> {
    let mut attributes = attributes(folder)?;
    attributes.project = id;
    attributes.flags |= FS_XFLAG_PROJINHERIT;
    // SAFETY: FS_IOC_FSSETXATTR reads a struct fsxattr, which lives past the call.
    check(unsafe { libc::ioctl(folder.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attributes) })
}

/// Whether the file system that `file` is on holds projects to their limits. ENOSYS where it has no quotas at all.
pub fn are_enforced(file: BorrowedFd<'_>) -> Result<bool> {
    let mut state = State {
        version: 1,
        pad1: 0,
        flags: 0,
        in_core: 0,
        files: [[0; 3]; 3],
        limits: [0; 3],
        warnings: [0; 4],
        pad4: 0,
        pad2: [0; 7],
    };
    control(file, Q_XGETQSTATV, 0, (&raw mut state).cast())?;
    Ok(state.flags & FS_QUOTA_PDQ_ENFD != 0)
}

/// What a project takes and may take; nothing of one that never was.
pub fn project(file: BorrowedFd<'_>, id: u32) -> Result<Option<Project>> {
    get(file, Q_XGETQUOTA, id)
}

/// The first project from `id` on that takes or may take something. ENOSYS or EINVAL where the file system cannot
/// say so.
pub fn next_project(file: BorrowedFd<'_>, id: u32) -> Result<Option<Project>> {
    get(file, Q_XGETNEXTQUOTA, id)
}

/// Limits what a project may take; 0 is no limit.
pub fn set_limits(file: BorrowedFd<'_>, id: u32, bytes: u64, inodes: u64) -> Result<()> {
    let blocks = bytes / BASIC_BLOCK;
    let mut quota = Quota {
        version: 1,
        flags: FS_PROJ_QUOTA,
        fields: FS_DQ_ISOFT | FS_DQ_IHARD | FS_DQ_BSOFT | FS_DQ_BHARD,
        id,
        bytes_hard: blocks,
        bytes_soft: 0,
        inodes_hard: inodes,
        ..Quota::default()
    };
    control(file, Q_XSETQLIM, id, (&raw mut quota).cast())
}

fn get(file: BorrowedFd<'_>, command: u32, id: u32) -> Result<Option<Project>> {
    let mut quota = Quota::default();
    match control(file, command, id, (&raw mut quota).cast()) {
        Ok(()) => Ok(Some(Project {
            id: quota.id,
            bytes: quota.blocks.saturating_mul(BASIC_BLOCK),
            bytes_max: quota.bytes_hard.saturating_mul(BASIC_BLOCK),
            inodes: quota.inodes,
            inodes_max: quota.inodes_hard,
        })),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn attributes(file: BorrowedFd<'_>) -> Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: FS_IOC_FSGETXATTR writes a struct fsxattr, which lives past the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) })?;
    Ok(attributes)
}

fn control(file: BorrowedFd<'_>, command: u32, id: u32, data: *mut libc::c_void) -> Result<()> {
    let command = command << 8 | PRJQUOTA;
    // SAFETY: quotactl_fd reads or writes the structure of the command at `data`, which callers keep alive.
    let result = unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, id, data) };
    if result == 0 { Ok(()) } else { Err(last()) }
}
