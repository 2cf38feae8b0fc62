//! fs-verity: files whose content the kernel verifies each time that it is read from the disk
//! (Documentation/filesystems/fsverity.rst).

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

use crate::process::check;

/// From linux/fsverity.h.
const FS_IOC_ENABLE_VERITY: libc::c_ulong = 0x4080_6685;
const FS_IOC_MEASURE_VERITY: libc::c_ulong = 0xc004_6686;
const SHA256: u32 = 1;
/// What every kernel and file system that knows of it can do.
const BLOCK: u32 = 4096;

/// `struct fsverity_enable_arg`.
#[repr(C)]
struct Enable {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved1: u32,
    signature: u64,
    reserved2: [u64; 11],
}

/// `struct fsverity_digest` with room for the largest.
#[repr(C)]
struct Measured {
    algorithm: u16,
    size: u16,
    digest: [u8; 64],
}

const _: () = assert!(size_of::<Enable>() == 128 && size_of::<Measured>() == 68);

/// Has the kernel verify this file from now on; nobody can write to it any more. It must be open for reading, and
/// nobody may have it open for writing (ETXTBSY). EOPNOTSUPP or ENOTTY where the file system or the kernel cannot.
/// That it is so already is no error.
pub fn enable(file: BorrowedFd<'_>) -> Result<()> {
    let argument = Enable {
        version: 1,
        hash_algorithm: SHA256,
        block_size: BLOCK,
        salt_size: 0,
        salt: 0,
        signature_size: 0,
        reserved1: 0,
        signature: 0,
        reserved2: [0; 11],
    };
    // SAFETY: FS_IOC_ENABLE_VERITY reads a struct fsverity_enable_arg, which lives past the call.
    match check(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_ENABLE_VERITY, &raw const argument) }) {
        Err(Errno::EXIST) => Ok(()),
        done => done,
    }
}

/// The digest of a file that the kernel verifies; `None` of another one.
pub fn measure(file: BorrowedFd<'_>) -> Result<Option<[u8; 32]>> {
    let mut measured = Measured { algorithm: 0, size: 64, digest: [0; 64] };
    // SAFETY: FS_IOC_MEASURE_VERITY writes a struct fsverity_digest of `size` bytes, for which there is room.
    match check(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_MEASURE_VERITY, &raw mut measured) }) {
        Ok(()) if u32::from(measured.algorithm) == SHA256 && measured.size == 32 => {
            let mut digest = [0; 32];
            digest.copy_from_slice(&measured.digest[..32]);
            Ok(Some(digest))
        }
        Ok(()) | Err(Errno::NODATA) => Ok(None),
        Err(error) => Err(error),
    }
}
