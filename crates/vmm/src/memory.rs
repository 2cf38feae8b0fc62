//! The guest's memory: a memfd mapped shared, which servers of devices map too; memory of nobody else's where there
//! are none; or a snapshot's file mapped privately, so that pages come as they are touched and are copied as they are
//! written.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion, VolatileSlice, bitmap::NewBitmap, mmap::MmapRegionBuilder,
};

use crate::error::{Error, Result};
use crate::layout::{GAP_END, GAP_START};
use crate::marks::{Marks, MarksFrom};

/// What devices see of it, with marks of what they write.
pub type GuestRam = GuestMemoryMmap<Marks>;

/// A piece of it.
pub(crate) type GuestSlice<'a> = VolatileSlice<'a, MarksFrom<'a>>;

pub(crate) const PAGE: u64 = 4096;
/// Below this no kernel boots; above it the page tables of the entry would not do.
const SMALLEST: u64 = 1 << 20;
const LARGEST: u64 = 1 << 40;

/// How pages reach the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mapping {
    Shared,
    /// In large pages where the host has such: fewer of them are missed.
    SharedLarge,
    Private,
    /// The same without a file.
    Own,
}

/// A guest's memory and the file behind it.
#[derive(Debug)]
pub struct Memory {
    /// First: it lies in what is reserved.
    ram: GuestRam,
    _reserved: Vec<Reserved>,
    file: Option<Arc<File>>,
    size: u64,
}

impl Memory {
    /// New memory of `size` bytes, all zero; takes no page before it is touched.
    pub fn new(size: u64) -> Result<Self> {
        let memfd = memfd_create("insula-guest", MemfdFlags::CLOEXEC)
            .map_err(|error| Error::call("memfd_create", "guest memory", error))?;
        let file = grown(memfd.into(), size)?;
        Self::map(Some(file), size, Mapping::SharedLarge)
    }

    /// The same that no server can map.
    pub fn own(size: u64) -> Result<Self> {
        check(size)?;
        Self::map(None, size, Mapping::Own)
    }

    /// New memory in a file that somebody else has too: one that is empty, and grows to `size` bytes.
    pub fn in_file(file: File, size: u64) -> Result<Self> {
        Self::map(Some(grown(file, size)?), size, Mapping::Shared)
    }

    /// The memory of a snapshot; the file is never written.
    pub fn of_snapshot(file: File) -> Result<Self> {
        let size = file.metadata().map_err(|error| Error::call("fstat", "a snapshot's memory", error))?.len();
        check(size)?;
        Self::map(Some(file), size, Mapping::Private)
    }

    fn map(file: Option<File>, size: u64, mapping: Mapping) -> Result<Self> {
        let file = file.map(Arc::new);
        let flags = libc::MAP_NORESERVE
            | match mapping {
                Mapping::Shared | Mapping::SharedLarge => libc::MAP_SHARED,
                Mapping::Private => libc::MAP_PRIVATE,
                Mapping::Own => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            };
        let (mut regions, mut reserved) = (Vec::new(), Vec::new());
        for (address, offset, length) in pieces(size) {
            let length = usize::try_from(length).map_err(|_| too_large(size))?;
            let mut builder = MmapRegionBuilder::new_with_bitmap(length, Marks::with_len(length))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(flags);
            if let Some(file) = &file {
                builder = builder.with_file_offset(FileOffset::from_arc(Arc::clone(file), offset));
            }
            if mapping == Mapping::Own {
                let place = Reserved::new(length)?;
                // SAFETY: so many bytes of a mapping with these flags, which is kept longer than the region.
                builder = unsafe { builder.with_raw_mmap_pointer(place.aligned()) };
                reserved.push(place);
            }
            let region = builder
                .build()
                .map_err(|error| Error::call("mmap", "guest memory", std::io::Error::other(error)))?;
            if matches!(mapping, Mapping::SharedLarge | Mapping::Own) {
                // SAFETY: the whole of a mapping that is new; its content stays. A host without large pages refuses.
                let _ = unsafe { madvise(region.as_ptr().cast(), region.size(), Advice::LinuxHugepage) };
            }
            regions.push(GuestRegionMmap::new(region, GuestAddress(address)).ok_or_else(|| too_large(size))?);
        }
        let ram = GuestRam::from_regions(regions).map_err(|error| Error::Shape(error.to_string()))?;
        Ok(Self { ram, _reserved: reserved, file, size })
    }

