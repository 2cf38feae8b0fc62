//! Runtime specification, "Process".

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::json;

use super::{Bundle, Runtime, for_each_runtime};

for_each_runtime!(
    a_process_is_as_it_is_described,
    capabilities_are_five_sets,
    no_descriptor_of_the_runtime_is_inside,
    descriptors_are_preserved,
    a_terminal_goes_to_its_socket,
    a_filter_denies,
);

fn a_process_is_as_it_is_described(runtime: &Runtime) {
    let script = "umask; id -u; id -g; id -G; echo $A; readlink /proc/self/cwd; \
                  cat /proc/self/oom_score_adj; grep NoNewPrivs /proc/self/status; ulimit -n; ulimit -Hn";
    let mut bundle = Bundle::new(runtime, script);
    bundle.config["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "umask": 0o27, "additionalGids": [5, 6]});
    bundle.config["process"]["env"] = json!(["PATH=/bin", "A=b=c"]);
    bundle.config["process"]["cwd"] = json!("/bin");
    bundle.config["process"]["oomScoreAdj"] = json!(100);
    bundle.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    let expected = "0027\n1000\n1001\n1001 5 6\nb=c\n/bin\n100\nNoNewPrivs:\t1\n100\n200\n";
    assert_eq!(bundle.run(), expected);
}

fn capabilities_are_five_sets(runtime: &Runtime) {
    let mut bundle = Bundle::new(runtime, "grep Cap /proc/self/status");
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let one = json!(["CAP_NET_BIND_SERVICE"]);
    bundle.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_NET_BIND_SERVICE", "CAP_KILL"],
        "effective": one, "permitted": one, "inheritable": one, "ambient": one,
    });
    let set = |bits: u64| format!("{bits:016x}");
    let (one, two) = (set(1 << 10), set(1 << 10 | 1 << 5));
    let expected =
        format!("CapInh:\t{one}\nCapPrm:\t{one}\nCapEff:\t{one}\nCapBnd:\t{two}\nCapAmb:\t{one}\n");
    assert_eq!(bundle.run(), expected);
}

fn no_descriptor_of_the_runtime_is_inside(runtime: &Runtime) {
    assert_eq!(Bundle::new(runtime, "ls /proc/1/fd; true").run(), "0\n1\n2\n");
}

fn descriptors_are_preserved(runtime: &Runtime) {
    let bundle = Bundle::new(runtime, "cat <&3; ls /proc/1/fd; true");
    bundle.write();
    std::fs::write(bundle.path("given"), "given\n").unwrap();
    let script = format!(
        "exec {} --root {} run --preserve-fds 1 --bundle {} {} 3<{}",
        runtime.0.display(),
        bundle.path("state").display(),
        bundle.path("").display(),
        bundle.id,
        bundle.path("given").display()
    );
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "given\n0\n1\n2\n3\n", "{}", String::from_utf8_lossy(&output.stderr));
}

fn a_terminal_goes_to_its_socket(runtime: &Runtime) {
    let mut bundle = Bundle::new(
        runtime,
        "test -t 0 && test -t 2 && readlink /proc/self/fd/1; stat -c %t:%T /dev/console",
    );
    bundle.config["process"]["terminal"] = json!(true);
    let path = bundle.path("console");
    let listener = UnixListener::bind(&path).unwrap();
    assert!(
        bundle.create(&["--console-socket", path.to_str().unwrap()]).success(),
        "{}",
        bundle.said("errors")
    );
    let (socket, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 64];
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags).unwrap();
    let master = ancillary
        .drain()
        .find_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        })
        .unwrap();
    bundle.done(&["start", &bundle.id]);
    let mut text = Vec::new();
    // The end of a terminal is an error, tty_ioctl(4): EIO.
    let _ = std::fs::File::from(master).read_to_end(&mut text);
    assert_eq!(String::from_utf8_lossy(&text), "/dev/pts/0\r\n88:0\r\n");
}

fn a_filter_denies(runtime: &Runtime) {
    let mut bundle = Bundle::new(runtime, "sync; hostname");
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["uname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
    });
    let (_, output, errors) = bundle.outcome();
    assert!(!output.contains("insula"), "{output}{errors}");
}

/// runc 1.1 knows nothing of these either.
#[test]
fn clocks_processors_and_memory_are_those_that_are_asked_for() {
    let Some(runtime) = Runtime::insula() else { return };
    let script =
        "cat /proc/uptime; readlink /proc/self/ns/time; grep -c 'bind=static:0' /proc/self/numa_maps";
    let mut bundle = Bundle::new(&runtime, script);
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
    bundle.config["linux"]["timeOffsets"] =
        json!({"boottime": {"secs": 1_000_000_000}, "monotonic": {"secs": 2_000_000, "nanosecs": 5}});
    bundle.config["linux"]["memoryPolicy"] =
        json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    let said = bundle.run();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].parse::<f64>().is_err() && lines[0].starts_with("100"), "{said}");
    assert_ne!(lines[1], std::fs::read_link("/proc/self/ns/time").unwrap().to_str().unwrap());
    assert_ne!(lines[2], "0", "{said}");
    // Others join these clocks: by exec, and by their file.
    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.config["process"]["execCPUAffinity"] = json!({"initial": "0-1", "final": "0"});
    bundle.start();
    let execute = |arguments: &[&str]| bundle.done(&[&["exec", &bundle.id][..], arguments].concat());
    assert!(execute(&["cat", "/proc/uptime"]).starts_with("100"));
    assert!(execute(&["grep", "Cpus_allowed_list", "/proc/self/status"]).ends_with("\t0\n"));
    let pid = bundle.state()["pid"].clone();
    let init = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(init.contains("Cpus_allowed_list:\t0-"), "of a process that joins alone: {init}");
    let mut other = Bundle::new(&runtime, "cat /proc/uptime");
    other.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "time", "path": format!("/proc/{pid}/ns/time")}));
    assert!(other.run().starts_with("100"));
}

/// runc 1.1 knows none of these, so nothing but the kernel's own words shows that the check is right.
#[test]
fn turns_and_looks_are_those_that_are_asked_for() {
    let Some(runtime) = Runtime::insula() else { return };
    let mut bundle = Bundle::new(&runtime, "busybox ionice; busybox uname -m; cat /proc/self/stat");
    bundle.config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    bundle.config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
    bundle.config["linux"]["personality"] = json!({"domain": "LINUX32"});
    let said = bundle.run();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["best-effort: prio 6", "i686"], "{said}");
    // proc_pid_stat(5), fields 19 and 41; the name in brackets is the second.
    let stat: Vec<&str> = lines[2].rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!((stat[19 - 3], stat[41 - 3]), ("5", "3"), "{said}");
    // Other processes of the container look at the same kernel.
    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.start();
    assert_eq!(bundle.done(&["exec", &bundle.id, "busybox", "uname", "-m"]), "i686\n");
}
