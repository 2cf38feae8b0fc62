//! Limits in Docker's units as the files of both versions want them (kernel documents
//! `admin-guide/cgroup-v1` and `admin-guide/cgroup-v2`).

use std::borrow::Cow;

use insula_spec::plan::{Resources, ThrottleDevice};

use rustix::io::Errno;

use super::error::{Error, Result};
use super::group::Group;
use super::member::Member;

/// Microseconds; the kernel's default and Docker's.
const PERIOD: u64 = 100_000;

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) limit: &'static str,
    pub(super) file: Cow<'static, str>,
    pub(super) value: String,
    /// Nobody asked for it: where it cannot be had it is not missed.
    pub(super) implied: bool,
}

/// Settings of one controller, under its name in version 1.
type Part = (&'static str, Vec<Setting>);

pub(super) fn apply(group: &Group, resources: &Resources) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let current = |file: &str| group.v2().and_then(|member| member.read(file).ok().flatten());
    // A controller is in one version alone, whichever the host has put it in.
    for ((controller, first), (_, second)) in v1(resources).into_iter().zip(v2(resources, &current)) {
        match (group.v1(controller), group.v2()) {
            (Some(member), _) if controller == "memory" => memory_v1(member, first, &mut warnings)?,
            (Some(member), _) => set(member, &first, &mut warnings)?,
            (None, Some(member)) => set(member, &second, &mut warnings)?,
            (None, None) => first.iter().for_each(|setting| lacking(setting, &mut warnings)),
        }
    }
    if group.v1("memory").is_none() && resources.oom_kill_disable == Some(true) {
        warnings.push("version 2 of control groups cannot disable the OOM killer".to_owned());
    }
    if group.v1("memory").is_none() && resources.memory_swappiness.is_some() {
        warnings.push("version 2 of control groups has no memory swappiness".to_owned());
    }
    Ok(warnings)
}

/// The parts in the files of version 1.
fn v1(resources: &Resources) -> [Part; 5] {
    let mut memory = Settings::default();
    memory.add("memory", "memory.limit_in_bytes", resources.memory);
    memory.add_swap("memory.memsw.limit_in_bytes", resources, |total| total.to_string());
    memory.add("memory reservation", "memory.soft_limit_in_bytes", resources.memory_reservation);
    memory.add("memory swappiness", "memory.swappiness", resources.memory_swappiness);
    memory.add("OOM killer", "memory.oom_control", resources.oom_kill_disable.map(u8::from));
    let mut cpu = Settings::default();
    let (quota, period) = quota(resources);
    cpu.add("CPU period", "cpu.cfs_period_us", period);
    cpu.add("CPU quota", "cpu.cfs_quota_us", quota);
    cpu.add("CPU shares", "cpu.shares", resources.cpu_shares);
    let mut blkio = Settings::default();
    blkio.add("block I/O weight", "blkio.bfq.weight", resources.blkio_weight);
    for (limit, file, rates) in [
        ("read rate", "blkio.throttle.read_bps_device", &resources.device_read_bps),
        ("write rate", "blkio.throttle.write_bps_device", &resources.device_write_bps),
        ("read operations", "blkio.throttle.read_iops_device", &resources.device_read_iops),
        ("write operations", "blkio.throttle.write_iops_device", &resources.device_write_iops),
    ] {
        for rate in rates {
            blkio.add(limit, file, Some(format!("{}:{} {}", rate.major, rate.minor, rate.rate)));
        }
    }
    [
        ("memory", memory.0),
        ("cpu", cpu.0),
        ("cpuset", cpuset(resources)),
        ("pids", pids(resources)),
        ("blkio", blkio.0),
    ]
}

