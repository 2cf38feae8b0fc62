//! The messages, as far as they are used: `control.proto`, `filesync.proto`, `auth.proto`, `secrets.proto` and
//! `ssh.proto` of BuildKit, and `stat.proto` and `wire.proto` of its fsutil.

use std::collections::HashMap;

use bytes::Bytes;

/// One of a transfer of files.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Packet {
    #[prost(int32, tag = "1")]
    pub(super) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) stat: Option<Stat>,
    /// The file's number in the list.
    #[prost(uint32, tag = "3")]
    pub(super) id: u32,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) data: Bytes,
}

/// What a packet is.
pub(super) mod packet {
    pub(in crate::buildkit) const STAT: i32 = 0;
    pub(in crate::buildkit) const REQ: i32 = 1;
    pub(in crate::buildkit) const DATA: i32 = 2;
    pub(in crate::buildkit) const FIN: i32 = 3;
    pub(in crate::buildkit) const ERR: i32 = 4;
}

/// A file, as Go's `os.FileMode` has its kind and mode.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Stat {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) path: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub(super) mode: u32,
    #[prost(uint32, tag = "3")]
    pub(super) uid: u32,
    #[prost(uint32, tag = "4")]
    pub(super) gid: u32,
    #[prost(int64, tag = "5")]
    pub(super) size: i64,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "6")]
    pub(super) mod_time: i64,
    /// Where a symbolic link leads, or the earlier file that this one is another name of.
    #[prost(bytes = "vec", tag = "7")]
    pub(super) linkname: Vec<u8>,
    #[prost(int64, tag = "8")]
    pub(super) dev_major: i64,
    #[prost(int64, tag = "9")]
    pub(super) dev_minor: i64,
    #[prost(map = "string, bytes", tag = "10")]
    pub(super) xattrs: HashMap<String, Vec<u8>>,
}

/// Part of a stream.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BytesMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) data: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CredentialsRequest {
    #[prost(string, tag = "1")]
    pub(super) host: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CredentialsResponse {
    #[prost(string, tag = "1")]
    pub(super) username: String,
    #[prost(string, tag = "2")]
    pub(super) secret: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct GetSecretRequest {
    #[prost(string, tag = "1")]
    pub(super) id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct GetSecretResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CheckAgentRequest {
    #[prost(string, tag = "1")]
    pub(super) id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CheckAgentResponse {}

/// What changed of a build.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StatusResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) vertexes: Vec<Vertex>,
    #[prost(message, repeated, tag = "3")]
    pub(super) logs: Vec<VertexLog>,
}

/// A step.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Vertex {
    #[prost(string, tag = "1")]
    pub(super) digest: String,
    #[prost(string, tag = "3")]
    pub(super) name: String,
    #[prost(bool, tag = "4")]
    pub(super) cached: bool,
    #[prost(message, optional, tag = "5")]
    pub(super) started: Option<Timestamp>,
    #[prost(message, optional, tag = "6")]
    pub(super) completed: Option<Timestamp>,
    #[prost(string, tag = "7")]
    pub(super) error: String,
}

/// What the command of a step said.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct VertexLog {
    #[prost(string, tag = "1")]
    pub(super) vertex: String,
    #[prost(message, optional, tag = "2")]
    pub(super) timestamp: Option<Timestamp>,
    #[prost(int64, tag = "3")]
    pub(super) stream: i64,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) msg: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}
