//! The file behind a disk.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::bitmap::Bitmap;

use crate::error::{Error, Result};
use crate::memory::GuestSlice;

/// What the guest may do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

pub(super) const SECTOR: u64 = 512;

/// A regular file or a block device. Reads and writes go straight between it and guest memory.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    pub(super) sectors: u64,
    pub(super) access: Access,
}

impl Image {
    pub(super) fn new(file: File, access: Access) -> Result<Self> {
        // A block device has no length in its metadata; the end of it has.
        let length = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
            .map_err(|error| Error::call("lseek", "a disk", error))?;
        Ok(Self { file, sectors: length / SECTOR, access })
    }

    /// Fills all of `buffers` from byte `offset` on.
    pub(super) fn read(&self, offset: u64, buffers: &[GuestSlice<'_>]) -> io::Result<()> {
        // The kernel writes them, perhaps not all of them; nobody else marks that.
        buffers.iter().for_each(|buffer| buffer.bitmap().mark_dirty(0, buffer.len()));
        self.transfer(offset, buffers, |vectors, count, at| {
            // SAFETY: each vector describes a slice of guest memory that is mapped and stays so while
            // the slice lives; what is written there while the guest looks is the guest's business.
            unsafe { libc::preadv(self.file.as_raw_fd(), vectors, count, at) }
        })
    }

    /// Writes all of `buffers` from byte `offset` on.
    pub(super) fn write(&self, offset: u64, buffers: &[GuestSlice<'_>]) -> io::Result<()> {
        self.transfer(offset, buffers, |vectors, count, at| {
            // SAFETY: as above, and the kernel only reads.
            unsafe { libc::pwritev(self.file.as_raw_fd(), vectors, count, at) }
        })
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Makes a range read as zeros and gives its blocks back.
    pub(super) fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        Ok(fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)?)
    }

    fn transfer(
        &self,
        offset: u64,
        buffers: &[GuestSlice<'_>],
        call: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> isize,
    ) -> io::Result<()> {
        let guards: Vec<_> = buffers.iter().map(GuestSlice::ptr_guard_mut).collect();
        let mut vectors: Vec<libc::iovec> = guards
            .iter()
            .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
            .filter(|vector| vector.iov_len > 0)
            .collect();
        let mut rest = vectors.as_mut_slice();
        let mut at = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        while !rest.is_empty() {
            // At most as many descriptors as a queue has, which is below IOV_MAX.
            let moved = match call(rest.as_ptr(), rest.len() as libc::c_int, at) {
                -1 => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error),
                },
                // The file is shorter than it was when the machine was made.
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                moved => moved as usize,
            };
            at += moved as libc::off_t;
            rest = advance(rest, moved);
        }
        Ok(())
    }
}

/// `vectors` without the first `moved` bytes.
fn advance(mut vectors: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while let Some(first) = vectors.first_mut() {
        if moved < first.iov_len {
            // The pointer stays within the vector.
            first.iov_base = first.iov_base.wrapping_byte_add(moved);
            first.iov_len -= moved;
            break;
        }
        moved -= first.iov_len;
        vectors = &mut vectors[1..];
    }
    vectors
}
