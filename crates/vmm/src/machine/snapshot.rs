//! Snapshots: all of a machine in two files, from which any number of machines go on.
//!
//! ```text
//! state     "insula-vm\n" | version, little endian u32 | length, u64 | JSON | SHA-256 of all before
//! memory    the guest's memory as it lies in its file: sparse where nothing was written
//! ```
//!
//! The memory of a restored machine is a private mapping of the file: a page is read when the guest
//! first touches it, shared with all other machines until it is written, and never written back.

use std::fs::File;
use std::io::{Read, Write};

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::devices::lock;
use super::{Host, Machine, Running, Shape};
use crate::error::{Error, Result};
use crate::legacy::Console;
use crate::memory::Memory;
use crate::vcpu::VcpuState;
use crate::virtio::TransportState;

const MAGIC: &[u8] = b"insula-vm\n";
const VERSION: u32 = 1;
const CHECKSUM: usize = 32;
/// A state of the largest machine is far below this.
const LARGEST: u64 = 64 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// What the host's processor can do; a guest must not wake up on another one.
    processor: String,
    memory: u64,
    irqchips: Vec<kvm_irqchip>,
    timer: kvm_pit_state2,
    clock: kvm_clock_data,
    vcpus: Vec<VcpuState>,
    devices: Vec<TransportState>,
}

impl Running {
    /// Writes a paused machine to two empty files.
    pub fn save(&self, state: &mut File, memory: &File) -> Result<()> {
        let failed = |error: std::io::Error| Error::call("write", "a snapshot", error);
        state.write_all(&self.state()?).map_err(failed)?;
        let own = &self.machine.memory;
        let file = own.file().ok_or(Error::Unsupported("memory without a file cannot be saved"))?;
        copy_sparse(file, memory, own.size())
    }

    /// All of a paused machine but its memory, as the file `state` of a snapshot has it.
    pub fn state(&self) -> Result<Vec<u8>> {
        let machine = &self.machine;
        let vm = &machine.vm;
        let indices = machine
            .kvm
            .get_msr_index_list()
            .map_err(|error| Error::kvm("KVM_GET_MSR_INDEX_LIST", "the host", error))?;
        let vcpus: Vec<_> =
            self.vcpus().iter().map(|vcpu| vcpu.save(indices.as_slice())).collect::<Result<_>>()?;
        let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
        let irqchips = chips.into_iter().map(|chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(|error| Error::kvm("KVM_GET_IRQCHIP", "a machine", error))?;
            Ok(chip)
        });
        let mut clock = vm.get_clock().map_err(|error| Error::kvm("KVM_GET_CLOCK", "a machine", error))?;
        // The answer's flags would have it go on by the time that passes until it is restored. A guest then finds
        // that nothing has happened for days, and that its watchdogs bark; what day it is, the host tells it.
        clock.flags = 0;
        let document = State {
            processor: processor(machine),
            memory: machine.memory.size(),
            irqchips: irqchips.collect::<Result<_>>()?,
            timer: vm.get_pit2().map_err(|error| Error::kvm("KVM_GET_PIT2", "a machine", error))?,
            clock,
            vcpus,
            devices: machine
                .devices
                .transports()
                .map(|transport| lock(transport).save())
                .collect::<Result<_>>()?,
        };
        encode(&document)
    }
}

impl Machine {
    /// A machine for a snapshot; the same devices are to be attached in the same order, then
    /// [`Machine::restore`] gives them what they knew.
    pub fn of_snapshot(
        host: Host,
        state: &mut File,
        memory: File,
        console: Console,
    ) -> Result<(Self, Snapshot)> {
        let state = read_state(state)?;
        let memory = Memory::of_snapshot(memory)?;
        if memory.size() != state.memory {
            return Err(damaged(format!("its memory has {} bytes and not {}", memory.size(), state.memory)));
        }
        let cpus =
            u8::try_from(state.vcpus.len()).map_err(|_| damaged("it has too many processors".to_owned()))?;
        let machine = Self::with_memory(host, cpus, memory, console)?;
        if processor(&machine) != state.processor {
            return Err(damaged("it was taken on another processor".to_owned()));
        }
        Ok((machine, Snapshot(state)))
    }

