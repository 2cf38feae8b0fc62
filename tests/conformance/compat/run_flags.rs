//! Every flag of `run`, and of `create`.

use std::fmt::Write as _;

use super::{Place, verdict};

/// A flag of `docker run`, an example of it, and how it differs where it does.
pub(super) const FLAGS: &[(&str, &[&str], &str)] = &[
    ("add-host", &["a:10.0.0.1"], ""),
    ("attach", &["stdout"], ""),
    ("blkio-weight", &["500"], ""),
    ("blkio-weight-device", &["/dev/null:200"], ""),
    ("cap-add", &["NET_ADMIN"], ""),
    ("cap-drop", &["ALL"], ""),
    ("cgroup-parent", &["/some"], ""),
    ("cgroupns", &["private"], ""),
    ("cidfile", &["FOLDER/cid"], ""),
    ("cpu-period", &["50000"], ""),
    ("cpu-quota", &["25000"], ""),
    ("cpu-rt-period", &["1000000"], ""),
    ("cpu-rt-runtime", &["1000"], ""),
    ("cpu-shares", &["512"], ""),
    ("cpus", &["0.5"], ""),
    ("cpuset-cpus", &["0"], ""),
    ("cpuset-mems", &["0"], ""),
    ("device", &["/dev/null:/dev/other"], ""),
    ("device-cgroup-rule", &["c 1:3 rwm"], ""),
    ("device-read-bps", &["DEVICE:1mb"], ""),
    ("device-read-iops", &["DEVICE:100"], ""),
    ("device-write-bps", &["DEVICE:1mb"], ""),
    ("device-write-iops", &["DEVICE:100"], ""),
    ("disable-content-trust", &[], "there is no content trust"),
    ("dns", &["10.0.0.1"], ""),
    ("dns-option", &["ndots:2"], ""),
    ("dns-search", &["example.org"], ""),
    ("domainname", &["example.org"], ""),
    ("entrypoint", &["/bin/sh"], ""),
    ("env", &["A=b"], ""),
    ("env-file", &["FOLDER/env"], ""),
    ("expose", &["80"], ""),
    ("gpus", &["all"], ""),
    ("group-add", &["1000"], ""),
    ("health-cmd", &["true"], ""),
    ("health-interval", &["1s"], ""),
    ("health-retries", &["3"], ""),
    ("health-start-period", &["1s"], ""),
    ("health-timeout", &["1s"], ""),
    ("hostname", &["inside"], ""),
    ("init", &[], ""),
    ("interactive", &[], ""),
    ("ip", &["SUBNET.9", "--network", "fixed"], ""),
    ("ip6", &["fd00::9", "--network", "fixed"], ""),
    ("ipc", &["shareable"], ""),
    ("isolation", &["default"], "`process`, `vm` and `tenant:NAME` choose the wall"),
    ("kernel-memory", &["8m"], ""),
    ("label", &["a=b"], ""),
    ("label-file", &["FOLDER/env"], ""),
    ("link", &["box:db"], ""),
    ("link-local-ip", &["169.254.1.9", "--network", "fixed"], ""),
    ("log-driver", &["json-file"], ""),
    ("log-opt", &["max-size=1m"], "rotated by default"),
    ("mac-address", &["02:42:ac:11:00:99"], ""),
    ("memory", &["64m"], ""),
    ("memory-reservation", &["32m"], ""),
    ("memory-swap", &["128m", "--memory", "64m"], ""),
    ("memory-swappiness", &["10"], ""),
    ("mount", &["type=tmpfs,target=/t"], ""),
    ("name", &["flagged"], ""),
    ("network", &["none"], ""),
    ("network-alias", &["alias", "--network", "fixed"], ""),
    ("no-healthcheck", &[], ""),
    ("oom-kill-disable", &["--memory", "64m"], ""),
    ("oom-score-adj", &["100"], ""),
    ("pid", &["host"], ""),
    ("pids-limit", &["100"], ""),
    ("platform", &["linux/amd64"], ""),
    ("privileged", &[], ""),
    ("publish", &["127.0.0.1::80"], ""),
    ("publish-all", &[], ""),
    ("pull", &["missing"], ""),
    ("read-only", &[], ""),
    ("restart", &["on-failure:1"], ""),
    ("rm", &[], ""),
    ("runtime", &["runc"], "there is one runtime, whatever it is called"),
    ("security-opt", &["no-new-privileges"], ""),
    ("shm-size", &["32m"], ""),
    ("sig-proxy", &[], ""),
    ("stop-signal", &["TERM"], ""),
    ("stop-timeout", &["3"], ""),
    ("storage-opt", &["size=1g"], ""),
    ("sysctl", &["net.ipv4.ip_unprivileged_port_start=0"], ""),
    ("tmpfs", &["/t"], ""),
    ("tty", &[], ""),
    ("ulimit", &["nofile=100:200"], ""),
    ("user", &["1000"], ""),
    ("userns", &["host"], "by default every container has ids of its own"),
    ("uts", &["host"], ""),
    ("volume", &["data:/v"], ""),
    ("volume-driver", &["local"], ""),
    ("volumes-from", &["box"], ""),
    ("workdir", &["/tmp"], ""),
    ("detach", &[], ""),
    ("detach-keys", &["ctrl-a"], ""),
];

/// A disk of the host.
fn block_device() -> String {
    let disks = std::fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = disks.map(|name| name.to_string_lossy().into_owned()).collect();
    // Loop devices and memory disks last, in case there is nothing else.
    names.sort_by_key(|name| {
        (["loop", "ram", "zram"].iter().any(|kind| name.starts_with(kind)), name.clone())
    });
    format!("/dev/{}", names[0])
}

/// A row for each flag, with Docker's client and with insula's.
pub(super) fn flags(place: &Place) -> String {
    let device = block_device();
    let mut table = String::from("\n### run, create\n\n| flag | docker | insula |\n| --- | --- | --- |\n");
    for (flag, example, differs) in FLAGS {
        let name = format!("--{flag}");
        let mut arguments = vec!["run".to_owned(), name];
        arguments.extend(example.iter().map(|word| place.real(word).replace("DEVICE", &device)));
        // A flag that says how to start and end keeps its say.
        if !["rm", "restart"].contains(flag) {
            arguments.push("--rm".to_owned());
        }
        let command: &[&str] = if *flag == "entrypoint" { &["-c", "true"] } else { &["true"] };
        arguments.extend(["busybox"].iter().chain(command).map(|word| (*word).to_owned()));
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let verdicts = place.clients().map(|client| {
            let _ = std::fs::remove_file(place.folder().join("cid"));
            let outcome = place.run(client, &words, b"");
            verdict(outcome.code == 0, differs, &place.why(&outcome))
        });
        let example = example.join(" ").replace("FOLDER/", "");
        let shown = format!("--{flag} {example}");
        writeln!(table, "| `{}` | {} |", shown.trim_end(), verdicts.join(" | ")).unwrap();
    }
    table
}
