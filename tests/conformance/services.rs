//! Services from a distribution's packages.

use insula_tests::images::{self, debian};
use insula_tests::{Daemon, daemon, eventually, get, holds, program, skip, text};
use serde_json::json;

#[test]
fn nginx_serves_from_its_package() {
    let daemon = daemon!();
    daemon.insula(&["import", text(&debian(&["nginx-light"])), "web"]).ok();
    let id = daemon.insula(&[
        "run",
        "-d",
        "-p",
        "127.0.0.1::80",
        "--stop-signal",
        "QUIT",
        "web",
        "nginx",
        "-g",
        "daemon off;",
    ]);
    let port = daemon.inspect(id.ok(), "/NetworkSettings/Ports/80~1tcp/0/HostPort");
    let address = format!("127.0.0.1:{}", port.as_str().unwrap());
    eventually("nginx answers", || {
        get(&address).filter(|page| page.status == 200 && page.text().contains("nginx"))
    });
    daemon.insula(&["stop", id.ok()]).ok();
    assert_eq!(daemon.inspect(id.ok(), "/State/ExitCode"), 0);
}

#[test]
fn systemd_boots_as_the_first_process() {
    let daemon = daemon!();
    daemon.insula(&["import", text(&debian(&["systemd-sysv", "dbus"])), "os"]).ok();
    // Found from the command, without a flag.
    let id = daemon.insula(&["run", "-d", "--network", "none", "os", "/sbin/init"]).ok().to_owned();
    let state = || daemon.insula(&["exec", &id, "systemctl", "is-system-running"]).stdout.trim().to_owned();
    let mut last = String::new();
    holds("systemd has booted", || {
        last = state();
        matches!(last.as_str(), "running" | "degraded")
    });
    let failed =
        daemon.insula(&["exec", &id, "systemctl", "list-units", "--failed", "--no-legend", "--plain"]);
    assert_eq!((last.as_str(), failed.ok()), ("running", ""));
    assert_eq!(daemon.insula(&["exec", &id, "cat", "/proc/1/comm"]).ok(), "systemd");
    assert_eq!(daemon.insula(&["exec", &id, "systemd-detect-virt", "--container"]).ok(), "docker");
    // Stopped in its own way: services end in order, and it is not killed.
    daemon.insula(&["stop", "-t", "20", &id]).ok();
    assert_ne!(daemon.inspect(&id, "/State/ExitCode"), 137);
    makes_the_groups_of_bundles(&daemon);
}

/// What a bundle's scope is for systemd, and what stands in its groups of version 1 then.
const SCOPE: &str = r#"
export PATH=/b:$PATH
cd /b
check() { # NAME EXPECTED COMMAND…
    name=$1 expected=$2; shift 2
    seen=$("$@" 2>&1)
    [ "$seen" = "$expected" ] || echo "not ok $name: $seen"
}
has() { systemctl show "$1" --value -p "$2"; }
group() { cat "/sys/fs/cgroup/${1%%/*}$(has box-one.scope ControlGroup)/${1#*/}"; }
limits() { echo $(group memory/memory.limit_in_bytes) $(group cpu/cpu.shares) $(group cpu/cpu.cfs_quota_us) $(group pids/pids.max); }
check create '' sh -c 'insula-runtime --systemd-cgroup create one </dev/null >said 2>&1; cat said'
check start '' insula-runtime start one
check state active has box-one.scope ActiveState
check slice insula-test.slice has box-one.scope Slice
check delegated yes has box-one.scope Delegate
told() { for name; do has box-one.scope $name; done | xargs; }
check told '33554432 512 130ms 1 strict' told MemoryLimit CPUShares CPUQuotaPerSecUSec TasksMax DevicePolicy
check stands '33554432 512 12345 1' limits
check one-process 1 sh -c 'insula-runtime ps --format json one | tr , "\n" | wc -l'
systemctl daemon-reload
check after-a-reload '33554432 512 13000 1' limits
check devices-after-a-reload 0 sh -c "grep -c '^a' /sys/fs/cgroup/devices$(has box-one.scope ControlGroup)/devices.list"
check update '' insula-runtime update --pids-limit 44 --memory 50331648 one
check updated '50331648 512 13000 44' limits
check told-of-it 50331648 has box-one.scope MemoryLimit
check exec '' insula-runtime exec one busybox true
check twice 1 sh -c 'insula-runtime --systemd-cgroup create two 2>&1 </dev/null | grep -c UnitExists'
check still-there running sh -c "insula-runtime state one | sed -n 's/.*status.: .\\([a-z]*\\).*/\\1/p'"
check delete '' insula-runtime delete --force one
check gone inactive has box-one.scope ActiveState
check nothing-left '' sh -c "find /sys/fs/cgroup/*/$(has -.slice ControlGroup) -name 'box-*.scope'; ls /run/insula-runtime"
sed -i 's|insula-test.slice:box:one|/a/path|' config.json
check path 1 sh -c 'insula-runtime --systemd-cgroup create --bundle /b one 2>&1 | grep -c "linux.cgroupsPath: ./a/path. is not slice:prefix:name"'
sed -i 's|/a/path|insula-test.slice:box:one|' config.json
echo done
"#;

