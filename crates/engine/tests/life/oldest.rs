//! The task protocol as the first monitors spoke it, and a monitor that knows no more. Nobody changes it: such
//! monitors may run still, and a daemon of today has to get along with them.

use insula_proto::{Call, Reply, Request};
use prost::Message;

/// What such a monitor understands of a request.
pub(crate) fn heard(request: &Request) -> Option<Call> {
    let heard = first::Request::decode(&request.encode_to_vec()[..]).unwrap();
    Request::decode(&heard.encode_to_vec()[..]).unwrap().call
}

/// What such a monitor says of an answer.
pub(crate) fn said(reply: &Reply) -> Reply {
    let said = first::Reply::decode(&reply.encode_to_vec()[..]).unwrap();
    Reply::decode(&said.encode_to_vec()[..]).unwrap()
}

/// The messages of version 1 at its beginning.
mod first {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Request {
        #[prost(uint64, tag = "1")]
        pub(super) id: u64,
        #[prost(oneof = "Call", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14")]
        pub(super) call: Option<Call>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Call {
        #[prost(message, tag = "2")]
        Create(Create),
        #[prost(message, tag = "3")]
        Start(Start),
        #[prost(message, tag = "4")]
        Exec(Exec),
        #[prost(message, tag = "5")]
        Signal(Signal),
        #[prost(message, tag = "6")]
        Resize(Resize),
        #[prost(message, tag = "7")]
        Update(Update),
        #[prost(message, tag = "8")]
        Freeze(Empty),
        #[prost(message, tag = "9")]
        Thaw(Empty),
        #[prost(message, tag = "10")]
        Stats(Empty),
        #[prost(message, tag = "11")]
        Attach(Attach),
        #[prost(message, tag = "12")]
        Processes(Empty),
        #[prost(message, tag = "13")]
        Status(Empty),
        #[prost(message, tag = "14")]
        Destroy(Empty),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Empty {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Create {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) plan: Vec<u8>,
        #[prost(string, tag = "2")]
        pub(super) folder: String,
        #[prost(message, repeated, tag = "3")]
        pub(super) attachments: Vec<Attachment>,
        #[prost(bool, tag = "4")]
        pub(super) start: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Start {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Exec {
        #[prost(string, tag = "1")]
        pub(super) exec: String,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) process: Vec<u8>,
        #[prost(bytes = "vec", tag = "3")]
        pub(super) stdio: Vec<u8>,
        #[prost(message, repeated, tag = "4")]
        pub(super) attachments: Vec<Attachment>,
        #[prost(bool, tag = "5")]
        pub(super) privileged: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Signal {
        #[prost(string, tag = "1")]
        pub(super) exec: String,
        #[prost(int32, tag = "2")]
        pub(super) signal: i32,
        #[prost(bool, tag = "3")]
        pub(super) all: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Resize {
        #[prost(string, tag = "1")]
        pub(super) exec: String,
        #[prost(uint32, tag = "2")]
        pub(super) columns: u32,
        #[prost(uint32, tag = "3")]
        pub(super) rows: u32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Update {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) resources: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Attach {
        #[prost(string, tag = "1")]
        pub(super) exec: String,
        #[prost(message, optional, tag = "2")]
        pub(super) attachment: Option<Attachment>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Attachment {
        #[prost(bool, tag = "1")]
        pub(super) stdin: bool,
        #[prost(bool, tag = "2")]
        pub(super) stdout: bool,
        #[prost(bool, tag = "3")]
        pub(super) stderr: bool,
        #[prost(bool, tag = "4")]
        pub(super) multiplexed: bool,
        #[prost(bytes = "vec", tag = "5")]
        pub(super) already_read: Vec<u8>,
        #[prost(bytes = "vec", tag = "6")]
        pub(super) detach_keys: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Reply {
        #[prost(uint64, tag = "1")]
        pub(super) id: u64,
        #[prost(oneof = "Outcome", tags = "2, 3, 4, 5, 6, 7, 16, 17, 18")]
        pub(super) outcome: Option<Outcome>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Outcome {
        #[prost(message, tag = "2")]
        Failed(Failed),
        #[prost(message, tag = "3")]
        Done(Done),
        #[prost(message, tag = "4")]
        Started(Started),
        #[prost(bytes, tag = "5")]
        Stats(Vec<u8>),
        #[prost(message, tag = "6")]
        Processes(Processes),
        #[prost(message, tag = "7")]
        Status(Status),
        #[prost(message, tag = "16")]
        Exited(Exited),
        #[prost(message, tag = "17")]
        ExecExited(ExecExited),
        #[prost(message, tag = "18")]
        Oom(Empty),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Failed {
        #[prost(uint32, tag = "1")]
        pub(super) kind: u32,
        #[prost(string, tag = "2")]
        pub(super) message: String,
        #[prost(int32, tag = "3")]
        pub(super) exit_code: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Done {
        #[prost(string, repeated, tag = "1")]
        pub(super) warnings: Vec<String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Started {
        #[prost(int32, tag = "1")]
        pub(super) pid: i32,
        #[prost(string, repeated, tag = "2")]
        pub(super) warnings: Vec<String>,
        #[prost(int64, tag = "3")]
        pub(super) at: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Processes {
        #[prost(int32, repeated, tag = "1")]
        pub(super) pids: Vec<i32>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Status {
        #[prost(enumeration = "Phase", tag = "1")]
        pub(super) phase: i32,
        #[prost(int32, tag = "2")]
        pub(super) pid: i32,
        #[prost(int64, tag = "3")]
        pub(super) started: i64,
        #[prost(bool, tag = "4")]
        pub(super) frozen: bool,
        #[prost(message, optional, tag = "5")]
        pub(super) exit: Option<Exited>,
        #[prost(uint32, tag = "6")]
        pub(super) version: u32,
        #[prost(string, repeated, tag = "7")]
        pub(super) execs: Vec<String>,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub(super) enum Phase {
        Empty = 0,
        Created = 1,
        Running = 2,
        Ended = 3,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Exited {
        #[prost(int32, tag = "1")]
        pub(super) code: i32,
        #[prost(bool, tag = "2")]
        pub(super) oom: bool,
        #[prost(int64, tag = "3")]
        pub(super) at: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ExecExited {
        #[prost(string, tag = "1")]
        pub(super) exec: String,
        #[prost(int32, tag = "2")]
        pub(super) code: i32,
    }
}
