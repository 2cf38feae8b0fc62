//! Properties of a scope for limits that stand in its group: systemd.resource-control(5).

use insula_spec::bundle::UnitValue;

use crate::cgroup::Standing;

/// systemd keeps a quota as a number of hundredths, rounded down, for the time after it was loaded anew: here it is
/// rounded up. Microseconds of a second.
const HUNDREDTH: u64 = 10_000;
const WEIGHT: &str = "CPUWeight";
/// In the place of a weight.
const IDLE: u64 = 0;

/// What systemd is to know. What it does not have a property for stays in the files alone.
#[must_use]
pub fn properties(standing: &Standing) -> Vec<(String, UnitValue)> {
    let mut all: Vec<(&str, UnitValue)> = Vec::new();
    for (file, name) in [
        ("memory.limit_in_bytes", "MemoryLimit"),
        ("cpu.shares", "CPUShares"),
        ("memory.min", "MemoryMin"),
        ("memory.low", "MemoryLow"),
        ("memory.high", "MemoryHigh"),
        ("memory.max", "MemoryMax"),
        ("memory.swap.max", "MemorySwapMax"),
        ("pids.max", "TasksMax"),
    ] {
        let limit = standing.of(file).and_then(|text| limit(file, text));
        all.extend(limit.map(|limit| (name, UnitValue::Limit(limit))));
    }
    let weight = match standing.of("cpu.idle") {
        Some("1") => Some(IDLE),
        _ => standing.of("cpu.weight").and_then(|text| text.parse().ok()),
    };
    all.extend(weight.map(|weight| (WEIGHT, UnitValue::Limit(weight))));
    if let Some((quota, period)) = bandwidth(standing) {
        all.push(("CPUQuotaPerSecUSec", UnitValue::Limit(quota)));
        all.push(("CPUQuotaPeriodUSec", UnitValue::Limit(period)));
    }
    all.extend(io_weight(standing).map(|weight| ("IOWeight", UnitValue::Limit(weight))));
    for (file, name) in [("cpuset.cpus", "AllowedCPUs"), ("cpuset.mems", "AllowedMemoryNodes")] {
        let set = standing.of(file).and_then(bits);
        all.extend(set.map(|set| (name, UnitValue::Bytes(set))));
    }
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Who gets only what nobody else wants, systemd 252.
pub(super) fn idle() -> (String, UnitValue) {
    (WEIGHT.to_owned(), UnitValue::Limit(IDLE))
}

/// Of the two that know weights the one that somebody has said something to. systemd takes what it is told for one of
/// 1 to 10,000, and makes of it what BFQ wants, up to 1,000.
fn io_weight(standing: &Standing) -> Option<u64> {
    const USUAL: u64 = 100;
    let of = |file| -> Option<u64> {
        let first = standing.of(file)?.lines().next()?;
        first.strip_prefix("default ").unwrap_or(first).parse().ok()
    };
    let wider = |weight: u64| if weight > USUAL { USUAL + (weight - USUAL) * 11 } else { weight };
    match of("io.bfq.weight") {
        Some(weight) if weight != USUAL => Some(wider(weight)),
        bfq => of("io.weight").or(bfq),
    }
}

/// What is as good as no limit is none, which the largest number says.
fn limit(file: &str, text: &str) -> Option<u64> {
    match text {
        "max" => Some(u64::MAX),
        // Version 1 shows whole pages, the largest number of them for none.
        text => text.parse().ok().map(|limit: u64| {
            if file == "memory.limit_in_bytes" && limit > i64::MAX as u64 - 0x1_0000 {
                u64::MAX
            } else {
                limit
            }
        }),
    }
}

/// Microseconds of a second, and of the period.
fn bandwidth(standing: &Standing) -> Option<(u64, u64)> {
    let (quota, period) = match standing.of("cpu.max") {
        Some(both) => both.split_once(' ')?,
        None => (standing.of("cpu.cfs_quota_us")?, standing.of("cpu.cfs_period_us")?),
    };
    let period: u64 = period.parse().ok().filter(|period| *period > 0)?;
    let each_second = match quota.parse::<u64>() {
        Ok(quota) => (quota.checked_mul(1_000_000)? / period).next_multiple_of(HUNDREDTH),
        // `max`, or -1.
        Err(_) => u64::MAX,
    };
    Some((each_second, period))
}

/// A list like `0-2,4` as bits, the first in the lowest of the first byte.
fn bits(list: &str) -> Option<Vec<u8>> {
    /// More than any kernel is built for.
    const HIGHEST: usize = 8191;
    let mut set = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last > HIGHEST {
            return None;
        }
        for number in first..=last {
            if set.len() <= number / 8 {
                set.resize(number / 8 + 1, 0);
            }
            set[number / 8] |= 1 << (number % 8);
        }
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Vec<(String, UnitValue)> {
        let files = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned()));
        properties(&Standing(files.collect()))
    }

    fn limits(all: &[(&str, u64)]) -> Vec<(String, UnitValue)> {
        all.iter().map(|(name, limit)| ((*name).to_owned(), UnitValue::Limit(*limit))).collect()
    }

    #[test]
    fn version_2_has_a_property_for_each_file() {
        let found = of(&[
            ("memory.max", "67108864"),
            ("memory.swap.max", "max"),
            ("pids.max", "33"),
            ("cpu.weight", "39"),
            ("cpu.max", "12345 100000"),
            ("io.weight", "default 500\n8:0 20"),
        ]);
        let expected = [
            ("MemoryMax", 64 << 20),
            ("MemorySwapMax", u64::MAX),
            ("TasksMax", 33),
            ("CPUWeight", 39),
            ("CPUQuotaPerSecUSec", 130_000),
            ("CPUQuotaPeriodUSec", 100_000),
            ("IOWeight", 500),
        ];
        assert_eq!(found, limits(&expected));
        assert_eq!(of(&[("cpu.idle", "1"), ("cpu.weight", "1")]), limits(&[("CPUWeight", 0)]));
        assert_eq!(
            of(&[("io.bfq.weight", "default 1000\n8:0 3"), ("io.weight", "default 100")]),
            limits(&[("IOWeight", 10_000)])
        );
        assert_eq!(of(&[("io.bfq.weight", "50")]), limits(&[("IOWeight", 50)]));
        assert_eq!(of(&[("io.bfq.weight", "100"), ("io.weight", "default 70")]), limits(&[("IOWeight", 70)]));
        assert_eq!(
            of(&[("cpuset.cpus", "0-2,9"), ("cpuset.mems", "")]),
            [("AllowedCPUs".to_owned(), UnitValue::Bytes(vec![0b111, 0b10]))]
        );
        assert_eq!(of(&[("cpuset.cpus", "0-99999")]), []);
    }

    #[test]
    fn version_1_has_its_own() {
        let found = of(&[
            ("memory.limit_in_bytes", "9223372036854771712"),
            ("cpu.shares", "512"),
            ("cpu.cfs_period_us", "50000"),
            ("cpu.cfs_quota_us", "-1"),
        ]);
        let expected = [
            ("MemoryLimit", u64::MAX),
            ("CPUShares", 512),
            ("CPUQuotaPerSecUSec", u64::MAX),
            ("CPUQuotaPeriodUSec", 50_000),
        ];
        assert_eq!(found, limits(&expected));
    }
}
