//! Requests that are made up: every operation of `docs/reference/api.yaml` with parameters of its own and others,
//! bodies with every field of their types, and much that is wrong. Whatever is asked is answered, never as a defect,
//! and nothing panics. `INSULA_TEST_SEED` asks something else, `INSULA_TEST_REQUESTS` says how often.

mod documents;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};

use insula_models::{
    AuthConfig, ContainerConfig, ContainerCreateRequest, ContainerUpdateRequest, ExecCreateRequest,
    ExecStartRequest, KernelUseRequest, NetworkConnectRequest, NetworkCreateRequest,
    NetworkDisconnectRequest, TemplateRequest, TenantCreateRequest, VolumeCreateRequest,
};
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::reference::{Operation, parameters, reference};
use crate::small_tar;

const REQUESTS: usize = 1500;

/// What the routes ask registries and servers for: nobody listens there, and no name has to be resolved.
const NOBODY: &str = "127.0.0.1:1/x";

const WORDS: &[&str] = &[
    "",
    "web",
    "small",
    "small:1",
    "data",
    "bridge",
    "host",
    "none",
    "container:web",
    "a=b",
    "a",
    "80/tcp",
    "80",
    "8000-9000",
    "/",
    "/proc/nowhere",
    "../..",
    "data:/d",
    "data:/d:ro",
    "/proc/nowhere:/x",
    NOBODY,
    "0",
    "1",
    "-1",
    "65536",
    "99999999999999999999",
    "1.5",
    "1e9",
    "10.250.7.0/24",
    "10.250.7.9",
    "fd00:7::/64",
    "fd00:7::9",
    "::",
    "02:42:0a:fa:07:09",
    "x\0y",
    "é\u{202e}\u{1f980}",
    "on-failure",
    "always",
    "unless-stopped",
    "local",
    "json-file",
    "tmpfs",
    "bind",
    "volume",
    "npipe",
    "KILL",
    "SIGRTMIN+3",
    "seccomp={}",
    "no-new-privileges",
    "nofile",
    "ALL",
    "NET_ADMIN",
    "1s",
    "true",
    "false",
    "{}",
    "[]",
    "null",
    "%00",
    "..%2f",
    "a/b:c@sha256:zz",
    "sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "size=1m",
    "systemd",
    "private",
    "shareable",
    "rprivate",
    "default",
    "process",
    "tenant:a",
    "CMD-SHELL",
    "NONE",
    "net.ipv4.ip_forward",
    "\u{1}",
];

const FILTERS: &[&str] = &[
    "ancestor",
    "before",
    "dangling",
    "driver",
    "exited",
    "expose",
    "health",
    "id",
    "label",
    "label!",
    "name",
    "network",
    "publish",
    "reference",
    "scope",
    "since",
    "status",
    "type",
    "until",
    "volume",
    "nothing",
];

/// xorshift64*.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) as usize % bound.max(1)
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn word(&mut self) -> String {
        if self.one_in(200) { "x".repeat(5000) } else { WORDS[self.below(WORDS.len())].to_owned() }
    }
}

#[derive(Debug)]
struct Strange {
    method: String,
    target: String,
    /// The path with its placeholders.
    operation: String,
    body: Vec<u8>,
    /// Whether it takes a document.
    typed: bool,
    media_type: &'static str,
}

fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~:@,=".contains(&byte);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn strange(random: &mut Random, operations: &[(Operation, Vec<String>)]) -> Strange {
    let ((method, operation), parameters) = &operations[random.below(operations.len())];
    let mut target = if random.one_in(3) { format!("/v1.{}", 20 + random.below(40)) } else { String::new() };
    for part in operation.split('/').skip(1) {
        let part = match part {
            "{rest}" => ["v2/", "v2/x/manifests/y", "v2/x/blobs/sha256:zz", "v2/_catalog", "v1"]
                [random.below(5)]
            .to_owned(),
            part if part.starts_with('{') => named(random, operation),
            part => part.to_owned(),
        };
        target = format!("{target}/{part}");
    }
    let mut queries = Vec::new();
    for name in parameters {
        if !random.one_in(3) {
            queries.push(format!("{name}={}", encoded(&parameter(random, name))));
        }
    }
    let mut query = queries.join("&");
    if random.one_in(20) {
        query.push_str("&%ff=%zz&a=1;b");
    }
    // It goes on until then; of several the first counts.
    if operation == "/events" {
        query = format!("until=1&{query}");
    }
    let media_type = if random.one_in(10) { "text/plain" } else { "application/json" };
    let document = (method != "get").then(|| document(random, operation)).flatten();
    let typed = document.is_some();
    let body = match document {
        None if method == "get" && !random.one_in(10) => Vec::new(),
        None => {
            let any = json!({ random.word(): random.word() });
            written(random, operation, any)
        }
        Some(document) => written(random, operation, document),
    };
    Strange {
        method: method.to_uppercase(),
        target: format!("{target}?{query}"),
        operation: operation.clone(),
        body,
        typed,
        media_type,
    }
}

