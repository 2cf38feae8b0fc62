//! The registers of a processor at its first instruction, for each way a guest may begin.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::Vcpu;
use crate::error::{Error, Result};
use crate::layout::{GDT, IDT, PAGE_DIRECTORY, PDPT, PML4, PVH_INFO, STACK, ZERO_PAGE};
use crate::memory::GuestRam;

/// How a guest begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// 16-bit real mode at an address below 64 KiB: how no kernel begins, but how little asks least of
    /// the host.
    #[cfg(test)]
    Real(u16),
    /// 32-bit protected mode without paging, as the PVH boot protocol asks: EBX holds the start info.
    Pvh(u32),
    /// 64-bit mode with the first GiB mapped, as the Linux boot protocol asks: RSI holds the zero page.
    Long(u64),
}

/// CR0
const PROTECTED: u64 = 1;
const EXTENSION_TYPE: u64 = 1 << 4;
const PAGING: u64 = 1 << 31;
/// CR4
const PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
/// EFER
const LONG_MODE_ENABLED: u64 = 1 << 8;
const LONG_MODE_ACTIVE: u64 = 1 << 10;
/// Bit 1 of the flags is always one.
const FLAGS: u64 = 2;

/// Page table entries: present and writable; a 2 MiB page.
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;

const IA32_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

pub(super) fn apply(vcpu: &Vcpu, entry: Entry, memory: &GuestRam) -> Result<()> {
    let mut special = vcpu.descriptor.get_sregs().map_err(|error| vcpu.failed("KVM_GET_SREGS", error))?;
    let mut registers = kvm_regs { rflags: FLAGS, ..Default::default() };
    match entry {
        #[cfg(test)]
        Entry::Real(address) => {
            (special.cs.base, special.cs.selector) = (0, 0);
            registers.rip = u64::from(address);
        }
        Entry::Pvh(address) => {
            protected_mode(&mut special, memory)?;
            (registers.rip, registers.rbx) = (u64::from(address), PVH_INFO);
        }
        Entry::Long(address) => {
            long_mode(&mut special, memory)?;
            (registers.rip, registers.rsi, registers.rsp) = (address, ZERO_PAGE, STACK);
        }
    }
    vcpu.descriptor.set_sregs(&special).map_err(|error| vcpu.failed("KVM_SET_SREGS", error))?;
    vcpu.descriptor.set_regs(&registers).map_err(|error| vcpu.failed("KVM_SET_REGS", error))?;
    model_specific(vcpu)
}

fn model_specific(vcpu: &Vcpu) -> Result<()> {
    let entries = [(IA32_MISC_ENABLE, FAST_STRINGS), (MTRR_DEFAULT_TYPE, MTRR_WRITE_BACK)]
        .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let msrs = Msrs::from_entries(&entries).map_err(|error| Error::Shape(format!("{error:?}")))?;
    // A processor without one of them stops there; neither is needed to boot.
    vcpu.descriptor.set_msrs(&msrs).map_err(|error| vcpu.failed("KVM_SET_MSRS", error))?;
    Ok(())
}

/// A segment of the whole address space. `kind` is the type field of its descriptor.
fn flat(index: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: index * 8,
        type_: kind,
        present: 1,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

const CODE: u8 = 0xb;
const DATA: u8 = 0x3;

/// The descriptor that says the same as `segment` (Intel SDM volume 3, 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let flags = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7
        | u64::from(segment.l) << 13
        | u64::from(segment.db) << 14
        | u64::from(segment.g) << 15;
    // The limit counts pages of 4 KiB.
    let limit = u64::from(segment.limit) >> 12;
    (limit & 0xffff) | (limit & 0xf_0000) << 32 | flags << 40
}

fn segments(special: &mut kvm_sregs, memory: &GuestRam, long: bool) -> Result<()> {
    let (code, data) = (flat(1, CODE, long), flat(2, DATA, false));
    let task = kvm_segment { selector: 3 * 8, limit: 0x67, type_: 0xb, present: 1, ..Default::default() };
    let table = [0, descriptor(&code), descriptor(&data), descriptor(&task)];
    write(memory, GDT, &table)?;
    write(memory, IDT, &[0])?;
    (special.gdt.base, special.gdt.limit) = (GDT, size_of_val(&table) as u16 - 1);
    (special.idt.base, special.idt.limit) = (IDT, 7);
    special.cs = code;
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.tr = task;
    Ok(())
}

fn protected_mode(special: &mut kvm_sregs, memory: &GuestRam) -> Result<()> {
    segments(special, memory, false)?;
    special.cr0 = PROTECTED | EXTENSION_TYPE;
    special.cr4 = 0;
    special.efer = 0;
    Ok(())
}

fn long_mode(special: &mut kvm_sregs, memory: &GuestRam) -> Result<()> {
    segments(special, memory, true)?;
    write(memory, PML4, &[PDPT | PRESENT_WRITABLE])?;
    write(memory, PDPT, &[PAGE_DIRECTORY | PRESENT_WRITABLE])?;
    let pages: Vec<u64> = (0..512).map(|page| page << 21 | LARGE | PRESENT_WRITABLE).collect();
    write(memory, PAGE_DIRECTORY, &pages)?;
    special.cr3 = PML4;
    special.cr4 = PHYSICAL_ADDRESS_EXTENSION;
    special.cr0 = PROTECTED | EXTENSION_TYPE | PAGING;
    special.efer = LONG_MODE_ENABLED | LONG_MODE_ACTIVE;
    Ok(())
}

fn write(memory: &GuestRam, address: u64, words: &[u64]) -> Result<()> {
    for (word, at) in words.iter().zip((address..).step_by(8)) {
        memory
            .write_obj(*word, GuestAddress(at))
            .map_err(|error| Error::Shape(format!("no guest memory at {at:#x}: {error}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_say_what_the_segments_say() {
        assert_eq!(descriptor(&flat(1, CODE, true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&flat(1, CODE, false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&flat(2, DATA, false)), 0x00cf_9300_0000_ffff);
    }
}
