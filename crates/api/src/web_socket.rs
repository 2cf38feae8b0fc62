//! `GET /containers/{id}/attach/ws`: a container's streams as messages of a WebSocket.
//!
//! The container's side is one end of a pair of sockets on which the monitor speaks as on any other;
//! frames that name stdout or stderr are opened here, since messages carry bytes alone.

use std::os::fd::OwnedFd;

use axum::extract::ws::{Message, WebSocket};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::error::ApiError;
use crate::hijack::Framing;

/// The largest message that a client may send.
pub(crate) const MAX_MESSAGE: usize = 1 << 20;
/// The most that one message to the client carries.
const CHUNK: usize = 32 << 10;
/// What is in front of the bytes of a frame.
const HEADER: usize = 8;

/// How bytes travel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mode {
    /// On the container's side.
    pub(crate) framing: Framing,
    /// Messages of text: what versions before 1.28 had.
    pub(crate) text: bool,
}

/// Our end and the container's.
pub(crate) fn pair() -> Result<(UnixStream, OwnedFd), ApiError> {
    let fail = |error: std::io::Error| {
        let message = format!("make a pair of sockets for the streams: {error}");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    };
    let (ours, theirs) = UnixStream::pair().map_err(fail)?;
    Ok((ours, theirs.into_std().map_err(fail)?.into()))
}

/// Copies both ways until the container's output ends or the client goes; a failure is told as output.
pub(crate) async fn relay(socket: WebSocket, streams: UnixStream, mode: Mode, failure: Option<String>) {
    let (mut sink, source) = socket.split();
    if let Some(failure) = failure {
        // The client may have gone.
        let _ = sink.send(message(format!("{failure}\r\n").as_bytes(), mode)).await;
        let _ = sink.close().await;
        return;
    }
    let (output, input) = streams.into_split();
    let input = tokio::spawn(feed(source, input));
    if let Err(error) = show(output, &mut sink, mode).await {
        tracing::debug!(%error, "a WebSocket ended");
    }
    let _ = sink.close().await;
    input.abort();
}

/// The client's messages to the container; its close is the end of the input.
async fn feed(mut source: SplitStream<WebSocket>, mut input: OwnedWriteHalf) {
    while let Some(Ok(message)) = source.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => break,
        };
        if input.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // The container may have ended before its input did.
    let _ = input.shutdown().await;
}

async fn show(
    mut output: OwnedReadHalf,
    sink: &mut SplitSink<WebSocket, Message>,
    mode: Mode,
) -> Result<(), axum::Error> {
    let mut chunk = vec![0; CHUNK];
    let mut left = 0;
    loop {
        if mode.framing == Framing::Multiplexed && left == 0 {
            let mut header = [0; HEADER];
            if output.read_exact(&mut header).await.is_err() {
                return Ok(());
            }
            left = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
            continue;
        }
        let most = if mode.framing == Framing::Raw { CHUNK } else { left.min(CHUNK) };
        let count = match output.read(&mut chunk[..most]).await {
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => count,
        };
        left = left.saturating_sub(count);
        sink.send(message(&chunk[..count], mode)).await?;
    }
}

fn message(bytes: &[u8], mode: Mode) -> Message {
    if mode.text {
        Message::Text(String::from_utf8_lossy(bytes).into_owned().into())
    } else {
        Message::Binary(bytes.to_vec().into())
    }
}
