//! A container's address, with connections that wait for the next request.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::body::RequestBody;
use crate::limits;

pub(crate) type Sender = SendRequest<RequestBody>;

/// A connection of HTTP/2, which many requests share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) sender: http2::SendRequest<RequestBody>,
    /// When it was made, by which it is told from the next.
    since: Instant,
}

/// One container at one port.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// Requests and connections under way.
    open: AtomicUsize,
    /// Those of them that will be answered and then end.
    requests: watch::Sender<usize>,
    kept: Mutex<Vec<(Sender, Instant)>>,
    /// With the time of its last use. Locked while it is made, so that one is.
    shared: tokio::sync::Mutex<Option<(Shared, Instant)>>,
}

/// Counted for its target until it is dropped.
#[derive(Debug)]
pub(crate) struct Use {
    pub(crate) target: Arc<Target>,
    /// Whether it is a request, which ends with its answer.
    brief: bool,
}

impl Use {
    /// The same where nobody knows when it will end.
    pub(crate) fn lasting(mut self) -> Self {
        self.answered();
        self
    }

    fn answered(&mut self) {
        if std::mem::take(&mut self.brief) {
            self.target.requests.send_modify(|count| *count -= 1);
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.target.open.fetch_sub(1, Ordering::Relaxed);
        self.answered();
    }
}

impl Target {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            open: AtomicUsize::new(0),
            requests: watch::Sender::new(0),
            kept: Mutex::default(),
            shared: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub(crate) fn take(self: &Arc<Self>) -> Use {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.requests.send_modify(|count| *count += 1);
        Use { target: self.clone(), brief: true }
    }

    /// Requests under way.
    pub(crate) fn requests(&self) -> usize {
        *self.requests.borrow()
    }

    /// Returns when no request is under way.
    pub(crate) async fn rests(&self) {
        // It cannot fail: the sender is here.
        let _ = self.requests.subscribe().wait_for(|count| *count == 0).await;
    }

    /// A connection that was used before.
    pub(crate) fn kept(&self) -> Option<Sender> {
        let mut kept = self.lock();
        while let Some((sender, since)) = kept.pop() {
            if sender.is_ready() && since.elapsed() < limits::KEPT_TIME {
                return Some(sender);
            }
        }
        None
    }

    /// Keeps a connection for later.
    pub(crate) fn keep(&self, sender: Sender) {
        let mut kept = self.lock();
        if kept.len() < limits::KEPT {
            kept.push((sender, Instant::now()));
        }
    }

    /// Closes connections that nobody needed for long.
    pub(crate) fn tidy_up(&self) {
        self.lock().retain(|(sender, since)| !sender.is_closed() && since.elapsed() < limits::KEPT_TIME);
        // One that is in use at the moment is no idle one.
        if let Ok(mut shared) = self.shared.try_lock()
            && self.open() == 0
            && shared.as_ref().is_some_and(|(_, used)| used.elapsed() >= limits::KEPT_TIME)
        {
            *shared = None;
        }
    }

    /// The connection of HTTP/2, and whether it was made for this.
    pub(crate) async fn multiplexed(&self) -> io::Result<(Shared, bool)> {
        let mut shared = self.shared.lock().await;
        if let Some((found, used)) = shared.as_mut().filter(|(found, _)| !found.sender.is_closed()) {
            *used = Instant::now();
            return Ok((found.clone(), false));
        }
        let stream = TokioIo::new(self.connect().await?);
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).max_header_list_size(limits::HEAD as u32);
        builder.max_send_buf_size(limits::HEAD);
        let (sender, connection) = builder.handshake(stream).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let made = Shared { sender, since: Instant::now() };
        *shared = Some((made.clone(), made.since));
        Ok((made, true))
    }

    /// That connection does not serve any more.
    pub(crate) async fn forget(&self, failed: &Shared) {
        let mut shared = self.shared.lock().await;
        if shared.as_ref().is_some_and(|(known, _)| known.since == failed.since) {
            *shared = None;
        }
    }

    pub(crate) async fn connect(&self) -> io::Result<TcpStream> {
        let stream = tokio::time::timeout(limits::CONNECT, TcpStream::connect(self.address)).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A new connection of HTTP/1.1.
    pub(crate) async fn speak(&self) -> io::Result<Sender> {
        let stream = TokioIo::new(self.connect().await?);
        let mut builder = Builder::new();
        builder.max_headers(limits::FIELDS).max_buf_size(limits::HEAD * 2);
        let (sender, connection) = builder.handshake(stream).await.map_err(io::Error::other)?;
        // It ends with the sender; what goes wrong is said to who waits for an answer.
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Sender, Instant)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
