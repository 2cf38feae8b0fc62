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
    a_tmpfs_begins_with_what_it_covers,
    what_is_mounted_gets_other_options,
    a_root_is_entered_without_a_pivot,
    a_user_namespace_is_no_obstacle,
);

/// As an ordinary user's engine has it: ids of its own alone, and control groups that are not its to make.
fn a_user_namespace_is_no_obstacle(runtime: &Runtime) {
    let mut bundle = Bundle::new(runtime, "echo inside; cat /proc/self/uid_map");
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    let pts = mounts.iter_mut().find(|mount| mount["destination"] == "/dev/pts").unwrap();
    pts["options"] = json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]);
    let ids = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    bundle.config["linux"]["uidMappings"] = ids.clone();
    bundle.config["linux"]["gidMappings"] = ids;
    bundle.write();
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount"]).arg(&runtime.0);
    command.arg("--root").arg(bundle.path("state")).args(["run", "--bundle"]).arg(bundle.path(""));
    let output = command.arg(&bundle.id).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words, ["inside", "0", "0", "1"], "{}", String::from_utf8_lossy(&output.stderr));
}

/// runc makes the mounts of such a container on the host, and leaves them there.
#[test]
fn mounts_are_the_hosts_or_anothers() {
    let Some(runtime) = Runtime::insula() else { return };
    let mut holder =
        std::process::Command::new("unshare").args(["--mount", "sleep", "1000"]).spawn().unwrap();
    let other = format!("/proc/{}/ns/mnt", holder.id());
    let link = |path: &str| fs::read_link(path).unwrap();
    insula_tests::holds("it has mounts of its own", || link(&other) != link("/proc/self/ns/mnt"));
    for (namespace, expected) in
        [(json!([]), "/proc/self/ns/mnt"), (json!([{"type": "mount", "path": other}]), &other)]
    {
        let mut bundle = Bundle::new(&runtime, "hostname >/began; exec sleep 1000");
        let groups = bundle.config["linux"]["cgroupsPath"].clone();
        bundle.config["linux"] = json!({"namespaces": namespace, "cgroupsPath": groups});
        for kind in ["pid", "uts", "ipc", "network"] {
            bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": kind}));
        }
        bundle.config["mounts"] = json!([]);
        bundle.config["root"]["readonly"] = json!(false);
        bundle.start();
        assert_eq!(link(&format!("/proc/{}/ns/mnt", bundle.state()["pid"])), link(expected));
        insula_tests::holds("it begins", || bundle.said("rootfs/began") == "insula\n");
        assert_eq!(bundle.done(&["exec", &bundle.id, "cat", "/began"]), "insula\n");
        bundle.done(&["delete", "--force", &bundle.id]);
        assert!(!bundle.has_groups());
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
}

fn a_tmpfs_begins_with_what_it_covers(runtime: &Runtime) {
    let script = "cat /full/one /full/deep/two /full/link; stat -c %a:%u:%g /full/deep/two; \
                  touch /full/new && ls /full; stat -f -c %T /full";
    let mut bundle = Bundle::new(runtime, script);
    let full = bundle.path("rootfs/full");
    fs::create_dir_all(full.join("deep")).unwrap();
    fs::write(full.join("one"), "1\n").unwrap();
    fs::write(full.join("deep/two"), "2\n").unwrap();
    std::os::unix::fs::chown(full.join("deep/two"), Some(7), Some(8)).unwrap();
    fs::set_permissions(full.join("deep/two"), std::os::unix::fs::PermissionsExt::from_mode(0o604)).unwrap();
    std::os::unix::fs::symlink("one", full.join("link")).unwrap();
    bundle.config["root"]["readonly"] = json!(false);
    bundle.add_mount(
        json!({"destination": "/full", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "nosuid"]}),
    );
    assert_eq!(bundle.run(), "1\n2\n1\n604:7:8\ndeep\nlink\nnew\none\ntmpfs\n");
    assert!(!full.join("new").exists());
}

