//! What a container finds inside, each line as a script prints it. Docker 20.10 printed the same to them, run beside,
//! but for those that say how they differ.

use std::fmt::Write as _;

use insula_tests::Daemon;

/// What is looked at, flags of `run`, a script, what it prints, and how Docker differs where it does.
const INSIDE: &[(&str, &[&str], &str, &str, &str)] = &[
    ("capabilities", &[], "grep CapEff /proc/self/status | cut -f2", "00000000a80425fb", ""),
    ("… of another user", &["-u", "1000"], "grep CapEff /proc/self/status | cut -f2", "0000000000000000", ""),
    (
        "… that are added for another user",
        &["-u", "1000", "--cap-add", "NET_ADMIN"],
        "grep CapEff /proc/self/status | cut -f2",
        "0000000000000000",
        "",
    ),
    ("system calls are filtered", &[], "grep Seccomp: /proc/self/status | cut -f2", "2", ""),
    ("signals that are ignored", &[], "grep SigIgn /proc/self/status | cut -f2", "0000000000000000", ""),
    (
        "ids of users: first, how many",
        &[],
        "awk '{print $1, $3}' /proc/self/uid_map",
        "0 65536",
        "each container's root is another user of the host's, and no root; `--userns host` is as Docker",
    ),
    (
        "an id beyond those",
        &["-u", "99999"],
        "id -u",
        "",
        "the container is refused, and told which there are; `--userns host` is as Docker",
    ),
    (
        "owner of `/proc`, `/sys`, `/dev/mqueue`",
        &[],
        "stat -c %u /proc /sys /dev/mqueue | sort -u",
        "65534",
        "they are the host's, whose root is nobody inside; `--userns host` is as Docker",
    ),
    (
        "`mknod`",
        &[],
        "mknod /tmp/null c 1 3 2>&1",
        "mknod: /tmp/null: Operation not permitted",
        "as no user namespace allows it; `--device` makes nodes, `--userns host` is as Docker",
    ),
    ("umask, folder", &[], "umask; pwd", "0022 /", ""),
    (
        "a working folder that is missing",
        &["-w", "/some/where"],
        "pwd; stat -c '%u %a' .",
        "/some/where 0 755",
        "",
    ),
    ("variables", &[], "env | cut -d= -f1 | sort | grep -v -e SHLVL -e PWD", "HOME HOSTNAME PATH", ""),
    (
        "… with a terminal",
        &["-t"],
        "echo $TERM; tty; stat -c %a $(tty); test -c /dev/console && echo console",
        "xterm /dev/pts/0 620 console",
        "",
    ),
    ("standard input without `-i`", &[], "readlink /proc/self/fd/0", "/dev/null", ""),
    ("marks", &[], "ls /.dockerenv; readlink /etc/mtab", "/.dockerenv /proc/mounts", ""),
    (
        "`/dev`",
        &[],
        "ls /dev | grep -v core",
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero",
        "",
    ),
    ("… its size in KiB", &[], "df -k /dev | tail -1 | awk '{print $2}'", "65536", ""),
    (
        "… its mount",
        &[],
        "awk '$2 == \"/dev\" {print $3, $4}' /proc/mounts | cut -d, -f1,2",
        "tmpfs rw,nosuid",
        "",
    ),
    ("`/dev/shm` in KiB", &[], "df -k /dev/shm | tail -1 | awk '{print $2}'", "65536", ""),
    (
        "… with `--ipc none`",
        &["--ipc", "none"],
        "ls -d /dev/shm 2>&1",
        "ls: /dev/shm: No such file or directory",
        "",
    ),
    ("mode of a tmpfs over a folder", &["--tmpfs", "/home"], "stat -c %a /home", "755", ""),
    ("… where nothing is", &["--tmpfs", "/new"], "stat -c %a /new", "1777", ""),
    (
        "… that is said",
        &["--tmpfs", "/home:mode=711"],
        "stat -c %a /home",
        "711",
        "an older runc says that of the folder all the same",
    ),
    (
        "a folder that is mounted at `/etc`",
        &["-v", "/etc"],
        "ls /etc",
        "group hostname hosts mtab passwd plain resolv.conf",
        "",
    ),
    (
        "… that is read-only and has no `resolv.conf`",
        &["--mount", "type=volume,dst=/etc,volume-nocopy=true,readonly"],
        "echo on",
        "",
        "",
    ),
    (
        "what is masked",
        &[],
        "head -c1 /proc/keys | wc -c; head -c1 /proc/timer_list | wc -c; ls -A /proc/acpi /sys/firmware | grep -v :",
        "0 0",
        "",
    ),
    ("`/proc/interrupts`", &[], "wc -c < /proc/interrupts", "0", "masked, as Docker from 28 on"),
    (
        "what is read-only",
        &[],
        "for f in /proc/sys /proc/irq /proc/bus /sys /sys/fs/cgroup; do awk -v at=$f '$2 == at {print substr($4, 1, 2)}' /proc/mounts; done | sort -u",
        "ro",
        "also the folder of control groups of version 1",
    ),
    (
        "control group",
        &[],
        "cut -d: -f3 /proc/self/cgroup | sort -u",
        "/",
        "a namespace of its own with version 1, too; Docker does that with version 2",
    ),
    (
        "ports that any user may listen on begin at",
        &[],
        "sysctl -n net.ipv4.ip_unprivileged_port_start",
        "0",
        "",
    ),
    (
        "who may ping",
        &[],
        "sysctl -n net.ipv4.ping_group_range | tr '\\t' ' '",
        "0 65535",
        "all of its groups, of which it has fewer",
    ),
    (
        "IPv6 on its loopback",
        &[],
        "ip -6 -o addr show lo | awk '{print $4}'",
        "::1/128",
        "there, as with newer ones of Docker",
    ),
    (
        "a name with a domain",
        &["--hostname", "web.example.org"],
        "tail -1 /etc/hosts | cut -f2",
        "web.example.org web",
        "",
    ),
    (
        "`host-gateway` in the host's network",
        &["--network", "host", "--add-host", "gate:host-gateway"],
        "grep gate /etc/hosts | cut -f1",
        "127.0.0.1",
        "Docker says its bridge's",
    ),
    (
        "… and in one of its own",
        &["--add-host", "gate:host-gateway"],
        "test $(grep gate /etc/hosts | cut -f1) = $(ip route | awk '/default/ {print $3}') && echo gateway",
        "gateway",
        "",
    ),
    (
        "`--uts host`",
        &["--uts", "host"],
        "test $HOSTNAME = $(hostname) && echo host",
        "host",
        "Docker says the container's id in `HOSTNAME`",
    ),
    (
        "`--init`",
        &["--init"],
        "cat /proc/1/comm; cat /proc/1/environ 2>&1",
        "insula-init cat: can't open '/proc/1/environ': Permission denied",
        "no program of the container's, and without rights; Docker's is `docker-init`",
    ),
];

pub(super) fn inside(daemon: &Daemon) -> String {
    let mut table = String::from("| what | here | as Docker |\n| --- | --- | --- |\n");
    for (what, flags, script, expected, differs) in INSIDE {
        // Most need no network, and are made faster without.
        let alone: &[&str] = if script.contains("/etc/hosts") { &[] } else { &["--network", "none"] };
        let alone = if flags.contains(&"--network") { &[] } else { alone };
        let outcome = daemon.sh(&[alone, flags].concat(), script);
        let printed = outcome.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(&printed, expected, "{what}: {outcome}");
        let flags = flags.join(" ");
        let flags = if what.contains(&flags) { String::new() } else { format!(" (`{flags}`)") };
        let printed = if printed.is_empty() { "nothing".to_owned() } else { format!("`{printed}`") };
        let verdict = if differs.is_empty() { "yes".to_owned() } else { format!("differs: {differs}") };
        writeln!(table, "| {what}{flags} | {printed} | {verdict} |").unwrap();
    }
    table
}
