//! Ports of SCTP, of which few kernels but Debian's have sockets.

use insula_tests::{guest, images::busybox};

/// Perl is on every Debian, and needs no module to speak SCTP.
const PERL: &str = "/usr/bin/perl";

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
socket='socket($s, 2, 1, 132) or die "socket: $!\n"; sub at { pack("Sna4x8", 2, $_[1], pack("C4", split(/\./, $_[0]))) }'
listen="$socket"'; bind($s, at(@ARGV)) or die "bind: $!\n"; listen($s, 8) or die "listen: $!\n"'
serve="$listen"'; syswrite(STDOUT, "ready\n"); while ($from = accept($c, $s)) { syswrite($c, "hello " . join(".", unpack("x4C4", $from))); close($c) }'
ask="$socket"'; connect($s, at(@ARGV)) or die "connect: $!\n"; sysread($s, $text, 64); print "$text\n"'
programs='-v /usr:/usr:ro -v /lib:/lib:ro -v /lib64:/lib64:ro'
insula run -d --name server -p 8080:80/sctp -p 127.0.0.1:8081:80/sctp $programs busybox perl -e "$serve" 0.0.0.0 80
tries=0
until insula logs server | grep -q ready || [ $tries -gt 1200 ]; do tries=$((tries + 1)); usleep 100000; done
gateway=$(insula inspect -f '{{.NetworkSettings.Gateway}}' server)
check ports '80/sctp -> 0.0.0.0:8080 80/sctp -> 127.0.0.1:8081' sh -c 'insula port server | xargs echo'
check loopback "hello $gateway" perl -e "$ask" 127.0.0.1 8080
check address "hello $gateway" perl -e "$ask" $gateway 8080
check one-address "hello $gateway" perl -e "$ask" 127.0.0.1 8081
check other-address 'connect: Connection refused' perl -e "$ask" $gateway 8081
check hairpin "hello $gateway" insula run --rm $programs busybox perl -e "$ask" $gateway 8080
check reserved 'bind: Address already in use' perl -e "$listen" 0.0.0.0 8080
perl -e "$listen"'; open($f, ">", "/tmp/listens"); sleep 1000' 0.0.0.0 8082 &
tries=0
until [ -e /tmp/listens ] || [ $tries -gt 1200 ]; do tries=$((tries + 1)); usleep 100000; done
check in-use 1 sh -c 'insula run --rm -p 8082:80/sctp busybox true 2>&1 | grep -c "Bind for 0.0.0.0:8082 failed: port is already allocated"'
insula rm -f server >/dev/null
check free '' perl -e "$listen" 0.0.0.0 8080
cat /tmp/insulad.log | sed 's/^/log: /'
"#;

#[test]
fn ports_of_sctp_are_published() {
    if let Some(why) = guest::missing() {
        return insula_tests::skip("tcg", why);
    }
    let files = [("/files/busybox.tar", &*busybox().docker_archive())];
    super::all_pass(CHECKS, &guest::run_with_programs(CHECKS, &files, &[PERL]));
}
