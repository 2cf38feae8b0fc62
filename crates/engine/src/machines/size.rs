//! How large a machine is, from the limits of its container.

use insula_models::HostConfig;

/// Memory of a machine whose container has no limit.
const MEMORY: u64 = 512 << 20;
/// What the guest's kernel takes beside a container's limit.
const KERNEL: u64 = 128 << 20;
const MIB: u64 = 1 << 20;
/// More processors than this take longer to start than they give.
const MOST_CPUS: u64 = 64;

/// Bytes, whole MiB: the container's limit holds inside, and is not eaten by the kernel.
pub(super) fn memory(host: &HostConfig) -> u64 {
    match u64::try_from(host.memory) {
        Ok(limit) if limit > 0 => limit.saturating_add(KERNEL).next_multiple_of(MIB),
        _ => MEMORY,
    }
}

/// As many as the container may keep busy; one without a limit, since each is started with the machine.
pub(super) fn cpus(host: &HostConfig) -> u32 {
    const BILLION: u64 = 1_000_000_000;
    let nano = u64::try_from(host.nano_cpus).unwrap_or(0);
    let quota = match (u64::try_from(host.cpu_quota), u64::try_from(host.cpu_period)) {
        (Ok(quota), Ok(period)) if quota > 0 => quota.div_ceil(if period == 0 { 100_000 } else { period }),
        _ => 0,
    };
    // At most 64.
    nano.div_ceil(BILLION).max(quota).clamp(1, MOST_CPUS) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_have_room_for_their_kernel() {
        let host = |memory| HostConfig { memory, ..HostConfig::default() };
        assert_eq!(memory(&host(0)), 512 << 20);
        assert_eq!(memory(&host(256 << 20)), 384 << 20);
        assert_eq!(memory(&host((64 << 20) + 1)), 193 << 20);
    }

    #[test]
    fn half_a_processor_is_one() {
        let host = |nano_cpus, cpu_quota, cpu_period| HostConfig {
            nano_cpus,
            cpu_quota,
            cpu_period,
            ..HostConfig::default()
        };
        assert_eq!(cpus(&host(0, 0, 0)), 1);
        assert_eq!(cpus(&host(500_000_000, 0, 0)), 1);
        assert_eq!(cpus(&host(1_500_000_000, 0, 0)), 2);
        assert_eq!(cpus(&host(0, 300_000, 0)), 3);
        assert_eq!(cpus(&host(0, 30_000, 10_000)), 3);
        assert_eq!(cpus(&host(0, -1, 0)), 1);
    }
}
