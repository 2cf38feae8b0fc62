//! Writable layers with a size on a file system that has project quotas.

use insula_tests::{guest, images::busybox};

const CHECKS: &str = r#"
check() { # NAME EXPECTED COMMAND…
    name=$1 expected=$2; shift 2
    seen=$("$@" 2>&1)
    if [ "$seen" = "$expected" ]; then echo "ok $name"; else echo "not ok $name: $(echo $seen | head -c 500)"; fi
}
await() { tries=0; until eval "$1" >/dev/null 2>&1 || [ $tries -gt 1200 ]; do tries=$((tries + 1)); usleep 100000; done; }
modprobe loop; modprobe quota_v2
truncate -s 300M /disk
mkfs.ext4 -q -O quota,project -E quotatype=prjquota /disk && mkdir /q && mount -t ext4 -o loop,prjquota /disk /q
export INSULA_ROOT=/q/insula INSULA_RUN=/run/insula
start() { insulad >>/tmp/insulad.log 2>&1 & daemon=$!; await 'insula version'; }
start
insula load -i /files/busybox.tar
quotas() { insula info -f '{{range .DriverStatus}}{{index . 0}}: {{index . 1}}
{{end}}' | grep Sizes; }
sized='--network none --storage-opt size=8m'
fill='dd if=/dev/zero of=/large bs=64k 2>&1 | grep -o "No space.*\|.*quota exceeded"; test $(stat -c %s /large) -gt 7000000 -a $(stat -c %s /large) -le 8388608 && echo full'
many='i=0; while echo >/f$i; do i=$((i + 1)); done 2>/dev/null; test $i -gt 1500 -a $i -le 2112 && echo many'
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
kill $daemon; wait $daemon
sed 's/^/log: /' /tmp/insulad.log
"#;

#[test]
fn sizes_of_writable_layers_are_quotas_where_there_are_any() {
    if let Some(why) = guest::missing() {
        return insula_tests::skip("tcg", why);
    }
    let files: [(&str, &[u8]); 1] = [("/files/busybox.tar", &busybox().docker_archive())];
    super::all_pass(CHECKS, &guest::run_with_file_systems(CHECKS, &files));
}
