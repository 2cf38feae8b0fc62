//! Kernels: an ELF image that can begin by the PVH protocol, or a bzImage.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader, elf::PvhBootCapability};
use vm_memory::{Address, Bytes, GuestAddress};

use crate::error::{Error, Result};
use crate::layout::{COMMAND_LINE, COMMAND_LINE_MAX, HIGH_START};
use crate::memory::Memory;

/// What to boot.
#[derive(Debug)]
pub struct Kernel {
    pub image: File,
    /// For messages.
    pub name: String,
    /// The initial file system, as the kernel takes it.
    pub initrd: Option<File>,
    pub command_line: String,
}

/// The formats that can be booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelFormat {
    Elf,
    BzImage,
}

/// A kernel in memory.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) entry: Found,
    /// The first address behind it.
    pub(super) end: u64,
}

/// How it may begin.
#[derive(Debug)]
pub(super) enum Found {
    Pvh(u32),
    /// By the 64-bit Linux boot protocol, with the header of the image.
    Linux(Box<setup_header>, u64),
}

impl KernelFormat {
    /// By the image's first bytes; `None` for anything else.
    pub fn of(image: &mut File) -> std::io::Result<Option<Self>> {
        let mut first = [0; 0x206];
        image.seek(SeekFrom::Start(0))?;
        let length = read_up_to(image, &mut first)?;
        image.seek(SeekFrom::Start(0))?;
        Ok(match &first[..length] {
            [0x7f, b'E', b'L', b'F', ..] => Some(Self::Elf),
            bytes if bytes.get(0x202..0x206) == Some(b"HdrS") => Some(Self::BzImage),
            _ => None,
        })
    }
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

pub(super) fn load(memory: &Memory, kernel: &Kernel) -> Result<Loaded> {
    let failed = |why: String| Error::Boot { file: kernel.name.clone(), why };
    let mut image =
        kernel.image.try_clone().map_err(|error| Error::call("dup", kernel.name.clone(), error))?;
    let format =
        KernelFormat::of(&mut image).map_err(|error| Error::call("read", kernel.name.clone(), error))?;
    match format {
        Some(KernelFormat::Elf) => {
            let loaded = Elf::load(memory.ram(), None, &mut image, Some(GuestAddress(HIGH_START)))
                .map_err(|error| failed(error.to_string()))?;
            let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
                return Err(failed("an ELF kernel without CONFIG_PVH cannot be booted".to_owned()));
            };
            let entry = u32::try_from(entry.raw_value())
                .map_err(|_| failed("its entry is above 4 GiB".to_owned()))?;
            Ok(Loaded { entry: Found::Pvh(entry), end: loaded.kernel_end })
        }
        Some(KernelFormat::BzImage) => {
            let loaded = BzImage::load(memory.ram(), None, &mut image, Some(GuestAddress(HIGH_START)))
                .map_err(|error| failed(error.to_string()))?;
            let header = loaded.setup_header.ok_or_else(|| failed("it has no setup header".to_owned()))?;
            linux_entry(header, loaded.kernel_load.raw_value()).map_err(failed)
        }
        None => Err(failed("neither an ELF kernel nor a bzImage".to_owned())),
    }
}

/// The 64-bit entry of a bzImage, and how much memory it needs (kernel: Documentation/arch/x86/boot.rst).
fn linux_entry(header: setup_header, at: u64) -> Result<Loaded, String> {
    const XLF_KERNEL_64: u16 = 1;
    const ENTRY_64: u64 = 0x200;
    if header.version < 0x020c || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err("a kernel without a 64-bit entry cannot be booted".to_owned());
    }
    // It unpacks itself to where it likes to be, and needs that much there.
    let end = header.pref_address.max(at).saturating_add(u64::from(header.init_size));
    Ok(Loaded { entry: Found::Linux(Box::new(header), at + ENTRY_64), end })
}

/// Puts the initial file system at the end of low memory, away from a kernel that unpacks itself.
pub(super) fn load_initrd(memory: &Memory, kernel: &Kernel, after: u64) -> Result<Option<super::Initrd>> {
    let Some(file) = &kernel.initrd else { return Ok(None) };
    let name = || "the initial file system".to_owned();
    let length = file.metadata().map_err(|error| Error::call("fstat", name(), error))?.len();
    let address = memory.low().checked_sub(length).map(|address| address & !0xfff);
    let Some(address) = address.filter(|address| *address >= after) else {
        let why = format!(
            "kernel and initial file system ({length} bytes) do not fit into {} bytes of memory",
            memory.low()
        );
        return Err(Error::Boot { file: kernel.name.clone(), why });
    };
    let mut file = file.try_clone().map_err(|error| Error::call("dup", name(), error))?;
    file.seek(SeekFrom::Start(0)).map_err(|error| Error::call("lseek", name(), error))?;
    memory
        .ram()
        .read_exact_volatile_from(GuestAddress(address), &mut file, length as usize)
        .map_err(|error| Error::Boot { file: name(), why: error.to_string() })?;
    Ok(Some(super::Initrd { address, length }))
}

pub(super) fn write_command_line(memory: &Memory, line: &str) -> Result<()> {
    let failed = |why: String| Error::Boot { file: "the kernel's command line".to_owned(), why };
    if line.len() >= COMMAND_LINE_MAX || line.contains('\0') {
        return Err(failed(format!("it has {} bytes, or a zero among them", line.len())));
    }
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    memory.ram().write_slice(&bytes, GuestAddress(COMMAND_LINE)).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn kernel(bytes: &[u8]) -> Kernel {
        let mut image = tempfile::tempfile().unwrap();
        image.write_all(bytes).unwrap();
        Kernel { image, name: "vmlinuz".to_owned(), initrd: None, command_line: String::new() }
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_its_name() {
        let memory = Memory::new(16 << 20).unwrap();
        let mut header = vec![0; 0x400];
        header[0x202..0x206].copy_from_slice(b"HdrS");
        for bytes in [&b""[..], b"#!/bin/sh", b"\x7fELF", &[0; 4096], &header] {
            let error = load(&memory, &kernel(bytes)).unwrap_err().to_string();
            assert!(error.starts_with("vmlinuz: "), "{error}");
        }
    }

    #[test]
    fn an_initial_file_system_must_fit_beside_the_kernel() {
        let memory = Memory::new(16 << 20).unwrap();
        let mut kernel = kernel(b"");
        let initrd = tempfile::tempfile().unwrap();
        initrd.set_len(8 << 20).unwrap();
        kernel.initrd = Some(initrd);
        let place = load_initrd(&memory, &kernel, 8 << 20).unwrap().unwrap();
        assert_eq!((place.address, place.length), (8 << 20, 8 << 20));
        assert!(load_initrd(&memory, &kernel, (8 << 20) + 1).is_err());
    }
}
