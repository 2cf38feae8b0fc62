//! Runtime specification, "Root", "Mounts", "Namespaces", "Devices" and what hides the host.

use std::fs;

use serde_json::json;

use super::{Bundle, Runtime, for_each_runtime};

for_each_runtime!(
    the_root_is_read_only_and_the_host_is_hidden,
    mounts_have_their_options,
    namespaces_are_new_or_joined,
    ids_are_mapped,
    devices_are_made_and_guarded,
    kernel_parameters_are_set,
);

fn the_root_is_read_only_and_the_host_is_hidden(runtime: &Runtime) {
    let script = "touch /x 2>/dev/null; echo $?; cat /proc/keys; ls /sys/firmware; \
                  echo 1 2>/dev/null >/proc/sys/kernel/domainname; echo $?; hostname";
    assert_eq!(Bundle::new(runtime, script).run(), "1\n1\ninsula\n");
}

fn mounts_have_their_options(runtime: &Runtime) {
    let mut bundle =
        Bundle::new(runtime, "for at in one two file; do grep \" /$at \" /proc/self/mounts; done; cat /file");
    fs::create_dir(bundle.path("source")).unwrap();
    fs::write(bundle.path("file"), "content\n").unwrap();
    for name in ["one", "two"] {
        fs::create_dir(bundle.path("rootfs").join(name)).unwrap();
    }
    bundle.add_mount(json!({"destination": "/one", "type": "tmpfs", "source": "mine",
        "options": ["nosuid", "nodev", "noexec", "noatime", "mode=1700", "size=64k"]}));
    let source = bundle.path("source");
    bundle.add_mount(json!({"destination": "/two", "source": source, "options": ["rbind", "ro", "nodev"]}));
    let file = bundle.path("file");
    bundle.add_mount(
        json!({"destination": "/file", "type": "bind", "source": file, "options": ["bind", "ro"]}),
    );
    let text = bundle.run();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "mine /one tmpfs rw,nosuid,nodev,noexec,noatime,size=64k,mode=1700 0 0");
    let options = |line: &str| line.split(' ').nth(3).unwrap().to_owned();
    assert!(options(lines[1]).starts_with("ro,") && options(lines[1]).contains("nodev"), "{text}");
    assert!(options(lines[2]).starts_with("ro,"), "{text}");
    assert_eq!(lines[3], "content");
}

fn namespaces_are_new_or_joined(runtime: &Runtime) {
    let first = Bundle::new(runtime, "exec sleep 1000");
    first.start();
    let pid = first.state()["pid"].clone();
    let kinds = ["net", "ipc", "uts", "pid", "mnt"];
    let script = format!("for kind in {}; do readlink /proc/self/ns/$kind; done", kinds.join(" "));
    let mut second = Bundle::new(runtime, &script);
    second.config["hostname"] = json!("");
    second.config["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "pid"}, {"type": "ipc"},
        {"type": "network", "path": format!("/proc/{pid}/ns/net")},
    ]);
    let text = second.run();
    let link = |pid: &str, kind: &str| {
        fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
    };
    let found: Vec<&str> = text.lines().collect();
    assert_eq!(found[0], link(&pid.to_string(), "net"));
    assert_eq!(found[2], link("self", "uts"));
    for (number, kind) in [(1, "ipc"), (3, "pid"), (4, "mnt")] {
        assert_ne!(found[number], link("self", kind), "{kind}");
        assert_ne!(found[number], link(&pid.to_string(), kind), "{kind}");
    }
}

fn ids_are_mapped(runtime: &Runtime) {
    let mut bundle =
        Bundle::new(runtime, "id -u; cat /proc/self/uid_map; stat -c %u:%g /dev/null /proc/1 /sys");
    let mapping = |first: u32| json!([{"containerID": 0, "hostID": first, "size": 1000}]);
    bundle.config["linux"]["uidMappings"] = mapping(1_900_000_000);
    bundle.config["linux"]["gidMappings"] = mapping(1_900_100_000);
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    std::os::unix::fs::chown(bundle.path("rootfs"), Some(1_900_000_000), Some(1_900_100_000)).unwrap();
    let text = bundle.run();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words[..4], ["0", "0", "1900000000", "1000"], "{text}");
    assert_eq!(words[5], "0:0", "{text}");
}

fn devices_are_made_and_guarded(runtime: &Runtime) {
    let script = "stat -c %F:%t:%T:%a:%u /dev/own; echo x >/dev/null; cat /dev/own 2>/dev/null; echo $?; \
                  ls -d /dev/fd /dev/ptmx /dev/tty /dev/full";
    let mut bundle = Bundle::new(runtime, script);
    bundle.config["linux"]["devices"] = json!([{"type": "c", "path": "/dev/own", "major": 1, "minor": 11, "fileMode": 0o640, "uid": 7, "gid": 8}]);
    let expected = "character special file:1:b:640:7\n1\n/dev/fd\n/dev/full\n/dev/ptmx\n/dev/tty\n";
    assert_eq!(bundle.run(), expected);
    bundle.config["linux"]["resources"]["devices"] = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rw"},
    ]);
    bundle.config["process"]["args"] = json!(["sh", "-c", "echo hello >/dev/own"]);
    bundle.config["linux"]["devices"][0]["fileMode"] = json!(0o666);
    bundle.run();
}

fn kernel_parameters_are_set(runtime: &Runtime) {
    let mut bundle = Bundle::new(runtime, "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax");
    bundle.config["linux"]["sysctl"] = json!({"net.core.somaxconn": "99", "kernel.msgmax": "4321"});
    assert_eq!(bundle.run(), "99\n4321\n");
    bundle.config["linux"]["sysctl"] = json!({"kernel.panic": "1"});
    assert_ne!(bundle.outcome().0, 0);
}
