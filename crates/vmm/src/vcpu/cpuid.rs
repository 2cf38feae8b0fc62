//! What a processor says of itself: all that the host's KVM can show, with its own place in the
//! machine (Intel SDM volume 2, CPUID).

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1, ECX.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor in a package.
const MULTITHREADING: u32 = 1 << 28;
/// Leaf 6 tells of power management of the host, which is no business of a guest.
const POWER: u32 = 6;
/// Leaf 10 tells of performance counters, which are not saved with a snapshot.
const COUNTERS: u32 = 10;

/// The answers of processor `index` of `count`.
pub(super) fn of(supported: &CpuId, index: u8, count: u8) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        adjust(entry, index, count);
    }
    cpuid
}

fn adjust(entry: &mut kvm_cpuid_entry2, index: u8, count: u8) {
    let id = u32::from(index);
    match (entry.function, entry.index) {
        (1, _) => {
            entry.ecx |= HYPERVISOR;
            entry.ebx = (entry.ebx & 0xffff) | u32::from(count) << 16 | id << 24;
            if count > 1 {
                entry.edx |= MULTITHREADING;
            }
        }
        // Caches: each belongs to one core, and there are `count` cores in the package.
        (4, _) if entry.eax & 0x1f != 0 => {
            entry.eax = (entry.eax & 0x3fff) | (u32::from(count.next_power_of_two()) - 1) << 26;
        }
        (POWER | COUNTERS, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        (0xb | 0x1f, level) => topology(entry, level, id, u32::from(count)),
        // AMD: cores in the package, and the bits of an APIC id that number them.
        (0x8000_0008, _) => {
            let bits = u32::from(count).next_power_of_two().trailing_zeros();
            entry.ecx = bits << 12 | (u32::from(count) - 1);
        }
        (0x8000_001e, _) => (entry.eax, entry.ebx) = (id, id),
        _ => {}
    }
}

/// Threads (one a core), then cores, then nothing.
fn topology(entry: &mut kvm_cpuid_entry2, level: u32, id: u32, count: u32) {
    let bits = count.next_power_of_two().trailing_zeros();
    (entry.eax, entry.ebx, entry.ecx) = match level {
        0 => (0, 1, 1 << 8),
        1 => (bits, count, 2 << 8 | 1),
        _ => (0, 0, level),
    };
    entry.edx = id;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_processor_knows_its_number_and_how_many_there_are() {
        let entries = [(1, 0), (0xb, 0), (0xb, 1), (0xb, 2)].map(|(function, index)| kvm_cpuid_entry2 {
            function,
            index,
            ebx: 0xffff_ffff,
            ..Default::default()
        });
        let cpuid = of(&CpuId::from_entries(&entries).unwrap(), 2, 3);
        let [one, threads, cores, end] = cpuid.as_slice() else { panic!("{cpuid:?}") };
        assert_eq!((one.ebx, one.ecx & HYPERVISOR), (0x0203_ffff, HYPERVISOR));
        assert_eq!((threads.ebx, threads.edx), (1, 2));
        assert_eq!((cores.eax, cores.ebx, cores.edx), (2, 3, 2));
        assert_eq!((end.ebx, end.ecx), (0, 2));
    }
}
