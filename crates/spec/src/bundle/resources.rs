//! `linux.resources`: runtime specification, "Control groups".

use super::document::{BlockIo, Cpu, DeviceCgroup, Memory, Resources as Document, Throttle};
use super::{
    BundleDevices, DeviceVerdict, ExactResources, RdmaLimit, Result, Verdict, WeightDevice, invalid,
};
use crate::plan::{DeviceKind, DeviceRule, Resources, ThrottleDevice};

/// Limits; those of devices are apart. `at` is what messages call the document.
pub fn resources(document: &Document, at: &str) -> Result<Resources> {
    let mut all = Resources::default();
    let mut exact = ExactResources::default();
    if let Some(found) = &document.memory {
        memory(found, &mut all, &mut exact, &format!("{at}.memory"))?;
    }
    if let Some(found) = &document.cpu {
        cpu(found, &mut all, &mut exact, &format!("{at}.cpu"))?;
    }
    all.pids = document.pids.as_ref().and_then(|pids| pids.limit).filter(|limit| *limit != 0);
    if let Some(found) = &document.block_io {
        block_io(found, &mut all, &mut exact, &format!("{at}.blockIO"))?;
    }
    rare(document, &mut exact, at)?;
    all.exact = (exact != ExactResources::default()).then(|| Box::new(exact));
    Ok(all)
}

/// What few bundles have: huge pages, network traffic, RDMA, and files of version 2 by their names.
fn rare(document: &Document, exact: &mut ExactResources, at: &str) -> Result<()> {
    for (number, pages) in document.hugepage_limits.iter().flatten().enumerate() {
        let size = &pages.page_size;
        let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit)).unwrap_or_default();
        if digits.is_empty() || digits.starts_with('0') || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            let field = format!("{at}.hugepageLimits[{number}].pageSize");
            return Err(invalid(field, format!("{size:?} is not a size like \"2MB\"")));
        }
        exact.huge_pages.push((size.clone(), pages.limit));
    }
    if let Some(network) = &document.network {
        exact.network_class = network.class_id.filter(|class| *class != 0);
        for (number, each) in network.priorities.iter().flatten().enumerate() {
            if each.name.is_empty() || each.name.contains(|c: char| c.is_whitespace() || c == '/') {
                let field = format!("{at}.network.priorities[{number}].name");
                return Err(invalid(field, format!("{:?} names no interface", each.name)));
            }
            exact.network_priorities.push((each.name.clone(), each.priority));
        }
    }
    for (device, limit) in document.rdma.iter().flatten() {
        if device.is_empty() || device.contains(char::is_whitespace) {
            return Err(invalid(format!("{at}.rdma"), format!("{device:?} names no device")));
        }
        let (handles, objects) = (limit.hca_handles, limit.hca_objects);
        if handles.is_none() && objects.is_none() {
            return Err(invalid(format!("{at}.rdma.{device}"), "limits nothing"));
        }
        exact.rdma.push(RdmaLimit { device: device.clone(), handles, objects });
    }
    for (file, value) in document.unified.iter().flatten() {
        if !file.contains('.') || file.starts_with('.') || file.contains(['/', '\0']) {
            let problem = "is not the name of a file of a control group";
            return Err(invalid(format!("{at}.unified"), format!("{file:?} {problem}")));
        }
        exact.unified.insert(file.clone(), value.clone());
    }
    Ok(())
}

/// Bytes; the kernel takes what it cannot count to as unlimited.
fn bytes(value: Option<i64>, field: String) -> Result<Option<u64>> {
    match value {
        None | Some(0) => Ok(None),
        Some(-1) => Ok(Some(i64::MAX as u64)),
        Some(value) => {
            u64::try_from(value).map(Some).map_err(|_| invalid(field, format!("{value} is below -1")))
        }
    }
}