/// The parts in the files of version 2; `current` reads one of them.
fn v2(resources: &Resources, current: &dyn Fn(&str) -> Option<String>) -> [Part; 5] {
    let mut memory = Settings::default();
    memory.add("memory", "memory.max", resources.memory);
    memory.add_swap("memory.swap.max", resources, |total| {
        let memory = resources.memory.or_else(|| current("memory.max")?.trim().parse().ok()).unwrap_or(0);
        u64::try_from(total)
            .map_or_else(|_| "max".to_owned(), |total| total.saturating_sub(memory).to_string())
    });
    memory.add("memory reservation", "memory.low", resources.memory_reservation);
    let mut cpu = Settings::default();
    cpu.add("CPU quota", "cpu.max", bandwidth(resources, current));
    cpu.add("CPU shares", "cpu.weight", resources.cpu_shares.map(weight));
    let mut io = Settings::default();
    io.add("block I/O weight", "io.bfq.weight", resources.blkio_weight);
    for (limit, key, rates) in [
        ("read rate", "rbps", &resources.device_read_bps),
        ("write rate", "wbps", &resources.device_write_bps),
        ("read operations", "riops", &resources.device_read_iops),
        ("write operations", "wiops", &resources.device_write_iops),
    ] {
        for ThrottleDevice { major, minor, rate } in rates {
            io.add(limit, "io.max", Some(format!("{major}:{minor} {key}={rate}")));
        }
    }
    [
        ("memory", memory.0),
        ("cpu", cpu.0),
        ("cpuset", cpuset(resources)),
        ("pids", pids(resources)),
        ("blkio", io.0),
    ]
}

fn cpuset(resources: &Resources) -> Vec<Setting> {
    let mut cpuset = Settings::default();
    cpuset.add("CPU set", "cpuset.cpus", resources.cpuset_cpus.as_ref());
    cpuset.add("memory nodes", "cpuset.mems", resources.cpuset_mems.as_ref());
    cpuset.0
}

fn pids(resources: &Resources) -> Vec<Setting> {
    let mut pids = Settings::default();
    pids.add("number of processes", "pids.max", resources.pids.map(number_or_max));
    pids.0
}

/// `cpu.max`: a quota alone keeps the period; a period needs the quota to be said again.
fn bandwidth(resources: &Resources, current: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let (quota, period) = quota(resources);
    let quota = quota.map(number_or_max);
    let Some(period) = period else { return quota };
    let kept = || current("cpu.max")?.split_whitespace().next().map(str::to_owned);
    Some(format!("{} {period}", quota.or_else(kept).unwrap_or_else(|| "max".to_owned())))
}

#[derive(Debug, Default)]
struct Settings(Vec<Setting>);

impl Settings {
    fn add(&mut self, limit: &'static str, file: &'static str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.0.push(Setting { limit, file: file.into(), value: value.to_string(), implied: false });
        }
    }

    /// Memory and swap together. Docker gives as much swap as memory where nothing else is said.
    fn add_swap(&mut self, file: &'static str, resources: &Resources, value: impl Fn(i64) -> String) {
        let double = || i64::try_from(resources.memory?.saturating_mul(2)).ok();
        let (total, implied) = (resources.memory_swap.or_else(double), resources.memory_swap.is_none());
        if let Some(total) = total {
            self.0.push(Setting { limit: "memory swap", file: file.into(), value: value(total), implied });
        }
    }
}

fn quota(resources: &Resources) -> (Option<i64>, Option<u64>) {
    match resources.nano_cpus {
        Some(cpus) => (i64::try_from(cpus.saturating_mul(PERIOD) / 1_000_000_000).ok(), Some(PERIOD)),
        None => (resources.cpu_quota, resources.cpu_period),
    }
}

fn number_or_max(value: i64) -> String {
    if value <= 0 { "max".to_owned() } else { value.to_string() }
}

/// cpu.shares of 2 to 262,144 on cpu.weight of 1 to 10,000, the conversion that runtimes agree on.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

/// io.weight of 1 to 10,000 for a weight of 10 to 1,000, the conversion that runtimes agree on.
fn io_weight(weight: &str) -> Option<String> {
    let weight = weight.parse::<u64>().ok()?;
    Some((1 + weight.saturating_sub(10) * 9_999 / 990).to_string())
}

