//! The machine: what it is made of, and its life.
//!
//! ```text
//!   new ──attach devices──> assembled ──boot or restore──> Running (paused) <──> running ──> stopped
//! ```

mod devices;
mod dirty;
mod running;
mod snapshot;
mod stop;

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::GuestMemoryBackend;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot::{self, Kernel};
use crate::bus::Bus;
use crate::error::{Error, Result};
use crate::jail::Filter;
use crate::layout::{IDENTITY_MAP, SERIAL_GSI, TSS};
use crate::legacy::{self, Console, SerialLine};
use crate::memory::{Mapped, Memory};
use crate::vcpu::{Buses, Entry, Vcpu};
use crate::virtio::Device;
use crate::virtio::image::Image;

pub use running::Running;
pub use snapshot::Snapshot;
pub use stop::Stop;
pub(crate) use stop::Stopper;

use devices::Devices;

/// The most processors of one machine: APIC ids have 8 bits, and the last means all of them.
const MOST_CPUS: u8 = 254;

/// What every machine needs of the host.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::Irqchip, "an interrupt controller in the kernel (KVM_CAP_IRQCHIP)"),
    (Cap::Irqfd, "interrupts by eventfd (KVM_CAP_IRQFD)"),
    (Cap::Ioeventfd, "notifications by eventfd (KVM_CAP_IOEVENTFD)"),
    (Cap::UserMemory, "guest memory (KVM_CAP_USER_MEMORY)"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::Pit2, "a timer (KVM_CAP_PIT2)"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::Xcrs, "extended control registers (KVM_CAP_XCRS)"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

/// The host's KVM.
#[derive(Debug)]
pub struct Host(Kvm);

impl Host {
    /// Opens `/dev/kvm`.
    pub fn open() -> Result<Self> {
        Kvm::new().map(Self).map_err(|error| Error::kvm("open", "/dev/kvm", error))
    }

    /// `/dev/kvm`, opened by somebody who may.
    #[must_use]
    pub fn of(descriptor: OwnedFd) -> Self {
        // SAFETY: the descriptor is owned, and is given away here.
        Self(unsafe { Kvm::from_raw_fd(descriptor.into_raw_fd()) })
    }
}

/// What a machine is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub cpus: u8,
    /// In bytes; a multiple of 4096.
    pub memory: u64,
}

/// A machine that has not begun.
#[derive(Debug)]
pub struct Machine {
    kvm: Kvm,
    vm: Arc<VmFd>,
    supported: CpuId,
    cpus: u8,
    memory: Arc<Memory>,
    ports: Bus,
    devices: Devices,
    /// A file in the guest's memory, beyond its own.
    image: Option<Mapped>,
    stopper: Stopper,
    /// For the threads of its processors.
    filter: Option<Arc<Filter>>,
    /// Who may ask what the guest writes.
    asker: Option<OwnedFd>,
}

impl Machine {
    /// An empty machine. What its kernel prints on the first serial line goes to `console`, which
    /// must not wait.
    pub fn new(host: Host, shape: Shape, console: Console) -> Result<Self> {
        Self::with_memory(host, shape.cpus, Memory::new(shape.memory)?, console)
    }

