//! Statistics: the monitor's counters in Docker's document.

use std::collections::BTreeMap;
use std::sync::Arc;

use insula_base::ContainerId;
use insula_host::cgroup::{BlkioEntry, Stats};
use insula_models::{
    BlkioStats, CpuStats, CpuUsage, InterfaceStats, MemoryStats, PidsStats, StatsResponse, ThrottlingData,
};
use insula_proto::{Call, Empty, Outcome};
use jiff::Timestamp;

use super::container::Container;
use super::row::Row;
use crate::monitor::SandboxFolder;
use crate::{Engine, Error, Result, blocking};

/// Samples of one container's statistics.
#[derive(Debug)]
pub struct StatsSampler {
    container: Arc<Container>,
    sandbox: SandboxFolder,
    last: Option<(String, CpuStats)>,
}

impl Engine {
    /// Samples of a container; one that does not run gives zeros.
    pub async fn container_stats(&self, reference: &str) -> Result<StatsSampler> {
        let container = self.find(reference)?;
        let sandbox = self.sandbox(&container.row());
        Ok(StatsSampler { container, sandbox, last: None })
    }

    /// What the interfaces of all containers that run have carried. No monitor is woken for it.
    pub async fn traffic(&self) -> Result<Vec<Traffic>> {
        let engine = self.clone();
        blocking(move || {
            let running = engine.0.containers.all().into_iter().map(|container| container.row());
            let traffic = running.filter(|row| row.running()).map(|row| Traffic {
                interfaces: carried(&row, &engine.sandbox(&row)),
                id: row.id.clone(),
                name: row.name.clone(),
            });
            Ok(traffic.collect())
        })
        .await
    }
}

/// What a container's interfaces have carried since it was started.
#[derive(Debug, Clone)]
pub struct Traffic {
    pub id: ContainerId,
    pub name: String,
    /// By the names that they have in the container.
    pub interfaces: BTreeMap<String, InterfaceStats>,
}

impl StatsSampler {
    /// Whether there is anything to sample, now or after a start.
    #[must_use]
    pub fn running(&self) -> bool {
        self.container.row().running()
    }

    /// Resolves when the container is removed.
    pub async fn removed(&self) {
        let _ = self.container.subscribe().wait_for(|progress| progress.removed).await;
    }

    /// One sample; the `precpu` part is that of the one before.
    pub async fn sample(&mut self) -> Result<StatsResponse> {
        let row = self.container.row();
        let mut sample = StatsResponse {
            name: format!("/{}", row.name),
            id: row.id.to_string(),
            read: "0001-01-01T00:00:00Z".to_owned(),
            preread: "0001-01-01T00:00:00Z".to_owned(),
            ..StatsResponse::default()
        };
        let Ok(task) = self.container.task() else { return Ok(sample) };
        let stats: Stats = match task.call(Call::Stats(Empty {}), &[]).await? {
            Outcome::Stats(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| Error::Internal(format!("the monitor's statistics: {error}")))?,
            other => return Err(Error::Internal(format!("the monitor answered statistics with {other:?}"))),
        };
        sample.read = format!("{:.9}", Timestamp::now());
        sample.cpu_stats = cpu(&stats, &proc_stat());
        sample.memory_stats = memory(&stats);
        sample.pids_stats =
            PidsStats { current: stats.pids.unwrap_or(0), limit: stats.pids_limit.unwrap_or(u64::MAX) };
        sample.blkio_stats = BlkioStats {
            io_service_bytes_recursive: blkio(&stats.blkio_bytes),
            io_serviced_recursive: blkio(&stats.blkio_operations),
            ..blkio_of(&stats)
        };
        sample.networks = carried(&row, &self.sandbox);
        if let Some((preread, precpu)) = self.last.replace((sample.read.clone(), sample.cpu_stats.clone())) {
            (sample.preread, sample.precpu_stats) = (preread, precpu);
        }
        Ok(sample)
    }
}

fn proc_stat() -> String {
    std::fs::read_to_string("/proc/stat").unwrap_or_default()
}

/// The host's time is what all its CPUs have spent, proc_stat(5), without guests, which are in `user`.
fn cpu(stats: &Stats, proc_stat: &str) -> CpuStats {
    const NANOSECONDS: u64 = 1_000_000_000;
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let first = proc_stat.lines().next().unwrap_or_default();
    let spent: u64 = first.split_whitespace().skip(1).take(8).filter_map(|w| w.parse::<u64>().ok()).sum();
    let online = proc_stat.lines().skip(1).take_while(|line| line.starts_with("cpu")).count();
    CpuStats {
        cpu_usage: CpuUsage {
            total_usage: stats.cpu_total.unwrap_or(0),
            percpu_usage: stats.cpu_each.clone(),
            usage_in_kernelmode: stats.cpu_system.unwrap_or(0),
            usage_in_usermode: stats.cpu_user.unwrap_or(0),
        },
        system_cpu_usage: spent.saturating_mul(NANOSECONDS / ticks),
        online_cpus: u32::try_from(online).unwrap_or(1),
        throttling_data: ThrottlingData {
            periods: stats.throttle_periods.unwrap_or(0),
            throttled_periods: stats.throttled_periods.unwrap_or(0),
            throttled_time: stats.throttled_time.unwrap_or(0),
        },
    }
}