pub(super) fn set(member: &Member, settings: &[Setting], warnings: &mut Vec<String>) -> Result<()> {
    for setting in settings {
        match write(member, setting) {
            Ok(()) => {}
            Err(error) if error.is(Errno::NOENT) => lacking(setting, warnings),
            Err(Error::Call { source, .. }) => {
                return Err(Error::Limit {
                    limit: setting.limit,
                    value: setting.value.clone(),
                    file: setting.file.clone().into_owned(),
                    source,
                });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write(member: &Member, setting: &Setting) -> Result<()> {
    match member.write(&setting.file, &setting.value) {
        // Of the two that know weights a kernel may have the other one.
        Err(error) if error.is(Errno::NOENT) && setting.file == "io.bfq.weight" => {
            member.write("io.weight", &io_weight(&setting.value).ok_or(error)?)
        }
        result => result,
    }
}

/// Memory is never to be more than memory and swap together: when both grow, the sum goes first.
fn memory_v1(member: &Member, mut settings: Vec<Setting>, warnings: &mut Vec<String>) -> Result<()> {
    const SUM: &str = "memory.memsw.limit_in_bytes";
    if let [memory, sum, ..] = settings.as_mut_slice()
        && sum.file == SUM
    {
        let current = member.read(SUM)?.and_then(|text| text.trim().parse::<u64>().ok());
        if current.is_some_and(|current| memory.value.parse::<u64>().is_ok_and(|wanted| wanted > current)) {
            std::mem::swap(memory, sum);
        }
    }
    set(member, &settings, warnings)
}

pub(super) fn lacking(setting: &Setting, warnings: &mut Vec<String>) {
    if !setting.implied {
        warnings.push(format!("the host cannot limit the {}: it has no {}", setting.limit, setting.file));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_weights_meet_at_the_ends() {
        assert_eq!((weight(2), weight(1024), weight(262_144), weight(0)), (1, 39, 10_000, 1));
    }

    #[test]
    fn version_2_speaks_its_own_words() {
        let resources = Resources {
            memory: Some(64 << 20),
            memory_swap: Some(-1),
            nano_cpus: Some(1_500_000_000),
            pids: Some(-1),
            device_write_iops: vec![ThrottleDevice { major: 8, minor: 0, rate: 9 }],
            ..Resources::default()
        };
        assert_eq!(
            second(&resources, &|_| None),
            [
                "memory.max=67108864",
                "memory.swap.max=max",
                "cpu.max=150000 100000",
                "pids.max=max",
                "io.max=8:0 wiops=9"
            ]
        );
    }

    fn second(resources: &Resources, current: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
        let parts = v2(resources, current);
        parts.iter().flat_map(|(_, part)| part).map(|s| format!("{}={}", s.file, s.value)).collect()
    }

    #[test]
    fn what_is_not_said_anew_is_kept() {
        let current = |file: &str| match file {
            "cpu.max" => Some("20000 100000\n".to_owned()),
            "memory.max" => Some("1000\n".to_owned()),
            _ => None,
        };
        let text = |resources: &Resources| second(resources, &current);
        let period = Resources { cpu_period: Some(50_000), ..Resources::default() };
        assert_eq!(text(&period), ["cpu.max=20000 50000"]);
        assert_eq!(second(&period, &|_| None), ["cpu.max=max 50000"]);
        assert_eq!(text(&Resources { cpu_quota: Some(-1), ..Resources::default() }), ["cpu.max=max"]);
        let swap = Resources { memory_swap: Some(1500), ..Resources::default() };
        assert_eq!(text(&swap), ["memory.swap.max=500"]);
        let memory = Resources { memory: Some(64), ..Resources::default() };
        assert_eq!(text(&memory), ["memory.max=64", "memory.swap.max=64"]);
    }

    #[test]
    fn weights_of_either_scheduler() {
        let weights = ["10", "500", "1000"].map(|weight| io_weight(weight).unwrap());
        assert_eq!(weights, ["1", "4950", "10000"]);
    }

    #[test]
    fn nothing_asked_is_nothing_written() {
        let empty = |parts: [Part; 5]| parts.iter().all(|(_, settings)| settings.is_empty());
        assert!(empty(v1(&Resources::default())));
        assert!(empty(v2(&Resources::default(), &|_| None)));
    }
}
