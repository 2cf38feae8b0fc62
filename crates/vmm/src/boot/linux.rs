//! The zero page of the Linux boot protocol (kernel: Documentation/arch/x86/zero-page.rst).

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::GuestAddress;

use super::{Initrd, Kernel, memory_map};
use crate::error::{Error, Result};
use crate::layout::{COMMAND_LINE, COMMAND_LINE_MAX, ZERO_PAGE};
use crate::memory::Memory;

/// The header's magic for a loader that is none of the registered ones.
const UNKNOWN_LOADER: u8 = 0xff;

pub(super) fn write(
    memory: &Memory,
    header: setup_header,
    kernel: &Kernel,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<()> {
    let failed = |why: String| Error::Boot { file: kernel.name.clone(), why };
    let limit = usize::try_from(header.cmdline_size).unwrap_or(usize::MAX).min(COMMAND_LINE_MAX - 1);
    if kernel.command_line.len() > limit {
        return Err(failed(format!("it takes a command line of {limit} bytes at most")));
    }
    let mut page = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..Default::default() };
    page.hdr.type_of_loader = UNKNOWN_LOADER;
    page.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    page.hdr.cmdline_size = kernel.command_line.len() as u32;
    if let Some(initrd) = initrd {
        // Low memory ends below 4 GiB.
        (page.hdr.ramdisk_image, page.hdr.ramdisk_size) = (initrd.address as u32, initrd.length as u32);
    }
    for (slot, (addr, size, purpose)) in page.e820_table.iter_mut().zip(memory_map(memory)) {
        *slot = boot_e820_entry { addr, size, r#type: purpose as u32 };
        page.e820_entries += 1;
    }
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&page, GuestAddress(ZERO_PAGE)), memory.ram())
        .map_err(|error| failed(error.to_string()))
}