fn memory(memory: &Memory, all: &mut Resources, exact: &mut ExactResources, at: &str) -> Result<()> {
    let limits = [memory.kernel, memory.kernel_tcp];
    exact.kernel_memory = limits.iter().flatten().any(|limit| *limit != 0 && *limit != -1);
    exact.check_before_update = memory.check_before_update == Some(true);
    all.memory = bytes(memory.limit, format!("{at}.limit"))?;
    all.memory_reservation = bytes(memory.reservation, format!("{at}.reservation"))?;
    all.memory_swap = memory.swap.filter(|swap| *swap != 0);
    if let (Some(limit), Some(swap)) = (memory.limit.filter(|limit| *limit > 0), all.memory_swap)
        && swap != -1
        && swap < limit
    {
        return Err(invalid(format!("{at}.swap"), format!("{swap} is below the memory of {limit}")));
    }
    if all.memory.is_some() && all.memory_swap.is_none() {
        // Docker's way of giving as much again is not what a bundle says.
        all.memory_swap = Some(-1);
    }
    all.memory_swappiness = memory.swappiness;
    all.oom_kill_disable = memory.disable_oom_killer.filter(|disable| *disable);
    Ok(())
}

fn cpu(cpu: &Cpu, all: &mut Resources, exact: &mut ExactResources, at: &str) -> Result<()> {
    if let Some(idle) = cpu.idle.filter(|idle| !(0..=1).contains(idle)) {
        return Err(invalid(format!("{at}.idle"), format!("{idle} is neither 0 nor 1")));
    }
    exact.cpu_idle = cpu.idle;
    exact.cpu_burst = cpu.burst;
    exact.realtime_runtime = cpu.realtime_runtime.filter(|runtime| *runtime != 0);
    exact.realtime_period = cpu.realtime_period.filter(|period| *period != 0);
    all.cpu_shares = cpu.shares.filter(|shares| *shares != 0);
    all.cpu_quota = cpu.quota.filter(|quota| *quota != 0);
    all.cpu_period = cpu.period.filter(|period| *period != 0);
    let list = |list: &Option<String>| list.clone().filter(|list| !list.is_empty());
    all.cpuset_cpus = list(&cpu.cpus);
    all.cpuset_mems = list(&cpu.mems);
    Ok(())
}

fn block_io(io: &BlockIo, all: &mut Resources, exact: &mut ExactResources, at: &str) -> Result<()> {
    let checked = |weight: Option<u16>, field: &str| match weight.filter(|weight| *weight != 0) {
        Some(weight) if !(10..=1000).contains(&weight) => {
            Err(invalid(format!("{at}.{field}"), "is not from 10 to 1000"))
        }
        weight => Ok(weight),
    };
    all.blkio_weight = checked(io.weight, "weight")?;
    exact.leaf_weight = checked(io.leaf_weight, "leafWeight")?;
    for (number, each) in io.weight_device.iter().flatten().enumerate() {
        exact.weight_devices.push(WeightDevice {
            major: each.major,
            minor: each.minor,
            weight: checked(each.weight, &format!("weightDevice[{number}].weight"))?,
            leaf_weight: checked(each.leaf_weight, &format!("weightDevice[{number}].leafWeight"))?,
        });
    }
    let rates = |list: &Option<Vec<Throttle>>| {
        list.iter()
            .flatten()
            .map(|each| ThrottleDevice { major: each.major, minor: each.minor, rate: each.rate })
            .collect()
    };
    all.device_read_bps = rates(&io.throttle_read_bps_device);
    all.device_write_bps = rates(&io.throttle_write_bps_device);
    all.device_read_iops = rates(&io.throttle_read_iops_device);
    all.device_write_iops = rates(&io.throttle_write_iops_device);
    Ok(())
}

/// What a list of allowances and denials, each in effect over those before it, comes to.
pub fn devices(list: &[DeviceCgroup], at: &str) -> Result<BundleDevices> {
    let mut policy = BundleDevices::Only(Vec::new());
    for (number, entry) in list.iter().enumerate() {
        let rule = rule(entry, &format!("{at}[{number}]"))?;
        let verdict = if entry.allow { Verdict::Allow } else { Verdict::Deny };
        policy = match verdict {
            Verdict::Allow if is_everything(&rule) => BundleDevices::All,
            Verdict::Deny if is_everything(&rule) => BundleDevices::Only(Vec::new()),
            verdict => after(policy, verdict, rule),
        };
    }
    Ok(policy)
}

