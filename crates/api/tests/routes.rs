//! Requests and answers over a real socket, without containers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;
mod reference;
mod strange;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::Shutdown;

use daemon::{Answer, Daemon};
use proptest::prelude::*;

/// A tar with one file, made by hand: name, mode, owner, size, time, checksum.
fn small_tar() -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..5].copy_from_slice(b"hello");
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(b"00000000005\0");
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(b"world");
    tar.resize(512 * 4, 0);
    tar
}

fn lines(answer: &Answer) -> Vec<serde_json::Value> {
    answer
        .body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

#[test]
fn a_ping_says_what_is_spoken() {
    let daemon = Daemon::start();
    let answer = daemon.get("/v1.41/_ping");
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"OK"[..]));
    for (name, value) in [
        ("api-version", "1.51"),
        ("ostype", "linux"),
        ("docker-experimental", "false"),
        ("swarm", "inactive"),
        ("builder-version", "1"),
        ("content-type", "text/plain; charset=utf-8"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    let head = daemon.send("HEAD", "/_ping", "", b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
}

/// The document with the values of these fields, at any depth, taken out.
fn masked(mut document: serde_json::Value, fields: &[&str]) -> serde_json::Value {
    fn walk(value: &mut serde_json::Value, fields: &[&str]) {
        match value {
            serde_json::Value::Object(map) => {
                for (name, value) in map {
                    if fields.contains(&name.as_str()) {
                        *value = format!("[{name}]").into();
                    } else {
                        walk(value, fields);
                    }
                }
            }
            serde_json::Value::Array(list) => list.iter_mut().for_each(|value| walk(value, fields)),
            _ => {}
        }
    }
    walk(&mut document, fields);
    document
}

#[test]
fn answers_keep_their_form() {
    let daemon = Daemon::start();
    insta::assert_json_snapshot!(
        "version",
        masked(daemon.get("/version").json(), &["KernelVersion", "Arch"])
    );
    let created = daemon.post("/volumes/create", r#"{"Name":"data","Labels":{"a":"b"}}"#);
    assert_eq!(created.status, 201);
    let volume = ["CreatedAt", "Mountpoint"];
    insta::assert_json_snapshot!("volume", masked(created.json(), &volume));
    insta::assert_json_snapshot!("volumes", masked(daemon.get("/volumes").json(), &volume));
    let made = daemon.post("/containers/create?name=web", r#"{"Image":"host","Cmd":["true"]}"#);
    assert_eq!(made.status, 201, "{}", made.head);
    let listed = daemon.get("/containers/json?all=1").json();
    insta::assert_json_snapshot!(
        "containers",
        masked(listed, &["Created", "Id", "ImageID", "Status", "NetworkID"])
    );
    for version in ["1.24", "1.41", "1.51"] {
        let id =
            ["Created", "Id", "Image", "NetworkID", "StartedAt", "FinishedAt", "LogPath", "Data", "Hostname"];
        let inspected = daemon.get(&format!("/v{version}/containers/web/json")).json();
        insta::assert_json_snapshot!(format!("container-{version}"), masked(inspected, &id));
        let images = daemon.get(&format!("/v{version}/images/host/json")).json();
        let id = ["Created", "Id", "Architecture", "OsVersion", "Layers", "Data", "Size", "VirtualSize"];
        insta::assert_json_snapshot!(format!("image-{version}"), masked(images, &id));
    }
    let image = ["Created", "Id", "RepoDigests", "ParentId"];
    insta::assert_json_snapshot!("images", masked(daemon.get("/images/json").json(), &image));
    let bridge = daemon.get("/networks?filters=%7B%22name%22:%5B%22bridge%22%5D%7D").json();
    let network = ["Id", "Created", "Subnet", "Gateway", "com.docker.network.bridge.name"];
    insta::assert_json_snapshot!("networks", masked(bridge, &network));
}

/// What there is in a document, at which places, and of which kind.
fn shape(value: &serde_json::Value, at: &str, found: &mut BTreeMap<String, &'static str>) {
    use serde_json::Value;
    let below = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(list) => {
            // How many there are is the host's.
            list.iter().filter(|value| value.is_object()).for_each(|value| shape(value, &below("*"), found));
            "a list"
        }
        Value::Object(map) => {
            map.iter().for_each(|(name, value)| shape(value, &below(name), found));
            "an object"
        }
    };
    found.insert(at.to_owned(), kind);
}

/// To be read beside the published history of the API.
#[test]
fn each_version_differs_from_the_one_before_as_it_should() {
    let daemon = Daemon::start();
    daemon.send("POST", "/images/create?fromSrc=-&repo=small&tag=1", "", &small_tar());
    daemon.post("/volumes/create", r#"{"Name":"data","Labels":{"a":"b"}}"#);
    let web = daemon.post(
        "/containers/create?name=web",
        r#"{"Image":"small:1","Cmd":["a"],"StopTimeout":3,
            "Healthcheck":{"Test":["CMD","a"],"Interval":1000000000,"StartPeriod":1000000000,"StartInterval":1000000000},
            "HostConfig":{"Annotations":{"a":"b"},"Mounts":[
                {"Type":"volume","Source":"data","Target":"/data","VolumeOptions":{"NoCopy":true}},
                {"Type":"bind","Source":"/proc","Target":"/p","BindOptions":{"NonRecursive":true}}]}}"#,
    );
    assert_eq!(web.status, 201, "{}", String::from_utf8_lossy(&web.body));
    let documents = [
        ("version", "/version"),
        ("info", "/info"),
        ("disk use", "/system/df"),
        ("container", "/containers/web/json"),
        ("containers", "/containers/json?all=1"),
        ("image", "/images/small:1/json"),
        ("images", "/images/json"),
        ("network", "/networks/bridge"),
        ("networks", "/networks"),
        ("volume", "/volumes/data"),
        ("volumes", "/volumes"),
    ];
    let mut history = String::new();
    for (name, path) in documents {
        let at = |minor: u16| {
            let mut found = BTreeMap::new();
            shape(&daemon.get(&format!("/v1.{minor}{path}")).json(), "", &mut found);
            found
        };
        let mut former = at(24);
        for minor in 25..=51 {
            let now = at(minor);
            for (field, kind) in &now {
                match former.get(field) {
                    None => writeln!(history, "1.{minor} {name}: {field} is new").unwrap(),
                    Some(before) if before != kind => {
                        writeln!(history, "1.{minor} {name}: {field} is {kind}, no longer {before}").unwrap();
                    }
                    Some(_) => {}
                }
            }
            for field in former.keys().filter(|field| !now.contains_key(*field)) {
                writeln!(history, "1.{minor} {name}: {field} is gone").unwrap();
            }
            former = now;
        }
    }
    insta::assert_snapshot!("history", history);
}

#[test]
fn what_is_missing_is_said() {
    let daemon = Daemon::start();
    let message = |answer: Answer, status: u16| {
        assert_eq!(answer.status, status, "{}", answer.head);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        answer.message()
    };
    assert_eq!(message(daemon.get("/nothing/here"), 404), "page not found");
    assert_eq!(message(daemon.delete("/version"), 404), "page not found");
    assert_eq!(message(daemon.get("/images/no/such:1/json"), 404), "No such image: no/such:1");
    assert_eq!(message(daemon.get("/containers/nobody/json"), 404), "No such container: nobody");
    assert_eq!(message(daemon.post("/containers/nobody/start", ""), 404), "No such container: nobody");
    assert_eq!(message(daemon.get("/containers/nobody/archive?path=/"), 404), "No such container: nobody");
    assert_eq!(message(daemon.post("/exec/nobody/start", "{}"), 404), "No such exec instance: nobody");
    assert_eq!(message(daemon.get("/volumes/none"), 404), "get none: no such volume");
    assert!(message(daemon.get("/swarm"), 503).starts_with("This node is not a swarm manager."));
    assert!(message(daemon.get("/services"), 503).starts_with("This node is not a swarm manager."));
    assert!(message(daemon.post("/build?version=2", ""), 400).contains("DOCKER_BUILDKIT=0"));
    let nobody = daemon.post("/images/create?fromImage=127.0.0.1:1/x&tag=1", "");
    assert!(message(nobody, 503).contains("Connection refused"));
    assert_eq!(message(daemon.get("/images/a/b:1/get"), 404), "No such image: a/b:1");
    assert!(message(daemon.post("/networks/create", "{}"), 400).contains("is not a network name"));
    let overlay = r#"{"Name":"blue","Driver":"overlay"}"#;
    assert!(message(daemon.post("/networks/create", overlay), 404).contains("plugin \"overlay\" not found"));
    let swarm = r#"{"Name":"blue","ConfigOnly":true}"#;
    assert!(message(daemon.post("/networks/create", swarm), 501).contains("swarm"));
    assert!(message(daemon.get("/v1.60/version"), 400).contains("client version 1.60 is too new"));
    assert_eq!(daemon.get("/plugins").json(), serde_json::json!([]));
}

#[test]
fn bodies_are_checked_before_they_are_read() {
    let daemon = Daemon::start();
    let create = "/volumes/create";
    let typed = daemon.send("POST", create, "Content-Type: text/plain\r\n", b"{}");
    assert_eq!(typed.status, 400);
    assert!(typed.message().contains("must be 'application/json'"));
    assert!(daemon.post(create, "{").message().starts_with("invalid JSON"));
    assert!(daemon.post(create, r#"{"Name":7}"#).message().contains("Name"));
    assert_eq!(daemon.post(create, "null").status, 201);
    assert_eq!(daemon.post(create, "").status, 201);
    let long = format!(r#"{{"Name":"{}"}}"#, "x".repeat(5 << 20));
    assert_eq!(daemon.post(create, &long).status, 413);
    assert!(daemon.post("/containers/create", "").message().contains("EOF"));
}

#[test]
fn an_image_is_imported_named_and_removed() {
    let daemon = Daemon::start();
    let imported = daemon.send(
        "POST",
        "/images/create?fromSrc=-&repo=team/app&tag=1&changes=CMD%20%5B%22a%22%5D&message=hi",
        "",
        &small_tar(),
    );
    let id = lines(&imported).last().unwrap()["status"].as_str().unwrap().to_owned();
    assert!(id.starts_with("sha256:"), "{id}");
    let image = daemon.get("/images/team/app:1/json").json();
    assert_eq!(image["Id"], id);
    assert_eq!(image["RepoTags"], serde_json::json!(["team/app:1"]));
    assert_eq!(image["Config"]["Cmd"], serde_json::json!(["a"]));
    assert_eq!(daemon.post("/images/team/app:1/tag?repo=other&tag=2", "").status, 201);
    assert_eq!(daemon.get("/images/other:2/history").json()[0]["Comment"], "hi");
    let removed = daemon.delete("/images/other:2").json();
    assert_eq!(removed, serde_json::json!([{ "Untagged": "other:2" }]));
    let removed = daemon.delete("/images/team/app:1").json();
    assert_eq!(removed[0]["Untagged"], "team/app:1");
    assert_eq!(removed[1]["Deleted"], id);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    let until = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
    let seen =
        daemon.get(&format!("/events?since=0&until={until}&filters=%7B%22type%22:%5B%22image%22%5D%7D"));
    let actions: Vec<_> =
        lines(&seen).iter().map(|event| event["Action"].as_str().unwrap().to_owned()).collect();
    assert_eq!(actions, ["import", "tag", "untag", "untag", "delete"]);
    let bad = daemon.send("POST", "/images/load", "", b"this is no archive");
    assert_eq!(bad.status, 200);
    assert!(lines(&bad).last().unwrap()["errorDetail"]["message"].as_str().unwrap().contains("archive"));
}

#[test]
fn a_client_that_shuts_its_side_down_gets_its_answer() {
    let daemon = Daemon::start();
    let mut stream = daemon.connect();
    stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("OK"), "{answer}");
}

#[test]
fn heads_are_bounded() {
    let daemon = Daemon::start();
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
    let status = daemon.raw(long.as_bytes()).status;
    assert!((400..500).contains(&status), "{status}");
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(5000));
    let status = daemon.raw(many.as_bytes()).status;
    assert!((400..500).contains(&status), "{status}");
}

/// A path with parts that mean something and parts that do not.
fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("containers".to_owned()),
        Just("create".to_owned()),
        Just("json".to_owned()),
        Just("images".to_owned()),
        Just("volumes".to_owned()),
        Just("exec".to_owned()),
        Just("start".to_owned()),
        Just("archive".to_owned()),
        Just("attach".to_owned()),
        Just("logs".to_owned()),
        Just("v1.41".to_owned()),
        "[a-z0-9%.:@_-]{0,12}",
    ];
    let query = prop_oneof![
        Just(String::new()),
        "[?][a-z]{1,8}=[a-zA-Z0-9%{}:,\"-]{0,30}".prop_map(|text| text.replace('"', "%22")),
        "[?]filters=[{}\\[\\]a-z:,]{0,30}",
    ];
    (prop::collection::vec(part, 0..5), query)
        .prop_map(|(parts, query)| format!("/{}{query}", parts.join("/")))
}

#[test]
fn malformed_requests_are_answered() {
    let daemon = Daemon::start();
    let method = prop::sample::select(vec!["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH"]);
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        r#"\{"(Name|Image|Cmd|HostConfig|Labels|Tty)":(null|1|"x"|\[\]|\{\}|\[1\])\}"#
            .prop_map(String::into_bytes),
    ];
    // Whatever is sent, there is an answer, and it is not a defect.
    proptest!(ProptestConfig::with_cases(300), |(method in method, path in path(), body in body)| {
        let streams = path.contains("events") && method == "GET";
        prop_assume!(!streams);
        let answer = daemon.send(method, &path, "Content-Type: application/json\r\n", &body);
        prop_assert!(answer.status >= 200 && answer.status != 500, "{} {} {}", method, path, answer.head);
    });
    assert_eq!(daemon.get("/_ping").status, 200);
}
