//! `RUN --mount=type=ssh`: agents of whoever builds, who may be on another host.
//!
//! ```text
//! program ── socket in its container ── the daemon ── a connection that the client made ── client ── its agent
//! ```
//!
//! The client keeps a connection waiting for each agent. When a program connects to its socket, that connection is
//! taken, and the client, which sees the program's first bytes, makes the next one. A build is named by a word that
//! nobody else knows, which came with it.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::cache::locked;
use crate::{AttachedStream, Engine, Error, Result};

/// Connections of one agent that wait for a program.
const WAITING: usize = 4;
/// Programs that talk to one mount's agent at once; more of them wait.
const TALKING: usize = 32;

/// Which agents came along with a build.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AgentsGiven {
    /// What the client names the build by.
    pub token: String,
    pub ids: BTreeSet<String>,
}

impl std::fmt::Debug for AgentsGiven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentsGiven").field("ids", &self.ids).finish_non_exhaustive()
    }
}

type Sender = mpsc::Sender<AttachedStream>;
type Receiver = Arc<tokio::sync::Mutex<mpsc::Receiver<AttachedStream>>>;

/// Builds that run with agents, by token and id.
#[derive(Debug, Default)]
pub(crate) struct Agents(Mutex<HashMap<(String, String), Sender>>);

/// The agents of one build, as long as it runs.
#[derive(Debug, Default)]
pub(super) struct Offered {
    engine: Option<Engine>,
    token: String,
    by_id: HashMap<String, Receiver>,
}

impl Drop for Offered {
    fn drop(&mut self) {
        if let Some(engine) = &self.engine {
            locked(&engine.0.agents.0).retain(|(token, _), _| *token != self.token);
        }
    }
}

impl Offered {
    pub(super) fn new(engine: &Engine, given: &AgentsGiven) -> Result<Self> {
        if given.ids.is_empty() {
            return Ok(Self::default());
        }
        let mut known = locked(&engine.0.agents.0);
        if known.keys().any(|(token, _)| *token == given.token) {
            return Err(Error::Conflict("another build has the same word for its agents".to_owned()));
        }
        let mut by_id = HashMap::new();
        for id in &given.ids {
            let (sender, receiver) = mpsc::channel(WAITING);
            known.insert((given.token.clone(), id.clone()), sender);
            by_id.insert(id.clone(), Arc::new(tokio::sync::Mutex::new(receiver)));
        }
        Ok(Self { engine: Some(engine.clone()), token: given.token.clone(), by_id })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(super) fn connections(&self, id: &str) -> Option<Receiver> {
        self.by_id.get(id).cloned()
    }
}

/// A socket that programs connect to. Dropped, nobody answers there any more.
pub(super) struct Serving(JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Serving {
    /// To be called in a runtime.
    pub(super) fn begin(listener: UnixListener, connections: Receiver) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        Ok(Self(tokio::spawn(async move {
            // Those that talk end with whoever serves.
            let mut talking = JoinSet::new();
            loop {
                while talking.len() >= TALKING {
                    talking.join_next().await;
                }
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((program, _)) = accepted else { return };
                        let Some(agent) = connections.lock().await.recv().await else { return };
                        talking.spawn(relay(program, agent));
                    }
                    Some(_) = talking.join_next() => {}
                }
            }
        })))
    }
}

async fn relay(mut program: UnixStream, agent: AttachedStream) {
    let copied = async {
        let socket = std::os::unix::net::UnixStream::from(agent.descriptor);
        socket.set_nonblocking(true)?;
        let mut agent_end = UnixStream::from_std(socket)?;
        program.write_all(&agent.already_read).await?;
        tokio::io::copy_bidirectional(&mut program, &mut agent_end).await
    };
    if let Err(error) = copied.await {
        tracing::debug!(%error, "a program and an agent of a build");
    }
}

/// Where a client's connection for an agent is taken.
#[derive(Debug)]
pub struct AgentPlace(Sender);

impl AgentPlace {
    /// Waits until there is room for one more, and then has it wait for a program.
    pub async fn give(self, stream: AttachedStream) {
        // The build may have ended meanwhile.
        let _ = self.0.send(stream).await;
    }
}

impl Engine {
    /// The agent of a build that runs.
    pub fn agent_of_build(&self, token: &str, id: &str) -> Result<AgentPlace> {
        let found = locked(&self.0.agents.0).get(&(token.to_owned(), id.to_owned())).cloned();
        found
            .map(AgentPlace)
            .ok_or_else(|| Error::NotFound(format!("no build that runs has this word and an agent {id}")))
    }
}
