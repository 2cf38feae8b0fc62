//! Statistics: `GET /containers/{id}/stats`.

use std::collections::BTreeMap;

use crate::lenient::{is_zero, null_if_empty, snake_document};

snake_document! {
    /// One sample. CPU times are nanoseconds, sizes bytes.
    StatsResponse {
        name: String,
        id: String,
        /// RFC 3339.
        read: String,
        preread: String,
        pids_stats: PidsStats,
        blkio_stats: BlkioStats,
        num_procs: u32,
        storage_stats: StorageStats,
        cpu_stats: CpuStats,
        precpu_stats: CpuStats,
        memory_stats: MemoryStats,
        #[serde(skip_serializing_if = "is_zero")]
        networks: BTreeMap<String, InterfaceStats>,
    }
}

snake_document! {
    /// Tasks.
    PidsStats {
        #[serde(skip_serializing_if = "is_zero")]
        current: u64,
        /// `u64::MAX` is no limit.
        #[serde(skip_serializing_if = "is_zero")]
        limit: u64,
    }
}

snake_document! {
    /// Block devices; the lists other than bytes and operations are of cgroup version 1.
    BlkioStats {
        #[serde(serialize_with = "null_if_empty")]
        io_service_bytes_recursive: Vec<BlkioEntry>,
        #[serde(serialize_with = "null_if_empty")]
        io_serviced_recursive: Vec<BlkioEntry>,
        io_queue_recursive: Option<Vec<BlkioEntry>>,
        io_service_time_recursive: Option<Vec<BlkioEntry>>,
        io_wait_time_recursive: Option<Vec<BlkioEntry>>,
        io_merged_recursive: Option<Vec<BlkioEntry>>,
        io_time_recursive: Option<Vec<BlkioEntry>>,
        sectors_recursive: Option<Vec<BlkioEntry>>,
    }
}

snake_document! {
    /// One counter of one device.
    BlkioEntry {
        major: u64,
        minor: u64,
        /// `read`, `write`; on version 1 also `Sync`, `Async`, `Discard`, `Total`, and all of them capitalized.
        op: String,
        value: u64,
    }
}

snake_document! {
    /// Windows only; always zero.
    StorageStats {
        #[serde(skip_serializing_if = "is_zero")]
        read_count_normalized: u64,
        #[serde(skip_serializing_if = "is_zero")]
        read_size_bytes: u64,
        #[serde(skip_serializing_if = "is_zero")]
        write_count_normalized: u64,
        #[serde(skip_serializing_if = "is_zero")]
        write_size_bytes: u64,
    }
}

snake_document! {
    /// CPU.
    CpuStats {
        cpu_usage: CpuUsage,
        /// The whole host's.
        #[serde(skip_serializing_if = "is_zero")]
        system_cpu_usage: u64,
        #[serde(skip_serializing_if = "is_zero")]
        online_cpus: u32,
        throttling_data: ThrottlingData,
    }
}

snake_document! {
    /// CPU time used.
    CpuUsage {
        total_usage: u64,
        #[serde(skip_serializing_if = "is_zero")]
        percpu_usage: Vec<u64>,
        usage_in_kernelmode: u64,
        usage_in_usermode: u64,
    }
}

snake_document! {
    /// How often the CPU limit was hit.
    ThrottlingData {
        periods: u64,
        throttled_periods: u64,
        throttled_time: u64,
    }
}

snake_document! {
    /// Memory.
    MemoryStats {
        #[serde(skip_serializing_if = "is_zero")]
        usage: u64,
        #[serde(skip_serializing_if = "is_zero")]
        max_usage: u64,
        /// `memory.stat`.
        #[serde(skip_serializing_if = "is_zero")]
        stats: BTreeMap<String, u64>,
        #[serde(skip_serializing_if = "is_zero")]
        failcnt: u64,
        /// The container's limit, or the host's memory.
        #[serde(skip_serializing_if = "is_zero")]
        limit: u64,
    }
}

snake_document! {
    /// One interface.
    InterfaceStats {
        rx_bytes: u64,
        rx_packets: u64,
        rx_errors: u64,
        rx_dropped: u64,
        tx_bytes: u64,
        tx_packets: u64,
        tx_errors: u64,
        tx_dropped: u64,
    }
}
