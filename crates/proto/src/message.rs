//! The messages. Documents that exist elsewhere (the plan, statistics) travel as JSON, as they are
//! kept on disk; everything else is protobuf.

use insula_base::Kind;

/// Daemon to monitor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Not 0; repeated in the reply.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(oneof = "Call", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 30, 31, 32, 33")]
    pub call: Option<Call>,
    /// How many descriptors come with it, for who does not know the call, or does not know that it has so many:
    /// they must not be taken for those of a later request.
    #[prost(uint32, tag = "16")]
    pub descriptors: u32,
}

impl Request {
    /// With this many descriptors.
    #[must_use]
    pub fn new(id: u64, call: Call) -> Self {
        // A handful; MAX_DESCRIPTORS bounds them.
        let descriptors = call.descriptors() as u32;
        Self { id, call: Some(call), descriptors }
    }

    /// How many descriptors are to be taken with it.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        let known = self.call.as_ref().map_or(0, Call::descriptors);
        known.max(usize::try_from(self.descriptors).unwrap_or(usize::MAX))
    }
}

/// What a request asks for, and in which phase it is legal.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Call {
    /// Builds the sandbox and its container. Phase: empty.
    #[prost(message, tag = "2")]
    Create(Create),
    /// Lets the container's process execute its program. Phase: created.
    #[prost(message, tag = "3")]
    Start(Start),
    /// Starts another process in it. Phase: running.
    #[prost(message, tag = "4")]
    Exec(Exec),
    /// Phase: created, running.
    #[prost(message, tag = "5")]
    Signal(Signal),
    /// Phase: created, running.
    #[prost(message, tag = "6")]
    Resize(Resize),
    /// Changes limits. Phase: created, running.
    #[prost(message, tag = "7")]
    Update(Update),
    /// Stops every process of the sandbox at once. Phase: running.
    #[prost(message, tag = "8")]
    Freeze(Empty),
    /// Phase: running.
    #[prost(message, tag = "9")]
    Thaw(Empty),
    /// Phase: created, running.
    #[prost(message, tag = "10")]
    Stats(Empty),
    /// Adds a client to a process' standard streams. Phase: created, running.
    #[prost(message, tag = "11")]
    Attach(Attach),
    /// The processes of the sandbox. Phase: created, running.
    #[prost(message, tag = "12")]
    Processes(Empty),
    /// Where the sandbox stands; the connection receives events from then on. Any phase.
    #[prost(message, tag = "13")]
    Status(Empty),
    /// Kills everything, frees everything, ends the monitor. Any phase.
    #[prost(message, tag = "14")]
    Destroy(Empty),
    /// Makes a guest ready for its containers; for an agent, a monitor does not know it. Phase: empty.
    #[prost(message, tag = "15")]
    Furnish(Furnish),
    /// Gives the container other interfaces. Phase: created, running.
    #[prost(message, tag = "30")]
    Rewire(Rewire),
    /// Binds the sockets of the container's name server, if that has not been done, and sends them by
    /// SCM_RIGHTS with one byte over the socket that comes with the request: first UDP, then TCP, which
    /// listens. The monitor keeps them. Phase: created, running.
    #[prost(message, tag = "31")]
    Resolver(Empty),
    /// Counts pages of its memory that a machine's guest writes, for as long as is asked for. Answered at once. Phase:
    /// created, running.
    #[prost(message, tag = "32")]
    MeasureDirtyRate(MeasureDirtyRate),
    /// What was counted. Phase: created, running.
    #[prost(message, tag = "33")]
    DirtyRate(Empty),
}

