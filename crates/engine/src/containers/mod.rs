//! Containers: their life from create to remove, and what is asked about them meanwhile.
//!
//! `reference` is always a name (with or without a slash in front), an id or a unique beginning
//! of an id.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use insula_base::ContainerId;
use insula_models::{
    ContainerCreateRequest, ContainerCreateResponse, ContainerInspect, ContainerSummary,
    ContainerUpdateRequest, ContainersPruneResponse, StatsResponse, TopResponse, WaitResponse, Warnings,
};

use crate::engine::not_yet;
use crate::filters::Filters;
use crate::logs::Ended;
use crate::{Engine, Result, volumes};

/// Whether a request changed something; Docker answers 304 when not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Done,
    /// It was so already.
    Nothing,
}

/// Query of `GET /containers/json`.
#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    /// Those that do not run too.
    pub all: bool,
    /// The newest so many, running or not.
    pub limit: Option<usize>,
    /// With the bytes that they take.
    pub size: bool,
    pub filters: Filters,
}

/// How a container is stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopRequest {
    /// Name or number; the container's own without it.
    pub signal: Option<String>,
    /// Seconds until it is killed: the container's own or 10 without it, -1 is never.
    pub timeout: Option<i64>,
}

/// How a container is removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemoveRequest {
    /// Its anonymous volumes too.
    pub volumes: bool,
    /// Kill it if it runs.
    pub force: bool,
    /// `?link=1`: only the link is meant, which there are none of.
    pub link: bool,
}

/// What `wait` waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WaitCondition {
    /// That it does not run, which may be so already.
    #[default]
    NotRunning,
    /// That it ends from now on.
    NextExit,
    /// That it is gone.
    Removed,
}

/// A wait that is registered: nothing that happens from now on is missed.
#[derive(Debug)]
pub struct ContainerWait {}

impl ContainerWait {
    /// Resolves when the condition has come true.
    pub async fn finish(self) -> WaitResponse {
        WaitResponse::default()
    }
}

/// Query of `POST /containers/{id}/attach`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttachOptions {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// What is in the log first.
    pub logs: bool,
    /// What comes from now on.
    pub stream: bool,
    /// As `ctrl-p,ctrl-q`; `None` is that, empty is never.
    pub detach_keys: Option<String>,
}

/// A client's connection, taken out of HTTP.
#[derive(Debug)]
pub struct AttachedStream {
    /// A connected stream socket.
    pub descriptor: OwnedFd,
    /// Input that was read already.
    pub already_read: Vec<u8>,
}

/// What one needs to know before taking a connection over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachTarget {
    pub id: ContainerId,
    /// Output is raw rather than multiplexed.
    pub tty: bool,
}

/// Where a container's output is kept.
pub struct LogSource {
    pub id: ContainerId,
    pub tty: bool,
    /// `None` for the driver `none`.
    pub path: Option<PathBuf>,
    /// Resolves when it does not run.
    pub ended: Ended,
}

impl std::fmt::Debug for LogSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogSource").field("id", &self.id).field("path", &self.path).finish_non_exhaustive()
    }
}

/// A container's files on the host, for copies and differences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFiles {
    pub id: ContainerId,
    /// Lowest first.
    pub layers: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// Paths of the layers that the container does not see.
    pub hidden: Vec<String>,
    /// The root may not be written.
    pub readonly: bool,
    /// As the host sees it, when it runs: `/proc/PID/root` is its root with its mounts.
    pub pid: Option<i32>,
    /// First host id and count of its user namespace.
    pub ids: Option<(u32, u32)>,
    pub mounts: Vec<ContainerMount>,
}

/// A mount below a container's root, by where it is on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerMount {
    /// Absolute, in the container.
    pub target: String,
    /// `None` for what exists only while it runs.
    pub source: Option<PathBuf>,
    pub readonly: bool,
}

/// Samples of one container's statistics.
#[derive(Debug)]
pub struct StatsSampler {}

impl StatsSampler {
    /// One sample; the `precpu` part is that of the one before.
    pub async fn sample(&mut self) -> Result<StatsResponse> {
        not_yet("statistics")
    }
}

