//! Runtime specification, "Control groups": each limit in the file of the kernel that it is for.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::bundle::hierarchies;
use super::{Bundle, Runtime, for_each_runtime};

for_each_runtime!(a_part_of_the_devices_is_denied);

/// The file of a container's group, whichever hierarchy has it.
fn file(bundle: &Bundle<'_>, name: &str) -> Option<PathBuf> {
    let folders = hierarchies().into_iter().map(|root| root.join(&bundle.id).join("box"));
    folders.map(|folder| folder.join(name)).find(|file| file.exists())
}

fn content(bundle: &Bundle<'_>, names: [&str; 2]) -> Option<String> {
    let found = names.into_iter().find_map(|name| file(bundle, name));
    found.map(|file| fs::read_to_string(file).unwrap().trim().to_owned())
}

/// Whether the kernel has a file in groups that version 2 is for.
fn second_version_has(controller: &str) -> bool {
    let lists = hierarchies().into_iter().map(|root| root.join("cgroup.controllers"));
    let found = lists.filter_map(|list| fs::read_to_string(list).ok());
    found.into_iter().any(|list| list.split_whitespace().any(|known| known == controller))
}

/// runc 1.1 knows nothing of bursts and idleness, and leaves version 2 alone where version 1 is beside it.
#[test]
fn files_of_either_version_are_written() {
    let Some(runtime) = Runtime::insula() else { return };
    let mut bundle = Bundle::new(&runtime, "exec sleep 1000");
    bundle.config["linux"]["resources"] =
        json!({"cpu": {"quota": 20_000, "period": 100_000, "burst": 5000}, "memory": {"kernel": 4096}});
    bundle.config["linux"]["resources"]["unified"] = json!({"cgroup.max.depth": "3"});
    let pages = second_version_has("hugetlb");
    if pages {
        let limits = json!([{"pageSize": "2MB", "limit": 4 << 20}]);
        bundle.config["linux"]["resources"]["hugepageLimits"] = limits;
    }
    assert!(
        bundle.create(&["--pid-file", bundle.path("pid").to_str().unwrap()]).success(),
        "{}",
        bundle.said("errors")
    );
    assert_eq!(content(&bundle, ["cpu.cfs_burst_us", "cpu.max.burst"]).unwrap(), "5000");
    assert_eq!(content(&bundle, ["cgroup.max.depth", "cgroup.max.depth"]).unwrap(), "3");
    if pages {
        assert_eq!(content(&bundle, ["hugetlb.2MB.max", "hugetlb.2MB.limit_in_bytes"]).unwrap(), "4194304");
        assert_eq!(content(&bundle, ["hugetlb.2MB.rsvd.max", "hugetlb.2MB.rsvd.max"]).unwrap(), "4194304");
    }
    bundle.done(&["delete", "--force", &bundle.id]);
    assert!(!bundle.has_groups());
    bundle.config["linux"]["resources"] = json!({"cpu": {"idle": 1}});
    bundle.start();
    assert_eq!(content(&bundle, ["cpu.idle", "cpu.idle"]).unwrap(), "1");
}

/// Which of two devices open that every kernel has and no container.
const OPENS: &str = "for name in fuse tun; do (: </dev/$name) 2>/dev/null && echo $name; done; true";

fn with_devices<'a>(runtime: &'a Runtime, script: &str, allowed: Value) -> Bundle<'a> {
    let mut bundle = Bundle::new(runtime, script);
    let node = |name: &str, minor: u32| json!({"type": "c", "path": format!("/dev/{name}"), "major": 10, "minor": minor});
    bundle.config["linux"]["devices"] = json!([node("fuse", 229), node("tun", 200)]);
    bundle.config["linux"]["resources"]["devices"] = allowed;
    bundle
}

fn a_part_of_the_devices_is_denied(runtime: &Runtime) {
    let all = json!({"allow": true, "access": "rwm"});
    let fuse = json!({"allow": false, "type": "c", "major": 10, "minor": 229, "access": "rwm"});
    assert_eq!(with_devices(runtime, OPENS, json!([&all, &fuse])).run(), "tun\n");
    assert_eq!(with_devices(runtime, OPENS, json!([&fuse, &all])).run(), "fuse\ntun\n");
    let read = json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"});
    assert_eq!(with_devices(runtime, OPENS, json!([all, fuse, read])).run(), "fuse\ntun\n");
}

