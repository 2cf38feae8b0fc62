//! What bundles can have on Debian's kernel and not on every host of the tests: CRIU of Debian does not know the
//! clock pages of kernels from 6.13 on, AppArmor may not be there, nor all of version 2 of control groups.

use insula_tests::{guest, program, skip};

use super::all_pass;

const CHECKS: &str = r#"
check() { # NAME EXPECTED COMMAND…
    name=$1 expected=$2; shift 2
    seen=$("$@" 2>&1)
    if [ "$seen" = "$expected" ]; then echo "ok $name"; else echo "not ok $name: $(echo $seen | head -c 500)"; fi
}
await() { tries=0; until eval "$1" >/dev/null 2>&1 || [ $tries -gt 300 ]; do tries=$((tries + 1)); usleep 100000; done; }
mkdir -p /files/b/rootfs/bin /files/b/rootfs/volume /files/volume && cd /files
cp /bin/busybox b/rootfs/bin/busybox
for name in sh usleep cat echo mount grep; do ln -s busybox b/rootfs/bin/$name; done
insula-runtime spec --bundle b
# A program that counts, with its memory as the only place for the number; a volume that it ends by.
sed -i 's/"terminal": true/"terminal": false/; s|^ *"sh"$|"sh","-c","i=0; until test -e /volume/end; do i=$((i+1)); echo $i >/dev/shm/count; echo $i; usleep 100000; done; exit 3"|' b/config.json
sed -i 's|"mounts": \[|"mounts": [ {"destination": "/volume", "type": "bind", "source": "/files/volume", "options": ["rbind"]},|' b/config.json
sed -i 's|"resources": {|"resources": { "pids": {"limit": 33},|' b/config.json
(insula-runtime create --bundle b box </dev/null 2>&1) | cat >>out &
await '[ "$(insula-runtime state box | grep -c created)" = 1 ]'
insula-runtime start box
await '[ $(wc -l <out) -gt 5 ]'
check while-it-runs 0 sh -c 'insula-runtime checkpoint --image-path first --leave-running --empty-ns network box; echo $?'
check it-runs running sh -c "insula-runtime state box | sed -n 's/.*\"status\": \"\([a-z]*\)\".*/\1/p'"
insula-runtime pause box
check paused 'paused 0' sh -c 'insula-runtime checkpoint --image-path second --leave-running --empty-ns network box; code=$?; insula-runtime state box | grep -q paused && echo paused $code'
insula-runtime resume box
check and-ends 0 sh -c 'insula-runtime checkpoint --image-path images --work-path work --empty-ns network box; echo $?'
check gone 1 sh -c 'insula-runtime state box >/dev/null 2>&1; echo $?'
check gone-groups '' find /sys/fs/cgroup/insula-runtime -mindepth 1 -type d
last=$(tail -n 1 out)
(insula-runtime restore --bundle b --image-path images --work-path work --empty-ns network box 2>errors; echo ended $? >>ended) | cat >>out &
await '[ $(wc -l <out) -gt $((last + 5)) ]'
check it-counts-on "$((last + 1))" sed -n "$((last + 1))p" out
check restored running sh -c "insula-runtime state box | sed -n 's/.*\"status\": \"\([a-z]*\)\".*/\1/p'"
check in-its-group 33 cat /sys/fs/cgroup/insula-runtime/box/pids.max
check memory-of-files yes sh -c 'insula-runtime exec box sh -c "test -s /dev/shm/count && echo yes"'
check read-only 1 sh -c 'insula-runtime exec box sh -c "echo >/x" 2>/dev/null; echo $?'
check own-group 0::/ insula-runtime exec box cat /proc/self/cgroup
touch volume/end
await 'test -s ended'
check ended 'ended 3' cat ended
check errors '' cat errors
check left '' find /sys/fs/cgroup/insula-runtime /run/insula-runtime -mindepth 1 -type d
rm volume/end
# What cannot be restored says why and leaves nothing.
rm images/pstree.img
check broken 'criu restore' sh -c 'insula-runtime restore --bundle b --image-path images --empty-ns network --detach box 2>&1 | grep -o "criu restore" | head -n 1'
check broken-left '' find /sys/fs/cgroup/insula-runtime /run/insula-runtime -mindepth 1 -type d
# Profiles of AppArmor, for the first process and for others.
mount -t securityfs none /sys/kernel/security
printf 'profile insula-test flags=(attach_disconnected) { file, capability, network, mount, signal, deny /secret r, }' >profile
apparmor_parser --skip-cache --replace profile
echo hidden >b/rootfs/secret
sed -i 's|"process": {|"process": { "apparmorProfile": "insula-test",|' b/config.json
sed -i 's|"sh","-c",".*"$|"sh","-c","cat /secret /proc/self/attr/current; usleep 900000000"|' b/config.json
sed -i 's|"resources": {|"resources": { "unified": {"memory.high": "33554432"}, "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}],|' b/config.json
(insula-runtime create --bundle b profiled </dev/null 2>&1) | cat >said &
await '[ "$(insula-runtime state profiled | grep -c created)" = 1 ]'
insula-runtime start profiled
await '[ $(wc -l <said) -gt 1 ]'
check profile 'cat: can'"'"'t open '"'"'/secret'"'"': Permission denied insula-test (enforce)' sh -c 'echo $(cat said)'
check profile-of-others 'insula-test (enforce)' insula-runtime exec profiled cat /proc/self/attr/current
check unified 33554432 cat /sys/fs/cgroup/insula-runtime/profiled/memory.high
check pages 4194304 cat /sys/fs/cgroup/insula-runtime/profiled/hugetlb.2MB.max
insula-runtime delete --force profiled
sed -i 's|"insula-test"|"insula-none"|' b/config.json
check no-profile 1 sh -c 'insula-runtime run --bundle b none 2>&1 | grep -c "process.apparmorProfile .insula-none.*No such file"'
"#;

