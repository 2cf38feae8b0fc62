//! containerd's part for Kubernetes, spoken to as kubelet does: gRPC over its socket, with curl for HTTP/2.
//! The messages are those of `runtime.v1`, as far as they are used here.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use insula_tests::Outcome;
use prost::Message;

use super::place::Place;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Empty {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Metadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) uid: String,
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
}

/// Values of `NamespaceMode`.
pub(super) const OF_THE_POD: i32 = 0;
pub(super) const OF_THE_CONTAINER: i32 = 1;
pub(super) const OF_THE_NODE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Namespaces {
    #[prost(int32, tag = "1")]
    pub(super) network: i32,
    #[prost(int32, tag = "2")]
    pub(super) pid: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSecurity {
    #[prost(message, optional, tag = "1")]
    pub(super) namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PodLinux {
    #[prost(string, tag = "1")]
    pub(super) cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    pub(super) security: Option<PodSecurity>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Pod {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<Metadata>,
    #[prost(string, tag = "2")]
    pub(super) hostname: String,
    #[prost(string, tag = "3")]
    pub(super) log_directory: String,
    #[prost(message, optional, tag = "8")]
    pub(super) linux: Option<PodLinux>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RunPod {
    #[prost(message, optional, tag = "1")]
    pub(super) config: Option<Pod>,
    #[prost(string, tag = "2")]
    pub(super) handler: String,
}

/// A request or an answer that holds an id and nothing else.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Id {
    #[prost(string, tag = "1")]
    pub(super) id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Resources {
    #[prost(int64, tag = "4")]
    pub(super) memory: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Security {
    #[prost(message, optional, tag = "3")]
    pub(super) namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Linux {
    #[prost(message, optional, tag = "1")]
    pub(super) resources: Option<Resources>,
    #[prost(message, optional, tag = "2")]
    pub(super) security: Option<Security>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Container {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<Id>,
    #[prost(message, optional, tag = "2")]
    pub(super) image: Option<Id>,
    #[prost(string, repeated, tag = "3")]
    pub(super) command: Vec<String>,
    #[prost(string, tag = "11")]
    pub(super) log_path: String,
    #[prost(message, optional, tag = "15")]
    pub(super) linux: Option<Linux>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Create {
    #[prost(string, tag = "1")]
    pub(super) pod: String,
    #[prost(message, optional, tag = "2")]
    pub(super) config: Option<Container>,
    #[prost(message, optional, tag = "3")]
    pub(super) sandbox: Option<Pod>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Exec {
    #[prost(string, tag = "1")]
    pub(super) container: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) command: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Executed {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub(super) code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PortForward {
    #[prost(string, tag = "1")]
    pub(super) pod: String,
    #[prost(int32, repeated, tag = "2")]
    pub(super) ports: Vec<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Url {
    #[prost(string, tag = "1")]
    pub(super) url: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Update {
    #[prost(string, tag = "1")]
    pub(super) container: String,
    #[prost(message, optional, tag = "2")]
    pub(super) linux: Option<Resources>,
}

/// Values of `ContainerState`.
pub(super) const RUNNING: i32 = 1;
pub(super) const EXITED: i32 = 2;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(int32, tag = "3")]
    pub(super) state: i32,
    #[prost(int32, tag = "7")]
    pub(super) exit_code: i32,
    #[prost(string, tag = "10")]
    pub(super) reason: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Number {
    #[prost(uint64, tag = "1")]
    pub(super) value: u64,
}

/// Of CPU time or memory.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Usage {
    #[prost(message, optional, tag = "2")]
    pub(super) value: Option<Number>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Stats {
    #[prost(message, optional, tag = "2")]
    pub(super) cpu: Option<Usage>,
    #[prost(message, optional, tag = "3")]
    pub(super) memory: Option<Usage>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StatsAnswer {
    #[prost(message, optional, tag = "1")]
    pub(super) stats: Option<Stats>,
}

/// Calls a method; the words of a failure.
pub(super) fn call<A: Message + Default>(
    place: &Place,
    method: &str,
    request: &impl Message,
) -> Result<A, String> {
    let message = request.encode_to_vec();
    // Not compressed, and the length: the prefix of every message.
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = [&[0][..], &length, &message].concat();
    let (head, answer) = (place.path("head"), place.path("answer"));
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--http2-prior-knowledge", "--unix-socket", &place.at("sock")]);
    curl.args(["--header", "Content-Type: application/grpc", "--header", "TE: trailers"]);
    curl.args(["--data-binary", "@-"]).arg("--dump-header").arg(&head).arg("--output").arg(&answer);
    curl.arg(format!("http://localhost/runtime.v1.RuntimeService/{method}"));
    let _ = fs::remove_file(&answer);
    Outcome::of(&mut curl, &body).ok();
    let head = fs::read_to_string(&head).unwrap();
    if !head.to_ascii_lowercase().contains("grpc-status: 0") {
        return Err(format!("{method}: {head}"));
    }
    let bytes = fs::read(&answer).unwrap();
    Ok(A::decode(&bytes[5..]).unwrap())
}

/// Says something to a port of a pod and returns what comes back, up to `end`: `kubectl port-forward` as a
/// WebSocket of the protocol `v4.channel.k8s.io`, in which the first byte of a frame is the channel's number.
pub(super) fn forwarded(place: &Place, pod: &str, port: i32, say: &str, end: &str) -> String {
    let request = PortForward { pod: pod.to_owned(), ports: vec![port] };
    let Url { url } = call(place, "PortForward", &request).unwrap();
    let (authority, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let (host, own) = authority.rsplit_once(':').unwrap();
    let mut nc = place.command("busybox");
    let mut nc = nc.args(["nc", host, own]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let head = format!(
        "GET /{path}?port={port} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
         Sec-WebSocket-Protocol: v4.channel.k8s.io\r\nOrigin: http://{authority}\r\n\r\n"
    );
    // A frame of a client is masked (RFC 6455, 5.3), here with zeros.
    let length = u8::try_from(say.len() + 1).unwrap();
    assert!(length < 126);
    let frame = [&[0x82, 0x80 | length, 0, 0, 0, 0, 0], say.as_bytes()].concat();
    let mut input = nc.stdin.take().unwrap();
    input.write_all(head.as_bytes()).unwrap();
    input.write_all(&frame).unwrap();
    let (mut output, mut piece, mut said) = (nc.stdout.take().unwrap(), [0; 4096], String::new());
    while !said.contains(end) {
        let count = output.read(&mut piece).unwrap();
        assert!(count > 0, "{said}");
        said.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    drop(input);
    nc.wait().unwrap();
    said
}