    /// The same in a memory that is there: [`Memory::in_file`] for a machine whose memory somebody else keeps.
    pub fn with_memory(host: Host, cpus: u8, memory: Memory, console: Console) -> Result<Self> {
        if cpus == 0 || cpus > MOST_CPUS {
            return Err(Error::Shape(format!(
                "a machine of {cpus} processors; 1 to {MOST_CPUS} are possible"
            )));
        }
        let Host(kvm) = host;
        if let Some((_, what)) = NEEDED.iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
            return Err(Error::Lacks(what));
        }
        let vm = kvm.create_vm().map_err(|error| Error::kvm("KVM_CREATE_VM", "a machine", error))?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| Error::kvm("KVM_GET_SUPPORTED_CPUID", "the host", error))?;
        controllers(&vm)?;
        map(&vm, &memory)?;
        let (stopper, mut ports) = (Stopper::new()?, Bus::default());
        let line = event()?;
        vm.register_irqfd(&line, SERIAL_GSI)
            .map_err(|error| Error::kvm("KVM_IRQFD", "the serial line", error))?;
        legacy::plug(&mut ports, SerialLine::new(line, console), &stopper)?;
        let (vm, memory) = (Arc::new(vm), Arc::new(memory));
        let devices = Devices::new(Arc::clone(&vm), Arc::clone(&memory));
        let (image, filter, asker) = (None, None, None);
        Ok(Self { kvm, vm, supported, cpus, memory, ports, devices, image, stopper, filter, asker })
    }

    /// Plugs a device. The guest sees devices in the order in which they were plugged.
    pub fn attach(&mut self, device: Box<dyn Device>) -> Result<()> {
        self.devices.attach(device)
    }

    /// Plugs a device whose memory is a file's, of whole blocks of 2 MiB, which the guest reads and cannot write:
    /// what it writes there is lost. Nobody may shorten the file as long as the machine is there.
    pub fn attach_image(&mut self, file: File) -> Result<()> {
        if !self.kvm.check_extension(Cap::ReadonlyMem) {
            return Err(Error::Lacks("memory that is read-only (KVM_CAP_READONLY_MEM)"));
        }
        if self.image.is_some() {
            return Err(Error::Shape("a machine has one image at most".to_owned()));
        }
        let (image, address) = (Mapped::new(file)?, self.memory.beyond());
        let area = kvm_userspace_memory_region {
            slot: self.memory.ram().num_regions() as u32,
            guest_phys_addr: address,
            memory_size: image.size(),
            userspace_addr: image.place(),
            flags: KVM_MEM_READONLY,
        };
        // SAFETY: the mapping is kept as long as the machine, which owns both, and lies beyond its memory.
        unsafe { self.vm.set_user_memory_region(area) }
            .map_err(|error| Error::kvm("KVM_SET_USER_MEMORY_REGION", "an image", error))?;
        let device = Image::new(address, image.size());
        self.image = Some(image);
        self.devices.attach(Box::new(device))
    }

    /// Threads of its processors can do no more than this filter lets them, from their first instruction on.
    pub fn confine(&mut self, processors: Filter) {
        self.filter = Some(Arc::new(processors));
    }

    /// How much of its memory the guest writes is told to who asks on this socket of messages: `dirty.rs` says in which
    /// words.
    pub fn tell_dirty_rate(&mut self, asker: OwnedFd) {
        self.asker = Some(asker);
    }

    /// The guest's memory, for servers of `vhost-user` devices.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Loads a kernel; the machine is paused before its first instruction.
    pub fn boot(self, kernel: &Kernel) -> Result<Running> {
        let rsdp = boot::acpi::write(&self.memory, self.cpus, &self.devices.slots())?;
        let entry = boot::load(&self.memory, kernel, rsdp)?;
        self.begin(entry)
    }

    /// Paused at `entry`, with whatever is in memory.
    pub(crate) fn begin(self, entry: Entry) -> Result<Running> {
        let (machine, vcpus) = self.assemble()?;
        if let Some(first) = vcpus.first() {
            first.enter(entry, machine.memory.ram())?;
        }
        Running::new(machine, vcpus)
    }

    /// Processors, and the buses that they reach.
    fn assemble(mut self) -> Result<(Self, Vec<Vcpu>)> {
        let buses =
            Buses { ports: Arc::new(std::mem::take(&mut self.ports)), mmio: Arc::new(self.devices.bus()?) };
        let vcpus = (0..self.cpus)
            .map(|index| {
                let descriptor = self
                    .vm
                    .create_vcpu(u64::from(index))
                    .map_err(|error| Error::kvm("KVM_CREATE_VCPU", format!("vcpu {index}"), error))?;
                Vcpu::new(index, self.cpus, descriptor, &self.supported, buses.clone())
            })
            .collect::<Result<_>>()?;
        Ok((self, vcpus))
    }
}

/// Interrupt controllers and the timer, all in the kernel.
fn controllers(vm: &VmFd) -> Result<()> {
    let failed = |call| move |error| Error::kvm(call, "a machine", error);
    vm.set_identity_map_address(IDENTITY_MAP).map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(TSS).map_err(failed("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
    // The speaker's port would otherwise come here each time that a guest measures its clock by it.
    let timer = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(timer).map_err(failed("KVM_CREATE_PIT2"))
}

fn map(vm: &VmFd, memory: &Memory) -> Result<()> {
    for area in dirty::areas(memory, 0) {
        // SAFETY: the area is a mapping that `Memory` keeps as long as the machine, which owns both,
        // and regions do not overlap.
        unsafe { vm.set_user_memory_region(area) }
            .map_err(|error| Error::kvm("KVM_SET_USER_MEMORY_REGION", "guest memory", error))?;
    }
    Ok(())
}

pub(crate) fn event() -> Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|error| Error::call("eventfd", "a machine", error))
}

/// A device behind its lock.
pub(crate) type Shared<T> = Arc<Mutex<T>>;

#[cfg(test)]
mod tests;
