//! Limits that only bundles can ask for: the kernel's documents `admin-guide/cgroup-v1` and
//! `admin-guide/cgroup-v2`, `scheduler/sched-bwc` and `scheduler/sched-rt-group`.

use insula_spec::bundle::ExactResources;
use insula_spec::plan::Resources;

use super::error::{Error, Result};
use super::group::Group;
use super::limits::{Setting, lacking, set};

/// A controller by its name in version 1, with what is written to the files of either version.
type Part = (&'static str, Vec<Setting>, Vec<Setting>);

/// What is to be known before anything is changed.
pub(super) fn check(group: &Group, resources: &Resources, exact: &ExactResources) -> Result<()> {
    if !exact.unified.is_empty() && group.v2().is_none() {
        return Err(Error::Unsupported(
            "linux.resources.unified: the container has no group in version 2 of control groups",
        ));
    }
    // Version 1 refuses such a limit by itself.
    let (Some(limit), Some(member)) = (resources.memory, group.v2()) else { return Ok(()) };
    let used = member.read("memory.current")?.and_then(|text| text.trim().parse::<u64>().ok());
    match used {
        Some(used) if exact.check_before_update && used > limit => Err(Error::Limit {
            limit: "memory",
            value: limit.to_string(),
            file: "memory.max".to_owned(),
            source: std::io::Error::other(format!("{used} bytes are in use")),
        }),
        _ => Ok(()),
    }
}

/// To be called after the other limits: what bursts is a part of a quota.
pub(super) fn apply(group: &Group, exact: &ExactResources, warnings: &mut Vec<String>) -> Result<()> {
    for (controller, first, second) in parts(exact) {
        match (group.v1(controller), group.v2()) {
            (Some(member), _) => set(member, &first, warnings)?,
            (None, Some(member)) if !second.is_empty() => set(member, &second, warnings)?,
            (None, _) => first.iter().for_each(|setting| lacking(setting, warnings)),
        }
    }
    if exact.kernel_memory {
        warnings
            .push("limits of the kernel's own memory are ignored: no kernel takes them any more".to_owned());
    }
    unified(group, exact)
}

/// Files of version 2 by their names. One that does not exist is an error, as the specification has it.
fn unified(group: &Group, exact: &ExactResources) -> Result<()> {
    let Some(member) = group.v2() else { return Ok(()) };
    for (file, value) in &exact.unified {
        let lines: Vec<String> = value.lines().map(str::to_owned).collect();
        match member.write_each(file, &lines) {
            Err(Error::Call { source, .. }) => {
                return Err(Error::Limit {
                    limit: "linux.resources.unified",
                    value: value.clone(),
                    file: file.clone(),
                    source,
                });
            }
            written => written?,
        }
    }
    Ok(())
}

fn parts(exact: &ExactResources) -> [Part; 6] {
    let (pages, pages_v2) = huge_pages(exact);
    let class = exact.network_class.map(|class| asked("network class", "net_cls.classid", class));
    let priorities = exact.network_priorities.iter().map(|(name, priority)| {
        asked("priority of network traffic", "net_prio.ifpriomap", format!("{name} {priority}"))
    });
    let rdma: Vec<Setting> = rdma(exact).collect();
    [
        ("cpu", cpu(exact), cpu_v2(exact)),
        ("blkio", weights(exact), weights_v2(exact)),
        ("hugetlb", pages, pages_v2),
        ("net_cls", class.into_iter().collect(), Vec::new()),
        ("net_prio", priorities.collect(), Vec::new()),
        ("rdma", rdma.clone(), rdma),
    ]
}

fn asked(
    limit: &'static str,
    file: impl Into<std::borrow::Cow<'static, str>>,
    value: impl ToString,
) -> Setting {
    Setting { limit, file: file.into(), value: value.to_string(), implied: false }
}

fn cpu(exact: &ExactResources) -> Vec<Setting> {
    let period = exact.realtime_period.map(|period| asked("real-time period", "cpu.rt_period_us", period));
    let runtime =
        exact.realtime_runtime.map(|runtime| asked("real-time budget", "cpu.rt_runtime_us", runtime));
    let burst = exact.cpu_burst.map(|burst| asked("CPU burst", "cpu.cfs_burst_us", burst));
    [period, runtime, burst, idle(exact)].into_iter().flatten().collect()
}

/// Version 2 has nothing for real time, whose files are named so that their lack is told.
fn cpu_v2(exact: &ExactResources) -> Vec<Setting> {
    let burst = exact.cpu_burst.map(|burst| asked("CPU burst", "cpu.max.burst", burst));
    let others = cpu(exact).into_iter().filter(|setting| setting.file.starts_with("cpu.rt_"));
    others.chain(burst).chain(idle(exact)).collect()
}

fn idle(exact: &ExactResources) -> Option<Setting> {
    exact.cpu_idle.map(|idle| asked("CPU idleness", "cpu.idle", idle))
}

fn weights(exact: &ExactResources) -> Vec<Setting> {
    let mut all = Vec::new();
    all.extend(exact.leaf_weight.map(|weight| asked("weight of leaves", "blkio.leaf_weight", weight)));
    for each in &exact.weight_devices {
        let value = |weight: u16| format!("{}:{} {weight}", each.major, each.minor);
        all.extend(
            each.weight.map(|weight| {
                asked("block I/O weight of a device", "blkio.bfq.weight_device", value(weight))
            }),
        );
        all.extend(
            each.leaf_weight.map(|weight| {
                asked("weight of leaves of a device", "blkio.leaf_weight_device", value(weight))
            }),
        );
    }
    all
}

/// Leaves have no weight in version 2, and devices have theirs in the file for all.
fn weights_v2(exact: &ExactResources) -> Vec<Setting> {
    let renamed = |setting: Setting| match setting.file.as_ref() {
        "blkio.bfq.weight_device" => Setting { file: "io.bfq.weight".into(), ..setting },
        _ => setting,
    };
    weights(exact).into_iter().map(renamed).collect()
}

/// Pages that are used and, where the kernel counts them apart (5.7), pages that are set aside.
fn huge_pages(exact: &ExactResources) -> (Vec<Setting>, Vec<Setting>) {
    let files = |end: &str| -> Vec<Setting> {
        let each = exact.huge_pages.iter();
        each.flat_map(|(size, limit)| {
            let used = asked("huge pages", format!("hugetlb.{size}.{end}"), limit);
            let file = format!("hugetlb.{size}.rsvd.{end}").into();
            [used.clone(), Setting { file, implied: true, ..used }]
        })
        .collect()
    };
    (files("limit_in_bytes"), files("max"))
}

fn rdma(exact: &ExactResources) -> impl Iterator<Item = Setting> + '_ {
    exact.rdma.iter().map(|each| {
        let part = |name: &str, value: Option<u32>| value.map(|value| format!(" {name}={value}"));
        let handles = part("hca_handle", each.handles).unwrap_or_default();
        let objects = part("hca_object", each.objects).unwrap_or_default();
        asked("RDMA device", "rdma.max", format!("{}{handles}{objects}", each.device))
    })
}

