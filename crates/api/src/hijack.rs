//! `attach` and `exec start`: the connection stops being HTTP and becomes the workload's streams.
//!
//! A client that asks to upgrade gets `101 UPGRADED` and then its socket itself, with what was read
//! ahead of time, goes to the workload's monitor. A client that does not is served the same way by
//! [`crate::plain`], with `200 OK`; where that cannot be, it gets an ordinary answer whose body is the
//! output, and what it sends as the request's body is the input.

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use hyper::ext::ReasonPhrase;
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::oneshot;
use tokio_util::io::ReaderStream;

use insula_models::ApiVersion;

use crate::error::ApiError;
use crate::plain::{Claimed, Promise};
use crate::target::Mending;

const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

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

    /// As [`Self::of_tty`], for a client that may ask for frames of a terminal's output too, by the media type
    /// in `Accept`: each record of a log is a frame then.
    pub(crate) fn asked_for(tty: bool, headers: &http::HeaderMap) -> Self {
        let accepts = headers.get(header::ACCEPT).is_some_and(|value| value == MULTIPLEXED);
        if accepts { Self::Multiplexed } else { Self::of_tty(tty) }
    }

    /// The media type of the streams.
    pub(crate) fn content_type(self, version: ApiVersion) -> HeaderValue {
        HeaderValue::from_static(match self {
            // The second name came with 1.42.
            Self::Multiplexed if version >= ApiVersion::v1(42) => MULTIPLEXED,
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

impl Taken {
    /// Waits until the client has read the head of the answer, for a moment at most. Some clients read it through a
    /// buffer that they then leave aside (docker-py does), and with it what came right behind.
    pub(crate) async fn head_is_read(&self) {
        const MOMENT: Duration = Duration::from_secs(1);
        let Ok(socket) = self.descriptor.try_clone() else { return };
        let Ok(socket) = UnixStream::from_std(socket.into()) else { return };
        let read =
            socket.async_io(Interest::WRITABLE, || match insula_sys::socket::unread(socket.as_fd())? {
                0 => Ok(()),
                // What is read makes room, which wakes who waits for it.
                _ => Err(std::io::ErrorKind::WouldBlock.into()),
            });
        // One that reads nothing, or cannot be asked, is served as it is.
        if let Ok(Err(error)) = tokio::time::timeout(MOMENT, read).await {
            tracing::debug!(%error, "whether a client has read the answer is not known");
        }
    }
}

/// What is left of a request whose connection is to be taken over.
#[derive(Debug)]
pub(crate) struct Takeover {
    upgrade: Option<OnUpgrade>,
    promise: Option<Promise>,
    body: Body,
}

impl Takeover {
    /// Of a request that asks to upgrade, or does not.
    pub(crate) fn of(mut request: Request) -> Self {
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        let promise = request.extensions_mut().remove::<Promise>();
        Self { upgrade, promise, body: request.into_body() }
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
        let promised = self.promise.and_then(|promise| promise.claim());
        let mut response = match (self.upgrade, promised) {
            (Some(upgrade), _) => switch(upgrade, serve),
            (None, Some(promised)) => give(promised, serve),
            (None, None) => relay(self.body, serve)?,
        };
        response.headers_mut().insert(header::CONTENT_TYPE, framing.content_type(version));
        Ok(response)
    }
}

impl Takeover {
    /// As [`Self::answer`] for who asks to upgrade, and for nobody else.
    pub(crate) fn upgraded<F, S>(self, serve: S) -> Result<Response, ApiError>
    where
        F: Future<Output = ()> + Send + 'static,
        S: FnOnce(Taken) -> F + Send + 'static,
    {
        let upgrade = self.upgrade;
        upgrade.map(|upgrade| switch(upgrade, serve)).ok_or_else(|| {
            ApiError::invalid("the request has to ask for an upgrade: what follows is a stream of its own")
        })
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

/// Serves the connection itself once the head of the answer is written.
fn give<F, S>(promised: oneshot::Receiver<Taken>, serve: S) -> Response
where
    F: Future<Output = ()> + Send + 'static,
    S: FnOnce(Taken) -> F + Send + 'static,
{
    tokio::spawn(async move {
        if let Ok(taken) = promised.await {
            serve(taken).await;
        }
    });
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(Claimed);
    response
}

fn take(upgraded: Upgraded) -> Result<Taken, String> {
    let Parts { io, read_buf, .. } = match upgraded.downcast::<TokioIo<Mending>>() {
        Ok(parts) => parts,
        Err(other) => return copied(other),
    };
    let (stream, unread) = io.into_inner().into_parts();
    let stream = stream.into_std().map_err(|error| format!("take the socket from the reactor: {error}"))?;
    let already_read = [read_buf.as_ref(), &unread].concat();
    Ok(Taken { descriptor: stream.into(), already_read })
}

/// A connection that is no plain socket (TLS): one end of a pair, copied to and from it.
fn copied(upgraded: Upgraded) -> Result<Taken, String> {
    let fail = |error: std::io::Error| format!("make a pair of sockets for the streams: {error}");
    let (mut ours, theirs) = UnixStream::pair().map_err(fail)?;
    let descriptor = theirs.into_std().map_err(fail)?.into();
    tokio::spawn(async move {
        let mut client = TokioIo::new(upgraded);
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut ours).await {
            tracing::debug!(%error, "a connection that was taken over ended");
        }
    });
    Ok(Taken { descriptor, already_read: Vec::new() })
}

/// Marks an answer that ends when it is at its end, whatever the client still sends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BothWays;

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
    let mut response = Response::new(Body::from_stream(ReaderStream::with_capacity(output, 32 << 10)));
    response.extensions_mut().insert(BothWays);
    Ok(response)
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

/// Tells a client about a failure after its connection was taken over, and that nothing comes behind it: others may
/// have the connection open yet.
pub(crate) async fn tell(descriptor: std::io::Result<OwnedFd>, framing: Framing, message: &str) {
    let stream = descriptor.map(std::os::unix::net::UnixStream::from).and_then(UnixStream::from_std);
    let told = match stream {
        Ok(mut stream) => match stream.write_all(&failure(framing, message)).await {
            Ok(()) => stream.shutdown().await,
            failed => failed,
        },
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::Duration;

    use axum::Router;
    use axum::routing::{get, post};
    use tokio::io::AsyncReadExt;
    use tokio::sync::{Notify, watch};

    use super::*;
    use crate::app::Site;
    use crate::authorization::Authorization;
    use crate::{listen, server};
    use std::task::Poll;

    /// Serves routes on a socket of its own until it is dropped.
    struct Fake {
        socket: PathBuf,
        _folder: tempfile::TempDir,
        _stop: watch::Sender<bool>,
    }

    fn serve(router: Router) -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let (stop, stopped) = watch::channel(false);
        let listener = listen::bind(&socket, listen::Group::Usual).unwrap();
        tokio::spawn(server::accept(
            listener,
            Site { router, authorization: Authorization::default(), metrics: Default::default() },
            stopped,
        ));
        Fake { socket, _folder: folder, _stop: stop }
    }

    /// Writes back in upper case what it reads, and `bye` at the end.
    async fn shout(taken: Taken) {
        let std = std::os::unix::net::UnixStream::from(taken.descriptor);
        let mut stream = UnixStream::from_std(std).unwrap();
        stream.write_all(&taken.already_read.to_ascii_uppercase()).await.unwrap();
        let mut bytes = [0; 100];
        loop {
            let count = stream.read(&mut bytes).await.unwrap();
            if count == 0 {
                break;
            }
            stream.write_all(&bytes[..count].to_ascii_uppercase()).await.unwrap();
        }
        stream.write_all(b"bye").await.unwrap();
    }

    fn shouting() -> Router {
        Router::new().route(
            "/containers/x/attach",
            post(async |request: Request| {
                Takeover::of(request).answer(Framing::Multiplexed, ApiVersion::MAX, shout)
            }),
        )
    }

    async fn read_until(stream: &mut UnixStream, end: &str) -> String {
        let mut bytes = Vec::new();
        while !bytes.ends_with(end.as_bytes()) {
            let mut byte = [0];
            let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut byte));
            assert_eq!(read.await.unwrap().unwrap(), 1, "{}", String::from_utf8_lossy(&bytes));
            bytes.push(byte[0]);
        }
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn a_client_reads_the_head_before_anything_comes_behind_it() {
        let (mut ours, mut client) = UnixStream::pair().unwrap();
        ours.write_all(b"head").await.unwrap();
        let taken = Taken { descriptor: ours.into_std().unwrap().into(), already_read: Vec::new() };
        let mut read = std::pin::pin!(taken.head_is_read());
        for count in [1, 3] {
            let poll = std::future::poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await;
            assert!(poll.is_pending());
            client.read_exact(&mut [0; 4][..count]).await.unwrap();
        }
        read.await;
        assert_eq!(insula_sys::socket::unread(taken.descriptor.as_fd()).unwrap(), 0);
    }

    #[tokio::test]
    async fn an_upgraded_connection_is_the_streams_themselves() {
        let fake = serve(shouting());
        let mut client = UnixStream::connect(&fake.socket).await.unwrap();
        // The input does not wait for the answer.
        let request = "POST /containers/x/attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nearly ";
        client.write_all(request.as_bytes()).await.unwrap();
        let head = read_until(&mut client, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101 UPGRADED\r\n"), "{head}");
        for header in
            ["content-type: application/vnd.docker.multiplexed-stream", "connection: Upgrade", "upgrade: tcp"]
        {
            assert!(head.contains(header), "{head}");
        }
        assert_eq!(read_until(&mut client, "EARLY ").await, "EARLY ");
        client.write_all(b"late").await.unwrap();
        assert_eq!(read_until(&mut client, "LATE").await, "LATE");
        // The input ends, the output goes on.
        client.shutdown().await.unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "bye");
    }

    #[tokio::test]
    async fn without_an_upgrade_the_connection_is_the_streams_all_the_same() {
        let fake = serve(shouting());
        let mut client = UnixStream::connect(&fake.socket).await.unwrap();
        client.write_all(b"POST /containers/x/attach HTTP/1.1\r\nHost: x\r\n\r\nearly ").await.unwrap();
        let head = read_until(&mut client, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("content-type: application/vnd.docker.multiplexed-stream"), "{head}");
        assert!(!head.contains("chunked") && !head.contains("content-length"), "{head}");
        assert_eq!(read_until(&mut client, "EARLY ").await, "EARLY ");
        client.write_all(b"late").await.unwrap();
        client.shutdown().await.unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "LATEbye");
    }

    #[tokio::test]
    async fn a_body_in_chunks_is_the_input() {
        let fake = serve(shouting());
        let mut client = UnixStream::connect(&fake.socket).await.unwrap();
        let head = "POST /containers/x/attach HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("HELLO") && answer.contains("bye"), "{answer}");
    }

    #[tokio::test]
    async fn a_wait_ends_when_its_client_hangs_up() {
        struct Dropped(Option<oneshot::Sender<()>>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                // Nobody may be listening any more.
                let _ = self.0.take().map(|sender| sender.send(()));
            }
        }
        let (sender, dropped) = oneshot::channel();
        let (guard, started) = (std::sync::Mutex::new(Some(Dropped(Some(sender)))), Arc::new(Notify::new()));
        let (guard, signal) = (Arc::new(guard), started.clone());
        let router = Router::new().route(
            "/wait",
            get(async move || {
                let _guard = guard.lock().unwrap().take();
                signal.notify_one();
                std::future::pending::<()>().await;
            }),
        );
        let fake = serve(router);
        let mut client = UnixStream::connect(&fake.socket).await.unwrap();
        client.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        started.notified().await;
        drop(client);
        tokio::time::timeout(Duration::from_secs(10), dropped).await.unwrap().unwrap();
    }

    #[test]
    fn failures_are_standard_error() {
        assert_eq!(failure(Framing::Raw, "no"), b"no\r\n");
        assert_eq!(failure(Framing::Multiplexed, "no"), b"\x02\0\0\0\0\0\0\x04no\r\n");
    }
}