/// Nothing is started here, pulled or pushed.
fn named(random: &mut Random, operation: &str) -> String {
    let acts = ["/start", "/restart", "/push", "/manifest"].iter().any(|end| operation.ends_with(end));
    match random.below(if acts { 2 } else { 8 }) {
        0 => "nobody".to_owned(),
        _ if operation.starts_with("/distribution") => NOBODY.to_owned(),
        1 => encoded("no/body:1"),
        2 => ["%00", "..", "%2e%2e", "%ff", "a%2Fb"][random.below(5)].to_owned(),
        3 => encoded(&random.word()),
        _ => match operation.split('/').nth(1) {
            Some("images") => "small:1",
            Some("volumes") => "data",
            Some("networks") => "bridge",
            _ => "web",
        }
        .to_owned(),
    }
}

fn parameter(random: &mut Random, name: &str) -> String {
    match name {
        "fromImage" | "remote" | "term" => NOBODY.to_owned(),
        "fromSrc" => ["-", "", "http://127.0.0.1:1/x"][random.below(3)].to_owned(),
        "filters" if !random.one_in(4) => {
            let mut one = || (FILTERS[random.below(FILTERS.len())].to_owned(), json!([random.word()]));
            Value::Object([one(), one()].into_iter().collect()).to_string()
        }
        _ => random.word(),
    }
}

/// The body of an operation that takes one.
fn document(random: &mut Random, operation: &str) -> Option<Value> {
    use documents::like;
    Some(match operation {
        "/containers/create" => {
            let mut value = like::<ContainerCreateRequest>(random);
            if let (Value::Object(map), false) = (&mut value, random.one_in(10)) {
                map.insert("Image".to_owned(), json!("small:1"));
            }
            value
        }
        "/containers/{id}/update" => like::<ContainerUpdateRequest>(random),
        "/containers/{id}/exec" => like::<ExecCreateRequest>(random),
        "/exec/{id}/start" => like::<ExecStartRequest>(random),
        "/networks/create" => like::<NetworkCreateRequest>(random),
        "/networks/{id}/connect" => like::<NetworkConnectRequest>(random),
        "/networks/{id}/disconnect" => like::<NetworkDisconnectRequest>(random),
        "/volumes/create" => like::<VolumeCreateRequest>(random),
        "/commit" => like::<ContainerConfig>(random),
        "/insula/tenants" => like::<TenantCreateRequest>(random),
        "/insula/templates" => like::<TemplateRequest>(random),
        "/insula/kernels/use" => like::<KernelUseRequest>(random),
        "/auth" => like::<AuthConfig>(random),
        _ => return None,
    })
}

/// A document with mistakes, and mistakes in how it is written.
fn written(random: &mut Random, operation: &str, mut value: Value) -> Vec<u8> {
    for _ in 0..random.below(3) {
        documents::spoil(random, &mut value);
    }
    if let ("/auth", Value::Object(map)) = (operation, &mut value) {
        map.insert("serveraddress".to_owned(), json!(NOBODY));
    }
    let mut text = value.to_string().into_bytes();
    match random.below(20) {
        0 => text.truncate(random.below(text.len())),
        1 => text.extend_from_slice(b" {}"),
        2 => text.push(0xff),
        3 => text.clear(),
        _ => {}
    }
    text
}

