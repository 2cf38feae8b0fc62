//! Limits in Docker's units as the files of both versions want them (kernel documents
//! `admin-guide/cgroup-v1` and `admin-guide/cgroup-v2`).

use insula_spec::plan::{Resources, ThrottleDevice};

use super::error::{Error, Result};
use super::group::{Group, Member};

/// Microseconds; the kernel's default and Docker's.
const PERIOD: u64 = 100_000;

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    limit: &'static str,
    file: &'static str,
    value: String,
}

pub(super) fn apply(group: &Group, resources: &Resources) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for (controllers, settings) in v1(resources) {
        let member = controllers.iter().find_map(|controller| group.v1(controller));
        match (member, group.v2()) {
            (Some(member), _) if controllers == ["memory"] => memory_v1(member, &settings, &mut warnings)?,
            (Some(member), _) => set(member, &settings, &mut warnings)?,
            // Version 2 has files of its own, below.
            (None, Some(_)) => {}
            (None, None) => lacking(&settings, &mut warnings),
        }
    }
    let has_v1 = ["cpu", "memory", "pids"].iter().any(|controller| group.v1(controller).is_some());
    if let (Some(member), false) = (group.v2(), has_v1) {
        set(member, &v2(resources), &mut warnings)?;
        if resources.oom_kill_disable == Some(true) {
            warnings.push("version 2 of control groups cannot disable the OOM killer".to_owned());
        }
        if resources.memory_swappiness.is_some() {
            warnings.push("version 2 of control groups has no memory swappiness".to_owned());
        }
    }
    Ok(warnings)
}

/// Settings for version 1 by controller.
fn v1(resources: &Resources) -> Vec<(&'static [&'static str], Vec<Setting>)> {
    let mut memory = Settings::default();
    memory.add("memory", "memory.limit_in_bytes", resources.memory);
    memory.add(
        "memory swap",
        "memory.memsw.limit_in_bytes",
        resources.memory_swap.or_else(|| double(resources)),
    );
    memory.add("memory reservation", "memory.soft_limit_in_bytes", resources.memory_reservation);
    memory.add("memory swappiness", "memory.swappiness", resources.memory_swappiness);
    memory.add("OOM killer", "memory.oom_control", resources.oom_kill_disable.map(u8::from));
    let mut cpu = Settings::default();
    let (quota, period) = quota(resources);
    cpu.add("CPU period", "cpu.cfs_period_us", period);
    cpu.add("CPU quota", "cpu.cfs_quota_us", quota);
    cpu.add("CPU shares", "cpu.shares", resources.cpu_shares);
    let mut cpuset = Settings::default();
    cpuset.add("CPU set", "cpuset.cpus", resources.cpuset_cpus.as_ref());
    cpuset.add("memory nodes", "cpuset.mems", resources.cpuset_mems.as_ref());
    let mut pids = Settings::default();
    pids.add("number of processes", "pids.max", resources.pids.map(number_or_max));
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
    vec![
        (&["memory"][..], memory.0),
        (&["cpu"][..], cpu.0),
        (&["cpuset"][..], cpuset.0),
        (&["pids"][..], pids.0),
        (&["blkio"][..], blkio.0),
    ]
}

fn v2(resources: &Resources) -> Vec<Setting> {
    let mut all = Settings::default();
    all.add("memory", "memory.max", resources.memory);
    let swap = resources.memory_swap.or_else(|| double(resources));
    all.add(
        "memory swap",
        "memory.swap.max",
        swap.map(|total| match (total, resources.memory) {
            (total, Some(memory)) if total >= 0 => (total as u64).saturating_sub(memory).to_string(),
            (total, None) if total >= 0 => total.to_string(),
            _ => "max".to_owned(),
        }),
    );
    all.add("memory reservation", "memory.low", resources.memory_reservation);
    let (quota, period) = quota(resources);
    all.add(
        "CPU quota",
        "cpu.max",
        quota.map(|quota| format!("{} {}", number_or_max(quota), period.unwrap_or(PERIOD))),
    );
    all.add("CPU shares", "cpu.weight", resources.cpu_shares.map(weight));
    all.add("CPU set", "cpuset.cpus", resources.cpuset_cpus.as_ref());
    all.add("memory nodes", "cpuset.mems", resources.cpuset_mems.as_ref());
    all.add("number of processes", "pids.max", resources.pids.map(number_or_max));
    all.add("block I/O weight", "io.bfq.weight", resources.blkio_weight);
    for (limit, key, rates) in [
        ("read rate", "rbps", &resources.device_read_bps),
        ("write rate", "wbps", &resources.device_write_bps),
        ("read operations", "riops", &resources.device_read_iops),
        ("write operations", "wiops", &resources.device_write_iops),
    ] {
        for ThrottleDevice { major, minor, rate } in rates {
            all.add(limit, "io.max", Some(format!("{major}:{minor} {key}={rate}")));
        }
    }
    all.0
}

#[derive(Debug, Default)]
struct Settings(Vec<Setting>);

impl Settings {
    fn add(&mut self, limit: &'static str, file: &'static str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.0.push(Setting { limit, file, value: value.to_string() });
        }
    }
}

/// Docker gives as much swap as memory where nothing else is said.
fn double(resources: &Resources) -> Option<i64> {
    resources.memory.and_then(|memory| i64::try_from(memory.saturating_mul(2)).ok())
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

fn set(member: &Member, settings: &[Setting], warnings: &mut Vec<String>) -> Result<()> {
    for setting in settings {
        match member.write(setting.file, &setting.value) {
            Ok(()) => {}
            Err(Error::Call { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                lacking(std::slice::from_ref(setting), warnings);
            }
            Err(Error::Call { source, .. }) => {
                return Err(Error::Limit {
                    limit: setting.limit,
                    value: setting.value.clone(),
                    file: setting.file.to_owned(),
                    source,
                });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Memory and swap bound each other: what is raised must be raised from above.
fn memory_v1(member: &Member, settings: &[Setting], warnings: &mut Vec<String>) -> Result<()> {
    let both = settings.len() >= 2 && settings[1].file == "memory.memsw.limit_in_bytes";
    if both {
        let current = member.read("memory.memsw.limit_in_bytes")?;
        let current = current.and_then(|text| text.trim().parse::<u64>().ok());
        let raised = settings[0].value.parse::<u64>().ok() > current;
        if current.is_some() && raised {
            let mut order = settings.to_vec();
            order.swap(0, 1);
            return set(member, &order, warnings);
        }
    }
    set(member, settings, warnings)
}

fn lacking(settings: &[Setting], warnings: &mut Vec<String>) {
    for setting in settings {
        // Swap that was not asked for is not missed.
        if setting.file != "memory.memsw.limit_in_bytes" && setting.file != "memory.swap.max" {
            warnings.push(format!("the host cannot limit the {}: it has no {}", setting.limit, setting.file));
        }
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
        let text: Vec<_> = v2(&resources).iter().map(|s| format!("{}={}", s.file, s.value)).collect();
        assert_eq!(
            text,
            [
                "memory.max=67108864",
                "memory.swap.max=max",
                "cpu.max=150000 100000",
                "pids.max=max",
                "io.max=8:0 wiops=9"
            ]
        );
    }

    #[test]
    fn nothing_asked_is_nothing_written() {
        assert!(v2(&Resources::default()).is_empty());
        assert!(v1(&Resources::default()).iter().all(|(_, settings)| settings.is_empty()));
    }
}
