//! What programs that watch an engine read of its answers: Traefik's and Prometheus' discovery, Portainer,
//! ctop, lazydocker. A field that is not there makes them show nothing, without a word.

use std::time::{SystemTime, UNIX_EPOCH};

use insula_tests::{Daemon, daemon, holds};
use serde_json::Value;

#[track_caller]
fn at<'a>(document: &'a Value, pointer: &str) -> &'a Value {
    document.pointer(pointer).unwrap_or_else(|| panic!("{pointer} is not in {document:#}"))
}

/// Numbers that are there, and more than zero.
#[track_caller]
fn counts(document: &Value, pointers: &[&str]) {
    for pointer in pointers {
        assert!(at(document, pointer).as_u64().is_some_and(|number| number > 0), "{pointer}: {document:#}");
    }
}

fn get(daemon: &Daemon, path: &str) -> Value {
    let answer = daemon.api("GET", path, "");
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()
}

struct Watched {
    daemon: Daemon,
    id: String,
}

impl Watched {
    fn by(daemon: Daemon) -> Self {
        daemon.insula(&["network", "create", "backend"]).ok();
        let flags = [
            "--name=web",
            "--network=backend",
            "--publish=127.0.0.1::80",
            "--expose=9100",
            "--label=traefik.enable=true",
            "--label=com.docker.compose.project=shop",
            "--memory=64m",
            "--health-cmd=true",
            "--health-interval=100ms",
            "--volume=data:/data",
        ];
        let id = daemon.sleeper(&flags);
        holds("the container is healthy", || daemon.inspect(&id, "/State/Health/Status") == "healthy");
        Self { daemon, id }
    }

    fn address(&self) -> Value {
        self.daemon.inspect(&self.id, "/NetworkSettings/Networks/backend/IPAddress")
    }
}

#[test]
fn discovery_finds_labels_networks_ports_and_health() {
    let watched = Watched::by(daemon!());
    let address = watched.address();
    let port = watched.daemon.inspect(&watched.id, "/NetworkSettings/Ports/80~1tcp/0/HostPort");
    let listed = get(&watched.daemon, "/containers/json?filters=%7B%22status%22%3A%5B%22running%22%5D%7D");
    let container = at(&listed, "/0");
    assert_eq!(at(container, "/Id"), watched.id.as_str());
    assert_eq!(at(container, "/Names/0"), "/web");
    assert_eq!(at(container, "/Labels/traefik.enable"), "true");
    assert_eq!(at(container, "/Labels/com.docker.compose.project"), "shop");
    assert_eq!(at(container, "/State"), "running");
    assert!(at(container, "/Status").as_str().unwrap().ends_with("(healthy)"), "{container:#}");
    assert_eq!(at(container, "/HostConfig/NetworkMode"), "backend");
    let network = at(container, "/NetworkSettings/Networks/backend");
    assert_eq!(at(network, "/IPAddress"), &address);
    for field in ["NetworkID", "EndpointID", "Gateway", "MacAddress"] {
        assert!(!at(network, &format!("/{field}")).as_str().unwrap().is_empty(), "{field}");
    }
    let ports = at(container, "/Ports").as_array().unwrap();
    let published = ports.iter().find(|entry| entry["PrivatePort"] == 80).unwrap();
    assert_eq!(
        (at(published, "/IP").as_str(), at(published, "/Type").as_str()),
        (Some("127.0.0.1"), Some("tcp"))
    );
    assert_eq!(at(published, "/PublicPort").to_string(), port.as_str().unwrap());
    let exposed = ports.iter().find(|entry| entry["PrivatePort"] == 9100).unwrap();
    assert!(exposed.get("PublicPort").is_none() && exposed.get("IP").is_none(), "{exposed:#}");
    // Prometheus joins containers with networks by their ids.
    let networks = get(&watched.daemon, "/networks");
    let named = networks.as_array().unwrap().iter().find(|found| found["Name"] == "backend").unwrap();
    assert_eq!(at(named, "/Id"), at(network, "/NetworkID"));
    for field in ["Scope", "Driver", "Internal", "Ingress", "Labels"] {
        at(named, &format!("/{field}"));
    }
}

#[test]
fn consoles_find_figures_states_and_events() {
    let watched = Watched::by(daemon!());
    let (daemon, id) = (&watched.daemon, watched.id.as_str());
    let stats = get(daemon, &format!("/containers/{id}/stats?stream=0"));
    counts(
        &stats,
        &[
            "/cpu_stats/cpu_usage/total_usage",
            "/cpu_stats/system_cpu_usage",
            "/cpu_stats/online_cpus",
            "/precpu_stats/system_cpu_usage",
            "/memory_stats/usage",
            "/pids_stats/current",
        ],
    );
    assert_eq!(at(&stats, "/memory_stats/limit"), 64 << 20);
    for pointer in
        ["/memory_stats/stats", "/networks/eth0/rx_bytes", "/networks/eth0/tx_bytes", "/read", "/name"]
    {
        at(&stats, pointer);
    }
    assert!(at(&stats, "/blkio_stats").get("io_service_bytes_recursive").is_some());

    let document = get(daemon, &format!("/containers/{id}/json"));
    counts(&document, &["/State/Pid"]);
    for pointer in
        ["/State/StartedAt", "/State/Health/Log/0/ExitCode", "/Config/Env", "/Config/ExposedPorts/9100~1tcp"]
    {
        at(&document, pointer);
    }
    assert_eq!(at(&document, "/Mounts/0/Name"), "data");
    assert_eq!(at(&document, "/RestartCount"), 0);

    let used = get(daemon, "/system/df");
    counts(&used, &["/LayersSize", "/Images/0/Size"]);
    assert_eq!(at(&used, "/Containers/0/Id"), id);
    assert_eq!(at(&used, "/Volumes/0/UsageData/RefCount"), 1);
    at(&used, "/BuildCache");

    daemon.insula(&["rm", "-f", id]).ok();
    // It answers when that second has come.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 1;
    let answer = daemon.api("GET", &format!("/events?since=1&until={now}"), "");
    let events: Vec<Value> = answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str, action: &str| {
        let found = events.iter().find(|event| event["Type"] == kind && event["Action"] == action);
        found.unwrap_or_else(|| panic!("{kind} {action}: {events:#?}"))
    };
    for action in ["create", "start", "die", "destroy"] {
        let event = of("container", action);
        // The older fields are what ctop and docker-py's users read.
        assert_eq!(at(event, "/Actor/ID"), id);
        assert_eq!((at(event, "/status"), at(event, "/id")), (&action.into(), &id.into()));
        assert_eq!(at(event, "/Actor/Attributes/com.docker.compose.project"), "shop");
        assert_eq!(at(event, "/Actor/Attributes/name"), "web");
        counts(event, &["/time", "/timeNano"]);
    }
    assert_eq!(at(of("container", "die"), "/Actor/Attributes/exitCode"), "137");
    assert_eq!(at(of("container", "health_status: healthy"), "/Actor/ID"), id);
    assert_eq!(at(of("network", "connect"), "/Actor/Attributes/container"), id);
}
