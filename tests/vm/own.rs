//! The product's own machine, where `/dev/kvm` runs kernels: in a guest whose emulated processor has AMD's
//! virtualization.

use insula_tests::guest;
use insula_tests::images::busybox;

use crate::{all_pass, programs};

/// A guest's checks of containers with kernels of their own, run by the product's own machine.
const OWN_WALLS: &str = r#"
await() { tries=0; until eval "$1" >/dev/null 2>&1 || [ $tries -gt 1200 ]; do tries=$((tries + 1)); usleep 100000; done; }
check() { # NAME EXPECTED COMMAND…
    name=$1 expected=$2; shift 2
    seen=$("$@" 2>&1)
    if [ "$seen" = "$expected" ]; then echo "ok $name"; else echo "not ok $name: $(echo $seen | head -c 1500)"; fi
}
# An emulated processor on a busy host may be too slow to be taken for one with virtualization.
insulad --vm-backend kvm --vm-templates off >/tmp/insulad.log 2>&1 &
await '[ -S /run/insula/insula.sock ]'
insula load -i /files/busybox.tar
check backend kvm sh -c "insula info -f '{{.Machines.Backend}}'"
check run "hello $(uname -r) 1" insula run --rm --isolation vm -m 128m --cpus 1 --network none busybox \
    sh -c 'echo hello $(uname -r) $(nproc)'
echo 'ping -c 1 -W 60 $(ip route | sed -n "s/default via \([^ ]*\).*/\1/p") >/dev/null && echo reached' >/tmp/reach
check bridge reached sh -c 'insula run --rm -i --isolation vm -m 128m busybox sh </tmp/reach'
disk=$(awk '$2 == "/" {print $1}' /proc/mounts | grep ^/dev/ | tail -n 1)
programs='-v /usr:/usr:ro -v /lib:/lib:ro -v /lib64:/lib64:ro'
insula run -d --name box --isolation vm -m 128m --network none --device-write-bps $disk:1mb --device /dev/vsock \
    $programs busybox sleep 1000 >/dev/null
check program insula-vmm cat /proc/$(insula inspect -f '{{.State.Pid}}' box)/comm
tasks=/proc/$(insula inspect -f '{{.State.Pid}}' box)/task
check confined '2 threads: Seccomp: 2 NoNewPrivs: 1 CapEff: 0000000000000000' sh -c \
    "echo \$(ls $tasks | wc -l) threads: \$(cat $tasks/*/status | tr '\t' ' ' | grep -E '^(Seccomp|NoNewPrivs|CapEff):' | sort -ru)"
# Limits of the host's disks hold for who serves its files, who is in the same group.
group=/sys/fs/cgroup$(cut -d: -f3 /proc/$(insula inspect -f '{{.State.Pid}}' box)/cgroup)
check disk-rate 'wbps=1048576 virtiofsd' sh -c "echo \$(grep -o 'wbps=[0-9]*' $group/io.max) \
    \$(for pid in \$(cat $group/cgroup.procs); do cat /proc/\$pid/comm; done | sort -u | grep virtiofsd)"
up() { read up rest </proc/uptime; echo ${up%.*}; }
began=$(up)
insula exec box dd if=/dev/zero of=/held bs=64k count=64 conv=fsync 2>/dev/null
took=$(($(up) - began))
echo "figure: 4 MiB to a disk that is held to 1 MiB/s: $took s"
check disk-held yes sh -c "[ $took -ge 3 ] && echo yes"
check exec 'in the same kernel' insula exec box echo in the same kernel
# Sockets between programs of the guest and of the host, both ways: more than what is kept between them.
sock=$(insula inspect -f '{{.Machine.Vsock}}' box)
check vsock-mode 600 stat -c %a $sock
check vsock-node open insula exec box sh -c ': </dev/vsock && echo open'
check vsock-node-alone 1 insula exec box sh -c 'mknod /dev/fuse2 c 10 229; (: </dev/fuse2) 2>&1 | grep -c "not permitted"'
serve='socket($s, 40, 1, 0) or die "socket: $!\n"; bind($s, pack("SSLLx4", 40, 0, 5000, 0xffffffff)) or die "bind: $!\n";
    listen($s, 8) or die "listen: $!\n"; syswrite(STDOUT, "ready\n");
    while (accept($c, $s)) { $got = 0; while ($count = sysread($c, $piece, 65536)) { $got += $count }
        syswrite($c, "guest heard $got" . "y" x 100000); close($c) }'
