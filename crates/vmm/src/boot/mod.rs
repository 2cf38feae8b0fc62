//! Brings a kernel into the guest's memory with what it needs to begin: its parameters, the initial
//! file system, the ACPI tables.

pub(crate) mod acpi;
mod kernel;
mod linux;
mod pvh;

pub use kernel::{Kernel, KernelFormat};

use crate::error::Result;
use crate::layout::{ACPI, ACPI_MAX, GAP_END, HIGH_START, LOW_END};
use crate::memory::Memory;
use crate::vcpu::Entry;

/// Where the initial file system was put.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Initrd {
    pub(crate) address: u64,
    pub(crate) length: u64,
}

/// What a part of the address space is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Ram = 1,
    /// Tables that stay.
    Reserved = 2,
}

/// A guest's map of its memory: begin, length, use.
pub(crate) fn memory_map(memory: &Memory) -> Vec<(u64, u64, Use)> {
    let mut map = vec![
        (0, LOW_END, Use::Ram),
        (ACPI, ACPI_MAX, Use::Reserved),
        (HIGH_START, memory.low() - HIGH_START, Use::Ram),
    ];
    if memory.high() > 0 {
        map.push((GAP_END, memory.high(), Use::Ram));
    }
    map
}

/// Loads `kernel` and returns where the first processor begins.
pub(crate) fn load(memory: &Memory, kernel: &Kernel, rsdp: u64) -> Result<Entry> {
    let loaded = kernel::load(memory, kernel)?;
    let initrd = kernel::load_initrd(memory, kernel, loaded.end)?;
    kernel::write_command_line(memory, &kernel.command_line)?;
    match loaded.entry {
        kernel::Found::Pvh(address) => {
            pvh::write(memory, kernel, initrd, rsdp)?;
            Ok(Entry::Pvh(address))
        }
        kernel::Found::Linux(header, address) => {
            linux::write(memory, *header, kernel, initrd, rsdp)?;
            Ok(Entry::Long(address))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_covers_all_memory_but_the_holes_of_a_pc() {
        let memory = Memory::new(4 << 30).unwrap();
        let map = memory_map(&memory);
        assert_eq!(map[2], (1 << 20, (3 << 30) - (1 << 20), Use::Ram));
        assert_eq!(map[3], (4 << 30, 1 << 30, Use::Ram));
        assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{map:?}");
    }
}
