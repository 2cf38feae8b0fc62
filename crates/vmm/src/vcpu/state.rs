//! All of a processor that a snapshot keeps.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use serde::{Deserialize, Serialize};

use super::Vcpu;
use crate::error::{Error, Result};

/// As the kernel's interface has it. The order in which it is given back matters: what a processor
/// can do comes before what depends on it, and pending events come last.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VcpuState {
    cpuid: Vec<kvm_bindings::kvm_cpuid_entry2>,
    msrs: Vec<kvm_msr_entry>,
    registers: kvm_regs,
    special: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    run_state: kvm_mp_state,
    events: kvm_vcpu_events,
    /// In kHz; `None` where the host cannot tell.
    tsc: Option<u32>,
}

impl Vcpu {
    /// The state of a processor that stands still; `msrs` are those that the host can save.
    pub(crate) fn save(&self, msrs: &[u32]) -> Result<VcpuState> {
        let descriptor = &self.descriptor;
        // The multiprocessing state first: taking it settles what the kernel still holds back.
        let run_state = descriptor.get_mp_state().map_err(|error| self.failed("KVM_GET_MP_STATE", error))?;
        let cpuid = descriptor
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| self.failed("KVM_GET_CPUID2", error))?;
        Ok(VcpuState {
            run_state,
            cpuid: cpuid.as_slice().to_vec(),
            registers: descriptor.get_regs().map_err(|error| self.failed("KVM_GET_REGS", error))?,
            special: descriptor.get_sregs().map_err(|error| self.failed("KVM_GET_SREGS", error))?,
            xsave: descriptor.get_xsave().map_err(|error| self.failed("KVM_GET_XSAVE", error))?,
            xcrs: descriptor.get_xcrs().map_err(|error| self.failed("KVM_GET_XCRS", error))?,
            debug: descriptor.get_debug_regs().map_err(|error| self.failed("KVM_GET_DEBUGREGS", error))?,
            lapic: descriptor.get_lapic().map_err(|error| self.failed("KVM_GET_LAPIC", error))?,
            msrs: self.save_msrs(msrs)?,
            events: descriptor
                .get_vcpu_events()
                .map_err(|error| self.failed("KVM_GET_VCPU_EVENTS", error))?,
            tsc: descriptor.get_tsc_khz().ok(),
        })
    }

    /// Those which this processor has; the kernel stops at the first that it has not, so that one is
    /// left out and the rest is asked for again.
    fn save_msrs(&self, indices: &[u32]) -> Result<Vec<kvm_msr_entry>> {
        let mut saved = Vec::with_capacity(indices.len());
        let mut rest = indices;
        while !rest.is_empty() {
            let entries: Vec<_> =
                rest.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
            let mut msrs =
                Msrs::from_entries(&entries).map_err(|error| Error::Shape(format!("{error:?}")))?;
            let read =
                self.descriptor.get_msrs(&mut msrs).map_err(|error| self.failed("KVM_GET_MSRS", error))?;
            saved.extend_from_slice(&msrs.as_slice()[..read.min(rest.len())]);
            rest = rest.get(read + 1..).unwrap_or_default();
        }
        Ok(saved)
    }

    /// Gives a new processor the state of one that was saved.
    pub(crate) fn restore(&self, state: &VcpuState) -> Result<()> {
        let descriptor = &self.descriptor;
        let cpuid = CpuId::from_entries(&state.cpuid).map_err(|error| Error::Shape(format!("{error:?}")))?;
        descriptor.set_cpuid2(&cpuid).map_err(|error| self.failed("KVM_SET_CPUID2", error))?;
        descriptor.set_mp_state(state.run_state).map_err(|error| self.failed("KVM_SET_MP_STATE", error))?;
        descriptor.set_regs(&state.registers).map_err(|error| self.failed("KVM_SET_REGS", error))?;
        descriptor.set_sregs(&state.special).map_err(|error| self.failed("KVM_SET_SREGS", error))?;
        // SAFETY: no feature with a state beyond 4 KiB is enabled for guests (KVM grants AMX only to a
        // process that asks for it by arch_prctl), so the kernel reads no more than this structure.
        unsafe { descriptor.set_xsave(&state.xsave) }.map_err(|error| self.failed("KVM_SET_XSAVE", error))?;
        descriptor.set_xcrs(&state.xcrs).map_err(|error| self.failed("KVM_SET_XCRS", error))?;
        descriptor.set_debug_regs(&state.debug).map_err(|error| self.failed("KVM_SET_DEBUGREGS", error))?;
        descriptor.set_lapic(&state.lapic).map_err(|error| self.failed("KVM_SET_LAPIC", error))?;
        self.restore_clock(state.tsc)?;
        self.restore_msrs(&state.msrs)?;
        descriptor.set_vcpu_events(&state.events).map_err(|error| self.failed("KVM_SET_VCPU_EVENTS", error))
    }

    /// A guest that counted at another rate needs the host's help to go on counting at it.
    fn restore_clock(&self, saved: Option<u32>) -> Result<()> {
        let (Some(saved), Ok(own)) = (saved, self.descriptor.get_tsc_khz()) else { return Ok(()) };
        // The kernel itself tolerates 250 parts in a million.
        if u64::from(saved.abs_diff(own)) * 4000 <= u64::from(own) {
            return Ok(());
        }
        self.descriptor.set_tsc_khz(saved).map_err(|error| self.failed("KVM_SET_TSC_KHZ", error))
    }

    fn restore_msrs(&self, entries: &[kvm_msr_entry]) -> Result<()> {
        let msrs = Msrs::from_entries(entries).map_err(|error| Error::Shape(format!("{error:?}")))?;
        let written = self.descriptor.set_msrs(&msrs).map_err(|error| self.failed("KVM_SET_MSRS", error))?;
        match entries.get(written) {
            None => Ok(()),
            Some(refused) => Err(Error::Shape(format!(
                "this host refuses the value of model specific register {:#x} that the guest was saved with",
                refused.index
            ))),
        }
    }
}
