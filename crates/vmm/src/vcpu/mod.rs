//! One virtual processor, run by a thread of its own.
//!
//! ```text
//!   new ──> paused ──resume──> running ──guest ends or error──> stopped
//!              ^                  │
//!              └──────pause───────┘        (state is taken and given while paused)
//! ```

mod cpuid;
mod entry;
mod state;
mod thread;

use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::error::{Error, Result};
use crate::machine::Stop;
use crate::memory::GuestRam;

pub(crate) use entry::Entry;
pub(crate) use state::VcpuState;
pub(crate) use thread::VcpuThread;

/// What a vcpu's accesses reach.
#[derive(Debug, Clone)]
pub(crate) struct Buses {
    pub(crate) ports: Arc<Bus>,
    pub(crate) mmio: Arc<Bus>,
}

/// A processor that is not running.
#[derive(Debug)]
pub(crate) struct Vcpu {
    index: u8,
    descriptor: VcpuFd,
    buses: Buses,
}

/// Why a turn ended.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// The guest goes on at once.
    Again,
    /// Somebody wants the thread's attention.
    Interrupted,
    Ended(Stop),
}

impl Vcpu {
    /// A processor of a machine with `count` of them; `supported` is what the host's KVM can show.
    pub(crate) fn new(
        index: u8,
        count: u8,
        descriptor: VcpuFd,
        supported: &CpuId,
        buses: Buses,
    ) -> Result<Self> {
        let vcpu = Self { index, descriptor, buses };
        let cpuid = cpuid::of(supported, index, count);
        vcpu.descriptor.set_cpuid2(&cpuid).map_err(|error| vcpu.failed("KVM_SET_CPUID2", error))?;
        Ok(vcpu)
    }

    /// Where the first processor begins; the others wait for it to start them.
    pub(crate) fn enter(&self, entry: Entry, memory: &GuestRam) -> Result<()> {
        entry::apply(self, entry, memory)
    }

    /// One run of the guest, until it needs something.
    fn turn(&mut self) -> Result<Turn> {
        match self.descriptor.run() {
            Ok(VcpuExit::IoIn(port, data)) => self.buses.ports.read(u64::from(port), data),
            Ok(VcpuExit::IoOut(port, data)) => self.buses.ports.write(u64::from(port), data),
            Ok(VcpuExit::MmioRead(address, data)) => self.buses.mmio.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => self.buses.mmio.write(address, data),
            // With the interrupt controller in the kernel a halt does not come here.
            Ok(VcpuExit::Hlt) => return Ok(Turn::Ended(Stop::Halt)),
            // A triple fault: how old kernels reset a machine, and how all of them die.
            Ok(VcpuExit::Shutdown) => return Ok(Turn::Ended(Stop::Reset)),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                return Ok(Turn::Ended(Stop::PowerOff));
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Ok(Turn::Ended(Stop::Reset)),
            Ok(VcpuExit::Intr) => return Ok(Turn::Interrupted),
            Ok(VcpuExit::IrqWindowOpen | VcpuExit::Hypercall(_)) => {}
            Ok(exit) => return Ok(Turn::Ended(Stop::Crash(format!("vcpu {} met {exit:?}", self.index)))),
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {
                return Ok(Turn::Interrupted);
            }
            Err(error) => return Err(self.failed("KVM_RUN", error)),
        }
        Ok(Turn::Again)
    }

    fn failed(&self, call: &'static str, error: kvm_ioctls::Error) -> Error {
        Error::kvm(call, format!("vcpu {}", self.index), error)
    }
}
