//! What only another machine shows: hosts with one version of cgroups alone. Needs `tcg`: QEMU's emulation
//! and Debian's kernel, which is downloaded once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod builds;
mod bundles;
mod engine;
mod hostile;
mod own;
mod ports;
mod programs;
mod sandbox;
mod storage;
mod templates;
mod tenants;
mod walls;

use insula_tests::{Outcome, guest, images::busybox};

/// A guest's checks: each prints `ok NAME`, or `not ok NAME` with what it saw.
const CHECKS: &str = r#"
check() { # NAME EXPECTED COMMAND…
    name=$1 expected=$2; shift 2
    seen=$("$@" 2>&1)
    if [ "$seen" = "$expected" ]; then echo "ok $name"; else echo "not ok $name: $(echo $seen | head -c 500)"; fi
}
insulad >/tmp/insulad.log 2>&1 &
tries=0
until [ -S /run/insula/insula.sock ] || [ $tries -gt 1200 ]; do tries=$((tries + 1)); usleep 100000; done
insula load -i /files/busybox.tar
check version 2 insula info -f '{{.CgroupVersion}}'
check run hello insula run --rm --network none busybox echo hello
check mapped 1 insula run --rm --network none busybox awk '{print ($2 > 0)}' /proc/self/uid_map
tries=0
until [ $(cat /sys/fs/cgroup/insula/*/cgroup.procs | wc -l) = 2 ] || [ $tries -gt 600 ]; do tries=$((tries + 1)); usleep 100000; done
id=$(insula create --network none --name ahead busybox sleep 1000)
check born 1 sh -c 'wc -l < /sys/fs/cgroup/insula/$0/cgroup.procs' $id
check born-started ahead insula start ahead
check born-inside 1 sh -c 'wc -l < /sys/fs/cgroup/insula/$0/cgroup.procs' $id
check born-restarted ahead insula restart -t 0 ahead
check born-outside 1 sh -c 'wc -l < /sys/fs/cgroup/insula/$0/cgroup.procs' $id
insula rm -f ahead >/dev/null
id=$(insula run -d --init --network none -m 64m --cpus 0.5 --pids-limit 33 --name box busybox sleep 1000)
group=/sys/fs/cgroup$(cut -d: -f3 /proc/$(insula inspect -f '{{.State.Pid}}' box)/cgroup)
check memory 67108864 cat $group/memory.max
check pids 33 cat $group/pids.max
check cpus '50000 100000' cat $group/cpu.max
insula update -m 32m --memory-swap 32m --pids-limit 44 box >/dev/null
check update-memory 33554432 cat $group/memory.max
check update-pids 44 cat $group/pids.max
insula pause box >/dev/null
check pause 'frozen 1' grep frozen $group/cgroup.events
insula unpause box >/dev/null
check unpause 'frozen 0' grep frozen $group/cgroup.events
check stats 'box 32MiB' sh -c "insula stats --no-stream --format '{{.Name}} {{.MemUsage}}' box | sed 's|[0-9.]*[KM]*iB / ||'"
insula run --name big --network none -m 16m --memory-swap 16m busybox sh -c 'exec dd if=/dev/zero of=/dev/null bs=64M count=1' >/dev/null 2>&1
check oom 'true 137' insula inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}}' big
check device-allowed 2 insula run --rm --network none --device /dev/full:/dev/other:r busybox sh -c 'head -c 2 /dev/other | wc -c'
check device-denied denied insula run --rm --network none --userns host busybox sh -c 'mknod /tmp/k c 1 11; cat /tmp/k 2>/dev/null || echo denied'
insula stop -t 1 box >/dev/null
ids=$(insula ps -aq --no-trunc)
insula rm box big >/dev/null
check gone '' sh -c 'for id in $0; do ls -d /sys/fs/cgroup/insula/$id 2>/dev/null; done' "$ids"
check bridge hello insula run --rm busybox sh -c 'ping -c 1 -W 60 $(ip route | awk "/default/ {print \$3}") >/dev/null && echo hello'
cat /tmp/insulad.log | sed 's/^/log: /'
# The memory file systems of this kernel (6.1) cannot map ids.
export INSULA_ROOT=/run/second INSULA_RUN=/run/second-run
insulad >/tmp/insulad.log 2>&1 &
tries=0
until [ -S /run/second-run/insula.sock ] || [ $tries -gt 1200 ]; do tries=$((tries + 1)); usleep 100000; done
insula load -i /files/busybox.tar
insula run --rm --network none busybox awk '{print $2}' /proc/self/uid_map >/tmp/out 2>/tmp/err
check unmapped '0 1' sh -c 'echo $(cat /tmp/out) $(grep -c "WARNING: No ids can be mapped" /tmp/err)'
check unmapped-again 0 insula run --rm --network none busybox awk '{print $2}' /proc/self/uid_map
check unmapped-limit 67108864 insula run --rm --network none -m 64m busybox cat /sys/fs/cgroup/memory.max
export INSULA_ROOT=/var/lib/insula INSULA_RUN=/run/insula
echo seen >/run/file
check unmapped-bind '65534 seen' sh -c 'insula run --rm --network none -v /run/file:/file busybox sh -c "stat -c %u /file; cat /file" 2>/tmp/err | xargs echo'
check unmapped-bind-said 1 grep -c 'mounted at /file cannot map ids' /tmp/err
"#;

#[test]
fn cgroups_of_version_2() {
    if let Some(why) = guest::missing() {
        return insula_tests::skip("tcg", why);
    }
    let checks = [CHECKS, CLOCK].concat();
    all_pass(&checks, &guest::run(&checks, &[("/files/busybox.tar", &busybox().docker_archive())]));
}

/// In the same guest the clock is set back by an hour, while containers write, are probed and are restarted; then
/// the daemon is killed.
const CLOCK: &str = r#"
export INSULA_HOST=unix:///run/insula/insula.sock
await() { tries=0; until eval "$1" >/dev/null 2>&1 || [ $tries -gt 1200 ]; do tries=$((tries + 1)); usleep 100000; done; }
mkdir /in
insula run -d --name ticks --network none -v /in:/in busybox     sh -c 'i=0; while test ! -e /in/end; do i=$((i + 1)); echo $i; usleep 50000; done' >/dev/null
insula logs -f ticks >/tmp/ticks &
follower=$!
insula events -f event=die --format '{{.Actor.Attributes.name}}' >/tmp/died &
insula run -d --name again --network none --restart always busybox sh -c 'usleep 200000; exit 1' >/dev/null
await 'grep -q again /tmp/died'
before=$(date +%s)
insula run --rm --name mark --network none busybox true
insula run -d --name sick --network none --health-cmd false --health-interval 1s --health-start-interval 1s     --health-start-period 10s --health-retries 1 busybox sleep 1000 >/dev/null
date -s "@$(($(date +%s) - 3600))" >/dev/null
restarts=$(insula inspect -f '{{.RestartCount}}' again)
insula run --rm --name later --network none busybox true
check clock-events later insula events --since $before --until 0s -f event=die -f container=later --format '{{.Actor.Attributes.name}}'
await '[ "$(insula inspect -f {{.State.Health.Status}} sick)" = unhealthy ]'
check clock-health unhealthy insula inspect -f '{{.State.Health.Status}}' sick
await '[ "$(insula inspect -f {{.RestartCount}} again)" -gt $restarts ]'
check clock-restart yes sh -c "[ $(insula inspect -f '{{.RestartCount}}' again) -gt $restarts ] && echo yes"
kill -9 $(pidof insulad)
insulad >/tmp/insulad.log 2>&1 &
await 'insula version'
lines=$(wc -l </tmp/ticks)
await '[ $(wc -l </tmp/ticks) -gt $lines ]'
insula run --rm --name last --network none busybox true
await 'grep -q last /tmp/died'
check clock-followed 'mark later last' sh -c 'grep -xE "mark|later|last" /tmp/died | xargs echo'
touch /in/end
wait $follower
check clock-log '0 1' awk '$1 != NR {wrong = 1} END {print wrong + 0, (NR > 10)}' /tmp/ticks
check clock-log-again '' sh -c 'insula logs ticks | cmp - /tmp/ticks'
insula rm -f ticks sick again >/dev/null
"#;

/// The same of a host that has version 1 alone, each hierarchy at its place.
const CHECKS_OF_VERSION_1: &str = r#"
check() { # NAME EXPECTED COMMAND…
    name=$1 expected=$2; shift 2
    seen=$("$@" 2>&1)
    if [ "$seen" = "$expected" ]; then echo "ok $name"; else echo "not ok $name: $(echo $seen | head -c 500)"; fi
}
insulad >/tmp/insulad.log 2>&1 &
tries=0
until [ -S /run/insula/insula.sock ] || [ $tries -gt 1200 ]; do tries=$((tries + 1)); usleep 100000; done
insula load -i /files/busybox.tar
check version 1 insula info -f '{{.CgroupVersion}}'
id=$(insula run -d --init --network none -m 64m --cpus 0.5 --pids-limit 33 --cpu-shares 512 --cpuset-cpus 0 --name box busybox sleep 1000)
pid=$(insula inspect -f '{{.State.Pid}}' box)
group() { echo /sys/fs/cgroup/$1$(sed -n "s/^[0-9]*:$1://p" /proc/$pid/cgroup); }
check everywhere 7 grep -c $id /proc/$pid/cgroup
check memory 67108864 cat $(group memory)/memory.limit_in_bytes
check pids 33 cat $(group pids)/pids.max
check cpus '50000 100000' sh -c "cat $(group cpu,cpuacct)/cpu.cfs_quota_us $(group cpu,cpuacct)/cpu.cfs_period_us | xargs echo"
check shares 512 cat $(group cpu,cpuacct)/cpu.shares
check cpuset 0 cat $(group cpuset)/cpuset.cpus
insula update -m 32m --memory-swap 32m --pids-limit 44 box >/dev/null
check update-memory 33554432 cat $(group memory)/memory.limit_in_bytes
check update-pids 44 cat $(group pids)/pids.max
insula pause box >/dev/null
check pause FROZEN cat $(group freezer)/freezer.state
insula unpause box >/dev/null
check unpause THAWED cat $(group freezer)/freezer.state
check exec 'in all groups 7' insula exec box sh -c 'echo in all groups $(grep -c : /proc/self/cgroup)'
check stats 'box 32MiB' sh -c "insula stats --no-stream --format '{{.Name}} {{.MemUsage}}' box | sed 's|[0-9.]*[KM]*iB / ||'"
insula run --name big --network none -m 16m --memory-swap 16m busybox sh -c 'exec dd if=/dev/zero of=/dev/null bs=64M count=1' >/dev/null 2>&1
check oom 'true 137' insula inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}}' big
check device-allowed 2 insula run --rm --network none --device /dev/full:/dev/other:r busybox sh -c 'head -c 2 /dev/other | wc -c'
check device-denied denied insula run --rm --network none --userns host busybox sh -c 'mknod /tmp/k c 1 11; cat /tmp/k 2>/dev/null || echo denied'
insula stop -t 1 box >/dev/null
ids=$(insula ps -aq --no-trunc)
insula rm box big >/dev/null
check gone '' sh -c 'for id in $0; do find /sys/fs/cgroup -type d -name $id; done' "$ids"
cat /tmp/insulad.log | sed 's/^/log: /'
"#;

#[test]
fn cgroups_of_version_1() {
    if let Some(why) = guest::missing() {
        return insula_tests::skip("tcg", why);
    }
    let files = [("/files/busybox.tar", &*busybox().docker_archive())];
    all_pass(CHECKS_OF_VERSION_1, &guest::run_with_first_cgroups(CHECKS_OF_VERSION_1, &files));
}

/// Each check was made and found what it expected.
#[track_caller]
fn all_pass(checks: &str, outcome: &Outcome) {
    assert!(outcome.stdout.contains("GUEST-ENDS"), "the guest did not end well: {outcome}");
    let lines: Vec<&str> = outcome.stdout.lines().map(str::trim).collect();
    let wrong: Vec<&&str> = lines.iter().filter(|line| line.starts_with("not ok")).collect();
    assert!(wrong.is_empty(), "{wrong:#?}\n{outcome}");
    let passed = lines.iter().filter(|line| line.starts_with("ok ")).count();
    assert_eq!(passed, checks.matches("\ncheck ").count(), "{outcome}");
}

/// The tests of the crates themselves, with what each has to say when it passes: a filter that finds
/// nothing passes as well.
const TESTS: [(&str, &str, &str); 4] = [
    ("insula_host", "cgroup::", "a_frozen_group_stands_still"),
    ("insula_host", "sctp", "a_port_is_published_by_sctp"),
    ("insula_container", "", "releases_are_compared_by_number"),
    ("serve", "", "a_program_runs_as_root_of_its_own_and_its_code_is_told"),
];

#[test]
fn the_crates_own_tests_pass_there() {
    if let Some(why) = guest::missing() {
        return insula_tests::skip("tcg", why);
    }
    let programs = programs::build();
    let mut script = String::from(
        "echo \"controllers: $(cat /sys/fs/cgroup/cgroup.controllers)\"\nexport INSULA_TEST_REQUIRE=root,sctp\n",
    );
    // The tests of the monitor look for it where it was built.
    let monitor = std::fs::read(&programs.monitor).unwrap();
    let mut files = vec![(programs.monitor.to_str().unwrap().to_owned(), monitor)];
    for (name, filter, _) in TESTS {
        files.push((format!("/tests/{name}"), std::fs::read(programs.test(name)).unwrap()));
        script.push_str(&format!("/tests/{name} {filter} </dev/null 2>&1; echo \"{name} ended with $?\"\n"));
    }
    script.push_str("ls -d /sys/fs/cgroup/insula-test-* 2>/dev/null | sed 's/^/left behind: /'\n");
    let files: Vec<_> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    let outcome = guest::run_bare(&script, &files);
    let console = &outcome.stdout;
    assert!(console.contains("controllers: cpuset cpu io memory"), "{outcome}");
    for (name, _, test) in TESTS {
        assert!(console.contains(&format!("{name} ended with 0")), "{name} failed: {outcome}");
        assert!(console.contains(test), "{name} has not run {test}: {outcome}");
    }
    assert!(!console.contains("left behind: "), "{outcome}");
    assert!(console.contains("GUEST-ENDS"), "the guest did not end well: {outcome}");
}
