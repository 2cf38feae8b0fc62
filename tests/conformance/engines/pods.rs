//! A pod as kubelet makes it, behind our shim.

use std::fs;

use insula_tests::{Outcome, eventually, guest, holds, images, skip};

use super::containerd::Containerd;
use super::cri::{
    self, Container, Create, Empty, Exec, Executed, Id, Linux, Metadata, Namespaces, Pod, RunPod,
};

const IMAGE: &str = "docker.io/library/busybox:latest";
const MEGABYTE: i64 = 1 << 20;

/// A pod.
struct Kubelet<'a> {
    engine: &'a Containerd,
    config: Pod,
    id: String,
    network: i32,
}

impl<'a> Kubelet<'a> {
    fn run(engine: &'a Containerd, handler: &str, network: i32) -> Self {
        let place = &engine.place;
        let namespaces = Namespaces { network, pid: 0 };
        let linux = cri::PodLinux {
            cgroup_parent: format!("/{}", place.group),
            security: Some(cri::PodSecurity { namespaces: Some(namespaces) }),
        };
        let config = Pod {
            metadata: Some(Metadata { name: "pod".into(), uid: "1".into(), namespace: "default".into() }),
            hostname: if network == cri::OF_THE_NODE { String::new() } else { "pod".to_owned() },
            log_directory: place.at("logs"),
            linux: Some(linux),
        };
        let request = RunPod { config: Some(config.clone()), handler: handler.into() };
        let Id { id } = cri::call(place, "RunPodSandbox", &request).unwrap();
        Self { engine, config, id, network }
    }

    /// Creates a container and starts it; its id.
    fn start(&self, name: &str, script: &str, megabytes: i64, pids: i32) -> String {
        let linux = Linux {
            resources: Some(cri::Resources { memory: megabytes * MEGABYTE }),
            security: Some(cri::Security {
                namespaces: Some(Namespaces { network: self.network, pid: pids }),
            }),
        };
        let container = Container {
            metadata: Some(Id { id: name.to_owned() }),
            image: Some(Id { id: IMAGE.to_owned() }),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: format!("{name}.log"),
            linux: Some(linux),
        };
        let create =
            Create { pod: self.id.clone(), config: Some(container), sandbox: Some(self.config.clone()) };
        let id: Id = cri::call(&self.engine.place, "CreateContainer", &create).unwrap();
        let _: Empty = cri::call(&self.engine.place, "StartContainer", &id).unwrap();
        id.id
    }

    fn exec(&self, container: &str, script: &str) -> Executed {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        cri::call(&self.engine.place, "ExecSync", &Exec { container: container.to_owned(), command }).unwrap()
    }

    fn status(&self, id: &str) -> cri::Status {
        let answer: cri::StatusAnswer =
            cri::call(&self.engine.place, "ContainerStatus", &Id { id: id.to_owned() }).unwrap();
        answer.status.unwrap()
    }

    fn tell(&self, method: &str, id: &str) {
        let _: Empty = cri::call(&self.engine.place, method, &Id { id: id.to_owned() }).unwrap();
    }
}

fn shims(engine: &Containerd) -> usize {
    let mut find = engine.place.command("find");
    // A machine has a socket of its own below.
    find.args(["/run/containerd/s", "-maxdepth", "1", "-type", "s"]);
    super::of(find).stdout.lines().count()
}

fn engine() -> Option<Containerd> {
    let mut image = images::busybox();
    image.config = serde_json::json!({"Cmd": ["sleep", "100000"], "Env": ["PATH=/bin"]});
    Containerd::for_kubernetes(&image)
}

#[test]
fn a_pod_with_two_containers() {
    let Some(engine) = engine() else { return };
    let pod = Kubelet::run(&engine, "insula", cri::OF_THE_NODE);
    let web = pod.start(
        "web",
        "mkdir /www; echo page >/www/index.html; exec httpd -f -p 8087 -h /www",
        16,
        cri::OF_THE_CONTAINER,
    );
    holds("somebody listens", || {
        let listing = String::from_utf8(pod.exec(&web, "netstat -ltn").stdout).unwrap();
        listing.contains(":8087 ")
    });
    let said = cri::forwarded(&engine.place, &pod.id, 8087, "GET / HTTP/1.0\r\n\r\n", "page\n");
    assert!(said.contains("101 Switching Protocols") && said.contains("200 OK"), "{said}");
    lives(&pod);
}

