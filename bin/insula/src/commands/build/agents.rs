//! `--ssh`: agents of this host that commands may ask.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use insula_client::{Client, Hijacked};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::printer;

/// An agent, and what the Dockerfile calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Agent {
    pub(super) id: String,
    socket: PathBuf,
}

/// `default` or `ID=SOCKET`.
pub(super) fn read(text: &str) -> anyhow::Result<Agent> {
    let (id, path) = match text.split_once('=') {
        Some((id, path)) => (id, Some(path)),
        None => (text, None),
    };
    if id.is_empty() {
        bail!("--ssh {text} has no id");
    }
    let socket = match path {
        Some(path) => PathBuf::from(path),
        None => std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from).with_context(|| {
            format!("invalid empty ssh agent socket for {id}: make sure SSH_AUTH_SOCK is set")
        })?,
    };
    // What is wrong with it is said before anything is sent.
    match std::os::unix::net::UnixStream::connect(&socket) {
        Ok(_) => Ok(Agent { id: id.to_owned(), socket }),
        Err(_) if socket.is_file() => bail!(
            "--ssh {text}: {} is no agent's socket: keys of files are not read in this version, add them to an \
             agent with ssh-add",
            socket.display()
        ),
        Err(error) => Err(error).with_context(|| format!("--ssh {text}: connect to {}", socket.display())),
    }
}

impl Agent {
    /// Serves commands of a build as long as it runs.
    pub(super) async fn serve(&self, client: &Client, token: &str) {
        // Without a build there are no more connections.
        while let Ok(connection) = client.build_agent(token, &self.id).await {
            let Ok(connection) = Waiting::new(connection) else { return };
            connection.asked().await;
            match UnixStream::connect(&self.socket).await {
                Ok(agent) => drop(tokio::spawn(connection.relay(agent))),
                // The command is told by the end of its connection.
                Err(error) => printer::notice(&format!("connect to {}: {error}", self.socket.display())),
            }
        }
    }
}

/// A connection on which nothing was asked yet.
struct Waiting {
    stream: UnixStream,
    already: Vec<u8>,
}

impl Waiting {
    fn new(hijacked: Hijacked) -> anyhow::Result<Self> {
        hijacked.stream.set_nonblocking(true)?;
        Ok(Self { stream: UnixStream::from_std(hijacked.stream)?, already: hijacked.leftover })
    }

    /// Waits for the first bytes, or the end.
    async fn asked(&self) {
        if self.already.is_empty() {
            let _ = self.stream.readable().await;
        }
    }

    async fn relay(mut self, mut agent: UnixStream) {
        // Who asked may go away at any time.
        if agent.write_all(&self.already).await.is_ok() {
            let _ = tokio::io::copy_bidirectional(&mut self.stream, &mut agent).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_sockets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let agent = read(&format!("git={}", path.display())).unwrap();
        assert_eq!(agent, Agent { id: "git".to_owned(), socket: path });
        let key = folder.path().join("key");
        std::fs::write(&key, "").unwrap();
        let why = read(&format!("default={}", key.display())).unwrap_err().to_string();
        assert!(why.contains("ssh-add"), "{why}");
        assert!(read(&format!("a={}/absent", folder.path().display())).is_err());
        assert!(read("=x").is_err());
    }
}