#[test]
fn bundles_have_what_another_kernel_has() {
    if let Some(why) = guest::missing() {
        return skip("tcg", why);
    }
    let runtime = program("insula-runtime");
    let runtime = runtime.to_str().unwrap();
    let programs = ["/usr/sbin/criu", "/usr/bin/tar", "/usr/bin/gzip", "/usr/sbin/apparmor_parser", runtime];
    if let Some(missing) = programs.iter().find(|path| !std::path::Path::new(path).is_file()) {
        return skip("tcg", &format!("{missing} is missing"));
    }
    let before = format!("ln -s {runtime} /usr/bin/insula-runtime\nexport PATH=/usr/sbin:/usr/bin:$PATH\n");
    let checks = [&before, CHECKS].concat();
    all_pass(&checks, &guest::run_programs(&checks, &[], &programs));
}

/// What a service of a small systemd looks at: a scope in version 2 of control groups.
const SCOPE: &str = r#"
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
cd /b
check() { # NAME EXPECTED COMMAND…
    name=$1 expected=$2; shift 2
    seen=$("$@" 2>&1)
    if [ "$seen" = "$expected" ]; then echo "ok $name"; else echo "not ok $name: $(echo $seen | head -c 500)"; fi
}
group=/sys/fs/cgroup/a.slice/a-b.slice/box-one.scope
has() { systemctl show "$1" --value -p "$2"; }
limits() { echo $(cat $group/memory.max $group/memory.high $group/cpu.max $group/pids.max $group/cpuset.cpus); }
check create '' sh -c 'insula-runtime --systemd-cgroup create one </dev/null >said 2>&1; cat said'
check start '' insula-runtime start one
check state active has box-one.scope ActiveState
check slice a-b.slice has box-one.scope Slice
# Kubernetes asks for it, and systemd has its own opinion.
check dies-together 1 cat $group/memory.oom.group
check annotated 7s has box-one.scope TimeoutStopUSec
check stands '33554432 16777216 12345 100000 1 0' limits
check told 33554432 has box-one.scope MemoryMax
check told-of-files 16777216 has box-one.scope MemoryHigh
check told-of-processors 0 has box-one.scope AllowedCPUs
systemctl daemon-reload
check after-a-reload '33554432 16777216 13000 100000 1 0' limits
check update '' insula-runtime update --pids-limit 44 one
check updated '33554432 16777216 13000 100000 44 0' limits
check told-of-it 44 has box-one.scope TasksMax
echo 1 >$group/memory.oom.group
check idle '' sh -c 'echo "{\"cpu\": {\"idle\": 1}}" | insula-runtime update --resources - one'
check idles '1 1' sh -c "echo \$(cat $group/cpu.idle $group/memory.oom.group)"
check told-idle idle has box-one.scope CPUWeight
check own-group 0::/ insula-runtime exec one cat /proc/self/cgroup
check devices "sh: can't open /dev/mem: Operation not permitted" insula-runtime exec --cap CAP_MKNOD one sh -c 'busybox mknod /dev/mem c 1 1; : </dev/mem'
update() { echo "{\"devices\": [$1]}" | insula-runtime update --resources - one && insula-runtime exec --cap CAP_MKNOD one sh -c 'test -e /dev/screen || busybox mknod /dev/screen c 7 0; : </dev/screen'; }
refused="sh: can't open /dev/screen: Operation not permitted"
check devices-refused "$refused" update ''
check devices-allowed '' update '{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 7, "access": "rw"}'
check devices-denied-in-part "$refused" update '{"allow": true, "type": "c", "major": 7, "access": "rw"}, {"allow": false, "type": "c", "major": 7, "minor": 0, "access": "r"}'
check killed '' insula-runtime kill one KILL
insula-runtime delete --force one
check gone inactive has box-one.scope ActiveState
check nothing-left '' sh -c "find /sys/fs/cgroup -name 'box-*.scope'; ls /run/insula-runtime"
# An ordinary end, of which systemd learns by itself.
sed -i 's|"sleep","900"|"true"|' config.json
check ends 0 sh -c 'insula-runtime --systemd-cgroup run one </dev/null >said 2>&1; echo $?'
check collected inactive has box-one.scope ActiveState
"#;

