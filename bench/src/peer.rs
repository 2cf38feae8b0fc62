//! What is compared: engines and runtimes behind one interface.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bundle::Bundle;
use crate::containerd::Containerd;
use crate::engine::{Docker, Insula, Podman};
use crate::memory::Memory;
use crate::traffic::{Crowd, Turn};

/// What is timed, from the start of the command to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scenario {
    RunAlone,
    /// The same when nothing of it is in memory but what runs.
    RunCold,
    RunBridge,
    RunPublished,
    Detached,
    Exec,
    /// The end of one that runs.
    StopRemove,
    /// A million lines into a log of Docker's default format.
    JsonLog,
    /// The same into one of the driver `local`.
    LocalLog,
}

impl Scenario {
    pub(crate) const COMMANDS: &[Self] =
        &[Self::RunAlone, Self::RunBridge, Self::RunPublished, Self::Detached, Self::Exec, Self::StopRemove];
    pub(crate) const COLD: &[Self] = &[Self::RunCold];
    pub(crate) const LOGS: &[Self] = &[Self::JsonLog, Self::LocalLog];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::RunAlone => "`run --rm --network none busybox true`",
            Self::RunCold => "The same after the host's caches were dropped",
            Self::RunBridge => "`run --rm busybox true` (default bridge)",
            Self::RunPublished => "`run --rm -p 127.0.0.1::80 busybox true`",
            Self::Detached => "`run -d --network none busybox sleep 1000`",
            Self::Exec => "`exec CONTAINER true`",
            Self::StopRemove => "`stop -t 0 CONTAINER` and `rm CONTAINER`",
            Self::JsonLog => {
                "`run -d busybox seq 1 1000000` and `wait`, `--log-driver json-file` (2 files of 10 MB)"
            }
            Self::LocalLog => {
                "`run -d busybox seq 1 1000000` and `wait`, `--log-driver local` (2 files of 10 MB)"
            }
        }
    }
}

/// Idle containers that memory is averaged over.
pub(crate) const IDLE: usize = 10;

/// One program to compare.
pub(crate) trait Peer {
    fn name(&self) -> &str;
    fn version(&self) -> String;
    /// Starts what it needs and brings the image.
    fn prepare(&mut self) -> anyhow::Result<()>;
    /// One turn. `None` where the peer has no such thing.
    fn time(&mut self, scenario: Scenario) -> anyhow::Result<Option<Duration>>;
    /// `None` where nothing stays beside the workload.
    fn memory(&mut self) -> anyhow::Result<Option<Memory>>;
    /// What it can do with images; `None` where it knows none.
    fn images(&mut self) -> Option<&mut dyn Images>;
    /// What its network carries, once. `None` where that is not compared.
    fn traffic(&mut self) -> anyhow::Result<Option<Turn>>;
    /// A network of many containers. `None` where that is not looked at.
    fn crowd(&mut self) -> anyhow::Result<Option<Crowd>>;
    /// Removes everything; also after a failure half way.
    fn clean(&mut self);
}

/// An engine's commands, as one types them.
pub(crate) trait Images {
    /// How long a command takes that succeeds.
    fn timed(&mut self, words: &[&str]) -> anyhow::Result<Duration>;
    /// How long a command takes for each of so many numbers, which stand where it has `{}`, some at a time.
    fn each(&mut self, count: usize, at_once: usize, words: &[&str]) -> anyhow::Result<Duration>;
    /// What a command that succeeds writes.
    fn output(&mut self, words: &[&str]) -> anyhow::Result<String>;
    /// What `push` and `pull` need for a registry without TLS.
    fn insecure(&self) -> &'static [&'static str];
    /// How running containers are removed at once.
    fn removal(&self) -> &'static [&'static str];
    /// All that it has is below.
    fn folder(&self) -> &Path;
    /// What of it lasts: the rest is in memory on most hosts, in `/run`.
    fn data(&self) -> PathBuf;
}

/// Engines whose networks are compared, each alone in a network namespace.
pub(crate) fn alone(folder: &Path) -> Vec<Box<dyn Peer>> {
    let place = |name: &str| folder.join(name);
    vec![Box::new(Insula::new(&place("i")).alone()), Box::new(Docker::new(&place("docker")).alone())]
}

/// Every peer that is installed, those of `only` if given.
pub(crate) fn all(folder: &Path, only: Option<&[String]>) -> anyhow::Result<Vec<Box<dyn Peer>>> {
    let mut peers: Vec<Box<dyn Peer>> = Vec::new();
    let place = |name: &str| folder.join(name);
    peers.push(Box::new(Insula::new(&place("i"))));
    peers.push(Box::new(Docker::new(&place("docker"))));
    peers.push(Box::new(Podman::new(&place("podman"))));
    peers.push(Box::new(Containerd::new(&place("containerd"))));
    for program in Bundle::PROGRAMS {
        peers.push(Box::new(Bundle::new(program, &place(program))));
    }
    peers.retain(|peer| only.is_none_or(|names| names.iter().any(|name| name == peer.name())));
    Ok(peers)
}
