//! Connections: HTTP/1.1 on a unix socket, one task each.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{HeaderValue, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use insula_engine::Engine;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::app::{self, Site};
use crate::authorization::{Authorization, Peer};
use crate::door::{Door, Entry, Seat};
use crate::error::ApiError;
use crate::plain::Look;
use crate::target::{After, Mending, Next};
use crate::{plain, routes};

/// What a request line and its headers may take.
const MAX_HEAD: usize = 64 << 10;
/// How long a client may take to send the first.
const FIRST_HEAD: Duration = Duration::from_secs(30);
/// How long a kept-alive connection may idle before its next one is complete.
const NEXT_HEAD: Duration = Duration::from_secs(300);
/// How long a client that is turned away may take to read why.
const REFUSAL: Duration = Duration::from_secs(5);
/// How long the handshake of TLS may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long requests under way may take once the daemon was asked to end.
const GRACE: Duration = Duration::from_secs(2);
/// A request that is not answered by then is watched for its client hanging up.
const PROMPT: Duration = Duration::from_millis(500);

/// How often a client that shut down its sending side is looked after.
const HALF_CLOSED_CHECK: Duration = Duration::from_secs(1);

/// The API of one engine, on any number of listeners.
#[derive(Debug, Clone)]
pub struct Server {
    site: Site,
    engine: Engine,
}

impl Server {
    /// Without authorization plugins.
    #[must_use]
    pub fn new(engine: Engine) -> Self {
        Self::guarded(engine, Authorization::default())
    }

    /// With plugins that are asked about each request.
    #[must_use]
    pub fn guarded(engine: Engine, authorization: Authorization) -> Self {
        let metrics = Arc::default();
        let router = routes::all(engine.clone(), Arc::clone(&metrics));
        Self { site: Site { router, authorization, metrics }, engine }
    }

    /// Serves who connects to a unix socket until `stop` becomes true.
    pub async fn serve(self, listener: UnixListener, stop: watch::Receiver<bool>) {
        accept(listener, self.site, stop).await;
    }

    /// Serves who connects over TCP and shows a certificate.
    pub async fn serve_tls(self, listener: TcpListener, tls: TlsAcceptor, stop: watch::Receiver<bool>) {
        accept(Tls { listener, tls }, self.site, stop).await;
    }

    /// Serves the metrics, and nothing else, to whoever connects over TCP.
    pub async fn serve_metrics(self, listener: TcpListener, stop: watch::Receiver<bool>) {
        let metrics = self.site.metrics;
        let router = routes::metrics_alone(self.engine, Arc::clone(&metrics));
        accept(Open(listener), Site { router, authorization: Authorization::default(), metrics }, stop).await;
    }
}

/// Where connections come from.
pub(crate) trait Listen {
    type Stream: Send + 'static;

    /// The next one.
    async fn next(&self) -> std::io::Result<Self::Stream>;

    /// Serves it to its end.
    fn talk(
        &self,
        stream: Self::Stream,
        site: Site,
        door: Arc<Door>,
        stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + 'static;
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> std::io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }

    fn talk(
        &self,
        stream: UnixStream,
        site: Site,
        door: Arc<Door>,
        stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + 'static {
        connection(stream, site, door.wait(), door, stop)
    }
}

/// Everyone may ask.
struct Open(TcpListener);

impl Listen for Open {
    type Stream = TcpStream;

    async fn next(&self) -> std::io::Result<TcpStream> {
        self.0.accept().await.map(|(stream, _)| stream)
    }

    fn talk(
        &self,
        stream: TcpStream,
        site: Site,
        door: Arc<Door>,
        stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + 'static {
        open_connection(stream, site, door.wait(), door, stop)
    }
}

struct Tls {
    listener: TcpListener,
    tls: TlsAcceptor,
}

impl Listen for Tls {
    type Stream = TcpStream;

    async fn next(&self) -> std::io::Result<TcpStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    fn talk(
        &self,
        stream: TcpStream,
        site: Site,
        door: Arc<Door>,
        stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + 'static {
        tls_connection(stream, self.tls.clone(), site, door.wait(), door, stop)
    }
}