ask='socket($s, 1, 1, 0) or die "socket: $!\n"; connect($s, pack("Sa108", 1, $ARGV[0])) or die "connect: $!\n";
    syswrite($s, "CONNECT $ARGV[1]\n"); while (sysread($s, $byte, 1)) { $line .= $byte; last if $byte eq "\n" }
    $line =~ /^OK \d+\n$/ or die "refused\n"; syswrite($s, "x" x 500000) == 500000 or die "write: $!\n"; shutdown($s, 1);
    while (sysread($s, $piece, 65536)) { $answer .= $piece } $answer =~ s/(y+)$/ " and said " . length $1/e; print "$answer\n"'
insula exec box perl -e "$serve" >/tmp/served 2>&1 &
await 'grep -q . /tmp/served'
check vsock-ready ready cat /tmp/served
check vsock-to-guest 'guest heard 500000 and said 100000' perl -e "$ask" $sock 5000
check vsock-no-listener refused perl -e "$ask" $sock 5001
host='socket($s, 1, 1, 0); bind($s, pack("Sa108", 1, $ARGV[0])) or die "bind: $!\n"; listen($s, 8); syswrite(STDOUT, "ready\n"); accept($c, $s);
    sysread($c, $line, 100); syswrite($c, "host heard $line")'
call='socket($s, 40, 1, 0) or die "socket: $!\n"; connect($s, pack("SSLLx4", 40, 0, $ARGV[0], 2)) or die "connect: $!\n";
    syswrite($s, "question"); while (sysread($s, $piece, 100)) { print $piece }'