/// runc ignores the devices of an update.
#[test]
fn devices_change_while_a_container_runs() {
    let Some(runtime) = Runtime::insula() else { return };
    let nothing = json!({"allow": false, "access": "rwm"});
    let one = |minor: u32| json!({"allow": true, "type": "c", "major": 10, "minor": minor, "access": "rw"});
    let bundle = with_devices(&runtime, "exec sleep 1000", json!([&nothing, one(229)]));
    bundle.start();
    let opens = || bundle.done(&["exec", &bundle.id, "sh", "-c", &format!("{OPENS}; : </dev/zero")]);
    let resources = bundle.path("resources").to_str().unwrap().to_owned();
    let changing = |devices: &Value| {
        fs::write(&resources, json!({"devices": devices}).to_string()).unwrap();
        ["update", "--resources", &resources, &bundle.id]
    };
    let update = |devices: Value| bundle.done(&changing(&devices));
    assert_eq!(opens(), "fuse\n");
    update(json!([&nothing, one(200)]));
    assert_eq!(opens(), "tun\n");
    let all = json!({"allow": true, "access": "rwm"});
    let all_but = json!([all, {"allow": false, "type": "c", "major": 10, "minor": 200}]);
    for (devices, expected) in [(json!([all]), "fuse\ntun\n"), (all_but, "fuse\n")] {
        if hierarchies().iter().any(|root| root.ends_with("devices")) {
            // Everything would be open for a moment, or nothing.
            let output = bundle.call(&changing(&devices));
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                !output.status.success() && said.contains("cannot change, while processes run"),
                "{said}"
            );
            assert_eq!(opens(), "tun\n");
        } else {
            update(devices);
            assert_eq!(opens(), expected);
        }
    }
    update(json!([nothing]));
    assert_eq!(opens(), "");
}

#[test]
fn what_a_kernel_has_no_words_for_is_refused() {
    let Some(runtime) = Runtime::insula() else { return };
    let pattern = json!({"allow": true, "type": "c", "major": 10, "access": "rw"});
    let hole = json!({"allow": false, "type": "c", "major": 10, "minor": 229, "access": "r"});
    let bundle = with_devices(&runtime, OPENS, json!([pattern, hole]));
    let (code, said, errors) = bundle.outcome();
    if hierarchies().iter().any(|root| root.ends_with("devices")) {
        assert!(code == 1 && errors.contains("version 1 of control groups cannot deny a part"), "{errors}");
    } else {
        assert_eq!((code, said.as_str()), (0, "tun\n"), "{errors}");
    }
    assert!(!bundle.has_groups() && !bundle.path("state").join(&bundle.id).exists());
}

#[test]
fn a_file_that_is_not_there_is_an_error_and_a_controller_a_warning() {
    let Some(runtime) = Runtime::insula() else { return };
    let run = |resources: Value| {
        let mut bundle = Bundle::new(&runtime, "true");
        bundle.config["linux"]["resources"] = resources;
        bundle.write();
        let (path, log) = (bundle.path(""), bundle.path("log"));
        let (path, log) = (path.to_str().unwrap(), log.to_str().unwrap());
        let output = bundle.call(&["--log", log, "run", "--bundle", path, &bundle.id]);
        let left = bundle.has_groups() || bundle.path("state").join(&bundle.id).exists();
        assert!(!left);
        (output.status.code(), String::from_utf8(output.stderr).unwrap(), bundle.said("log"))
    };
    let (code, said, _) = run(json!({"unified": {"memory.nothing": "1"}}));
    assert!(
        code == Some(1) && said.contains("linux.resources.unified") && said.contains("memory.nothing"),
        "{said}"
    );
    let (code, said, warned) =
        run(json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}, "memory": {"kernel": 4096}}));
    assert_eq!(code, Some(0), "{said}");
    assert!(warned.contains("limits of the kernel's own memory are ignored"), "{warned}");
    if !second_version_has("rdma") {
        assert!(warned.contains("the host cannot limit the RDMA device: it has no rdma.max"), "{warned}");
    }
}
