//! What a group uses, in one shape for both versions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::Result;
use super::group::Group;
use super::member::Member;

/// Counters of a group. Absent where the host does not have the controller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Nanoseconds of CPU time.
    pub cpu_total: Option<u64>,
    pub cpu_user: Option<u64>,
    pub cpu_system: Option<u64>,
    /// Nanoseconds for each CPU; version 1 only.
    pub cpu_each: Vec<u64>,
    pub throttle_periods: Option<u64>,
    pub throttled_periods: Option<u64>,
    /// Nanoseconds.
    pub throttled_time: Option<u64>,
    /// Bytes.
    pub memory_usage: Option<u64>,
    pub memory_max_usage: Option<u64>,
    /// `u64::MAX` or the kernel's nearest to it is unlimited.
    pub memory_limit: Option<u64>,
    pub memory_failures: Option<u64>,
    /// `memory.stat` as it is.
    pub memory: BTreeMap<String, u64>,
    pub pids: Option<u64>,
    /// Absent is unlimited.
    pub pids_limit: Option<u64>,
    /// Bytes and operations by device.
    pub blkio_bytes: Vec<BlkioEntry>,
    pub blkio_operations: Vec<BlkioEntry>,
}

/// One counter of one block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkioEntry {
    pub major: u32,
    pub minor: u32,
    /// `read`, `write`; on version 1 as the kernel has them: `Read`, `Write`, `Sync`, `Async`, `Discard`, `Total`.
    pub operation: String,
    pub value: u64,
}

pub(super) fn read(group: &Group) -> Result<Stats> {
    let mut stats = Stats::default();
    if let Some(member) = group.v2() {
        v2(member, &mut stats)?;
    }
    v1_cpu(group, &mut stats)?;
    if let Some(member) = group.v1("memory") {
        v1_memory(member, &mut stats)?;
    }
    if let Some(member) = group.v1("pids") {
        pids(member, &mut stats)?;
    }
    if let Some(member) = group.v1("blkio") {
        stats.blkio_bytes = blkio_v1(&text(member, "blkio.throttle.io_service_bytes")?);
        stats.blkio_operations = blkio_v1(&text(member, "blkio.throttle.io_serviced")?);
    }
    Ok(stats)
}

fn v1_cpu(group: &Group, stats: &mut Stats) -> Result<()> {
    if let Some(member) = group.v1("cpuacct") {
        stats.cpu_total = number(member, "cpuacct.usage")?;
        stats.cpu_user = number(member, "cpuacct.usage_user")?;
        stats.cpu_system = number(member, "cpuacct.usage_sys")?;
        let each = text(member, "cpuacct.usage_percpu")?;
        stats.cpu_each = each.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    }
    if let Some(member) = group.v1("cpu") {
        let text = text(member, "cpu.stat")?;
        stats.throttle_periods = Some(keyed(&text, "nr_periods"));
        stats.throttled_periods = Some(keyed(&text, "nr_throttled"));
        stats.throttled_time = Some(keyed(&text, "throttled_time"));
    }
    Ok(())
}

fn v1_memory(member: &Member, stats: &mut Stats) -> Result<()> {
    stats.memory_usage = number(member, "memory.usage_in_bytes")?;
    stats.memory_max_usage = number(member, "memory.max_usage_in_bytes")?;
    stats.memory_limit = number(member, "memory.limit_in_bytes")?;
    stats.memory_failures = number(member, "memory.failcnt")?;
    stats.memory = pairs(&text(member, "memory.stat")?);
    Ok(())
}

fn pids(member: &Member, stats: &mut Stats) -> Result<()> {
    stats.pids = number(member, "pids.current")?;
    stats.pids_limit = number(member, "pids.max")?;
    Ok(())
}

fn v2(member: &Member, stats: &mut Stats) -> Result<()> {
    const MICRO: u64 = 1000;
    let cpu = text(member, "cpu.stat")?;
    stats.cpu_total = Some(keyed(&cpu, "usage_usec") * MICRO);
    stats.cpu_user = Some(keyed(&cpu, "user_usec") * MICRO);
    stats.cpu_system = Some(keyed(&cpu, "system_usec") * MICRO);
    stats.throttle_periods = Some(keyed(&cpu, "nr_periods"));
    stats.throttled_periods = Some(keyed(&cpu, "nr_throttled"));
    stats.throttled_time = Some(keyed(&cpu, "throttled_usec") * MICRO);
    stats.memory_usage = number(member, "memory.current")?;
    stats.memory_max_usage = number(member, "memory.peak")?;
    stats.memory_limit = number(member, "memory.max")?;
    stats.memory = pairs(&text(member, "memory.stat")?);
    pids(member, stats)?;
    (stats.blkio_bytes, stats.blkio_operations) = blkio_v2(&text(member, "io.stat")?);
    Ok(())
}

fn text(member: &Member, file: &str) -> Result<String> {
    Ok(member.read(file)?.unwrap_or_default())
}

fn number(member: &Member, file: &str) -> Result<Option<u64>> {
    Ok(member.read(file)?.and_then(|text| text.trim().parse().ok()))
}

/// The value of a line `key value`; 0 where there is none.
pub(super) fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(found, _)| *found == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

fn pairs(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

/// `254:0 Read 4096`.
fn blkio_v1(text: &str) -> Vec<BlkioEntry> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (major, minor) = device(words.next()?)?;
            let operation = words.next()?.to_owned();
            Some(BlkioEntry { major, minor, operation, value: words.next()?.parse().ok()? })
        })
        .collect()
}

/// `254:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.
fn blkio_v2(text: &str) -> (Vec<BlkioEntry>, Vec<BlkioEntry>) {
    let (mut bytes, mut operations) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(device) else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, operation) = match key {
                "rbytes" => (&mut bytes, "read"),
                "wbytes" => (&mut bytes, "write"),
                "rios" => (&mut operations, "read"),
                "wios" => (&mut operations, "write"),
                _ => continue,
            };
            let Ok(value) = value.parse() else { continue };
            list.push(BlkioEntry { major, minor, operation: operation.to_owned(), value });
        }
    }
    (bytes, operations)
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_counters_of_both_versions_read_alike() {
        let entry = |operation: &str, value| BlkioEntry {
            major: 254,
            minor: 0,
            operation: operation.to_owned(),
            value,
        };
        let old = blkio_v1("254:0 Read 10\n254:0 Write 20\n254:0 Total 30\nTotal 30\n");
        assert_eq!(old, [entry("Read", 10), entry("Write", 20), entry("Total", 30)]);
        let (bytes, operations) = blkio_v2("254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0\n");
        assert_eq!(bytes, [entry("read", 10), entry("write", 20)]);
        assert_eq!(operations, [entry("read", 1), entry("write", 2)]);
    }
}