#[cfg(test)]
mod tests {
    use insula_spec::bundle::{RdmaLimit, WeightDevice};

    use super::*;

    fn everything() -> ExactResources {
        ExactResources {
            cpu_burst: Some(5000),
            cpu_idle: Some(1),
            realtime_period: Some(1_000_000),
            realtime_runtime: Some(9000),
            leaf_weight: Some(20),
            weight_devices: vec![WeightDevice { major: 8, minor: 16, weight: Some(300), leaf_weight: None }],
            huge_pages: vec![("2MB".into(), 4 << 20)],
            network_class: Some(0x10_0001),
            network_priorities: vec![("eth0".into(), 5)],
            rdma: vec![RdmaLimit { device: "mlx5_1".into(), handles: Some(3), objects: None }],
            ..ExactResources::default()
        }
    }

    fn lines(settings: &[Setting]) -> Vec<String> {
        settings.iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect()
    }

    #[test]
    fn each_version_has_files_of_its_own() {
        let parts = parts(&everything());
        let first: Vec<String> = parts.iter().flat_map(|(_, first, _)| lines(first)).collect();
        assert_eq!(
            first,
            [
                "cpu.rt_period_us=1000000",
                "cpu.rt_runtime_us=9000",
                "cpu.cfs_burst_us=5000",
                "cpu.idle=1",
                "blkio.leaf_weight=20",
                "blkio.bfq.weight_device=8:16 300",
                "hugetlb.2MB.limit_in_bytes=4194304",
                "hugetlb.2MB.rsvd.limit_in_bytes=4194304",
                "net_cls.classid=1048577",
                "net_prio.ifpriomap=eth0 5",
                "rdma.max=mlx5_1 hca_handle=3",
            ]
        );
        let second: Vec<String> = parts.iter().flat_map(|(_, _, second)| lines(second)).collect();
        assert_eq!(
            second,
            [
                "cpu.rt_period_us=1000000",
                "cpu.rt_runtime_us=9000",
                "cpu.max.burst=5000",
                "cpu.idle=1",
                "blkio.leaf_weight=20",
                "io.bfq.weight=8:16 300",
                "hugetlb.2MB.max=4194304",
                "hugetlb.2MB.rsvd.max=4194304",
                "rdma.max=mlx5_1 hca_handle=3",
            ]
        );
    }
}
