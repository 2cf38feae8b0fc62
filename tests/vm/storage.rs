//! What file systems can that the development hosts' cannot: project quotas, and files that the kernel verifies.

use insula_tests::{guest, images::Layer, images::busybox};

const CHECKS: &str = r#"
check() { # NAME EXPECTED COMMAND…
    name=$1 expected=$2; shift 2
    seen=$("$@" 2>&1)
    if [ "$seen" = "$expected" ]; then echo "ok $name"; else echo "not ok $name: $(echo $seen | head -c 500)"; fi
}
await() { tries=0; until eval "$1" >/dev/null 2>&1 || [ $tries -gt 1200 ]; do tries=$((tries + 1)); usleep 100000; done; }
modprobe loop; modprobe quota_v2
truncate -s 300M /disk
mkfs.ext4 -q -b 4096 -O quota,project,verity -E quotatype=prjquota /disk && mkdir /q && mount -t ext4 -o loop,prjquota /disk /q
export INSULA_ROOT=/q/insula INSULA_RUN=/run/insula
start() { insulad >>/tmp/insulad.log 2>&1 & daemon=$!; await 'insula version'; }
start
insula load -i /files/busybox.tar
quotas() { insula info -f '{{range .DriverStatus}}{{index . 0}}: {{index . 1}}
{{end}}' | grep Sizes; }
sized='--network none --storage-opt size=8m'
fill='dd if=/dev/zero of=/large bs=64k 2>&1 | grep -o "No space.*\|.*quota exceeded"; test $(stat -c %s /large) -gt 7000000 -a $(stat -c %s /large) -le 8388608 && echo full'
many='i=0; while echo >/f$i; do i=$((i + 1)); done 2>/dev/null; test $i -gt 1500 -a $i -le 2112 && echo many'
could() { insula info -f '{{range .DriverStatus}}{{index . 0}}: {{index . 1}}
{{end}}' | grep -o 'no (insulad --storage-opt verity=true'; }
check could 'no (insulad --storage-opt verity=true' could
check quotas 'Sizes of Writable Layers: project quotas' quotas
check written 'full' sh -c "insula run $sized --name box busybox sh -c '$fill' | tail -n 1"
check no-disk 'layer logs' sh -c 'echo $(ls /q/insula/containers/*)'
check shown 8192 sh -c "insula run --rm $sized busybox df -Pk / | awk 'NR == 2 {print \$2}'"
check as-root full sh -c "insula run --rm $sized --cap-add ALL busybox sh -c '$fill' | tail -n 1"
check files many insula run --rm $sized busybox sh -c "$many"
check another 1 sh -c "insula run --rm --network none busybox df -Pk / | awk 'NR == 2 {print (\$2 > 100000)}'"
dd if=/dev/zero of=/tmp/large bs=1M count=9 2>/dev/null
insula create $sized --name idle busybox true >/dev/null
check copied 1 sh -c 'insula cp /tmp/large idle:/ 2>&1 | grep -c "quota exceeded"'
check kept 1 sh -c 'test $(stat -c %s $(ls -d /q/insula/containers/*/layer/upper/large | tail -n 1)) -le 8388608 && echo 1'
# Who is root in the first user namespace could leave the project.
check host-ids 'disk layer logs' sh -c "id=\$(insula create $sized --userns host busybox true); echo \$(ls /q/insula/containers/\$id)"
check may-leave '' sh -c 'mkdir /q/other && chattr -p 1 /q/other'
check leaves 1 sh -c "insula run --rm $sized -v /lib:/lib -v /lib64:/lib64 -v /usr:/usr busybox /usr/sbin/chattr -p 1 /etc 2>&1 | grep -c 'setting project'"
# A daemon that is killed knows all of it again.
kill -9 $daemon; wait $daemon 2>/dev/null
start
check again full sh -c "insula run --rm $sized busybox sh -c '$fill' | tail -n 1"
check started full sh -c "insula commit box made >/dev/null; insula run --rm $sized made sh -c 'rm /large; $fill' | tail -n 1"
check whole 0 sh -c 'insula system check >/tmp/check 2>&1; echo $?'
insula rm -f $(insula ps -aq) >/dev/null
check gone '' ls /q/insula/containers
insula rmi -f busybox made >/dev/null
kill $daemon; wait $daemon 2>/dev/null
# The kernel verifies what comes from now on.
insulad --storage-opt verity=true >>/tmp/insulad.log 2>&1 & daemon=$!
await 'insula version'
verified() { insula info -f '{{range .DriverStatus}}{{index . 0}}: {{index . 1}}
{{end}}' | grep Verified; }
check verified 'Files Verified when Read: fs-verity' verified
insula load -i /files/busybox.tar
insula load -i /files/other.tar
box=$(ls /q/insula/layers/*/bin/busybox | head -n 1)
check runs hello insula run --rm --network none busybox echo hello
check shared 3 stat -c %h $box
check dated 1700000000 stat -c %Y $box
check immutable refused sh -c "echo x 2>/dev/null >>$box || echo refused"
check intact 0 sh -c 'insula system check >/tmp/check 2>&1; echo $?'
# Another file with the same bytes at its place: not verified any more.
cp -p $box /q/copy && mv /q/copy $box
check replaced 1 sh -c 'insula system check 2>&1 | grep -c "is not verified by the kernel any more"'
insula rmi -f busybox other:1 >/dev/null
# A thread does it.
await '[ -z "$(ls /q/insula/layers/files)" ]'
check swept '' ls /q/insula/layers/files
kill $daemon; wait $daemon 2>/dev/null
# XFS, which calls an exceeded project a full disk.
modprobe xfs
truncate -s 300M /xdisk && mkfs.xfs -q /xdisk && mkdir /x && mount -t xfs -o loop,prjquota /xdisk /x
export INSULA_ROOT=/x/insula
start
insula load -i /files/busybox.tar
check xfs-quotas 'Sizes of Writable Layers: project quotas' quotas
check xfs-written full sh -c "insula run --rm $sized --cap-add ALL busybox sh -c '$fill' | tail -n 1"
check xfs-shown 8192 sh -c "insula run --rm $sized busybox df -Pk / | awk 'NR == 2 {print \$2}'"
insula create $sized --name idle busybox true >/dev/null
check xfs-copied 1 sh -c 'insula cp /tmp/large idle:/ 2>&1 | grep -c "o space left"'
insula rm idle >/dev/null
check xfs-gone '' ls /x/insula/containers
kill $daemon; wait $daemon 2>/dev/null
# A file system that cannot is said at the start.
check cannot 1 sh -c 'INSULA_ROOT=/other insulad --storage-opt verity=true 2>&1 | grep -q "tune2fs -O verity" && echo 1'
sed 's/^/log: /' /tmp/insulad.log
"#;

#[test]
fn sizes_of_writable_layers_are_quotas_where_there_are_any() {
    if let Some(why) = guest::missing() {
        return insula_tests::skip("tcg", why);
    }
    let mut other = busybox();
    // The same with one file more, before the end of the archive.
    let layer = &mut other.layers[0];
    layer.truncate(layer.len() - 1024);
    layer.extend(Layer::default().file("other", 0o644, b"other").bytes());
    other.name = "other:1".into();
    let files: [(&str, &[u8]); 2] =
        [("/files/busybox.tar", &busybox().docker_archive()), ("/files/other.tar", &other.docker_archive())];
    super::all_pass(CHECKS, &guest::run_with_file_systems(CHECKS, &files));
}