/// No limit is shown as the host's memory.
fn memory(stats: &Stats) -> MemoryStats {
    let info = rustix::system::sysinfo();
    #[allow(clippy::unnecessary_cast, reason = "the field is 32 bits wide on some architectures")]
    let host = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    MemoryStats {
        usage: stats.memory_usage.unwrap_or(0),
        max_usage: stats.memory_max_usage.unwrap_or(0),
        stats: stats.memory.clone(),
        failcnt: stats.memory_failures.unwrap_or(0),
        limit: stats.memory_limit.unwrap_or(host).min(host),
    }
}

/// The lists that version 1 alone has: there they are empty, elsewhere they are not there.
fn blkio_of(stats: &Stats) -> BlkioStats {
    let list = || (!stats.cpu_each.is_empty()).then(Vec::new);
    BlkioStats {
        io_queue_recursive: list(),
        io_service_time_recursive: list(),
        io_wait_time_recursive: list(),
        io_merged_recursive: list(),
        io_time_recursive: list(),
        sectors_recursive: list(),
        ..BlkioStats::default()
    }
}

fn blkio(entries: &[BlkioEntry]) -> Vec<insula_models::BlkioEntry> {
    let entry = |entry: &BlkioEntry| insula_models::BlkioEntry {
        major: entry.major.into(),
        minor: entry.minor.into(),
        op: entry.operation.clone(),
        value: entry.value,
    };
    entries.iter().map(entry).collect()
}

/// Nothing of one that shares the host's interfaces: what those carry is not its own.
fn carried(row: &Row, sandbox: &SandboxFolder) -> BTreeMap<String, InterfaceStats> {
    let Some(pid) = row.pid().filter(|_| row.host.network_mode != "host") else {
        return BTreeMap::new();
    };
    match sandbox.machine() {
        Some(machine) => machine.taps.iter().map(|(name, tap)| (name.clone(), of_tap(tap))).collect(),
        None => interfaces(pid),
    }
}

/// What the container's own interfaces have carried: `/proc/PID/net/dev` is that of its namespace.
fn interfaces(pid: i32) -> BTreeMap<String, InterfaceStats> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    parse_interfaces(&text)
}

/// What the host's end of a machine's interface has carried, seen from the other end.
fn of_tap(tap: &str) -> InterfaceStats {
    let count = |name: &str| {
        let text = std::fs::read_to_string(format!("/sys/class/net/{tap}/statistics/{name}"));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    InterfaceStats {
        rx_bytes: count("tx_bytes"),
        rx_packets: count("tx_packets"),
        rx_errors: count("tx_errors"),
        rx_dropped: count("tx_dropped"),
        tx_bytes: count("rx_bytes"),
        tx_packets: count("rx_packets"),
        tx_errors: count("rx_errors"),
        tx_dropped: count("rx_dropped"),
    }
}

fn parse_interfaces(text: &str) -> BTreeMap<String, InterfaceStats> {
    let one = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> = counters.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = counters[..]
        else {
            return None;
        };
        let stats = InterfaceStats {
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        };
        Some((name.trim().to_owned(), stats)).filter(|(name, _)| name != "lo")
    };
    text.lines().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_without_loopback() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes packets\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
                    eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n";
        let found = parse_interfaces(text);
        assert_eq!(found.len(), 1);
        assert_eq!((found["eth0"].rx_bytes, found["eth0"].tx_bytes, found["eth0"].tx_dropped), (10, 50, 8));
    }

    #[test]
    fn the_hosts_time_is_the_sum_of_its_cpus() {
        let text = "cpu  1 2 3 4 5 6 7 8 100 100\ncpu0 1 2\ncpu1 1 2\nintr 5\n";
        let stats = Stats { cpu_total: Some(9), ..Stats::default() };
        let found = cpu(&stats, text);
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(found.system_cpu_usage, 36 * (1_000_000_000 / ticks));
        assert_eq!((found.online_cpus, found.cpu_usage.total_usage), (2, 9));
    }

    #[test]
    fn no_limit_is_the_hosts_memory() {
        let unlimited = memory(&Stats { memory_limit: Some(u64::MAX), ..Stats::default() });
        let limited = memory(&Stats { memory_limit: Some(1 << 20), ..Stats::default() });
        assert!(unlimited.limit > 1 << 20 && unlimited.limit < u64::MAX);
        assert_eq!(limited.limit, 1 << 20);
    }
}