#[test]
fn systemd_makes_groups_of_version_2() {
    if let Some(why) = guest::missing() {
        return skip("tcg", why);
    }
    let runtime = program("insula-runtime");
    let runtime = runtime.to_str().unwrap();
    let programs = ["/lib/systemd/systemd", "/usr/bin/systemctl", runtime];
    if let Some(missing) = programs.iter().find(|path| !std::path::Path::new(path).is_file()) {
        return skip("tcg", &format!("{missing} is missing"));
    }
    let before = format!("ln -s {runtime} /usr/bin/insula-runtime\n{SYSTEMD}");
    let files: [(&str, &[u8]); 1] = [("/checks", SCOPE.as_bytes())];
    all_pass(SCOPE, &guest::run_programs(&before, &files, &programs));
}

/// Boots it with nothing but the checks to run, as the first process of a namespace.
const SYSTEMD: &str = r#"
mkdir -p /etc/systemd/system /b/rootfs/bin && cp /bin/busybox /b/rootfs/bin/busybox
for name in sh cat sleep true; do ln -s busybox /b/rootfs/bin/$name; done
insula-runtime spec --bundle /b
sed -i 's/"terminal": true/"terminal": false/; s|^ *"sh"$|"sleep","900"|' /b/config.json
sed -i 's|"resources": {|"resources": { "pids": {"limit": 1}, "memory": {"limit": 33554432}, "unified": {"memory.high": "16777216", "memory.oom.group": "1"},|' /b/config.json
sed -i 's|"linux": {|"linux": { "cgroupsPath": "a-b.slice:box:one",|; s|"pids": {"limit": 1},|"pids": {"limit": 1}, "cpu": {"quota": 12345, "period": 100000, "cpus": "0"},|' /b/config.json
sed -i 's|"hostname": "insula",|"hostname": "insula", "annotations": {"org.systemd.property.TimeoutStopSec": "7"},|; /"annotations": {}/d' /b/config.json
printf '[Unit]\nDefaultDependencies=no\nWants=checks.service\n' >/etc/systemd/system/default.target
printf '[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nStandardOutput=append:/checked\nStandardError=inherit\nExecStart=/bin/sh /checks\nExecStopPost=/bin/touch /done\n' >/etc/systemd/system/checks.service
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
# What it shows would get between the lines of the checks.
container=guest unshare -p -f -m --mount-proc sh -c 'mount --bind /dev/null /dev/console; exec /lib/systemd/systemd --system' >/dev/null 2>&1 &
tries=0; until [ -e /done ] || [ $tries -gt 1200 ]; do tries=$((tries + 1)); usleep 100000; done
cat /checked
"#;
