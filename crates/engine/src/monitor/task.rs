//! A monitor at work: calls from many sides over one connection, and its events.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use insula_proto::{Call, Outcome, Request, encode};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::connection::{Connection, finish, gone, receive, send};
use crate::Result;

/// A connection that is shared. When the last handle goes, so does the connection; the monitor stays.
#[derive(Debug)]
pub(crate) struct Task {
    shared: Arc<Shared>,
    /// One frame at a time.
    sending: tokio::sync::Mutex<()>,
    reading: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    socket: UnixStream,
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    next: u64,
    calls: HashMap<u64, oneshot::Sender<Option<Outcome>>>,
    closed: bool,
}

impl Task {
    /// Shares a connection. Events come in order from the receiver, which closes when the monitor
    /// has ended.
    pub(crate) fn new(connection: Connection) -> (Self, mpsc::UnboundedReceiver<Outcome>) {
        let Connection { socket, mut reader, early } = connection;
        let waiting = Waiting { next: 2, calls: HashMap::new(), closed: false };
        let shared = Arc::new(Shared { socket, waiting: Mutex::new(waiting) });
        let (events, receiver) = mpsc::unbounded_channel();
        for event in early {
            let _ = events.send(event);
        }
        let reading = shared.clone();
        let reading = tokio::spawn(async move {
            while let Ok(Some(reply)) = receive(&reading.socket, &mut reader).await {
                if reply.id != 0 {
                    if let Some(call) = reading.lock().calls.remove(&reply.id) {
                        // Who asked may have gone away.
                        let _ = call.send(reply.outcome);
                    }
                } else if let Some(event) = reply.outcome {
                    let _ = events.send(event);
                }
            }
            let mut waiting = reading.lock();
            waiting.closed = true;
            waiting.calls.clear();
        })
        .abort_handle();
        (Self { shared, sending: tokio::sync::Mutex::new(()), reading }, receiver)
    }

    /// Asks and waits.
    pub(crate) async fn call(&self, call: Call, descriptors: &[OwnedFd]) -> Result<Outcome> {
        const ENDED: &str = "the monitor has ended";
        let (answer, id) = {
            let mut waiting = self.shared.lock();
            if waiting.closed {
                return Err(gone(ENDED));
            }
            let id = waiting.next;
            waiting.next += 1;
            let (sender, receiver) = oneshot::channel();
            waiting.calls.insert(id, sender);
            (receiver, id)
        };
        {
            let _one = self.sending.lock().await;
            let frame = encode(&Request::new(id, call));
            if let Err(error) = send(&self.shared.socket, &frame, descriptors).await {
                self.shared.lock().calls.remove(&id);
                return Err(error);
            }
        }
        finish(answer.await.map_err(|_| gone(ENDED))?)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