/// Names are bytes, and a pipe is copied as one.
#[test]
fn whatever_is_covered_is_copied() {
    use std::os::unix::ffi::OsStrExt;
    let Some(runtime) = Runtime::insula() else { return };
    let script = "cat /full/*.txt; stat -c %F:%a:%u:%g /full/pipe";
    let mut bundle = Bundle::new(&runtime, script);
    let full = bundle.path("rootfs/full");
    fs::create_dir_all(&full).unwrap();
    fs::write(full.join(std::ffi::OsStr::from_bytes(b"caf\xe9.txt")), "latin\n").unwrap();
    let pipe = full.join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    std::os::unix::fs::chown(&pipe, Some(7), Some(8)).unwrap();
    bundle.add_mount(
        json!({"destination": "/full", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
    );
    assert_eq!(bundle.run(), "latin\nfifo:640:7:8\n");
}

/// Runtime specification 1.3, "Network Devices".
#[test]
fn interfaces_of_the_host_become_the_containers() {
    let Some(runtime) = Runtime::insula() else { return };
    let name = format!("it{}", insula_tests::tag());
    let name = name.as_str();
    let ip = |arguments: &[&str]| {
        std::process::Command::new("ip").args(arguments).output().unwrap().status.success()
    };
    let peer = format!("{name}p");
    assert!(ip(&["link", "add", name, "type", "veth", "peer", "name", &peer]));
    assert!(ip(&["link", "set", &peer, "up"]));
    assert!(ip(&["address", "add", "192.0.2.7/31", "dev", name]));
    let mut bundle =
        Bundle::new(&runtime, "busybox ip -o address show dev lan7; busybox ip -o link show dev lan7");
    bundle.config["linux"]["netDevices"] = json!({name: {"name": "lan7"}});
    // Where nothing comes of the container it is the host's again, as it was.
    bundle.config["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]});
    let (code, _, errors) = bundle.outcome();
    assert!(code == 1 && errors.contains("createRuntime"), "{errors}");
    let shown =
        std::process::Command::new("ip").args(["-o", "address", "show", "dev", name]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("inet 192.0.2.7/31"), "{shown}");
    bundle.config["hooks"] = json!({});
    let (code, output, errors) = bundle.outcome();
    // It ends with the container's network; where it was not moved, here.
    let left = ip(&["link", "delete", name]);
    assert_eq!(code, 0, "{errors}");
    assert!(output.contains("inet 192.0.2.7/31") && output.contains(",UP"), "{output}");
    assert!(!left);
    let (code, _, errors) = bundle.outcome();
    assert!(code == 1 && errors.contains(&format!("no network interface is named {name}")), "{errors}");
    assert!(!bundle.path("state").join(&bundle.id).exists() && !bundle.has_groups());
}

fn what_is_mounted_gets_other_options(runtime: &Runtime) {
    let mut bundle =
        Bundle::new(runtime, "touch /one/x 2>/dev/null; echo $?; grep ' /one ' /proc/self/mounts");
    fs::create_dir(bundle.path("rootfs/one")).unwrap();
    bundle.add_mount(
        json!({"destination": "/one", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}),
    );
    bundle.add_mount(json!({"destination": "/one", "type": "tmpfs", "source": "tmpfs",
        "options": ["remount", "ro", "nosuid", "size=64k"]}));
    let said = bundle.run();
    assert!(said.starts_with("1\ntmpfs /one tmpfs ro,nosuid,"), "{said}");
    assert!(said.contains("size=64k"), "{said}");
}

fn a_root_is_entered_without_a_pivot(runtime: &Runtime) {
    let bundle = Bundle::new(runtime, "ls /; exec sleep 1000");
    bundle.write();
    let created = bundle.create(&["--no-pivot"]);
    assert!(created.success(), "{}", bundle.said("errors"));
    bundle.done(&["start", &bundle.id]);
    let roots = bundle.done(&["exec", &bundle.id, "ls", "/"]);
    let roots: Vec<&str> = roots.split_whitespace().collect();
    assert_eq!(roots, ["bin", "dev", "proc", "sys"]);
}

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
