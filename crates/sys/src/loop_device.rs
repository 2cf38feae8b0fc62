//! Files as block devices: loop(4).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};

use crate::process::{check, last};

/// From linux/loop.h.
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4c05;
/// The device is cleared when nobody has it open or mounted any more.
const AUTOCLEAR: u32 = 4;
/// Past the page cache of the file, where its file system can: what is read is cached once.
const DIRECT_IO: u32 = 16;

/// From linux/ext4.h (fs/ext4/ext4.h before Linux 5.19), and its way that writes no journal.
const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
const GOING_WITHOUT_LOG: u32 = 2;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    file: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A loop device that has a file. It keeps it as long as this or a mount holds it.
#[derive(Debug)]
pub struct LoopDevice {
    device: OwnedFd,
    number: u32,
}

impl LoopDevice {
    /// The path of the device with this number.
    #[must_use]
    pub fn path_of(number: u32) -> PathBuf {
        PathBuf::from(format!("/dev/loop{number}"))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Self::path_of(self.number)
    }

    /// Gives `file`, open for reading and writing, to a free device. ENOENT where the kernel has no loop
    /// devices; ENXIO where there is no node for the one that it offers.
    pub fn attach(file: BorrowedFd<'_>) -> Result<Self> {
        let control = rustix::fs::open("/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        // Others take devices at the same time: who comes second asks again.
        for _ in 0..64 {
            // SAFETY: LOOP_CTL_GET_FREE takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            let number = u32::try_from(number).map_err(|_| last())?;
            let device = match open(number, OFlags::RDWR) {
                Err(Errno::NOENT) => return Err(Errno::NXIO),
                opened => opened?,
            };
            match configure(device.as_fd(), file) {
                Ok(()) => return Ok(Self { device, number }),
                Err(Errno::BUSY) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::BUSY)
    }

    /// The device `number`, if it has the file with this device and inode number. It is not cleared from now on
    /// until this is dropped.
    pub fn having(number: u32, file_device: u64, inode: u64) -> Result<Option<Self>> {
        let device = match open(number, OFlags::RDONLY) {
            Err(Errno::NOENT | Errno::NXIO) => return Ok(None),
            opened => opened?,
        };
        let mut info = empty();
        // SAFETY: LOOP_GET_STATUS64 writes a loop_info64, which lives past the call.
        match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) }) {
            Ok(()) if (info.device, info.inode) == (file_device, inode) => Ok(Some(Self { device, number })),
            Ok(()) | Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for LoopDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Ends the file system that `file` is on, for all who have it mounted: nothing is read or written any more. For
/// ext4.
pub fn shut_down(file: BorrowedFd<'_>) -> Result<()> {
    let how = GOING_WITHOUT_LOG;
    // SAFETY: EXT4_IOC_SHUTDOWN reads a u32, which lives past the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const how) })
}

fn open(number: u32, access: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(LoopDevice::path_of(number), access | OFlags::CLOEXEC, Mode::empty())
}

fn empty() -> Info {
    Info {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    }
}

fn configure(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<()> {
    let config = Config {
        // An open descriptor is not negative.
        file: file.as_raw_fd().cast_unsigned(),
        block_size: 0,
        info: Info { flags: AUTOCLEAR | DIRECT_IO, ..empty() },
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads a loop_config, which lives past the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) })
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);
