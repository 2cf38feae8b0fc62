//! Where everything lies in the guest's physical memory.
//!
//! ```text
//! 0x0000_0500  descriptor tables of the first instruction
//! 0x0000_6000  PVH start info, modules, memory map
//! 0x0000_7000  zero page of the Linux boot protocol
//! 0x0000_9000  page tables of a 64-bit entry (3 pages)
//! 0x0000_8ff0  stack
//! 0x0002_0000  command line, at most 64 KiB
//! 0x0009_fc00  end of the memory below 1 MiB
//! 0x000e_0000  ACPI tables, at most 64 KiB
//! 0x0010_0000  kernel; the initial file system lies at the end of low memory
//! 0xc000_0000  end of low memory
//! 0xd000_0000  virtio-mmio, one page a device
//! 0xfec0_0000  I/O APIC   0xfee0_0000  local APIC   0xfffb_c000  pages that KVM needs on Intel
//! 0x1_0000_0000  memory beyond 3 GiB, then pmem
//! ```

pub(crate) const GDT: u64 = 0x500;
pub(crate) const IDT: u64 = 0x520;
pub(crate) const PVH_INFO: u64 = 0x6000;
pub(crate) const PVH_MODULES: u64 = 0x6040;
pub(crate) const PVH_MEMORY_MAP: u64 = 0x6100;
pub(crate) const ZERO_PAGE: u64 = 0x7000;
pub(crate) const STACK: u64 = 0x8ff0;
pub(crate) const PML4: u64 = 0x9000;
pub(crate) const PDPT: u64 = 0xa000;
pub(crate) const PAGE_DIRECTORY: u64 = 0xb000;
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
pub(crate) const COMMAND_LINE_MAX: usize = 0x1_0000;
pub(crate) const LOW_END: u64 = 0x9_fc00;
pub(crate) const ACPI: u64 = 0xe_0000;
pub(crate) const ACPI_MAX: u64 = 0x1_0000;
pub(crate) const HIGH_START: u64 = 0x10_0000;

/// Memory below this is one piece; what is more goes above 4 GiB.
pub(crate) const GAP_START: u64 = 0xc000_0000;
pub(crate) const GAP_END: u64 = 0x1_0000_0000;

pub(crate) const MMIO: u64 = 0xd000_0000;
pub(crate) const MMIO_STEP: u64 = 0x1000;
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
pub(crate) const IDENTITY_MAP: u64 = 0xfffb_c000;
pub(crate) const TSS: usize = 0xfffb_d000;

/// Global interrupts: the serial line has its traditional one, devices those above it.
pub(crate) const SERIAL_GSI: u32 = 4;
const FIRST_GSI: u32 = 5;
/// The I/O APIC has 24.
const LAST_GSI: u32 = 23;
/// That of a second serial line, which no machine has: for the device after all others.
const SPARE_GSI: u32 = 3;
/// So many devices fit.
pub(crate) const DEVICES: usize = (LAST_GSI - FIRST_GSI + 2) as usize;

/// The interrupt of a device by its place, which is less than [`DEVICES`].
pub(crate) const fn gsi(index: usize) -> u32 {
    let gsi = FIRST_GSI + index as u32;
    if gsi <= LAST_GSI { gsi } else { SPARE_GSI }
}

/// Ports of our own: power off and reset, named in the ACPI tables.
pub(crate) const SLEEP_CONTROL: u16 = 0x600;
pub(crate) const SLEEP_STATUS: u16 = 0x601;
pub(crate) const RESET: u16 = 0x602;