    /// What devices read and write.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The file behind it, if there is one: for `vhost-user` servers, which map it too.
    #[must_use]
    pub fn file(&self) -> Option<&File> {
        self.file.as_deref()
    }

    /// In bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The first address behind it all where something else can be.
    #[must_use]
    pub(crate) fn beyond(&self) -> u64 {
        (GAP_END + self.high()).next_multiple_of(Mapped::ALIGNMENT)
    }

    /// What memory there is below the gap, in bytes.
    #[must_use]
    pub(crate) fn low(&self) -> u64 {
        self.size.min(GAP_START)
    }

    /// What memory there is above 4 GiB, in bytes.
    #[must_use]
    pub(crate) fn high(&self) -> u64 {
        self.size.saturating_sub(GAP_START)
    }
}

/// Memory of this process' own with room to begin where a large page does, as in the guest: the kernel chooses such a
/// place by itself since Linux 6.7 only.
#[derive(Debug)]
struct Reserved {
    place: usize,
    length: usize,
}

impl Reserved {
    const LARGE: usize = 2 << 20;

    /// For so many bytes.
    fn new(bytes: usize) -> Result<Self> {
        let length = bytes + Self::LARGE;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping, wherever there is room.
        let place = unsafe { mmap_anonymous(std::ptr::null_mut(), length, access, flags) }
            .map_err(|error| Error::call("mmap", "guest memory", error))?;
        Ok(Self { place: place as usize, length })
    }

    fn aligned(&self) -> *mut u8 {
        self.place.next_multiple_of(Self::LARGE) as *mut u8
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: the whole of a mapping that nobody else has taken away; what lay in it is gone.
        let _ = unsafe { munmap(self.place as *mut _, self.length) };
    }
}

/// A file that a guest sees beyond its memory, read-only.
#[derive(Debug)]
pub(crate) struct Mapped(MmapRegion);

impl Mapped {
    /// Linux takes pieces of memory that are no less: `memremap_pages` in the kernel's mm/memremap.c.
    const BLOCK: u64 = 2 << 20;
    /// Begins where no block of memory is cut, whatever their size is.
    const ALIGNMENT: u64 = 1 << 30;

    pub(crate) fn new(file: File) -> Result<Self> {
        let size = file.metadata().map_err(|error| Error::call("fstat", "an image", error))?.len();
        if size == 0 || !size.is_multiple_of(Self::BLOCK) || size > LARGEST {
            return Err(Error::Shape(format!("an image of {size} bytes is not of whole blocks of 2 MiB")));
        }
        let region = MmapRegionBuilder::new(usize::try_from(size).map_err(|_| too_large(size))?)
            .with_file_offset(FileOffset::new(file, 0))
            .with_mmap_prot(libc::PROT_READ)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()
            .map_err(|error| Error::call("mmap", "an image", std::io::Error::other(error)))?;
        Ok(Self(region))
    }

    /// In bytes.
    pub(crate) fn size(&self) -> u64 {
        self.0.size() as u64
    }

    /// Where it is in this process.
    pub(crate) fn place(&self) -> u64 {
        self.0.as_ptr() as u64
    }
}

/// Gives the host the whole pages of a piece of the guest's memory, which may use them again: they are zeros then,
/// or what the snapshot had. What is no memory of the guest's is an error, in a few words.
pub(crate) fn discard(ram: &GuestRam, address: GuestAddress, length: u64) -> Result<(), String> {
    let failed =
        |call: &str, error: &str| format!("{call} of {length} bytes at {:#x}: {error}", address.raw_value());
    let nowhere = || failed("no memory", "outside the machine's");
    let (region, start) = ram.to_region_addr(address).ok_or_else(nowhere)?;
    let end = start.raw_value().checked_add(length).filter(|end| *end <= region.len()).ok_or_else(nowhere)?;
    let (start, end) = (start.raw_value().next_multiple_of(PAGE), end & !(PAGE - 1));
    if start >= end {
        return Ok(());
    }
    if region.flags() & libc::MAP_PRIVATE != 0 {
        let place = region.as_ptr().wrapping_add(start as usize).cast();
        // SAFETY: whole pages of a mapping of the guest's memory, which nobody has a reference into: it is
        // only accessed through volatile slices.
        return unsafe { madvise(place, (end - start) as usize, Advice::LinuxDontNeed) }
            .map_err(|error| failed("madvise", &error.to_string()));
    }
    let file = region.file_offset().ok_or_else(nowhere)?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file.file(), flags, file.start() + start, end - start)
        .map_err(|error| failed("fallocate", &error.to_string()))
}

