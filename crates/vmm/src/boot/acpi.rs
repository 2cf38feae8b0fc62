//! The ACPI tables: processors, interrupt controller, the virtio devices, power off and reset. The
//! hardware-reduced profile (ACPI 6.5, 4.1) leaves the rest of a PC away.

use acpi_tables::Aml;
use acpi_tables::aml::{
    self, Device, EISAName, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress};

use crate::error::{Error, Result};
use crate::layout::{
    ACPI, ACPI_MAX, IO_APIC, LOCAL_APIC, MMIO_STEP, RESET, SERIAL_GSI, SLEEP_CONTROL, SLEEP_STATUS,
};
use crate::legacy::power::{RESET_VALUE, SLEEP_TYPE_OFF};
use crate::memory::Memory;

const OEM: [u8; 6] = *b"INSULA";
const TABLE: [u8; 8] = *b"INSULAVM";

/// The boot flags of a PC that it has no VGA, no MSI, no clock that Linux must look for
/// (ACPI 6.5, table 5.11).
const NO_VGA: u16 = 1 << 2;
const NO_MSI: u16 = 1 << 3;

/// A device's registers and its interrupt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) address: u64,
    pub(crate) gsi: u32,
}

/// Writes the tables for `cpus` processors and the devices, and returns where the first is.
pub(crate) fn write(memory: &Memory, cpus: u8, devices: &[Slot]) -> Result<u64> {
    let mut writer = Writer { memory, next: ACPI + size_of_rsdp() };
    let description = writer.put(&description(devices))?;
    let fixed = writer.put(&fixed(description))?;
    let processors = writer.put(&processors(cpus))?;
    let mut root = XSDT::new(OEM, TABLE, 1);
    root.add_entry(fixed);
    root.add_entry(processors);
    let root = writer.put(&root)?;
    writer.next = ACPI;
    writer.put(&Rsdp::new(OEM, root))
}

fn size_of_rsdp() -> u64 {
    (Rsdp::len() as u64).next_multiple_of(16)
}

struct Writer<'a> {
    memory: &'a Memory,
    next: u64,
}

impl Writer<'_> {
    /// Returns where it was put.
    fn put(&mut self, table: &dyn Aml) -> Result<u64> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = self.next;
        let end = at + bytes.len() as u64;
        if end > ACPI + ACPI_MAX {
            return Err(Error::Shape("the machine has too many devices for its ACPI tables".to_owned()));
        }
        self.memory
            .ram()
            .write_slice(&bytes, GuestAddress(at))
            .map_err(|error| Error::Shape(format!("ACPI tables: {error}")))?;
        self.next = end.next_multiple_of(16);
        Ok(at)
    }
}

fn fixed(description: u64) -> acpi_tables::fadt::FADT {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut table = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(description)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    table.iapc_boot_arch = (NO_VGA | NO_MSI).into();
    table.reset_reg = port(RESET);
    table.reset_value = RESET_VALUE;
    table.sleep_control_reg = port(SLEEP_CONTROL);
    table.sleep_status_reg = port(SLEEP_STATUS);
    table.finalize()
}

fn processors(cpus: u8) -> MADT {
    let mut table = MADT::new(OEM, TABLE, 1, LocalInterruptController::Address(LOCAL_APIC));
    for cpu in 0..cpus {
        table.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    table.add_structure(IoApic::new(0, IO_APIC, 0));
    table
}

/// The differentiated table: what Linux finds by name.
fn description(devices: &[Slot]) -> Sdt {
    let mut body = Vec::new();
    let off = Package::new(vec![&SLEEP_TYPE_OFF]);
    Name::new("_S5_".into(), &off).to_aml_bytes(&mut body);
    serial(&mut body);
    for (index, slot) in devices.iter().enumerate() {
        virtio(index, *slot, &mut body);
    }
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, 1);
    table.append_slice(&body);
    table
}

/// The console; without it Linux finds the line, but not its interrupt.
fn serial(body: &mut Vec<u8>) {
    let (id, unit) = (EISAName::new("PNP0501"), aml::ZERO);
    let (interrupt, ports) =
        (Interrupt::new(true, true, false, false, SERIAL_GSI), aml::IO::new(0x3f8, 0x3f8, 1, 8));
    let resources = ResourceTemplate::new(vec![&interrupt, &ports]);
    let (id, unit, resources) = (
        Name::new("_HID".into(), &id),
        Name::new("_UID".into(), &unit),
        Name::new("_CRS".into(), &resources),
    );
    let device = Device::new("COM1".into(), vec![&id, &unit, &resources]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(body);
}

/// As QEMU and crosvm describe it; the kernel's virtio_mmio driver matches the id.
fn virtio(index: usize, slot: Slot, body: &mut Vec<u8>) {
    let number = index as u8;
    let (id, coherent) = ("LNRO0005", 1u8);
    let registers = Memory32Fixed::new(true, slot.address as u32, MMIO_STEP as u32);
    let interrupt = Interrupt::new(true, true, false, false, slot.gsi);
    let resources = ResourceTemplate::new(vec![&registers, &interrupt]);
    let (id, number, coherent, resources) = (
        Name::new("_HID".into(), &id),
        Name::new("_UID".into(), &number),
        Name::new("_CCA".into(), &coherent),
        Name::new("_CRS".into(), &resources),
    );
    let device =
        Device::new(format!("V{index:03}").as_str().into(), vec![&id, &number, &coherent, &resources]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(memory: &Memory, at: u64) -> Vec<u8> {
        let length: u32 = memory.ram().read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        memory.ram().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        assert_eq!(
            bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
            0,
            "checksum of the table at {at:#x}"
        );
        bytes
    }

    #[test]
    fn every_table_is_found_from_the_first_and_adds_up() {
        let memory = Memory::new(1 << 20).unwrap();
        let devices = [Slot { address: 0xd000_0000, gsi: 5 }, Slot { address: 0xd000_1000, gsi: 6 }];
        let first = write(&memory, 2, &devices).unwrap();
        assert_eq!(memory.ram().read_obj::<[u8; 8]>(GuestAddress(first)).unwrap(), *b"RSD PTR ");
        let root: u64 = memory.ram().read_obj(GuestAddress(first + 24)).unwrap();
        let root = table(&memory, root);
        let entries: Vec<u64> =
            root[36..].chunks_exact(8).map(|entry| u64::from_le_bytes(entry.try_into().unwrap())).collect();
        let [fixed, processors] =
            entries.iter().map(|at| table(&memory, *at)).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!((&fixed[..4], &processors[..4]), (&b"FACP"[..], &b"APIC"[..]));
        let description = table(&memory, u64::from_le_bytes(fixed[140..148].try_into().unwrap()));
        let names = description.windows(8).filter(|bytes| bytes == b"LNRO0005").count();
        assert_eq!(names, 2);
        // Two processors of 8 bytes, the I/O APIC of 12.
        assert_eq!(processors.len(), 44 + 2 * 8 + 12);
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() {
        let memory = Memory::new(1 << 20).unwrap();
        let devices = vec![Slot { address: 0xd000_0000, gsi: 5 }; 999];
        assert!(write(&memory, 1, &devices).is_err());
    }
}
