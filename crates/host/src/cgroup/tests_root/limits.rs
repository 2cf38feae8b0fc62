//! Limits as the kernel has them after they were set.

use insula_spec::plan::ThrottleDevice;

use super::*;

const MIB: u64 = 1 << 20;

fn memory(limit: u64, sum: i64) -> Resources {
    Resources { memory: Some(limit), memory_swap: Some(sum), ..Resources::default() }
}

/// A number in the file of version 1, or in that of version 2.
fn number(group: &Group, controller: &str, first: &str, second: &str) -> Option<u64> {
    let (member, file) = match group.v1(controller) {
        Some(member) => (member, first),
        None => (group.v2().unwrap(), second),
    };
    member.read(file).unwrap().map(|text| text.trim().parse().unwrap_or(u64::MAX))
}

#[test]
fn memory_and_swap_grow_and_shrink_together() {
    if !is_root() {
        return;
    }
    let group = Owned::probed(memory(64 * MIB, 96 * MIB as i64));
    let swap = |total, limit| if group.0.v1("memory").is_some() { total } else { total - limit };
    // Each step would fail in the wrong order.
    for (limit, sum) in [(64, 96), (256, 256), (32, 48), (32, 32), (128, 512), (16, 32)] {
        group.0.limit(&memory(limit * MIB, (sum * MIB) as i64)).unwrap();
        assert_eq!(group.0.stats().unwrap().memory_limit, Some(limit * MIB));
        let found = number(&group.0, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max");
        assert!(found.is_none_or(|found| found == swap(sum, limit) * MIB), "{found:?} for {sum}");
    }
    group.0.limit(&memory(512 * MIB, -1)).unwrap();
    let found = number(&group.0, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max");
    assert!(found.is_none_or(|found| found > 1 << 60), "{found:?}");
}

#[test]
fn rates_of_a_block_device_are_written() {
    if !is_root() {
        return;
    }
    let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let numbers = devices.filter_map(|device| std::fs::read_to_string(device.path().join("dev")).ok()).next();
    let Some(numbers) = numbers else {
        eprintln!("skipped: needs a block device");
        return;
    };
    let (major, minor) = numbers.trim().split_once(':').unwrap();
    let (major, minor) = (major.parse().unwrap(), minor.parse().unwrap());
    let rate = |rate| vec![ThrottleDevice { major, minor, rate }];
    let resources =
        Resources { device_read_bps: rate(MIB), device_write_iops: rate(77), ..Resources::default() };
    let group = Owned::probed(resources);
    assert_eq!(group.1, [""; 0]);
    if let Some(member) = group.0.v1("blkio") {
        let read = |file| member.read(file).unwrap().unwrap();
        assert_eq!(read("blkio.throttle.read_bps_device"), format!("{major}:{minor} {MIB}\n"));
        assert_eq!(read("blkio.throttle.write_iops_device"), format!("{major}:{minor} 77\n"));
    } else {
        let text = group.0.v2().unwrap().read("io.max").unwrap().unwrap();
        assert_eq!(text.trim(), format!("{major}:{minor} rbps={MIB} wbps=max riops=max wiops=77"));
    }
}

#[test]
fn what_the_kernel_refuses_is_named() {
    if !is_root() {
        return;
    }
    let group = Owned::probed(Resources::default());
    let error =
        group.0.limit(&Resources { cpuset_cpus: Some("4000".into()), ..Resources::default() }).unwrap_err();
    assert_eq!(error.to_string(), "set CPU set to \"4000\" (cpuset.cpus)");
}

#[test]
fn a_weight_is_set_or_missed_aloud() {
    if !is_root() {
        return;
    }
    let group = Owned::probed(Resources { blkio_weight: Some(500), ..Resources::default() });
    let files = ["blkio.bfq.weight", "io.bfq.weight", "io.weight"];
    let members = [group.0.v1("blkio"), group.0.v2()];
    let mut found = files.iter().flat_map(|file| members.iter().flatten().map(|m| m.read(file).unwrap()));
    match found.find_map(|text| text) {
        Some(text) => assert!(text.contains("500") || text.contains("4950"), "{text}"),
        None => assert!(group.1[0].contains("cannot limit the block I/O weight"), "{:?}", group.1),
    }
}
