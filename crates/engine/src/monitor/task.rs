//! A monitor at work: calls from many sides over one connection, and its events.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use insula_proto::{Call, Outcome, Request, encode};
use rustix::net::{Shutdown, shutdown};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::Process;
use super::connection::{Connection, finish, gone, receive, send};
use super::silence::{Asked, Patience};
use crate::{Error, Result};

const ENDED: &str = "the monitor has ended";

/// A connection that is shared. When the last handle goes, so does the connection; the monitor stays.
#[derive(Debug)]
pub(crate) struct Task {
    shared: Arc<Shared>,
    /// One frame at a time.
    sending: tokio::sync::Mutex<()>,
    reading: AbortHandle,
    asked: Asked,
    heard: bool,
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
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The monitor has closed it.
    Closed,
    /// It did not answer, and the connection was closed here.
    GivenUp,
}

/// A call that is made. Dropped, nobody waits for it any more.
struct Calling<'a> {
    shared: &'a Shared,
    id: u64,
    /// In the middle of its frame: nothing else can be sent on this connection.
    sending: bool,
}

impl Task {
    /// Shares a connection to the monitor that is `asked`. Events come in order from the receiver, which closes when
    /// the monitor has ended, or was given up.
    pub(crate) fn new(connection: Connection, asked: Asked) -> (Self, mpsc::UnboundedReceiver<Outcome>) {
        let Connection { socket, mut reader, early } = connection;
        let waiting = Waiting { next: 2, calls: HashMap::new(), state: State::Open };
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
            reading.close(State::Closed);
        })
        .abort_handle();
        (Self { shared, sending: tokio::sync::Mutex::new(()), reading, asked, heard: true }, receiver)
    }

    /// In place of a connection to a monitor that has not answered this daemon yet: it is given up from the beginning.
    pub(crate) fn unheard(asked: Asked) -> Result<(Self, mpsc::UnboundedReceiver<Outcome>)> {
        let pair = net::UnixStream::pair();
        let (ours, theirs) = pair.map_err(|e| Error::io("socketpair", Path::new("a monitor's socket"), e))?;
        let (mut task, events) = Self::new(Connection::new(ours)?, asked);
        task.shared.close(State::GivenUp);
        task.heard = false;
        // Not before: nobody has closed it on us.
        drop(theirs);
        Ok((task, events))
    }

    /// Whether this daemon has ever heard of its monitor.
    pub(crate) fn heard(&self) -> bool {
        self.heard
    }

    /// Whose answers are waited for.
    pub(crate) fn monitor(&self) -> Option<Process> {
        self.asked.process()
    }

    /// Asks and waits, as long as is usual.
    pub(crate) async fn call(&self, call: Call, descriptors: &[OwnedFd]) -> Result<Outcome> {
        self.call_within(Patience::USUAL, call, descriptors).await
    }

    /// Asks and waits. A monitor that does not answer in time is given up, until it is connected to anew.
    pub(crate) async fn call_within(
        &self,
        patience: Patience,
        call: Call,
        descriptors: &[OwnedFd],
    ) -> Result<Outcome> {
        let answer = self.asked.within(patience, self.ask(call, descriptors)).await;
        answer.unwrap_or_else(|silent| {
            self.shared.close(State::GivenUp);
            Err(silent)
        })
    }

    async fn ask(&self, call: Call, descriptors: &[OwnedFd]) -> Result<Outcome> {
        let (answer, id) = {
            let mut waiting = self.shared.lock();
            if waiting.state != State::Open {
                drop(waiting);
                return Err(self.ended());
            }
            let id = waiting.next;
            waiting.next += 1;
            let (sender, receiver) = oneshot::channel();
            waiting.calls.insert(id, sender);
            (receiver, id)
        };
        let mut calling = Calling { shared: &self.shared, id, sending: false };
        {
            let _one = self.sending.lock().await;
            let frame = encode(&Request::new(id, call));
            calling.sending = true;
            let sent = send(&self.shared.socket, &frame, descriptors).await;
            calling.sending = false;
            sent.map_err(|error| self.given_up().unwrap_or(error))?;
        }
        finish(answer.await.map_err(|_| self.ended())?)
    }

    fn ended(&self) -> Error {
        self.given_up().unwrap_or_else(|| gone(ENDED))
    }

    fn given_up(&self) -> Option<Error> {
        (self.shared.lock().state == State::GivenUp).then(|| self.asked.silent())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        self.shared.lock().calls.remove(&self.id);
        if self.sending {
            self.shared.close(State::GivenUp);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is sent or heard any more; who waits is told.
    fn close(&self, state: State) {
        let mut waiting = self.lock();
        if waiting.state == State::Open {
            waiting.state = state;
        }
        waiting.calls.clear();
        drop(waiting);
        // The other side may have done so.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::Duration;

    use insula_base::{Kind, Kinded as _};
    use insula_proto::Empty;
    use rustix::process::{Pid, Signal, kill_process};
    use tokio::io::AsyncReadExt as _;

    use super::*;

    struct Stopped(Child);

    impl Stopped {
        fn new() -> Self {
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            kill_process(Pid::from_child(&child), Signal::STOP).unwrap();
            Self(child)
        }

        fn asked(&self) -> Asked {
            let pid = i32::try_from(self.0.id()).unwrap();
            Asked::new("box", Some(Process { pid, started: Process::start_time(pid).unwrap() }))
        }
    }

    impl Drop for Stopped {
        fn drop(&mut self) {
            let _ = self.0.kill().and_then(|()| self.0.wait());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_that_was_never_heard_of_is_given_up_from_the_beginning() {
        for _ in 0..1000 {
            let (task, mut events) = Task::unheard(Asked::new("box", None)).unwrap();
            assert!(events.recv().await.is_none());
            let error = task.call(Call::Status(Empty {}), &[]).await.unwrap_err();
            assert!(matches!(error, Error::Silent(_)), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_monitor_that_does_not_answer_is_given_up_and_told_so() {
        let stopped = Stopped::new();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (task, mut events) =
            Task::new(Connection::new(ours.into_std().unwrap()).unwrap(), stopped.asked());
        let call = |patience| task.call_within(patience, Call::Status(Empty {}), &[]);
        let short = Patience::before_killing(Duration::ZERO);
        // A patient one that waits beside it is told with it.
        let (first, second) = tokio::join!(call(short), call(Patience::of_user(None)));
        let pid = stopped.0.id();
        for silent in [first, second, call(Patience::of_user(None)).await] {
            let error = silent.unwrap_err();
            assert!(matches!(error, Error::Silent(_)) && error.kind() == Kind::Unavailable, "{error:?}");
            let said = error.to_string();
            assert!(said.contains(&format!("monitor of box does not answer (pid {pid}, state T)")), "{said}");
        }
        assert!(events.recv().await.is_none(), "whoever listens is to look what became of it");
        // Both calls, and an end behind them: nothing comes after.
        let mut sent = Vec::new();
        theirs.read_to_end(&mut sent).await.unwrap();
        assert_eq!(sent.len(), 2 * encode(&Request::new(2, Call::Status(Empty {}))).len());
    }
}
