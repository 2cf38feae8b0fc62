//! The daemon's orders, on a socket in a folder that only the daemon's user can enter.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use insula_spec::sites::{Hello, LARGEST_MESSAGE, Order, Reply, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::server::Shared;

/// Conversations at the same time: of one daemon, one that is about to be killed, and containers that wait for
/// the end of their requests.
const MOST: usize = 64;

/// Obeys until the end is ordered.
pub(crate) async fn obey(listener: UnixListener, shared: Arc<Shared>) -> io::Result<()> {
    let mut ending = shared.ending.subscribe();
    let mut conversations = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if conversations.len() < MOST => {
                let (stream, _) = accepted?;
                let shared = shared.clone();
                conversations.spawn(async move {
                    if let Err(error) = converse(stream, &shared).await
                        && error.kind() != io::ErrorKind::UnexpectedEof
                    {
                        tracing::warn!(%error, "the daemon's orders");
                    }
                });
            }
            Some(_) = conversations.join_next() => {}
            _ = ending.wait_for(|ending| *ending) => break,
        }
    }
    // Who ordered the end gets its answer.
    drop(listener);
    while conversations.join_next().await.is_some() {}
    Ok(())
}

async fn converse(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    let mut ending = shared.ending.subscribe();
    loop {
        let length = tokio::select! {
            length = stream.read_u32() => length? as usize,
            // Somebody else has ordered it.
            _ = ending.wait_for(|ending| *ending) => return Ok(()),
        };
        if length > LARGEST_MESSAGE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut message = vec![0; length];
        stream.read_exact(&mut message).await?;
        let reply = match serde_json::from_slice(&message) {
            Ok(Order::Hello) => Reply::Hello(Hello {
                version: VERSION,
                http: shared.http.clone(),
                https: shared.https.clone(),
            }),
            Ok(Order::Serve(table)) => Reply::Served { warnings: shared.replace(table) },
            Ok(Order::Drain { targets, within }) => {
                Reply::Drained { left: shared.drain(&targets, Duration::from_millis(within)).await }
            }
            Ok(Order::End) => {
                shared.end().await;
                Reply::Ended
            }
            Err(error) => Reply::Refused { why: error.to_string() },
        };
        let ended = reply == Reply::Ended;
        let text = serde_json::to_vec(&reply).map_err(io::Error::other)?;
        // An answer is far shorter.
        stream.write_u32(text.len() as u32).await?;
        stream.write_all(&text).await?;
        if ended {
            return Ok(());
        }
    }
}