#[test]
fn a_pod_with_a_machine() {
    if let Some(missing) = guest::missing() {
        return skip("tcg", missing);
    }
    let Some(engine) = engine() else { return };
    let pod = Kubelet::run(&engine, "insula-vm", cri::OF_THE_POD);
    let web = pod.start("web", "mkdir /www; echo page >/www/index.html; exec httpd -f -h /www", 32, 0);
    let other = pod.start("other", "exec sleep 1000", 32, cri::OF_THE_CONTAINER);
    let boot = |id: &str| pod.exec(id, "cat /proc/sys/kernel/random/boot_id").stdout;
    assert_eq!(boot(&web), boot(&other), "one machine a pod");
    assert_ne!(boot(&web), fs::read("/proc/sys/kernel/random/boot_id").unwrap());
    // Containers of a pod have one loopback and one address, and others reach it there.
    let fetch = |from: &str| {
        guest::eventually("the page comes", || {
            let said = pod.exec(&other, &format!("wget -q -O - http://{from}/"));
            (said.code == 0).then_some(said.stdout)
        })
    };
    assert_eq!(fetch("127.0.0.1"), b"page\n");
    let address = pod.exec(&other, "ip -4 -o addr show eth0 | sed 's,.*inet \\([0-9.]*\\)/.*,\\1,'").stdout;
    let address = String::from_utf8(address).unwrap();
    assert!(address.starts_with("10.23.0."), "{address}");
    let mut fetch = engine.place.command("busybox");
    fetch.args(["wget", "-q", "-O", "-", &format!("http://{}/", address.trim())]);
    assert_eq!(Outcome::of(&mut fetch, b"").ok(), "page");
    assert_eq!(pod.exec(&other, "hostname").stdout, b"pod\n");
    for id in [&web, &other] {
        pod.tell("StopContainer", id);
        pod.tell("RemoveContainer", id);
    }
    lives(&pod);
}

/// What a pod goes through behind either wall.
fn lives(pod: &Kubelet<'_>) {
    let engine = pod.engine;
    let one = pod.start("one", "echo to the log; exec sleep 1000", 64, cri::OF_THE_CONTAINER);
    let two = pod.start("two", "exec sleep 1000", 64, 0);
    assert_eq!(shims(engine), 1, "one shim a pod");

    let said = pod.exec(&one, "echo out; echo err >&2; exit 3");
    assert_eq!(
        (said.stdout.as_slice(), said.stderr.as_slice(), said.code),
        (&b"out\n"[..], &b"err\n"[..], 3)
    );
    // The second one sees the pod's processes, the first one its own.
    holds("the shell has become another program", || {
        pod.exec(&one, "cat /proc/1/cmdline").stdout == b"sleep\x001000\x00"
    });
    assert_eq!(pod.exec(&two, "cat /proc/1/cmdline").stdout, b"sleep\x00100000\x00");
    let log = || fs::read_to_string(engine.place.path("logs/one.log")).unwrap();
    holds("containerd has written the log", || log().ends_with(" stdout F to the log\n"));
    let stats: cri::StatsAnswer =
        cri::call(&engine.place, "ContainerStats", &Id { id: one.clone() }).unwrap();
    let stats = stats.stats.unwrap();
    let value = |usage: Option<cri::Usage>| usage.unwrap().value.unwrap().value;
    assert!(value(stats.cpu) > 0 && value(stats.memory) > 0);
    let limits =
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
    let update =
        cri::Update { container: one.clone(), linux: Some(cri::Resources { memory: 48 * MEGABYTE }) };
    let _: Empty = cri::call(&engine.place, "UpdateContainerResources", &update).unwrap();
    assert_eq!(pod.exec(&one, limits).stdout, b"50331648\n");

    let greedy = pod.start("greedy", "exec tail /dev/zero", 16, cri::OF_THE_CONTAINER);
    let status = eventually("it runs out of memory", || {
        Some(pod.status(&greedy)).filter(|status| status.state == cri::EXITED && status.reason == "OOMKilled")
    });
    assert_eq!(status.exit_code, 137);
    pod.tell("StopContainer", &one);
    assert_eq!(pod.status(&one).state, cri::EXITED);
    assert_eq!(pod.status(&two).state, cri::RUNNING);
    pod.tell("RemoveContainer", &one);
    pod.tell("StopPodSandbox", &pod.id);
    pod.tell("RemovePodSandbox", &pod.id);
    holds("nothing is left of the pod", || shims(engine) == 0 && engine.place.groups().is_empty());
}
