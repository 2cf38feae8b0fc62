//! Agents of a client: a command's connection becomes a call of the session's.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use insula_engine::build::AgentsGiven;
use insula_engine::{AttachedStream, Engine};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::messages::{BytesMessage, CheckAgentRequest, CheckAgentResponse};
use super::session::Session;

const CHECK: &str = "/moby.sshforward.v1.SSH/CheckAgent";
const FORWARD: &str = "/moby.sshforward.v1.SSH/ForwardAgent";
/// Which agent a call is for.
const ID: &str = "buildkit.ssh.id";
const PIECE: usize = 32 << 10;

/// Those of the ids that the client has, and a word for them.
pub(super) async fn offered(session: &Session, ids: BTreeSet<String>) -> AgentsGiven {
    let mut given = AgentsGiven { token: insula_base::random_hex(32), ids: BTreeSet::new() };
    for id in ids.into_iter().filter(|_| session.serves(CHECK)) {
        let question = CheckAgentRequest { id: id.clone() };
        match session.channel.ask::<CheckAgentResponse>(CHECK, &question).await {
            Ok(_) => drop(given.ids.insert(id)),
            Err(error) => tracing::debug!(id, %error, "a client has no such agent"),
        }
    }
    given
}

/// Keeps a connection waiting for each agent while the build runs.
pub(super) async fn serve(engine: Engine, session: Session, given: AgentsGiven) {
    let serving = given.ids.iter().map(|id| serve_one(&engine, &session, &given.token, id));
    futures_util::future::join_all(serving).await;
}

async fn serve_one(engine: &Engine, session: &Session, token: &str, id: &str) {
    // Gone with the build.
    while let Ok(place) = engine.agent_of_build(token, id) {
        let Ok((ours, theirs)) = UnixStream::pair() else { return };
        let Ok(theirs) = theirs.into_std() else { return };
        let descriptor = OwnedFd::from(theirs);
        tokio::spawn(forward(session.clone(), id.to_owned(), ours));
        // Until there is room for one more.
        place.give(AttachedStream { descriptor, already_read: Vec::new() }).await;
    }
}

/// A program's connection, from its first bytes on.
async fn forward(session: Session, id: String, mut program: UnixStream) {
    let mut bytes = vec![0; PIECE];
    let Ok(mut count @ 1..) = program.read(&mut bytes).await else { return };
    let Ok(mut call) = session.channel.call(FORWARD, &[(ID, id)]) else { return };
    loop {
        let message = BytesMessage { data: Bytes::copy_from_slice(&bytes[..count]) };
        if count > 0 && call.send(&message).await.is_err() {
            return;
        }
        count = tokio::select! {
            answer = call.next::<BytesMessage>() => match answer {
                Ok(Some(answer)) if program.write_all(&answer.data).await.is_ok() => 0,
                _ => return,
            },
            read = program.read(&mut bytes) => match read {
                Ok(count @ 1..) => count,
                _ => return,
            },
        };
    }
}
