//! Every endpoint of Docker's API.

use std::fmt::Write as _;

use insula_tests::Daemon;

use super::verdict;

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
    (
        "POST",
        "/build",
        "CONTEXT",
        "the older builder's protocol and, with a session, BuildKit's; not buildx's `/grpc`",
    ),
    ("POST", "/build/prune", "", ""),
    ("GET", "/plugins", "", "always empty: drivers are built in"),
    ("POST", "/plugins/pull?remote=x", "[]", ""),
    ("GET", "/swarm", "", ""),
    ("GET", "/nodes", "", ""),
    ("GET", "/services", "", ""),
    ("GET", "/tasks", "", ""),
    ("GET", "/secrets", "", ""),
    ("GET", "/configs", "", ""),
];

pub(super) fn endpoints(daemon: &Daemon, box_id: &str) -> String {
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