/// A policy with one more entry, in the plainest form that there is of it.
fn after(policy: BundleDevices, verdict: Verdict, rule: DeviceRule) -> BundleDevices {
    let list = match (policy, verdict) {
        (BundleDevices::All, Verdict::Allow) => return BundleDevices::All,
        (BundleDevices::Only(mut rules), Verdict::Allow) => {
            rules.push(rule);
            return BundleDevices::Only(rules);
        }
        (BundleDevices::Only(rules), Verdict::Deny)
            if rules.iter().all(|known| !overlap(known, &rule) || covers(&rule, known)) =>
        {
            let left = rules.into_iter().map(|known| without(known, &rule));
            return BundleDevices::Only(
                left.filter(|known| known.read || known.write || known.mknod).collect(),
            );
        }
        (BundleDevices::All, Verdict::Deny) => {
            vec![DeviceVerdict { verdict: Verdict::Allow, rule: everything() }]
        }
        (BundleDevices::Only(rules), Verdict::Deny) => {
            rules.into_iter().map(|rule| DeviceVerdict { verdict: Verdict::Allow, rule }).collect()
        }
        (BundleDevices::Listed(list), _) => list,
    };
    BundleDevices::Listed(list.into_iter().chain([DeviceVerdict { verdict, rule }]).collect())
}

fn everything() -> DeviceRule {
    DeviceRule { kind: DeviceKind::Any, major: None, minor: None, read: true, write: true, mknod: true }
}

fn is_everything(rule: &DeviceRule) -> bool {
    *rule == everything()
}

fn overlap(left: &DeviceRule, right: &DeviceRule) -> bool {
    let kind = left.kind == right.kind || left.kind == DeviceKind::Any || right.kind == DeviceKind::Any;
    let number = |left: Option<u32>, right: Option<u32>| left.is_none() || right.is_none() || left == right;
    let access = (left.read && right.read) || (left.write && right.write) || (left.mknod && right.mknod);
    kind && access && number(left.major, right.major) && number(left.minor, right.minor)
}

/// Whether all devices of `inner` are devices of `outer`, whatever is done with them.
fn covers(outer: &DeviceRule, inner: &DeviceRule) -> bool {
    let number = |outer: Option<u32>, inner: Option<u32>| outer.is_none() || outer == inner;
    (outer.kind == DeviceKind::Any || outer.kind == inner.kind)
        && number(outer.major, inner.major)
        && number(outer.minor, inner.minor)
}

/// What is left of a rule when another one that covers it, or has nothing to do with it, is taken away.
fn without(known: DeviceRule, denied: &DeviceRule) -> DeviceRule {
    if !overlap(&known, denied) {
        return known;
    }
    DeviceRule {
        read: known.read && !denied.read,
        write: known.write && !denied.write,
        mknod: known.mknod && !denied.mknod,
        ..known
    }
}