impl Strange {
    /// As it is sent: with its length or in pieces.
    fn bytes(&self, random: &mut Random) -> Vec<u8> {
        let (method, target, media_type) = (&self.method, &self.target, self.media_type);
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {media_type}\r\n"
        );
        // What does not read it has no answer for who goes on without saying how long.
        if self.typed && random.one_in(3) {
            let mut text = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
            for piece in self.body.chunks(1 + random.below(2000)) {
                text.extend(format!("{:x}\r\n", piece.len()).into_bytes());
                text.extend_from_slice(piece);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\n");
            return text;
        }
        [format!("{head}Content-Length: {}\r\n\r\n", self.body.len()).as_bytes(), &self.body].concat()
    }

    /// Answers that go on, and files: their beginning is enough.
    fn streams(&self) -> bool {
        ["/attach", "/attach/ws", "/logs", "/stats", "/export", "/get", "/file", "/start", "/bundle"]
            .iter()
            .any(|end| self.operation.ends_with(end))
    }
}

/// Status and body; the body of a stream is left.
fn ask(daemon: &Daemon, strange: &Strange, bytes: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = daemon.connect();
    // What is refused early is not read to its end.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let granted = answer.get(9) < Some(&b'4');
        if granted && strange.streams() && answer.windows(4).any(|four| four == b"\r\n\r\n") {
            break;
        }
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // It did not read all that was sent, and comes after what it said: unix(7).
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset && !answer.is_empty() => break,
            Err(error) => panic!("{error} of {strange:?}"),
        }
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no answer to {strange:?}: {text}"));
    let body = text.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned());
    (status, body.into_bytes())
}

/// What requests are about; it may be gone by then.
fn furnish(daemon: &Daemon) {
    daemon.send("POST", "/images/create?fromSrc=-&repo=small&tag=1", "", &small_tar());
    daemon.post("/containers/create?name=web", r#"{"Image":"small:1","Cmd":["a"]}"#);
    daemon.post("/volumes/create", r#"{"Name":"data"}"#);
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_is_asked_is_answered() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |about| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        told(about);
    }));
    let daemon = Daemon::start();
    let mut operations: Vec<_> = parameters(&reference()).into_iter().collect();
    // It reads the whole root each time, and takes as long as all the others together.
    operations.retain(|((_, path), _)| path != "/insula/check");
    assert!(operations.len() > 80);
    let mut random = Random(number("INSULA_TEST_SEED").unwrap_or(7) | 1);
    let (mut refused, mut done) = (0, 0);
    let count = number("INSULA_TEST_REQUESTS").map_or(REQUESTS, |count| count as usize);
    for turn in 0..count {
        if turn % 50 == 0 {
            furnish(&daemon);
        }
        let strange = strange(&mut random, &operations);
        let bytes = strange.bytes(&mut random);
        let (status, body) = ask(&daemon, &strange, &bytes);
        let body = String::from_utf8_lossy(&body);
        assert!(PANICS.load(Ordering::Relaxed) == 0, "something panicked: {strange:?}");
        assert!(status != 500, "turn {turn}: {strange:?} {}: {body}", String::from_utf8_lossy(&strange.body));
        if status >= 400 {
            refused += 1;
            let said = serde_json::from_str::<Value>(&body).ok();
            // Registries have a form of their own.
            let said = said.and_then(|said| {
                Some(!said["message"].as_str().or(said["errors"][0]["code"].as_str())?.is_empty())
            });
            assert!(strange.method == "HEAD" || said == Some(true), "{status} to {strange:?}: {body}");
        } else {
            done += 1;
        }
    }
    assert_eq!(daemon.get("/_ping").status, 200);
    // What is refused at the door says nothing about the rooms.
    assert!(done > count / 8 && refused > count / 8, "{done} done, {refused} refused");
}

#[test]
fn quotes_in_a_target_are_taken_on_each_request_of_a_connection() {
    let daemon = Daemon::start();
    let mut stream = daemon.connect();
    let path = r#"/containers/json?all=1&filters={"name":["x"]}"#;
    for turn in 0..3 {
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        // An empty list ends it.
        while !answer.ends_with(b"[]\n") && !answer.ends_with(b"[]") {
            let mut more = [0; 1024];
            let count = stream.read(&mut more).unwrap();
            answer.extend_from_slice(&more[..count]);
            assert!(count > 0, "{turn}: {}", String::from_utf8_lossy(&answer));
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "{turn}: {}", String::from_utf8_lossy(&answer));
    }
}
