//! The start info of the PVH boot protocol (Xen: public/arch-x86/hvm/start_info.h).

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::GuestAddress;

use super::{Initrd, Kernel, memory_map};
use crate::error::{Error, Result};
use crate::layout::{COMMAND_LINE, PVH_INFO, PVH_MEMORY_MAP, PVH_MODULES};
use crate::memory::Memory;

pub(super) fn write(memory: &Memory, kernel: &Kernel, initrd: Option<Initrd>, rsdp: u64) -> Result<()> {
    let map: Vec<_> = memory_map(memory)
        .into_iter()
        .map(|(addr, size, purpose)| hvm_memmap_table_entry {
            addr,
            size,
            type_: purpose as u32,
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = initrd
        .iter()
        .map(|initrd| hvm_modlist_entry { paddr: initrd.address, size: initrd.length, ..Default::default() })
        .collect();
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { PVH_MODULES },
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: rsdp,
        memmap_paddr: PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut parameters = BootParams::new(&info, GuestAddress(PVH_INFO));
    parameters.set_sections(&map, GuestAddress(PVH_MEMORY_MAP));
    parameters.set_modules(&modules, GuestAddress(PVH_MODULES));
    PvhBootConfigurator::write_bootparams(&parameters, memory.ram())
        .map_err(|error| Error::Boot { file: kernel.name.clone(), why: error.to_string() })
}
