//! Containers: their life from create to remove, and what is asked about them meanwhile.
//!
//! `reference` is always a name (with or without a slash in front), an id or a unique beginning
//! of an id.

pub(crate) mod attach;
pub(crate) mod check;
pub(crate) mod container;
pub(crate) mod copyup;
pub(crate) mod create;
mod endpoints;
mod files;
pub(crate) mod health;
mod inspect;
pub(crate) mod leftovers;
mod life;
mod list;
pub(crate) mod merge;
pub(crate) mod mounts;
pub(crate) mod names;
pub(crate) mod ports;
mod remove;
mod resolving;
pub(crate) mod row;
mod signals;
mod silent;
mod start;
mod stats;
pub(crate) mod still;
mod stop;
pub(crate) mod storage;
mod top;
mod update;
mod wait;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use insula_base::ContainerId;
use insula_models::{Labels, TopResponse};
use insula_proto::{Call, Empty, Outcome};

pub(crate) use self::life::restarts_with_the_daemon;
use self::row::Row;
pub(crate) use self::start::not_running;
pub use self::stats::{StatsSampler, Traffic};
pub use self::wait::ContainerWait;
use crate::events::EventType;
use crate::filters::Filters;
use crate::logs::{Ended, LogFormat};
use crate::{Engine, Error, Result};

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
    /// `None` for the driver `none`, and for others that keep nothing here.
    pub file: Option<(PathBuf, LogFormat)>,
    /// Resolves when it does not run.
    pub ended: Ended,
}

impl std::fmt::Debug for LogSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogSource").field("id", &self.id).field("file", &self.file).finish_non_exhaustive()
    }
}

/// A container's files on the host, for copies and differences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFiles {
    pub id: ContainerId,
    /// The image's, lowest first.
    pub layers: Vec<PathBuf>,
    /// Below them: what the engine mounts on.
    pub points: PathBuf,
    /// The writable layer.
    pub upper: PathBuf,
    /// Paths of the layers that the container does not see.
    pub hidden: Vec<String>,
    /// The root may not be written.
    pub readonly: bool,
    /// Its root with its mounts, when it runs: `/proc/PID/root`.
    pub root: Option<PathBuf>,
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

impl Engine {
    /// `arguments` are those of ps(1); `-ef` without them.
    pub async fn top_container(&self, reference: &str, arguments: Option<&str>) -> Result<TopResponse> {
        let container = self.find(reference)?;
        let answer = container.task()?.call(Call::Processes(Empty {}), &[]).await;
        match answer.map_err(|error| start::not_running(error, &container.id))? {
            Outcome::Processes(processes) => {
                let top = top::listing(&processes, arguments.filter(|text| !text.is_empty()))?;
                self.publish(&container.row(), "top", &[]);
                Ok(top)
            }
            other => Err(Error::Internal(format!("the monitor answered a list of processes with {other:?}"))),
        }
    }

    /// Whether the container with this id runs or is paused.
    #[must_use]
    pub fn is_running(&self, id: &str) -> bool {
        self.find(id).is_ok_and(|container| container.row().phase.live())
    }

    /// Tells listeners that something happened to the container (`archive-path`, `export`).
    pub fn publish_container(&self, id: &ContainerId, action: &str) {
        if let Some(container) = self.0.containers.get(id) {
            self.publish(&container.row(), action, &[]);
        }
    }

    /// An event with the container's labels, name and image.
    pub(crate) fn publish(&self, row: &Row, action: &str, more: &[(&str, &str)]) {
        let own = [("name", row.name.as_str()), ("image", row.image.reference.as_str())];
        let mut attributes: Labels = row.config.labels.clone();
        attributes.extend(own.iter().chain(more).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        self.events().publish(EventType::Container, action, row.id.as_str(), attributes);
    }
}

/// For `info`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContainerCounts {
    pub running: usize,
    pub paused: usize,
    pub stopped: usize,
}