perl -e "$host" ${sock}_90 >/tmp/hosted &
await 'grep -q . /tmp/hosted'
check vsock-to-host 'host heard question' insula exec box perl -e "$call" 90
check vsock-nobody 'connect: Connection reset by peer' insula exec box perl -e "$call" 91
# What the guest writes is counted: 4 MiB again and again, and then nothing but what its kernel does.
insula exec -d box sh -c 'while [ ! -e /tmp/enough ]; do dd if=/dev/zero of=/dev/shm/held bs=64k count=64 conv=notrunc; done'
dirty() { insula vm-dirty-rate --period $1 --format "$2" box; }
await '[ $(dirty 2s "{{.Pages}}") -ge 1024 ]'
check dirty-written 'kvm false' dirty 100ms '{{.Backend}} {{.Sampled}}'
echo "figure: pages written in 1 s: $(dirty 1s '{{.Pages}} of {{.Memory}}')"
insula exec box touch /tmp/enough
await '[ $(dirty 100ms "{{.Pages}}") -lt 1024 ]'
check dirty-quiet yes sh -c "[ $(dirty 100ms '{{.Pages}}') -lt 1024 ] && echo yes"
# One asks at a time; when the asker is killed the next one does not wait for the rest of its time.
asking() { while :; do insula vm-dirty-rate --period 60s box; done; }
asking >/dev/null 2>&1 & asker=$!
await 'dirty 100ms {{.Pages}} 2>&1 | grep "measured already"'
kill $asker $(ps | sed -n 's/^ *\([0-9]*\) .*[v]m-dirty-rate --period 60s.*/\1/p')
killed=$(up)
await 'dirty 100ms {{.Pages}}'
check dirty-let-go yes sh -c "[ $(($(up) - killed)) -lt 40 ] && echo yes"
check reports-free-memory 1 insula exec box sh -c 'cut -c6 /sys/bus/virtio/drivers/virtio_balloon/*/features'
boot_time() { insula inspect -f '{{.Machine.BootMilliseconds}}' $1; }
echo "figure: a machine that booted: $(boot_time box) ms"
check stop box insula stop -t 1 box
check gone '' sh -c 'ps | grep "[i]nsula-vmm"'
# A root that is read-only is mapped from an image that the first such container has made: its files take no memory
# of the guest's.
mkdir /tmp/data && echo kept >/tmp/data/file
insula run --name fat busybox sh -c 'yes insula | head -c 8m >/fat; ln /fat /twin; ln -s fat /link; mkdir -m 1777 /wet; rm /bin/vi' >/dev/null
insula commit fat fat:1 >/dev/null
sum=$(insula run --rm fat:1 md5sum /fat)
mapped() { insula run -d --name $1 --isolation vm -m 128m $sockets --read-only -v /tmp/data:/data --tmpfs /wet fat:1 sleep 1000; }
root() { insula exec $1 sh -c "grep -c 'lowerdir=/image' /proc/mounts"; }
cached() { insula exec $1 sed -n 's/^Cached: *\([0-9]*\) kB/\1/p' /proc/meminfo; }
reading() { before=$(cached $1); insula exec $1 cat /twin >/dev/null; echo $(($(cached $1) - before)); }
mapped served >/dev/null
check served 0 root served
served=$(reading served)
await 'ls /var/lib/insula/machines/images/*.erofs'
mapped first >/dev/null
check mapped 1 root first
check mapped-files "$sum" insula exec first md5sum /fat
check mapped-links 'fat 2' insula exec first sh -c 'echo $(readlink /link) $(stat -c %h /fat)'
check mapped-modes '1777 0' insula exec first sh -c 'echo $(stat -c %a /wet; ls /bin | grep -c "^vi$")'
check mapped-mounts kept insula exec first sh -c 'touch /wet/x && cat /data/file'
check mapped-readonly 'touch: /new: Read-only file system' insula exec first sh -c 'touch /new 2>&1; true'
mapped=$(reading first)
check mapped-memory "yes" sh -c "[ $served -ge 8000 ] && [ $mapped -le 1000 ] && echo yes"
echo "figure: memory of a guest that reads 8 MiB of its root: served $served KiB, mapped $mapped KiB"
check mapped-said 'served mapped' sh -c "echo \$(insula inspect -f '{{.Machine.Root}}' served first)"
insula rm -f served first >/dev/null
# Copies of a machine that was booted before, with sockets to the host.
sockets='--device /dev/vsock'
insula warm --networks 1 -m 128m $sockets >/dev/null
check template 'kvm 1 true false' insula vm-template ls --format '{{.Backend}} {{.Networks}} {{.Vsock}} {{.Stale}}'
each() { echo $(for name in one two; do eval "$1"; done); }
before=$(date +%s)
each 'insula run -d --name $name --hostname $name --isolation vm -m 128m $sockets -v /tmp/data:/data $programs busybox sleep 1000'
# The clock was set after that, however long it took.
clock=$(insula exec one date +%s) after=$(date +%s)
check copies 'true true' each 'insula inspect -f "{{.Machine.Template}}" $name'
echo "figure: copies: $(each 'boot_time $name') ms"
check copy-names 'one two' each 'insula exec $name hostname'
check copy-bridge 'reached reached' each 'insula exec -i $name sh </tmp/reach'
check copy-files 'kept kept' each 'insula exec $name sh -c "cp /data/file /data/$name && cat /data/$name"'
check copy-host 'kept kept' each 'cat /tmp/data/$name'
different() { [ "$(insula exec one cat $1)" != "$(insula exec two cat $1)" ] && echo yes; }
check copy-seed yes different /proc/sys/kernel/random/uuid
check copy-boot yes different /proc/sys/kernel/random/boot_id
check copy-card yes different /sys/class/net/eth0/address
check copy-time yes sh -c "[ $clock -ge $((before - 1)) ] && [ $clock -le $((after + 1)) ] && echo yes"
# Each by an address of its own, both ways; what the one listens to the other does not hear.
cid='open($f, "<", "/dev/vsock"); $b = pack("L", 0); ioctl($f, 0x7b9, $b) or die "ioctl: $!\n"; print unpack("L", $b), "\n"'
addresses=$(each 'insula exec $name perl -e "$cid"')
check copy-vsock-address yes sh -c "set -- $addresses; [ \$1 -gt 2 ] && [ \$2 -gt 2 ] && [ \$1 != \$2 ] && echo yes"
socket() { insula inspect -f '{{.Machine.Vsock}}' $1; }
insula exec one perl -e "$serve" >/tmp/copy-served 2>&1 &
await 'grep -q . /tmp/copy-served'
check copy-vsock-ready ready cat /tmp/copy-served
check copy-vsock-to-guest 'guest heard 500000 and said 100000' perl -e "$ask" $(socket one) 5000
check copy-vsock-alone refused perl -e "$ask" $(socket two) 5000
perl -e "$host" $(socket two)_90 >/tmp/copy-hosted &
await 'grep -q . /tmp/copy-hosted'
check copy-vsock-to-host 'host heard question' insula exec two perl -e "$call" 90
insula rm -f one two >/dev/null
mapped copy >/dev/null
check copy-mapped 'true 1' sh -c "echo \$(insula inspect -f '{{.Machine.Template}}' copy; insula exec copy grep -c lowerdir=/image /proc/mounts)"
check copy-mapped-files "$sum" insula exec copy md5sum /fat
# It is counted, kept for who would map it, and goes with the others that nobody uses.
mapped_images() { insula system df --format '{{.Type}} {{.TotalCount}} {{.Active}}' | grep Mapped; }
check mapped-counted 'Mapped Images 1 1' mapped_images
insula image prune -f >/dev/null
check mapped-kept 'Mapped Images 1 1' mapped_images
insula rm -f copy >/dev/null
check mapped-unused 'Mapped Images 1 0' mapped_images
check mapped-pruned 0 sh -c 'insula image prune -f >/dev/null; ls /var/lib/insula/machines/images | wc -l'
# What a guest sends is held to its rate although its kernel lifts that: no more than the burst, one frame and what
# the time carries. Then the host lifts it.
size() { stat -c %s /tmp/got; }
sleep 1000 | nc -l -p 9000 >/tmp/got &
insula run -d --name fast --isolation vm -m 128m $sockets --network-rate 64kbit --cap-add NET_ADMIN host sleep 1000 >/dev/null
check rate-inside 1 sh -c 'insula exec fast tc qdisc show dev eth0 | grep -c tbf'
check rate-gone 0 sh -c 'insula exec fast tc qdisc del dev eth0 root; insula exec fast tc qdisc show dev eth0 | grep -c tbf'
began=$(up)
echo 'dd if=/dev/zero bs=1000 count=400 | nc $(ip route | sed -n "s/default via \([^ ]*\).*/\1/p") 9000' >/tmp/flood
insula exec -i fast sh </tmp/flood &
await '[ $(size) -ge 160000 ]'
got=$(size) took=$(($(up) - began + 1))
echo "figure: held to 64 kbit/s: $got bytes in $took s"
check rate-held yes sh -c "[ $got -ge 160000 ] && [ $got -le $((65536 + 65550 + 8000 * took)) ] && echo yes"
insula update --network-rate -1 fast >/dev/null
await '[ $(size) -ge 400000 ]'
check rate-lifted 400000 size
insula rm -f fast >/dev/null
check template-rm 'Total reclaimed space' sh -c 'insula vm-template prune -af | grep -o "Total reclaimed space"'
# Two containers in the machine of their tenant.
insula tenant create acme -m 128m --cards 2 >/dev/null
insula run -d --name one --isolation tenant:acme --network none busybox sleep 1000 >/dev/null
insula run -d --name two --isolation tenant:acme busybox sh -c 'trap "exit 3" TERM; touch /ready; sleep 1000 & wait' >/dev/null
tenant_boot=$(insula tenant inspect -f '{{.Machine.BootMilliseconds}}' acme)
check tenant-program insula-vmm cat /proc/$(insula inspect -f '{{.State.Pid}}' one)/comm
boot() { insula exec $1 cat /proc/sys/kernel/random/boot_id; }
kernel=$(boot one)
check tenant-kernel "$kernel" boot two
check tenant-other different sh -c "[ $kernel != $(cat /proc/sys/kernel/random/boot_id) ] && echo different"
check tenant-apart none insula exec one sh -c 'touch /mine; ps | grep "[t]rap" || echo none'
check tenant-files '' insula exec two sh -c 'ls / | grep mine'
check tenant-bridge reached sh -c 'insula exec -i two sh </tmp/reach'
await 'insula exec two ls /ready'
check tenant-stop two insula stop two
check tenant-code 3 insula inspect -f '{{.State.ExitCode}}' two
check tenant-others on insula exec one echo on
insula rm -f one two >/dev/null
await '! pidof insula-vmm'
# Its machine again, from a copy.
echo "figure: a tenant's machine that booted: $tenant_boot ms"
insula warm --tenant acme >/dev/null
insula run -d --name one --isolation tenant:acme --network none busybox sleep 1000 >/dev/null
insula run -d --name two --isolation tenant:acme busybox sleep 1000 >/dev/null
check tenant-copy 'insula-vmm true' insula tenant inspect -f '{{.Machine.Program}} {{.Machine.Template}}' acme
check tenant-copy-kernel "$(boot one)" boot two
check tenant-copy-bridge reached sh -c 'insula exec -i two sh </tmp/reach'
echo "figure: a tenant's machine that is a copy: $(insula tenant inspect -f '{{.Machine.BootMilliseconds}}' acme) ms"
insula rm -f one two >/dev/null
await '! pidof insula-vmm'
check tenant-gone '' pidof insula-vmm
check tenant-rm acme insula tenant rm acme
cat /tmp/insulad.log | sed 's/^/log: /'
"#;

