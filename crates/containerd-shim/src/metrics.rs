//! What a container uses, in the messages that containerd's clients know: one for each version of control groups.

use std::collections::BTreeMap;

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{MessageField, MessageFull};
use insula_host::cgroup::{BlkioEntry, Layout, Stats};

use crate::error::{Error, Result};

/// In the message of this host's version.
pub(crate) fn of(stats: &Stats, layout: &Layout, oom_kills: u64) -> Result<Any> {
    if layout.unified() { pack(&second(stats, oom_kills)) } else { pack(&first(stats, oom_kills)) }
}

fn pack<M: MessageFull>(message: &M) -> Result<Any> {
    let value = message
        .write_to_bytes()
        .map_err(|source| Error::Message { on: "write what a container uses", source })?;
    Ok(Any { type_url: M::descriptor().full_name().to_owned(), value, ..Any::default() })
}

fn entry(stats: &BTreeMap<String, u64>, name: &str) -> u64 {
    stats.get(name).copied().unwrap_or(0)
}

fn first(stats: &Stats, oom_kills: u64) -> v1::Metrics {
    let get = |name: &str| entry(&stats.memory, name);
    let memory = v1::MemoryStat {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        pg_pg_in: get("pgpgin"),
        pg_pg_out: get("pgpgout"),
        pg_fault: get("pgfault"),
        pg_maj_fault: get("pgmajfault"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        hierarchical_memory_limit: get("hierarchical_memory_limit"),
        hierarchical_swap_limit: get("hierarchical_memsw_limit"),
        total_cache: get("total_cache"),
        total_rss: get("total_rss"),
        total_rss_huge: get("total_rss_huge"),
        total_mapped_file: get("total_mapped_file"),
        total_dirty: get("total_dirty"),
        total_writeback: get("total_writeback"),
        total_pg_pg_in: get("total_pgpgin"),
        total_pg_pg_out: get("total_pgpgout"),
        total_pg_fault: get("total_pgfault"),
        total_pg_maj_fault: get("total_pgmajfault"),
        total_inactive_anon: get("total_inactive_anon"),
        total_active_anon: get("total_active_anon"),
        total_inactive_file: get("total_inactive_file"),
        total_active_file: get("total_active_file"),
        total_unevictable: get("total_unevictable"),
        usage: MessageField::some(v1::MemoryEntry {
            limit: stats.memory_limit.unwrap_or(u64::MAX),
            usage: stats.memory_usage.unwrap_or(0),
            max: stats.memory_max_usage.unwrap_or(0),
            failcnt: stats.memory_failures.unwrap_or(0),
            ..v1::MemoryEntry::default()
        }),
        ..v1::MemoryStat::default()
    };
    v1::Metrics {
        pids: MessageField::some(v1::PidsStat {
            current: stats.pids.unwrap_or(0),
            limit: stats.pids_limit.unwrap_or(0),
            ..v1::PidsStat::default()
        }),
        cpu: MessageField::some(first_cpu(stats)),
        memory: MessageField::some(memory),
        memory_oom_control: MessageField::some(v1::MemoryOomControl {
            oom_kill: oom_kills,
            ..v1::MemoryOomControl::default()
        }),
        blkio: MessageField::some(v1::BlkIOStat {
            io_service_bytes_recursive: stats.blkio_bytes.iter().map(device).collect(),
            io_serviced_recursive: stats.blkio_operations.iter().map(device).collect(),
            ..v1::BlkIOStat::default()
        }),
        ..v1::Metrics::default()
    }
}

fn first_cpu(stats: &Stats) -> v1::CPUStat {
    v1::CPUStat {
        usage: MessageField::some(v1::CPUUsage {
            total: stats.cpu_total.unwrap_or(0),
            kernel: stats.cpu_system.unwrap_or(0),
            user: stats.cpu_user.unwrap_or(0),
            per_cpu: stats.cpu_each.clone(),
            ..v1::CPUUsage::default()
        }),
        throttling: MessageField::some(v1::Throttle {
            periods: stats.throttle_periods.unwrap_or(0),
            throttled_periods: stats.throttled_periods.unwrap_or(0),
            throttled_time: stats.throttled_time.unwrap_or(0),
            ..v1::Throttle::default()
        }),
        ..v1::CPUStat::default()
    }
}

fn device(entry: &BlkioEntry) -> v1::BlkIOEntry {
    v1::BlkIOEntry {
        op: entry.operation.clone(),
        major: entry.major.into(),
        minor: entry.minor.into(),
        value: entry.value,
        ..v1::BlkIOEntry::default()
    }
}

fn second(stats: &Stats, oom_kills: u64) -> v2::Metrics {
    const MICRO: u64 = 1000;
    let get = |name: &str| entry(&stats.memory, name);
    let micro = |nanoseconds: Option<u64>| nanoseconds.unwrap_or(0) / MICRO;
    let memory = v2::MemoryStat {
        anon: get("anon"),
        file: get("file"),
        kernel_stack: get("kernel_stack"),
        slab: get("slab"),
        sock: get("sock"),
        shmem: get("shmem"),
        file_mapped: get("file_mapped"),
        file_dirty: get("file_dirty"),
        file_writeback: get("file_writeback"),
        anon_thp: get("anon_thp"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        slab_reclaimable: get("slab_reclaimable"),
        slab_unreclaimable: get("slab_unreclaimable"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        pgrefill: get("pgrefill"),
        pgscan: get("pgscan"),
        pgsteal: get("pgsteal"),
        pgactivate: get("pgactivate"),
        pgdeactivate: get("pgdeactivate"),
        pglazyfree: get("pglazyfree"),
        pglazyfreed: get("pglazyfreed"),
        thp_fault_alloc: get("thp_fault_alloc"),
        thp_collapse_alloc: get("thp_collapse_alloc"),
        usage: stats.memory_usage.unwrap_or(0),
        usage_limit: stats.memory_limit.unwrap_or(u64::MAX),
        max_usage: stats.memory_max_usage.unwrap_or(0),
        ..v2::MemoryStat::default()
    };
    v2::Metrics {
        pids: MessageField::some(v2::PidsStat {
            current: stats.pids.unwrap_or(0),
            limit: stats.pids_limit.unwrap_or(0),
            ..v2::PidsStat::default()
        }),
        cpu: MessageField::some(v2::CPUStat {
            usage_usec: micro(stats.cpu_total),
            user_usec: micro(stats.cpu_user),
            system_usec: micro(stats.cpu_system),
            nr_periods: stats.throttle_periods.unwrap_or(0),
            nr_throttled: stats.throttled_periods.unwrap_or(0),
            throttled_usec: micro(stats.throttled_time),
            ..v2::CPUStat::default()
        }),
        memory: MessageField::some(memory),
        memory_events: MessageField::some(v2::MemoryEvents {
            oom_kill: oom_kills,
            ..v2::MemoryEvents::default()
        }),
        io: MessageField::some(v2::IOStat { usage: devices(stats), ..v2::IOStat::default() }),
        ..v2::Metrics::default()
    }
}

/// One entry a device, where the kernel's counters are one an operation.
fn devices(stats: &Stats) -> Vec<v2::IOEntry> {
    let mut all: BTreeMap<(u32, u32), v2::IOEntry> = BTreeMap::new();
    let both = stats.blkio_bytes.iter().map(|entry| (entry, true));
    for (entry, bytes) in both.chain(stats.blkio_operations.iter().map(|entry| (entry, false))) {
        let device = all.entry((entry.major, entry.minor)).or_default();
        (device.major, device.minor) = (entry.major.into(), entry.minor.into());
        match (entry.operation.as_str(), bytes) {
            ("read", true) => device.rbytes = entry.value,
            ("write", true) => device.wbytes = entry.value,
            ("read", false) => device.rios = entry.value,
            ("write", false) => device.wios = entry.value,
            _ => {}
        }
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::protobuf::Message;

    fn stats() -> Stats {
        let device = |operation: &str, value| BlkioEntry {
            major: 8,
            minor: 1,
            operation: operation.to_owned(),
            value,
        };
        Stats {
            cpu_total: Some(5_000_000),
            memory_usage: Some(4096),
            pids: Some(3),
            memory: BTreeMap::from([("anon".to_owned(), 7), ("total_rss".to_owned(), 9)]),
            blkio_bytes: vec![device("read", 10), device("write", 20)],
            blkio_operations: vec![device("write", 2)],
            ..Stats::default()
        }
    }

    #[test]
    fn both_versions_have_their_message() {
        let any = pack(&first(&stats(), 1)).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let metrics = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((metrics.cpu.usage.total, metrics.memory.usage.usage), (5_000_000, 4096));
        assert_eq!((metrics.memory.total_rss, metrics.memory_oom_control.oom_kill), (9, 1));

        let any = pack(&second(&stats(), 1)).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((metrics.cpu.usage_usec, metrics.memory.usage, metrics.memory.anon), (5000, 4096, 7));
        let device = &metrics.io.usage[0];
        assert_eq!((device.rbytes, device.wbytes, device.rios, device.wios), (10, 20, 0, 2));
    }
}
