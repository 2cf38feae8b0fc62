//! A pod as kubelet makes it, behind our shim.

use std::fs;

use insula_tests::{eventually, holds, images};

use super::containerd::Containerd;
use super::cri::{
    self, Container, Create, Empty, Exec, Executed, Id, Linux, Metadata, Namespaces, Pod, RunPod,
};

const IMAGE: &str = "docker.io/library/busybox:latest";
const MEGABYTE: i64 = 1 << 20;

/// A pod in the network of its node, which needs no plugin.
struct Kubelet<'a> {
    engine: &'a Containerd,
    config: Pod,
    id: String,
}

impl<'a> Kubelet<'a> {
    fn run(engine: &'a Containerd) -> Self {
        let place = &engine.place;
        let network = Namespaces { network: cri::OF_THE_NODE, pid: 0 };
        let linux = cri::PodLinux {
            cgroup_parent: format!("/{}", place.group),
            security: Some(cri::PodSecurity { namespaces: Some(network) }),
        };
        let config = Pod {
            metadata: Some(Metadata { name: "pod".into(), uid: "1".into(), namespace: "default".into() }),
            hostname: String::new(),
            log_directory: place.at("logs"),
            linux: Some(linux),
        };
        let request = RunPod { config: Some(config.clone()), handler: "insula".into() };
        let Id { id } = cri::call(place, "RunPodSandbox", &request).unwrap();
        Self { engine, config, id }
    }

    /// Creates a container and starts it; its id.
    fn start(&self, name: &str, script: &str, megabytes: i64, pids: i32) -> String {
        let linux = Linux {
            resources: Some(cri::Resources { memory: megabytes * MEGABYTE }),
            security: Some(cri::Security {
                namespaces: Some(Namespaces { network: cri::OF_THE_NODE, pid: pids }),
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
    find.args(["/run/containerd/s", "-type", "s"]);
    super::of(find).stdout.lines().count()
}

#[test]
fn a_pod_with_two_containers() {
    let mut image = images::busybox();
    image.config = serde_json::json!({"Cmd": ["sleep", "100000"], "Env": ["PATH=/bin"]});
    let Some(engine) = Containerd::for_kubernetes(&image) else { return };
    let pod = Kubelet::run(&engine);
    let one = pod.start("one", "echo to the log; exec sleep 1000", 64, cri::OF_THE_CONTAINER);
    let two = pod.start("two", "exec sleep 1000", 64, 0);
    assert_eq!(shims(&engine), 1, "one shim a pod");

    let said = pod.exec(&one, "echo out; echo err >&2; exit 3");
    assert_eq!(
        (said.stdout.as_slice(), said.stderr.as_slice(), said.code),
        (&b"out\n"[..], &b"err\n"[..], 3)
    );
    // The second one sees the pod's processes, the first one its own.
    assert_eq!(pod.exec(&one, "cat /proc/1/cmdline").stdout, b"sleep\x001000\x00");
    assert_eq!(pod.exec(&two, "cat /proc/1/cmdline").stdout, b"sleep\x00100000\x00");
    let log = fs::read_to_string(engine.place.path("logs/one.log")).unwrap();
    assert!(log.ends_with(" stdout F to the log\n"), "{log}");
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
    holds("nothing is left of the pod", || shims(&engine) == 0 && engine.place.groups().is_empty());
}