    /// The machine of the snapshot, paused where it was.
    pub fn restore(self, snapshot: &Snapshot) -> Result<Running> {
        let state = &snapshot.0;
        let (machine, vcpus) = self.assemble()?;
        if machine.devices.transports().count() != state.devices.len() {
            return Err(damaged(format!("it has {} devices", state.devices.len())));
        }
        for (transport, saved) in machine.devices.transports().zip(&state.devices) {
            lock(transport).restore(saved)?;
        }
        for (vcpu, saved) in vcpus.iter().zip(&state.vcpus) {
            vcpu.restore(saved)?;
        }
        for chip in &state.irqchips {
            machine
                .vm
                .set_irqchip(chip)
                .map_err(|error| Error::kvm("KVM_SET_IRQCHIP", "a machine", error))?;
        }
        machine.vm.set_pit2(&state.timer).map_err(|error| Error::kvm("KVM_SET_PIT2", "a machine", error))?;
        machine
            .vm
            .set_clock(&state.clock)
            .map_err(|error| Error::kvm("KVM_SET_CLOCK", "a machine", error))?;
        let running = Running::new(machine, vcpus)?;
        running.machine.devices.wake_all();
        Ok(running)
    }
}

/// A snapshot that was read and is whole.
#[derive(Debug)]
pub struct Snapshot(State);

impl Snapshot {
    /// Of the machine that it was taken of.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape { cpus: self.0.vcpus.len() as u8, memory: self.0.memory }
    }
}

/// What identifies the host's processor as guests see it: all that KVM can show of it.
fn processor(machine: &Machine) -> String {
    let mut hash = Sha256::new();
    for entry in machine.supported.as_slice() {
        // Leaf 1 and the topology leaves hold the number of the processor that was asked.
        if matches!(entry.function, 1 | 0xb | 0x1f | 0x8000_001e) {
            continue;
        }
        for word in [entry.function, entry.index, entry.eax, entry.ebx, entry.ecx, entry.edx] {
            hash.update(word.to_le_bytes());
        }
    }
    let first = machine.supported.as_slice().iter().find(|entry| entry.function == 1);
    if let Some(entry) = first {
        for word in [entry.eax, entry.ecx, entry.edx] {
            hash.update(word.to_le_bytes());
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn encode(state: &State) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(state).map_err(|error| Error::call("encode", "a snapshot", error))?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((json.len() as u64).to_le_bytes());
    bytes.extend(json);
    let checksum = Sha256::digest(&bytes);
    bytes.extend(checksum);
    Ok(bytes)
}

fn read_state(file: &mut File) -> Result<State> {
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).map_err(|error| Error::call("read", "a snapshot", error))?;
    decode(&bytes).map_err(damaged)
}

fn decode(bytes: &[u8]) -> Result<State, String> {
    let (head, json) = bytes.split_at_checked(MAGIC.len() + 12).ok_or("it is cut short")?;
    let (magic, numbers) = head.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err("it is no snapshot of a machine".to_owned());
    }
    let (version, length) = numbers.split_at(4);
    let version = u32::from_le_bytes(version.try_into().unwrap_or_default());
    if version != VERSION {
        return Err(format!("it has format {version}, this program reads format {VERSION}"));
    }
    let length =
        usize::try_from(u64::from_le_bytes(length.try_into().unwrap_or_default())).unwrap_or(usize::MAX);
    let (json, checksum) = json.split_at_checked(length).ok_or("it is cut short")?;
    if checksum.len() != CHECKSUM || checksum != &Sha256::digest(&bytes[..bytes.len() - CHECKSUM])[..] {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

fn damaged(why: String) -> Error {
    Error::Snapshot { file: "state".to_owned(), why }
}

/// Copies what was ever written; the holes stay holes.
fn copy_sparse(from: &File, to: &File, size: u64) -> Result<()> {
    use rustix::fs::{SeekFrom, seek};
    let failed = |call: &'static str| move |error| Error::call(call, "a snapshot's memory", error);
    to.set_len(size).map_err(failed("ftruncate"))?;
    let mut at = 0;
    loop {
        let begin = match seek(from, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // No data behind this place.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(Error::call("lseek", "guest memory", error)),
        };
        let end =
            seek(from, SeekFrom::Hole(begin)).map_err(|error| Error::call("lseek", "guest memory", error))?;
        copy_range(from, to, begin, end)?;
        at = end;
    }
}

fn copy_range(from: &File, to: &File, begin: u64, end: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    let mut at = begin;
    while at < end {
        let piece = (end - at).min(buffer.len() as u64) as usize;
        from.read_exact_at(&mut buffer[..piece], at)
            .map_err(|error| Error::call("pread", "guest memory", error))?;
        to.write_all_at(&buffer[..piece], at)
            .map_err(|error| Error::call("pwrite", "a snapshot's memory", error))?;
        at += piece as u64;
    }
    Ok(())
}