/// Serves everyone who connects until `stop` changes; then lets requests under way end for a moment
/// and cuts what still streams. Workloads do not notice.
pub(crate) async fn accept(listener: impl Listen, site: Site, stop: watch::Receiver<bool>) {
    let mut ending = stop.clone();
    let mut connections = JoinSet::new();
    let door = Door::new();
    let mut failing = false;
    loop {
        tokio::select! {
            accepted = listener.next() => match accepted {
                Ok(stream) => {
                    failing = false;
                    connections.spawn(listener.talk(stream, site.clone(), door.clone(), stop.clone()));
                }
                Err(error) => {
                    // Out of descriptors, for one: those who are connected have to leave first.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "accept a connection: tried again until one is");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            () = ended(&mut ending) => break,
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, drained).await.is_err() {
        tracing::debug!(open = connections.len(), "closing connections that still stream");
    }
}

/// Returns once the daemon was asked to end, or nobody is left to ask it.
async fn ended(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A client from elsewhere. TLS is a layer in between: streams of containers are copied here.
async fn tls_connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    site: Site,
    mut seat: Seat,
    door: Arc<Door>,
    stop: watch::Receiver<bool>,
) {
    // Interactive: what is typed is to be sent.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "send at once");
    }
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HANDSHAKE, tls.accept(stream).into_fallible()) => shaken,
        () = seat.lost() => return tracing::debug!("others came before a client finished its handshake"),
    };
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, stream))) => {
            tracing::debug!(%error, "a client was refused");
            return tokio::select! {
                () = let_read(stream) => {}
                () = seat.lost() => {}
            };
        }
        Err(_) => return tracing::debug!("a client did not finish its handshake"),
    };
    drop(seat);
    let _served = match door.enter() {
        Entry::Served(permit) => permit,
        Entry::Refused(_told) => return refuse(stream).await,
        Entry::Closed => return,
    };
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = Peer { certificates: shown.iter().map(|certificate| certificate.to_vec()).collect() };
    converse(stream, site, peer, stop).await;
}

/// Has a client that was refused read why. With TLS 1.3 it has asked by then, and a connection that is closed with
/// something unread is reset, which overtakes what was said (RFC 9112, section 9.6).
async fn let_read(mut stream: TcpStream) {
    let read = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(MAX_HEAD as u64), &mut tokio::io::sink()).await
    };
    if !matches!(tokio::time::timeout(REFUSAL, read).await, Ok(Ok(_))) {
        tracing::debug!("a client that was refused did not read why");
    }
}

/// A client that asks for the metrics. It keeps its place in the hall for as long as it is here.
async fn open_connection(
    stream: TcpStream,
    site: Site,
    mut seat: Seat,
    door: Arc<Door>,
    stop: watch::Receiver<bool>,
) {
    let Entry::Served(_served) = door.enter() else { return };
    tokio::select! {
        () = converse(stream, site, Peer::default(), stop) => {}
        () = seat.lost() => tracing::debug!("others came for the metrics"),
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    site: Site,
    peer: Peer,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        app::answer(site.clone(), peer.clone(), request.map(Body::new))
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(NEXT_HEAD)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    tokio::select! {
        result = connection.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
            return;
        }
        () = ended(&mut stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection ended");
    }
}

/// Tells a client that has asked that nobody can serve it now.
async fn refuse(stream: impl AsyncRead + AsyncWrite + Unpin + Send) {
    let service = service_fn(async |_: hyper::Request<Incoming>| {
        let full = "as many clients are served as there are descriptors for: ask again when some have left";
        let mut response = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, full).into_response();
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        Ok::<_, Infallible>(response)
    });
    let told = http1::Builder::new()
        .half_close(true)
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tracing::warn!("a client was turned away: too many are served");
    if !matches!(tokio::time::timeout(REFUSAL, told).await, Ok(Ok(()))) {
        tracing::debug!("a client that was turned away did not read why");
    }
}