impl Call {
    /// How many descriptors come with the request.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Create(call) => call.attachments.len() + if call.template { Create::TEMPLATE } else { 0 },
            Self::Exec(call) => call.attachments.len(),
            Self::Attach(_) | Self::Resolver(_) => 1,
            _ => 0,
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Create {
    /// [`ContainerPlan`](../insula_spec/plan/struct.ContainerPlan.html) as JSON.
    #[prost(bytes = "vec", tag = "1")]
    pub plan: Vec<u8>,
    /// Existing folder for `task.sock` and `exit.json`.
    #[prost(string, tag = "2")]
    pub folder: String,
    /// Clients of the standard streams from the first byte on; one descriptor each.
    #[prost(message, repeated, tag = "3")]
    pub attachments: Vec<Attachment>,
    /// Go on to `Start` at once; the reply is then that of `Start`.
    #[prost(bool, tag = "4")]
    pub start: bool,
    /// The machine is a copy of a template: [`Create::TEMPLATE`] more descriptors.
    #[prost(bool, tag = "5")]
    pub template: bool,
}

impl Create {
    /// A template's memory, then its state.
    pub const TEMPLATE: usize = 2;
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Furnish {
    /// [`GuestPlan`](../insula_spec/machine/struct.GuestPlan.html) as JSON.
    #[prost(bytes = "vec", tag = "1")]
    pub plan: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Start {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Exec {
    /// Chosen by the caller; unique in the sandbox.
    #[prost(string, tag = "1")]
    pub exec: String,
    /// `ProcessPlan` as JSON.
    #[prost(bytes = "vec", tag = "2")]
    pub process: Vec<u8>,
    /// `StdioPlan` as JSON.
    #[prost(bytes = "vec", tag = "3")]
    pub stdio: Vec<u8>,
    #[prost(message, repeated, tag = "4")]
    pub attachments: Vec<Attachment>,
    /// All capabilities and no seccomp filter.
    #[prost(bool, tag = "5")]
    pub privileged: bool,
    /// How it ended is told to later daemons too ([`Status::ended_execs`]).
    #[prost(bool, tag = "6")]
    pub remembered: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Signal {
    /// Empty for the container's first process.
    #[prost(string, tag = "1")]
    pub exec: String,
    /// Number, as in signal(7).
    #[prost(int32, tag = "2")]
    pub signal: i32,
    /// To every process of the sandbox.
    #[prost(bool, tag = "3")]
    pub all: bool,
    /// To the whole process group of that process; monitors before this field signal the process alone.
    #[prost(bool, tag = "4")]
    pub group: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Resize {
    #[prost(string, tag = "1")]
    pub exec: String,
    #[prost(uint32, tag = "2")]
    pub columns: u32,
    #[prost(uint32, tag = "3")]
    pub rows: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Update {
    /// `Resources` as JSON; what is absent stays.
    #[prost(bytes = "vec", tag = "1")]
    pub resources: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Rewire {
    /// `NetworkChange` as JSON.
    #[prost(bytes = "vec", tag = "1")]
    pub change: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct MeasureDirtyRate {
    /// 0 when nobody wants to know any more.
    #[prost(uint32, tag = "1")]
    pub milliseconds: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Attach {
    #[prost(string, tag = "1")]
    pub exec: String,
    #[prost(message, optional, tag = "2")]
    pub attachment: Option<Attachment>,
}

/// What a client of the standard streams gets and gives. Its descriptor is a connected stream socket.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Attachment {
    #[prost(bool, tag = "1")]
    pub stdin: bool,
    #[prost(bool, tag = "2")]
    pub stdout: bool,
    #[prost(bool, tag = "3")]
    pub stderr: bool,
    /// Docker's frames (stream number, three zeros, length in four bytes, big endian) around
    /// output; plain bytes otherwise. A terminal is always plain.
    #[prost(bool, tag = "4")]
    pub multiplexed: bool,
    /// Input that was read from the socket before it was handed over.
    #[prost(bytes = "vec", tag = "5")]
    pub already_read: Vec<u8>,
    /// Input bytes that detach the client from a terminal; empty is never.
    #[prost(bytes = "vec", tag = "6")]
    pub detach_keys: Vec<u8>,
}

/// Monitor to daemon.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Reply {
    /// That of the request; 0 for an event.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(oneof = "Outcome", tags = "2, 3, 4, 5, 6, 7, 8, 16, 17, 18")]
    pub outcome: Option<Outcome>,
}

/// What came of a request, or what happened.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Outcome {
    #[prost(message, tag = "2")]
    Failed(Failed),
    #[prost(message, tag = "3")]
    Done(Done),
    /// Of `Create` and `Start` and `Exec`.
    #[prost(message, tag = "4")]
    Started(Started),
    /// Of `Stats`: `insula_host::cgroup::Stats` as JSON.
    #[prost(bytes, tag = "5")]
    Stats(Vec<u8>),
    #[prost(message, tag = "6")]
    Processes(Processes),
    #[prost(message, tag = "7")]
    Status(Status),
    /// Of `DirtyRate`: [`DirtyRate`](../insula_spec/machine/struct.DirtyRate.html) as JSON, `null` before its time is
    /// over.
    #[prost(bytes, tag = "8")]
    DirtyRate(Vec<u8>),
    /// Event: the container's first process ended, its output is complete in the log.
    #[prost(message, tag = "16")]
    Exited(Exited),
    /// Event: a process of `Exec` ended.
    #[prost(message, tag = "17")]
    ExecExited(ExecExited),
    /// Event: the kernel killed a process of the sandbox for want of memory.
    #[prost(message, tag = "18")]
    Oom(Empty),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Failed {
    /// [`Kind::code`].
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    /// The whole chain of causes.
    #[prost(string, tag = "2")]
    pub message: String,
    /// 126 or 127 when the program could not be executed, else 0.
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
}

impl Failed {
    /// What went wrong, seen from who asked.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::from_code(self.kind)
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Done {
    /// What could not be done as asked, for the user.
    #[prost(string, repeated, tag = "1")]
    pub warnings: Vec<String>,
    /// Of a machine that was furnished: the container's root is mapped into its memory.
    #[prost(bool, tag = "2")]
    pub mapped: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Started {
    /// As the host sees it.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    #[prost(string, repeated, tag = "2")]
    pub warnings: Vec<String>,
    /// When the program was executed: nanoseconds since 1970.
    #[prost(int64, tag = "3")]
    pub at: i64,
    /// What the time went into, in order.
    #[prost(message, repeated, tag = "4")]
    pub laps: Vec<Lap>,
}

/// A part of the work.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Lap {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, tag = "2")]
    pub nanoseconds: u64,
}

impl From<insula_base::Lap> for Lap {
    fn from(lap: insula_base::Lap) -> Self {
        let nanoseconds = u64::try_from(lap.took.as_nanos()).unwrap_or(u64::MAX);
        Self { name: lap.name.into_owned(), nanoseconds }
    }
}

impl From<Lap> for insula_base::Lap {
    fn from(lap: Lap) -> Self {
        Self { name: lap.name.into(), took: std::time::Duration::from_nanos(lap.nanoseconds) }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Processes {
    #[prost(int32, repeated, tag = "1")]
    pub pids: Vec<i32>,
    /// What the other kernel says of them, where they are not processes of the host.
    #[prost(message, optional, tag = "2")]
    pub elsewhere: Option<Elsewhere>,
}

/// Processes of another kernel, as its `/proc` has them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Elsewhere {
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<ProcessText>,
    /// KiB of the machine.
    #[prost(uint64, tag = "2")]
    pub memory: u64,
    /// Seconds since its boot.
    #[prost(uint64, tag = "3")]
    pub uptime: u64,
}

/// The files `stat`, `status` and `cmdline` of a process, proc(5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessText {
    #[prost(int32, tag = "1")]
    pub pid: i32,
    #[prost(string, tag = "2")]
    pub stat: String,
    #[prost(string, tag = "3")]
    pub status: String,
    #[prost(bytes = "vec", tag = "4")]
    pub command: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    #[prost(enumeration = "Phase", tag = "1")]
    pub phase: i32,
    #[prost(int32, tag = "2")]
    pub pid: i32,
    /// Nanoseconds since 1970; 0 before the start.
    #[prost(int64, tag = "3")]
    pub started: i64,
    #[prost(bool, tag = "4")]
    pub frozen: bool,
    /// Set in phase ended.
    #[prost(message, optional, tag = "5")]
    pub exit: Option<Exited>,
    #[prost(uint32, tag = "6")]
    pub version: u32,
    /// Processes of `Exec` that run.
    #[prost(string, repeated, tag = "7")]
    pub execs: Vec<String>,
    /// The last of those that ended and are [remembered](Exec::remembered), oldest first; monitors before this
    /// field remember none.
    #[prost(message, repeated, tag = "8")]
    pub ended_execs: Vec<ExecExited>,
}

impl Status {
    /// How many ended execs a monitor remembers.
    pub const ENDED_EXECS: usize = 64;
}

/// Where a sandbox stands. It only ever goes down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Phase {
    Empty = 0,
    Created = 1,
    Running = 2,
    Ended = 3,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Exited {
    /// As a shell shows it: 128 and the signal's number when a signal ended it.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// The kernel killed a process of the sandbox for want of memory.
    #[prost(bool, tag = "2")]
    pub oom: bool,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "3")]
    pub at: i64,
    /// Why it ended when that was not its own doing: its machine broke. Empty otherwise.
    #[prost(string, tag = "4")]
    pub error: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecExited {
    #[prost(string, tag = "1")]
    pub exec: String,
    #[prost(int32, tag = "2")]
    pub code: i32,
}
