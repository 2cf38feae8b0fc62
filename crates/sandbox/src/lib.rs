//! The wall: one small synchronous interface, and what implements it. [`ns`] is the process wall, [`vm`] a
//! machine around the process wall; [`Wall`] becomes the one that its plan asks for.
//!
//! A sandbox holds one container. It goes down one road: empty, created, running, ended. What one
//! wall alone can do is a capability and a trait of its own, never a method that another wall
//! fakes; there are no default methods.

mod error;
pub mod mux;
pub mod ns;
pub mod vm;
mod wall;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use insula_base::Lap;
use insula_host::cgroup::Stats;
use insula_host::resolver::Sockets;
use insula_spec::machine::DirtyRate;
use insula_spec::plan::{ContainerPlan, NetworkChange, ProcessPlan, Resources, StdioPlan};

pub use error::{Error, Result};
pub use insula_proto::Processes;
pub use wall::Wall;

/// A wall with at most one container behind it. Used by one thread.
pub trait Sandbox {
    /// What this wall can do beyond the interface; constant for the life of the sandbox.
    fn capabilities(&self) -> Capabilities;

    /// Readable when [`Sandbox::next_event`] has something to say.
    fn event_fd(&self) -> BorrowedFd<'_>;

    /// What happened since the last call, oldest first; never waits.
    fn next_event(&mut self) -> Result<Option<Event>>;

    /// Builds the container. With [`When::Now`] its program runs on return. On failure nothing is left of
    /// it and the sandbox is empty as before. Legal when empty.
    fn create(&mut self, plan: ContainerPlan, when: When) -> Result<Created>;

    /// Executes the program of a created container.
    fn start(&mut self) -> Result<()>;

    /// Starts another process. Legal when running.
    fn exec(&mut self, exec: &ExecPlan) -> Result<Created>;

    /// Sends a signal to a process, or to all of them.
    fn signal(&mut self, target: SignalTarget<'_>, signal: i32) -> Result<()>;

    /// Sets the size of a process' terminal.
    fn resize(&mut self, exec: Option<&str>, columns: u16, rows: u16) -> Result<()>;

    /// Nothing has happened for a while: lets go of what is needed no more.
    fn trim(&mut self);

    /// Gives the container other interfaces.
    fn rewire(&mut self, change: &NetworkChange) -> Result<()>;

    /// Duplicates of the sockets of the container's name server; they are bound if they are not yet.
    fn resolver(&mut self) -> Result<Sockets>;

    /// Changes limits; what is `None` stays. Returns what could not be done, for the user.
    fn update(&mut self, resources: &Resources) -> Result<Vec<String>>;

    /// Stops every process at once, or lets them go on.
    fn freeze(&mut self, frozen: Frozen) -> Result<()>;

    /// What the container uses.
    fn stats(&mut self) -> Result<Stats>;

    /// Its processes: as the host sees them, or what another kernel says of them.
    fn processes(&mut self) -> Result<Processes>;

    /// The machine that a container has around it, with the walls that have such.
    fn machine(&mut self) -> Option<&mut dyn Machine>;

    /// Kills what runs and frees everything. Legal always, and again after a failure.
    fn destroy(&mut self) -> Result<()>;
}

/// What only a wall with a machine can do. Legal when created or running.
pub trait Machine {
    /// Counts pages of its memory that the guest writes from now on, for a time of [`DirtyRate::PERIODS`]; for one
    /// who asks at a time. It costs the guest something for that time.
    fn measure_dirty_rate(&mut self, period: Duration) -> Result<()>;

    /// What was counted; `None` before the time is over.
    fn dirty_rate(&mut self) -> Result<Option<DirtyRate>>;

    /// Nobody wants to know any more.
    fn forget_dirty_rate(&mut self) -> Result<()>;
}

/// What a wall can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Processes are processes of the host: their pids mean something there.
    pub host_pids: bool,
}

/// When a program is to be executed.
pub use insula_container::When;

/// Standard streams of a process: the ends outside.
pub use insula_container::Streams;

/// A container or process that stands.
#[derive(Debug)]
pub struct Created {
    /// As the host sees it, where it can; 0 otherwise.
    pub pid: i32,
    pub streams: Streams,
    /// For the user.
    pub warnings: Vec<String>,
    /// What making it took.
    pub laps: Vec<Lap>,
}

/// A process beside the first one.
#[derive(Debug, Clone)]
pub struct ExecPlan {
    /// Unique in the sandbox.
    pub id: String,
    pub process: ProcessPlan,
    pub stdio: StdioPlan,
    pub privileged: bool,
}

/// Who gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalTarget<'a> {
    /// The container's first process.
    First,
    Exec(&'a str),
    /// The process group that the process of an exec leads.
    ExecGroup(&'a str),
    /// Every process of the sandbox.
    All,
}

/// For [`Sandbox::freeze`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frozen {
    Yes,
    No,
}

/// What happens in a sandbox by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The first process ended, and with it the container: nothing runs any more.
    Exited {
        code: i32,
        /// Why, when that was not its own doing; for the user. Empty otherwise.
        error: String,
    },
    ExecExited {
        id: String,
        code: i32,
    },
    /// The kernel killed a process for want of memory.
    Oom,
}

/// Duplicates a descriptor, close-on-exec.
fn duplicate(descriptor: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(descriptor, 3).map_err(|source| Error::Call {
        call: "fcntl F_DUPFD_CLOEXEC",
        on: "a stream",
        source: source.into(),
    })
}