/// Debian's containerd there, as Kubernetes drives it with systemd's control groups: by our shim, which sees it by the
/// path, and by that of runc, which says so to the runtime.
const CONTAINERD: &str = r#"
await() { tries=0; until eval "$1" >/dev/null 2>&1 || [ $tries -gt 600 ]; do tries=$((tries + 1)); sleep 0.05; done; }
mkdir /run/c
printf 'version = 2\nroot = "/run/c/root"\nstate = "/run/c/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "/run/c/sock"\n[ttrpc]\naddress = "/run/c/sock.ttrpc"\n' >/run/c/config.toml
ln -s containerd-shim-insula-v2 /b/containerd-shim-insula-vm-v2
containerd --config /run/c/config.toml >/run/c/log 2>&1 &
daemon=$!
ctr() { /usr/bin/ctr --address /run/c/sock "$@"; }
await 'ctr version'
ctr images import --snapshotter native /b/busybox.tar >/dev/null
image=docker.io/library/busybox:latest
of() { unit=$1; shift; for name; do has $unit $name; done | xargs; }
goes() { # ID FLAGS…
    id=$1 unit=cri-containerd-$1.scope; shift
    check $id-run '' ctr run --detach --snapshotter native --memory-limit 33554432 --cgroup insula-test.slice:cri-containerd:$id "$@" $image $id sleep 1000
    check $id-unit 'active insula-test.slice 33554432' of $unit ActiveState Slice MemoryLimit
    check $id-stands 33554432 cat /sys/fs/cgroup/memory$(has $unit ControlGroup)/memory.limit_in_bytes
    # More than pipes hold: containerd's own shim forgets what nobody has begun to read when the process ends.
    check $id-exec 1000000 sh -c "/usr/bin/ctr --address /run/c/sock task exec --exec-id more $id head -c 1000000 /dev/zero | wc -c"
    check $id-metrics 33554432 sh -c "/usr/bin/ctr --address /run/c/sock task metrics $id | grep -o -m 1 33554432 | head -n 1"
    check $id-pause '' ctr task pause $id
    check $id-resume '' ctr task resume $id
    ctr task kill --signal KILL $id
    await "ctr task list | grep -q 'STOPPED'"
    ctr task delete $id >/dev/null 2>&1
    ctr container delete $id
    check $id-gone inactive has $unit ActiveState
}
goes own --runtime io.containerd.insula.v2
goes other --runtime io.containerd.runc.v2 --runc-binary /b/insula-runtime --runc-systemd-cgroup
check groups-gone '' find /sys/fs/cgroup/*/$(has -.slice ControlGroup) -name 'cri-containerd-*.scope'
kill $daemon
wait $daemon
echo done
"#;

/// That systemd is the first process of a container with the host's groups.
fn makes_the_groups_of_bundles(daemon: &Daemon) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["insula-runtime", "containerd-shim-insula-v2"] {
        std::fs::copy(program(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join("busybox.tar"), images::busybox().docker_archive()).unwrap();
    std::fs::create_dir_all(folder.path().join("rootfs/bin")).unwrap();
    std::fs::copy("/bin/busybox", folder.path().join("rootfs/bin/busybox")).unwrap();
    let mut spec = std::process::Command::new(program("insula-runtime"));
    assert!(spec.args(["spec", "--bundle"]).arg(folder.path()).status().unwrap().success());
    let document = std::fs::read(folder.path().join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&document).unwrap();
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["busybox", "sleep", "1000"]);
    config["linux"]["cgroupsPath"] = json!("insula-test.slice:box:one");
    config["linux"]["resources"] = json!({"pids": {"limit": 1}, "memory": {"limit": 32 << 20},
        "cpu": {"shares": 512, "quota": 12345, "period": 100_000}});
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let bound = format!("{}:/b", text(folder.path()));
    // They need no more of the host than its C library, which is Debian's there too.
    let others = ["containerd", "ctr", "containerd-shim-runc-v2"].map(|name| format!("/usr/bin/{name}"));
    let installed = others.iter().all(|path| std::path::Path::new(path).is_file());
    let volumes = others.map(|path| format!("{path}:{path}:ro"));
    let mut run = vec!["run", "-d", "--privileged", "--network", "none", "-v", &bound];
    run.extend(volumes.iter().filter(|_| installed).flat_map(|volume| ["-v", volume.as_str()]));
    run.extend(["os", "/sbin/init"]);
    let id = daemon.insula(&run).ok().to_owned();
    holds("systemd answers", || {
        let state = daemon.insula(&["exec", &id, "systemctl", "is-system-running"]);
        matches!(state.stdout.trim(), "starting" | "running" | "degraded")
    });
    let said = daemon.insula(&["exec", &id, "sh", "-c", SCOPE]);
    assert_eq!(said.stdout, "done\n", "{}", said.stderr);
    if !installed {
        return skip("root", "containerd is missing");
    }
    let checks = SCOPE.split_once("check create").map_or("", |(before, _)| before);
    let said = daemon.insula(&["exec", &id, "sh", "-c", &[checks, CONTAINERD].concat()]);
    let log = || daemon.insula(&["exec", &id, "cat", "/run/c/log"]).stdout;
    assert_eq!(said.stdout, "done\n", "{}\n{}", said.stderr, log());
}