async fn connection(
    stream: UnixStream,
    site: Site,
    mut seat: Seat,
    door: Arc<Door>,
    mut stop: watch::Receiver<bool>,
) {
    let looked = tokio::select! {
        looked = tokio::time::timeout(FIRST_HEAD, plain::look(&stream)) => looked,
        // It may have asked just now.
        () = seat.lost() => Ok(plain::peek(&stream)),
        () = ended(&mut stop) => return,
    };
    let look = match looked {
        Ok(Ok(Look::Partial)) => {
            return tracing::debug!("a client left before it asked, or made room for others");
        }
        Ok(Ok(look)) => look,
        Ok(Err(error)) => return tracing::debug!(%error, "connection ended"),
        Err(_) => return tracing::debug!("a client did not say what it wants"),
    };
    drop(seat);
    let _served = match door.enter() {
        Entry::Served(permit) => permit,
        Entry::Refused(_told) => return refuse(stream).await,
        Entry::Closed => return,
    };
    if let Look::Takeover(head) = look {
        let answer = async |request| {
            app::answer(site, Peer::default(), request).await.unwrap_or_else(|never| match never {})
        };
        if let Err(error) = plain::serve(stream, head, answer).await {
            tracing::debug!(%error, "connection ended");
        }
        return;
    }
    serve_http(stream, site, stop).await;
}

async fn serve_http(stream: UnixStream, site: Site, mut stop: watch::Receiver<bool>) {
    let watched = match stream.as_fd().try_clone_to_owned() {
        Ok(descriptor) => descriptor,
        Err(error) => {
            tracing::warn!(%error, "duplicate a connection's descriptor");
            return;
        }
    };
    let (stream, next) = Mending::new(stream);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        next.is_here();
        // What is left of a body when it is answered must not be changed: its length has been said.
        let next = request.body().is_end_stream().then(|| next.clone());
        let answer = app::answer(site.clone(), Peer::default(), request.map(Body::new));
        async move { answer.await.map(|response| announcing(response, next)) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            // Clients that write a request and shut their side down (socat, nc -N) wait for the answer.
            .half_close(true)
            .timer(TokioTimer::new())
            .header_read_timeout(NEXT_HEAD)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let served = async {
        tokio::select! {
            result = connection.as_mut() => return result,
            () = ended(&mut stop) => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    match select(pin!(served), pin!(hung_up(watched))).await {
        Either::Left((Err(error), _)) => tracing::debug!(%error, "connection ended"),
        Either::Left((Ok(()), _)) => {}
        Either::Right(_) => tracing::trace!("client hung up"),
    }
}

/// An answer to a request without a body, with whose end the head of a request comes next, unless the connection is for
/// something else then.
fn announcing(response: Response, next: Option<Next>) -> Response {
    let Some(next) = next.filter(|_| response.status() != StatusCode::SWITCHING_PROTOCOLS) else {
        return response;
    };
    response.map(|body| Body::new(Announcing { body, _next: next.after() }))
}

/// With the end of which it is announced.
struct Announcing {
    body: Body,
    _next: After,
}

impl http_body::Body for Announcing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Returns when the client closed its whole side. With half-closing clients served, HTTP itself
/// does not look while an answer is awaited, and `wait` or `events` would be awaited for ever.
async fn hung_up(descriptor: OwnedFd) {
    tokio::time::sleep(PROMPT).await;
    let watched = match UnixStream::from_std(descriptor.into()) {
        Ok(watched) => watched,
        Err(error) => {
            tracing::warn!(%error, "watch a connection");
            return std::future::pending().await;
        }
    };
    loop {
        let Ok(ready) = watched.ready(Interest::READABLE).await else { return std::future::pending().await };
        if ready.is_read_closed() {
            if has_hung_up(&watched) {
                return;
            }
            // Half closed, which is final: the reactor has nothing more to report.
            tokio::time::sleep(HALF_CLOSED_CHECK).await;
            continue;
        }
        // What came is HTTP's to read. This only makes the next call wait for the next event.
        let _ = watched.try_io(Interest::READABLE, || Err::<(), _>(std::io::ErrorKind::WouldBlock.into()));
    }
}

/// unix(7) sockets report POLLHUP once both directions are closed, POLLRDHUP for one.
fn has_hung_up(socket: &UnixStream) -> bool {
    let mut set = [PollFd::new(socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut set, Some(&now)).is_ok() && set[0].revents().contains(PollFlags::HUP)
}