fn rule(entry: &DeviceCgroup, at: &str) -> Result<DeviceRule> {
    let kind = match entry.kind.as_deref() {
        None | Some("" | "a") => DeviceKind::Any,
        Some("c" | "u") => DeviceKind::Char,
        Some("b") => DeviceKind::Block,
        Some(other) => {
            return Err(invalid(format!("{at}.type"), format!("{other:?} is not a kind of device")));
        }
    };
    let number = |name: &str, value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| invalid(format!("{at}.{name}"), format!("{value} is not a device number"))),
    };
    let access = entry.access.as_deref().unwrap_or("rwm");
    if access.bytes().any(|letter| !b"rwm".contains(&letter)) {
        return Err(invalid(format!("{at}.access"), format!("{access:?} has letters beside r, w and m")));
    }
    let (major, minor) = (number("major", entry.major)?, number("minor", entry.minor)?);
    let has = |letter| access.contains(letter);
    Ok(DeviceRule { kind, major, minor, read: has('r'), write: has('w'), mknod: has('m') })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Result<BundleDevices> {
        devices(&serde_json::from_str::<Vec<DeviceCgroup>>(text).unwrap(), "devices")
    }

    #[test]
    fn a_list_of_devices_is_in_effect_from_top_to_bottom() {
        let all = r#"{"allow":true,"access":"rwm"}"#;
        let none = r#"{"allow":false,"access":"rwm"}"#;
        let one = r#"{"allow":true,"type":"c","major":10,"minor":200,"access":"rwm"}"#;
        let not = r#"{"allow":false,"type":"c","major":10,"minor":200,"access":"rwm"}"#;
        let text = |list: &[&str]| format!("[{}]", list.join(","));
        assert_eq!(policy(&text(&[none, all])).unwrap(), BundleDevices::All);
        assert_eq!(policy(&text(&[all, none])).unwrap(), BundleDevices::Only(vec![]));
        assert_eq!(policy(&text(&[none, one, not])).unwrap(), BundleDevices::Only(vec![]));
        let BundleDevices::Only(rules) = policy(&text(&[none, one])).unwrap() else { panic!() };
        assert_eq!((rules.len(), rules[0].major, rules[0].minor), (1, Some(10), Some(200)));
    }

    #[test]
    fn a_part_of_what_is_allowed_is_denied() {
        let policy = |text: &str| policy(text).unwrap();
        let entry = |allow: bool, rest: &str| format!(r#"{{"allow":{allow},"type":"c",{rest}}}"#);
        let ten = r#""major":10,"access":"rw""#;
        let one = r#""major":10,"minor":200,"access":"r""#;
        // What is left has a rule of its own.
        let found = policy(&format!("[{},{}]", entry(true, one), entry(false, ten)));
        assert_eq!(found, BundleDevices::Only(vec![]));
        let found = policy(&format!("[{},{}]", entry(true, ten), entry(false, r#""major":10,"access":"w""#)));
        let BundleDevices::Only(rules) = found else { panic!() };
        assert_eq!((rules.len(), rules[0].read, rules[0].write), (1, true, false));
        // What has none stays a list.
        let verdicts = |policy: BundleDevices| match policy {
            BundleDevices::Listed(list) => list.iter().map(|each| each.verdict).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        let found = policy(&format!("[{},{}]", entry(true, ten), entry(false, one)));
        assert_eq!(verdicts(found), [Verdict::Allow, Verdict::Deny]);
        let all = r#"{"allow":true,"access":"rwm"}"#;
        let found = policy(&format!("[{all},{},{}]", entry(false, ten), entry(true, one)));
        assert_eq!(verdicts(found), [Verdict::Allow, Verdict::Deny, Verdict::Allow]);
        // And everything begins anew.
        assert_eq!(policy(&format!("[{all},{},{all}]", entry(false, ten))), BundleDevices::All);
        let either = policy(r#"[{"allow":true,"type":"a","major":10,"access":"r"}]"#);
        assert!(matches!(either, BundleDevices::Only(rules) if rules[0].kind == DeviceKind::Any));
    }

    #[test]
    fn minus_one_is_unlimited_and_zero_is_not_said() {
        let read = |text: &str| resources(&serde_json::from_str(text).unwrap(), "resources");
        let found = read(r#"{"memory":{"limit":1000,"reservation":-1},"pids":{"limit":0}}"#).unwrap();
        assert_eq!((found.memory, found.memory_swap, found.pids), (Some(1000), Some(-1), None));
        assert_eq!(found.memory_reservation, Some(i64::MAX as u64));
        assert_eq!(read(r#"{"cpu":{"shares":0,"cpus":""}}"#).unwrap(), Resources::default());
        assert!(read(r#"{"memory":{"limit":1000,"swap":500}}"#).is_err());
    }

    #[test]
    fn what_docker_does_not_know_is_apart() {
        let read = |text: &str| resources(&serde_json::from_str(text).unwrap(), "resources");
        let found = read(
            r#"{"cpu":{"burst":5000,"idle":1},"hugepageLimits":[{"pageSize":"2MB","limit":4194304}],
                "network":{"classID":7,"priorities":[{"name":"eth0","priority":3}]},
                "rdma":{"mlx5_1":{"hcaHandles":2}},"unified":{"memory.high":"1"},"memory":{"kernel":5}}"#,
        );
        let exact = found.unwrap().exact.unwrap();
        assert_eq!((exact.cpu_burst, exact.cpu_idle, exact.network_class), (Some(5000), Some(1), Some(7)));
        assert_eq!(exact.huge_pages, [("2MB".to_owned(), 4 << 20)]);
        assert!(exact.is_rare() && exact.kernel_memory && exact.unified["memory.high"] == "1");
        assert_eq!((exact.rdma[0].handles, exact.rdma[0].objects), (Some(2), None));
        for (text, field) in [
            (r#"{"hugepageLimits":[{"pageSize":"2mb","limit":1}]}"#, "resources.hugepageLimits[0].pageSize"),
            (r#"{"unified":{"../memory.high":"1"}}"#, "resources.unified"),
            (r#"{"rdma":{"mlx5_1":{}}}"#, "resources.rdma.mlx5_1"),
            (r#"{"cpu":{"idle":2}}"#, "resources.cpu.idle"),
            (
                r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":5}]}}"#,
                "resources.blockIO.weightDevice[0].weight",
            ),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