/// Answers each line that it reads from the port with what it prints, executed by the shell.
const INNER: &str = "
port=/dev/$(basename $(dirname $(grep -lx test /sys/class/virtio-ports/*/name)))
exec 3<>$port
echo up >&3; echo END >&3
while read -r line <&3; do eval \"$line\" >&3 2>&1; echo END >&3; done
poweroff -f
";

#[test]
fn the_own_machine_runs_a_kernel_of_debian() {
    if let Some(why) = guest::missing() {
        return insula_tests::skip("tcg", why);
    }
    let programs = programs::build();
    let script = "export INSULA_TEST_GUEST_KERNEL=/guest/kernel INSULA_TEST_GUEST_INITRD=/guest/initrd
export INSULA_TEST_REQUIRE=kvm INSULA_TEST_GUEST_ARGUMENTS=\"quiet mitigations=off $(grep -o 'tsc_early_khz=[0-9]*' /proc/cmdline)\"
/tests/own --nocapture </dev/null 2>&1; echo \"own ended with $?\"
/tests/linux --nocapture </dev/null 2>&1; echo \"linux ended with $?\"
";
    let own = std::fs::read(programs.test("insula_vmm_core")).unwrap();
    let linux = std::fs::read(programs.test("linux")).unwrap();
    let outcome = guest::run_with_kvm(script, INNER, &[("/tests/own", &own), ("/tests/linux", &linux)]);
    let console = &outcome.stdout;
    assert!(console.contains("own ended with 0"), "{outcome}");
    assert!(console.contains("linux ended with 0") && console.contains("linux ran"), "{outcome}");
    assert!(console.contains("GUEST-ENDS"), "the guest did not end well: {outcome}");
}

#[test]
fn containers_have_their_own_kernels_in_the_own_machine() {
    if let Some(why) = guest::missing() {
        return insula_tests::skip("tcg", why);
    }
    let files = [("/files/busybox.tar", &*busybox().docker_archive())];
    let outcome = guest::run_walls_with_kvm(OWN_WALLS, &files);
    for figure in outcome.stdout.lines().filter(|line| line.starts_with("figure: ")) {
        eprintln!("{}", figure.trim());
    }
    all_pass(OWN_WALLS, &outcome);
}