/// Address, offset in the file and length of each piece of a memory of `size` bytes.
fn pieces(size: u64) -> Vec<(u64, u64, u64)> {
    let mut pieces = vec![(0, 0, size.min(GAP_START))];
    if size > GAP_START {
        pieces.push((GAP_END, GAP_START, size - GAP_START));
    }
    pieces
}

/// An empty file, as large as that.
fn grown(file: File, size: u64) -> Result<File> {
    check(size)?;
    file.set_len(size).map_err(|error| Error::call("ftruncate", "guest memory", error))?;
    Ok(file)
}

fn check(size: u64) -> Result<()> {
    if !size.is_multiple_of(PAGE) {
        return Err(Error::Shape(format!("guest memory of {size} bytes is not a multiple of {PAGE}")));
    }
    if size < SMALLEST {
        return Err(Error::Shape(format!("guest memory of {size} bytes is less than {SMALLEST}")));
    }
    if size > LARGEST {
        return Err(too_large(size));
    }
    Ok(())
}

fn too_large(size: u64) -> Error {
    Error::Shape(format!("guest memory of {size} bytes is more than this machine can address"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_beyond_3_gib_lies_above_4() {
        assert_eq!(pieces(1 << 20), [(0, 0, 1 << 20)]);
        assert_eq!(pieces(5 << 30), [(0, 0, 3 << 30), (4 << 30, 3 << 30, 2 << 30)]);
        let memory = Memory::new(5 << 30).unwrap();
        assert_eq!((memory.low(), memory.high()), (3 << 30, 2 << 30));
        memory.ram().write_obj(7u64, GuestAddress((6 << 30) - 8)).unwrap();
        assert!(memory.ram().write_obj(7u64, GuestAddress((6 << 30) - 7)).is_err());
    }

    #[test]
    fn sizes_that_make_no_machine_are_refused() {
        for size in [0, 4095, 4096, (1 << 20) + 1, 1 << 50] {
            assert!(Memory::new(size).is_err(), "{size}");
        }
    }

    #[test]
    fn memory_of_nobody_elses_is_given_back_too() {
        let memory = Memory::own(4 << 20).unwrap();
        assert!(memory.file().is_none() && Memory::own(4097).is_err());
        let first = memory.ram().get_host_address(GuestAddress(0)).unwrap() as usize;
        assert!(first.is_multiple_of(2 << 20), "{first:#x}");
        memory.ram().write_slice(&[7; 3 * PAGE as usize], GuestAddress(1 << 20)).unwrap();
        discard(memory.ram(), GuestAddress((1 << 20) + PAGE), PAGE).unwrap();
        let at = |page: u64| memory.ram().read_obj::<u8>(GuestAddress((1 << 20) + page * PAGE)).unwrap();
        assert_eq!([0, 1, 2].map(at), [7, 0, 7]);
        assert!(discard(memory.ram(), GuestAddress(4 << 20), PAGE).is_err());
    }

    #[test]
    fn images_are_of_whole_blocks_and_lie_beyond_the_memory() {
        let file = tempfile::tempfile().unwrap();
        for (length, fine) in [(0, false), (4096, false), (2 << 20, true), ((2 << 20) + 1, false)] {
            file.set_len(length).unwrap();
            assert_eq!(Mapped::new(file.try_clone().unwrap()).is_ok(), fine, "{length}");
        }
        for (size, beyond) in
            [(64 << 20, 4u64 << 30), (3 << 30, 4 << 30), ((3 << 30) + 4096, 5 << 30), (5 << 30, 6 << 30)]
        {
            assert_eq!(Memory::new(size).unwrap().beyond(), beyond);
        }
    }

    #[test]
    fn what_a_restored_guest_writes_stays_its_own() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[3; 1 << 20]).unwrap();
        let memory = Memory::of_snapshot(file.try_clone().unwrap()).unwrap();
        memory.ram().write_obj(9u8, GuestAddress(100)).unwrap();
        let other = Memory::of_snapshot(file).unwrap();
        assert_eq!(memory.ram().read_obj::<u8>(GuestAddress(100)).unwrap(), 9);
        assert_eq!(other.ram().read_obj::<u8>(GuestAddress(100)).unwrap(), 3);
    }
}
