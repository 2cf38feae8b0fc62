//! One connection of a client, from its first byte to its last.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use insula_spec::sites::Speech;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use crate::identity::Identity;
use crate::server::{Client, Shared};
use crate::stream::ClientStream;
use crate::table::Site;
use crate::target::Use;
use crate::{hello, limits, request};

/// How HTTP/2 begins without TLS; no method of HTTP/1.1 is called so (RFC 9113, 3.4).
const PRIOR_KNOWLEDGE: &[u8] = b"PRI";
/// How often connections of HTTP/2 are looked after.
const LOOK: Duration = Duration::from_secs(5);

/// How a client came.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) client: Client,
    pub(crate) secure: bool,
    /// Of ours.
    pub(crate) port: u16,
}

/// What requests need to know of their connection.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) arrival: Arrival,
    /// Whose certificate the client has seen.
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) shared: Arc<Shared>,
    /// Requests under way, and when the last one ended.
    open: AtomicUsize,
    quiet: Mutex<Instant>,
}

impl Origin {
    fn new(arrival: Arrival, identity: Option<Arc<Identity>>, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            arrival,
            identity,
            shared,
            open: AtomicUsize::new(0),
            quiet: Mutex::new(Instant::now()),
        })
    }

    /// Whether there was no request for long.
    fn idle(&self) -> bool {
        let quiet = *self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        self.open.load(Ordering::Relaxed) == 0 && quiet.elapsed() > limits::IDLE
    }
}

/// A request under way.
struct Under<'a>(&'a Origin);

impl<'a> Under<'a> {
    fn new(origin: &'a Origin) -> Self {
        origin.open.fetch_add(1, Ordering::Relaxed);
        Self(origin)
    }
}

impl Drop for Under<'_> {
    fn drop(&mut self) {
        *self.0.quiet.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Clients err and go all the time: that is worth no more than a line for who looks for it.
pub(crate) async fn serve(stream: TcpStream, arrival: Arrival, shared: Arc<Shared>) {
    let client = arrival.client.address;
    let stream = ClientStream::new(stream);
    let served = match arrival.secure {
        true => secure(stream, arrival, shared).await,
        false => plain(stream, arrival, shared).await,
    };
    if let Err(error) = served {
        tracing::debug!(%client, %error, "a connection failed");
    }
}

async fn plain(mut stream: ClientStream<TcpStream>, arrival: Arrival, shared: Arc<Shared>) -> io::Result<()> {
    let mut begin = Vec::new();
    let read = async {
        while PRIOR_KNOWLEDGE.starts_with(&begin) && begin.len() < PRIOR_KNOWLEDGE.len() {
            let mut part = [0; PRIOR_KNOWLEDGE.len()];
            let room = PRIOR_KNOWLEDGE.len() - begin.len();
            let count = stream.read(&mut part[..room]).await?;
            if count == 0 {
                break;
            }
            begin.extend_from_slice(&part[..count]);
        }
        io::Result::Ok(())
    };
    timeout(limits::HEAD_TIME, read).await??;
    if begin.is_empty() {
        return Ok(());
    }
    let two = begin == PRIOR_KNOWLEDGE;
    let origin = Origin::new(arrival, None, shared);
    stream.unread(begin);
    speak(stream, two, origin).await
}

async fn secure(
    mut stream: ClientStream<TcpStream>,
    arrival: Arrival,
    shared: Arc<Shared>,
) -> io::Result<()> {
    let hello = timeout(limits::HEAD_TIME, hello::read(&mut stream)).await??;
    let table = shared.table();
    let site = hello.name.as_ref().and_then(|name| table.site(name));
    if let Some(site) = site.filter(|site| site.speech == Speech::Tls) {
        return pass_on(stream, &hello.bytes, &site, &shared).await;
    }
    let Some(identity) = hello.name.as_ref().and_then(|name| table.identity(name)) else {
        return stream.write_all(&hello::UNRECOGNIZED_NAME).await;
    };
    drop(table);
    let acceptor = TlsAcceptor::from(shared.tls.clone());
    stream.unread(hello.bytes);
    let stream = timeout(limits::HEAD_TIME, acceptor.accept(stream)).await??;
    let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    speak(stream, two, Origin::new(arrival, Some(identity), shared)).await
}

/// To a container that speaks TLS itself.
async fn pass_on(
    mut stream: ClientStream<TcpStream>,
    begin: &[u8],
    site: &Site,
    shared: &Shared,
) -> io::Result<()> {
    let mut tried = Vec::new();
    while let Some(chosen) = site.choose(&tried).map(Use::lasting) {
        match chosen.target.connect().await {
            Ok(mut there) => {
                there.write_all(begin).await?;
                let mut ending = shared.ending.subscribe();
                return tokio::select! {
                    copied = copy_bidirectional(&mut stream, &mut there) => copied.map(drop),
                    () = async {
                        let _ = ending.wait_for(|ending| *ending).await;
                        tokio::time::sleep(limits::DRAIN).await;
                    } => Ok(()),
                };
            }
            Err(error) => {
                tracing::debug!(target = %chosen.target.address, %error, "connect");
                tried.push(chosen.target.address);
            }
        }
    }
    Err(io::ErrorKind::HostUnreachable.into())
}

/// HTTP, either version.
async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    two: bool,
    origin: Arc<Origin>,
) -> io::Result<()> {
    let stream = TokioIo::new(stream);
    let asked = origin.clone();
    let service = service_fn(move |request| {
        let origin = asked.clone();
        async move {
            let _under = Under::new(&origin);
            Ok::<_, Infallible>(request::answer(request, &origin).await)
        }
    });
    let mut ending = origin.shared.ending.subscribe();
    if two {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).max_concurrent_streams(limits::STREAMS);
        builder.max_header_list_size(limits::HEAD as u32).max_send_buf_size(limits::HEAD);
        let mut connection = std::pin::pin!(builder.serve_connection(stream, service));
        let mut told = false;
        loop {
            tokio::select! {
                served = connection.as_mut() => return served.map_err(io::Error::other),
                _ = ending.wait_for(|ending| *ending), if !told => {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = tokio::time::sleep(LOOK) => if origin.idle() {
                    return Ok(());
                },
            }
        }
    }
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits::HEAD_TIME);
    builder.max_headers(limits::FIELDS).max_buf_size(limits::HEAD);
    let connection = builder.serve_connection(stream, service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        served = connection.as_mut() => return served.map_err(io::Error::other),
        _ = ending.wait_for(|ending| *ending) => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(io::Error::other)
}
