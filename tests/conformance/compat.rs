//! `docs/reference/docker-compat.md` is written by running: every endpoint of Docker's API and every flag
//! of `docker run`. `INSULA_UPDATE_DOCS=1` writes it again.

use std::fmt::Write as _;
use std::process::Command;

use insula_tests::clients::client_files;
use insula_tests::{Daemon, Outcome, daemon, docker};

/// Method, path, body, and how the answer differs where it does. `BOX` is a running container, `EXEC` a
/// process in it, `CONTEXT` what an image is built from. What removes comes last.
const ENDPOINTS: &[(&str, &str, &str, &str)] = &[
    ("GET", "/_ping", "", ""),
    ("GET", "/version", "", ""),
    ("GET", "/info", "", ""),
    ("GET", "/events?since=1&until=2", "", "the last 1,024 are kept"),
    ("GET", "/system/df", "", ""),
    ("GET", "/containers/json?all=1", "", ""),
    ("POST", "/containers/create?name=made", r#"{"Image":"busybox"}"#, ""),
    ("GET", "/containers/BOX/json", "", ""),
    ("GET", "/containers/BOX/top", "", ""),
    ("GET", "/containers/BOX/logs?stdout=1", "", ""),
    ("GET", "/containers/BOX/changes", "", ""),
    ("GET", "/containers/BOX/export", "", ""),
    ("GET", "/containers/BOX/stats?stream=0&one-shot=1", "", ""),
    ("POST", "/containers/BOX/resize?h=24&w=80", "", ""),
    ("POST", "/containers/BOX/update", r#"{"Memory":67108864,"MemorySwap":67108864}"#, ""),
    ("POST", "/containers/BOX/pause", "", ""),
    ("POST", "/containers/BOX/unpause", "", ""),
    ("POST", "/containers/BOX/attach?stdout=1&logs=1", "", ""),
    ("GET", "/containers/BOX/archive?path=/etc/passwd", "", ""),
    ("POST", "/containers/BOX/exec", r#"{"Cmd":["true"]}"#, ""),
    ("POST", "/exec/EXEC/start", r#"{"Detach":true}"#, ""),
    ("GET", "/exec/EXEC/json", "", ""),
    ("POST", "/containers/made/start", "", ""),
    ("POST", "/containers/made/wait", "", ""),
    ("POST", "/containers/made/rename?name=other", "", ""),
    ("POST", "/containers/BOX/restart?t=1", "", ""),
    ("POST", "/containers/BOX/kill?signal=WINCH", "", ""),
    ("POST", "/containers/BOX/stop?t=1", "", ""),
    ("POST", "/containers/BOX/checkpoints", r#"{"CheckpointID":"c"}"#, ""),
    ("GET", "/images/json", "", ""),
    ("GET", "/images/busybox/json", "", "`ContainerConfig` is kept in all versions"),
    ("GET", "/images/busybox/history", "", ""),
    ("GET", "/images/busybox/get", "", ""),
    ("GET", "/images/get?names=busybox", "", ""),
    ("POST", "/images/busybox/tag?repo=copy&tag=1", "", ""),
    ("DELETE", "/images/copy:1", "", ""),
    ("POST", "/images/prune", "", ""),
    ("POST", "/commit?container=other&repo=committed", "{}", ""),
    ("POST", "/containers/prune", "", ""),
    ("GET", "/networks", "", ""),
    ("POST", "/networks/create", r#"{"Name":"net"}"#, ""),
    ("GET", "/networks/net", "", ""),
    ("DELETE", "/networks/net", "", ""),
    ("POST", "/networks/prune", "", ""),
    ("GET", "/volumes", "", ""),
    ("POST", "/volumes/create", r#"{"Name":"vol"}"#, ""),
    ("GET", "/volumes/vol", "", ""),
    ("DELETE", "/volumes/vol", "", ""),
    ("POST", "/volumes/prune", "", ""),
    ("POST", "/build", "CONTEXT", "the older builder's protocol; BuildKit's (`version=2`) is refused"),
    ("POST", "/build/prune", "", ""),
    ("POST", "/session", "", ""),
    ("GET", "/plugins", "", "always empty: drivers are built in"),
    ("POST", "/plugins/pull?remote=x", "[]", ""),
    ("GET", "/swarm", "", ""),
    ("GET", "/nodes", "", ""),
    ("GET", "/services", "", ""),
    ("GET", "/tasks", "", ""),
    ("GET", "/secrets", "", ""),
    ("GET", "/configs", "", ""),
];

/// A flag of `docker run`, an example of it, and how it differs where it does.
const FLAGS: &[(&str, &[&str], &str)] = &[
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
    ("ip", &["10.213.77.9", "--network", "fixed"], ""),
    ("ip6", &["fd00::9", "--network", "fixed"], ""),
    ("ipc", &["shareable"], ""),
    ("isolation", &["default"], "`process` and `vm` choose the wall"),
    ("kernel-memory", &["8m"], ""),
    ("label", &["a=b"], ""),
    ("label-file", &["FOLDER/env"], ""),
    ("link", &["BOX:db"], ""),
    ("link-local-ip", &["169.254.1.9"], ""),
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
    ("volumes-from", &["BOX"], ""),
    ("workdir", &["/tmp"], ""),
    ("detach", &[], ""),
    ("detach-keys", &["ctrl-a"], ""),
];

fn client(daemon: &Daemon, arguments: &[&str]) -> Outcome {
    let mut command = Command::new(docker().unwrap());
    command.env("DOCKER_HOST", format!("unix://{}", daemon.instance().socket().display()));
    Outcome::of(
        command.env("DOCKER_CONFIG", daemon.folder()).env_remove("DOCKER_CONTEXT").args(arguments),
        b"",
    )
}

fn verdict(works: bool, differs: &str, why: &str) -> String {
    match (works, differs) {
        (true, "") => "works".to_owned(),
        (true, how) => format!("differs: {how}"),
        (false, _) => format!("not: {}", why.replace('|', "/")),
    }
}

fn endpoints(daemon: &Daemon, box_id: &str) -> String {
    let mut table = String::from("| endpoint | here |\n| --- | --- |\n");
    let mut exec = String::new();
    for (method, path, body, differs) in ENDPOINTS {
        let target = path.replace("BOX", box_id).replace("EXEC", &exec);
        let answer = match *body {
            "CONTEXT" => insula_tests::request(&daemon.instance().socket(), method, &target, &context()),
            body => daemon.api(method, &target, body),
        };
        let text = answer.text();
        if path.ends_with("/exec") {
            exec = answer.json()["Id"].as_str().unwrap().to_owned();
        }
        let works = answer.status < 400;
        let why = serde_json::from_str::<serde_json::Value>(&text)
            .ok()
            .and_then(|answer| Some(answer["message"].as_str()?.to_owned()))
            .unwrap_or(text);
        let why = format!("{} {}", answer.status, why.replace(box_id, "BOX"));
        let shown = path.split('?').next().unwrap().replace("BOX", "{id}").replace("EXEC", "{id}");
        let shown =
            shown.replace("/made", "/{id}").replace("/busybox", "/{name}").replace("/copy:1", "/{name}");
        let shown =
            shown.replace("/networks/net", "/networks/{id}").replace("/volumes/vol", "/volumes/{name}");
        writeln!(table, "| `{method} {shown}` | {} |", verdict(works, differs, &why)).unwrap();
    }
    table
}

/// What an image is built from.
fn context() -> Vec<u8> {
    insula_tests::images::Layer::default().file("Dockerfile", 0o644, b"FROM busybox\n").bytes()
}

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

fn flags(daemon: &Daemon, box_id: &str) -> String {
    let folder = daemon.folder();
    std::fs::write(folder.join("env"), "C=d\n").unwrap();
    client(daemon, &["network", "create", "--subnet", "10.213.77.0/24", "fixed"]).ok();
    let device = block_device();
    let mut table = String::from("| `docker run` | here |\n| --- | --- |\n");
    for (flag, example, differs) in FLAGS {
        let given: Vec<String> = example
            .iter()
            .map(|word| word.replace("FOLDER", folder.to_str().unwrap()).replace("BOX", box_id))
            .map(|word| word.replace("DEVICE", &device))
            .collect();
        let name = format!("--{flag}");
        let mut arguments = vec!["run", &name];
        arguments.extend(given.iter().map(String::as_str));
        // A flag that says how to start and end keeps its say.
        if !["rm", "restart"].contains(flag) {
            arguments.push("--rm");
        }
        let command: &[&str] = if *flag == "entrypoint" { &["-c", "true"] } else { &["true"] };
        let outcome = client(daemon, &[&arguments[..], &["busybox"], command].concat());
        let why = outcome.stderr.lines().find(|line| line.contains("rror") || line.contains("docker:"));
        let why = why.unwrap_or(&outcome.stderr).trim_start_matches("docker: ").replace(box_id, "BOX");
        let why =
            why.trim_start_matches("Error response from daemon: ").trim_end_matches('.').trim().to_owned();
        let example = example.join(" ").replace("FOLDER/", "");
        writeln!(table, "| `--{flag} {example}` | {} |", verdict(outcome.code == 0, differs, &why)).unwrap();
    }
    table.replace(" ` |", "` |")
}

#[test]
fn the_table_is_what_running_shows() {
    let daemon = daemon!();
    if docker().is_none() {
        return insula_tests::skip("root", "docker's command line (Debian package docker.io) is missing");
    }
    // Every flag of Debian's client has its row.
    let help = client(&daemon, &["run", "--help"]);
    let listed = help.ok().lines().filter(|line| line.starts_with("  "));
    for line in listed.filter_map(|line| line.split_once("--").map(|(_, rest)| rest)) {
        let flag = line.split_whitespace().next().unwrap_or_default();
        let known = FLAGS.iter().any(|(name, ..)| *name == flag);
        assert!(known || flag == "help", "--{flag} of docker run has no row");
    }
    let start = ["run", "-d", "-t", "--init", "--name", "box", "busybox", "sleep", "1000"];
    let id = client(&daemon, &start).ok().to_owned();
    let flags = flags(&daemon, &id);
    let endpoints = endpoints(&daemon, &id);
    let text = format!(
        "# What of Docker works\n\nWritten by running each line against a daemon \
         (`INSULA_UPDATE_DOCS=1 cargo test -p insula-tests --test conformance compat`), with Debian's client \
         for the flags. What is behind `not` is the answer.\n\n## Endpoints\n\n{endpoints}\n## Flags\n\n{flags}"
    );
    let path = client_files().join("../../../docs/reference/docker-compat.md");
    if std::env::var_os("INSULA_UPDATE_DOCS").is_some() {
        std::fs::write(path, text).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(path).unwrap();
    for (kept, now) in kept.lines().zip(text.lines()) {
        assert_eq!(kept, now, "docs/reference/docker-compat.md is not what running shows");
    }
    assert_eq!(kept.lines().count(), text.lines().count());
}
