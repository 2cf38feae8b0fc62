//! What a container is behind: the seam between tasks, as containerd knows them, and who makes containers.

use std::path::Path;
use std::sync::Arc;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use insula_spec::bundle::document::Resources;

use crate::error::Result;
use crate::options::Checkpoint;
use crate::process::{Last, Process};

/// One container. Whoever makes a process connects its streams, sets its pid and sees that it is told of its end.
pub(crate) trait Wall: std::fmt::Debug + Send + Sync {
    /// Makes the container of the bundle, whose root is mounted; its first process waits for its start. On failure
    /// nothing is left. One that goes on from the files of a checkpoint has no process before its start.
    fn create(&self, init: &Arc<Process>, checkpoint: Option<&Path>) -> Result<()>;

    /// Has the first process execute its program.
    fn start(&self, init: &Arc<Process>) -> Result<()>;

    /// Writes the container to files.
    fn checkpoint(&self, order: &Checkpoint) -> Result<()>;

    /// Makes another process, as the file `document` says.
    fn execute(&self, process: &Arc<Process>, document: &Path) -> Result<()>;

    /// A process is removed.
    fn forget(&self, process: &Process);

    /// Signals a process, or all of them.
    fn signal(&self, process: &Process, signal: i32, all: bool) -> Result<()>;

    /// Sets the size of a process' terminal.
    fn resize(&self, process: &Process, columns: u16, rows: u16) -> Result<()>;

    fn freeze(&self, frozen: bool) -> Result<()>;

    fn is_paused(&self) -> bool;

    /// Changes limits; what the document does not name stays. Returns what could not be done.
    fn update(&self, document: &Resources) -> Result<Vec<String>>;

    /// Pids of the container's processes.
    fn processes(&self) -> Result<Vec<i32>>;

    /// Whether those are the host's.
    fn has_host_pids(&self) -> bool;

    fn metrics(&self) -> Result<Any>;

    /// Frees everything of a container that has ended or was not started.
    fn delete(&self, init: &Process) -> Result<()>;

    /// What is to be done at the end of the first process, before anybody is told.
    fn last(&self) -> Last;
}