impl Engine {
    /// `platform` as in `linux/amd64`.
    pub async fn create_container(
        &self,
        _name: Option<String>,
        _platform: Option<String>,
        _request: ContainerCreateRequest,
    ) -> Result<ContainerCreateResponse> {
        not_yet("create")
    }

    pub async fn start_container(&self, _reference: &str) -> Result<Change> {
        not_yet("start")
    }

    pub async fn stop_container(&self, _reference: &str, _request: StopRequest) -> Result<Change> {
        not_yet("stop")
    }

    pub async fn restart_container(&self, _reference: &str, _request: StopRequest) -> Result<()> {
        not_yet("restart")
    }

    /// `signal` is a name or a number; KILL without it.
    pub async fn kill_container(&self, _reference: &str, _signal: Option<&str>) -> Result<()> {
        not_yet("kill")
    }

    pub async fn remove_container(&self, _reference: &str, _request: RemoveRequest) -> Result<()> {
        not_yet("remove")
    }

    pub async fn rename_container(&self, _reference: &str, _name: &str) -> Result<()> {
        not_yet("rename")
    }

    pub async fn pause_container(&self, _reference: &str) -> Result<()> {
        not_yet("pause")
    }

    pub async fn unpause_container(&self, _reference: &str) -> Result<()> {
        not_yet("unpause")
    }

    pub async fn update_container(
        &self,
        _reference: &str,
        _request: ContainerUpdateRequest,
    ) -> Result<Warnings> {
        not_yet("update")
    }

    /// Registers a wait: answer the headers when this returns, the body when it is finished.
    pub async fn wait_container(&self, _reference: &str, _condition: WaitCondition) -> Result<ContainerWait> {
        not_yet("wait")
    }

    /// With `size`, the bytes that it takes are counted.
    pub async fn inspect_container(&self, _reference: &str, _size: bool) -> Result<ContainerInspect> {
        not_yet("inspect")
    }

    pub async fn list_containers(&self, _request: ListRequest) -> Result<Vec<ContainerSummary>> {
        not_yet("list")
    }

    pub async fn prune_containers(&self, _filters: Filters) -> Result<ContainersPruneResponse> {
        not_yet("prune")
    }

    /// `arguments` are those of ps(1); `-ef` without them.
    pub async fn top_container(&self, _reference: &str, _arguments: Option<&str>) -> Result<TopResponse> {
        not_yet("top")
    }

    /// Samples of a container; one that does not run gives zeros.
    pub async fn container_stats(&self, _reference: &str) -> Result<StatsSampler> {
        not_yet("stats")
    }

    pub async fn resize_container(&self, _reference: &str, _rows: u16, _columns: u16) -> Result<()> {
        not_yet("resize")
    }

    /// The container to attach to, before the client is told that its connection is taken over.
    pub async fn attach_target(&self, _reference: &str) -> Result<AttachTarget> {
        not_yet("attach")
    }

    /// Hands a client's connection to the container; to one that has not started yet when it
    /// starts. Returns at once.
    pub async fn attach(
        &self,
        _reference: &str,
        _options: AttachOptions,
        _stream: AttachedStream,
    ) -> Result<()> {
        not_yet("attach")
    }

    /// Where the container's output is.
    pub fn log_source(&self, _reference: &str) -> Result<LogSource> {
        not_yet("logs")
    }

    /// Where the container's files are.
    pub fn container_files(&self, _reference: &str) -> Result<ContainerFiles> {
        not_yet("files")
    }

    /// Which containers use which volume.
    pub fn volume_users(&self) -> Result<volumes::Users> {
        not_yet("users of volumes")
    }

    /// Whether the container with this id runs or is paused.
    #[must_use]
    pub fn is_running(&self, _id: &str) -> bool {
        false
    }

    /// How many containers run, are paused, are stopped.
    #[must_use]
    pub fn container_counts(&self) -> ContainerCounts {
        ContainerCounts::default()
    }

    /// Tells listeners that something happened to the container (`archive-path`, `export`).
    pub fn publish_container(&self, _id: &ContainerId, _action: &str) {}
}

/// For `info`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContainerCounts {
    pub running: usize,
    pub paused: usize,
    pub stopped: usize,
}
