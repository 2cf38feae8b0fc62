//! `attach` and `exec start`: the connection stops being HTTP and becomes the workload's streams.
//!
//! A client that asks to upgrade gets `101 UPGRADED` and then its socket itself, with what was read
//! ahead of time, goes to the workload's monitor. A client that does not gets an ordinary answer
//! whose body is the output; what it sends as the request's body is the input.

use std::future::Future;
use std::os::fd::OwnedFd;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use hyper::ext::ReasonPhrase;
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio_util::io::ReaderStream;

use crate::error::ApiError;
use crate::version::ApiVersion;

/// How the two outputs travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// A terminal's bytes as they are.
    Raw,
    /// Frames with a header of eight bytes that names stdout or stderr.
    Multiplexed,
}

impl Framing {
    /// What a workload with or without a terminal gives.
    pub(crate) fn of_tty(tty: bool) -> Self {
        if tty { Self::Raw } else { Self::Multiplexed }
    }

    /// The media type of the streams.
    pub(crate) fn content_type(self, version: ApiVersion) -> HeaderValue {
        HeaderValue::from_static(match self {
            // The second name came with 1.42.
            Self::Multiplexed if version >= ApiVersion::v1(42) => "application/vnd.docker.multiplexed-stream",
            Self::Raw | Self::Multiplexed => "application/vnd.docker.raw-stream",
        })
    }
}

/// A connection taken out of HTTP.
#[derive(Debug)]
pub(crate) struct Taken {
    /// The socket, non-blocking.
    pub(crate) descriptor: OwnedFd,
    /// What the client sent behind its request.
    pub(crate) already_read: Vec<u8>,
}

/// What is left of a request whose connection is to be taken over.
#[derive(Debug)]
pub(crate) struct Takeover {
    upgrade: Option<OnUpgrade>,
    body: Body,
}

impl Takeover {
    /// Of a request that asks to upgrade, or does not.
    pub(crate) fn of(mut request: Request) -> Self {
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        Self { upgrade, body: request.into_body() }
    }

    /// The answer that turns the connection over to `serve`, which runs once the client has been told.
    pub(crate) fn answer<F, S>(
        self,
        framing: Framing,
        version: ApiVersion,
        serve: S,
    ) -> Result<Response, ApiError>
    where
        F: Future<Output = ()> + Send + 'static,
        S: FnOnce(Taken) -> F + Send + 'static,
    {
        let mut response = match self.upgrade {
            Some(upgrade) => switch(upgrade, serve),
            None => relay(self.body, serve)?,
        };
        response.headers_mut().insert(header::CONTENT_TYPE, framing.content_type(version));
        Ok(response)
    }
}

fn switch<F, S>(upgrade: OnUpgrade, serve: S) -> Response
where
    F: Future<Output = ()> + Send + 'static,
    S: FnOnce(Taken) -> F + Send + 'static,
{
    tokio::spawn(async move {
        match upgrade.await.map_err(|error| error.to_string()).and_then(take) {
            Ok(taken) => serve(taken).await,
            Err(error) => tracing::debug!(error, "a connection was not taken over"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.extensions_mut().insert(ReasonPhrase::from_static(b"UPGRADED"));
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("tcp"));
    response
}

fn take(upgraded: Upgraded) -> Result<Taken, String> {
    let Parts { io, read_buf, .. } = upgraded
        .downcast::<TokioIo<UnixStream>>()
        .map_err(|_| "the connection is not a unix socket".to_owned())?;
    let stream =
        io.into_inner().into_std().map_err(|error| format!("take the socket from the reactor: {error}"))?;
    Ok(Taken { descriptor: stream.into(), already_read: read_buf.to_vec() })
}

/// Copies between an ordinary answer and a pair of sockets, one end of which is served.
fn relay<F, S>(body: Body, serve: S) -> Result<Response, ApiError>
where
    F: Future<Output = ()> + Send + 'static,
    S: FnOnce(Taken) -> F + Send + 'static,
{
    let fail = |error: std::io::Error| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("make a pair of sockets for the streams: {error}"),
        )
    };
    let (ours, theirs) = UnixStream::pair().map_err(fail)?;
    let descriptor = theirs.into_std().map_err(fail)?.into();
    let (output, input) = ours.into_split();
    tokio::spawn(serve(Taken { descriptor, already_read: Vec::new() }));
    tokio::spawn(feed(body, input));
    Ok(Response::new(Body::from_stream(ReaderStream::with_capacity(output, 32 << 10))))
}

/// Writes the request's body to the workload's input and ends it.
async fn feed(mut body: Body, mut input: OwnedWriteHalf) {
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        if input.write_all(&data).await.is_err() {
            return;
        }
    }
    // The workload may have ended before its input did.
    let _ = input.shutdown().await;
}

/// Tells a client about a failure after its connection was taken over.
pub(crate) async fn tell(descriptor: std::io::Result<OwnedFd>, framing: Framing, message: &str) {
    let stream = descriptor.map(std::os::unix::net::UnixStream::from).and_then(UnixStream::from_std);
    let told = match stream {
        Ok(mut stream) => stream.write_all(&failure(framing, message)).await,
        Err(error) => Err(error),
    };
    if let Err(error) = told {
        tracing::debug!(%error, message, "a client was not told of a failure");
    }
}

/// A message as standard error of the stream.
pub(crate) fn failure(framing: Framing, message: &str) -> Vec<u8> {
    let text = format!("{message}\r\n");
    match framing {
        Framing::Raw => text.into_bytes(),
        Framing::Multiplexed => {
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
            let mut frame = vec![2, 0, 0, 0];
            frame.extend_from_slice(&length.to_be_bytes());
            frame.extend_from_slice(text.as_bytes());
            frame
        }
    }
}
