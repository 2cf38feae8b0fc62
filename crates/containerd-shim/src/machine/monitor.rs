//! A connection to a monitor: calls from many threads, answered in any order, and events to one place.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use insula_base::Kind;
use insula_host::process::Process;
use insula_proto::{Call, FrameReader, Outcome, Reply, Request, encode};

use crate::error::{Context, Error, Result};
use crate::lock;
use crate::runtime::program;

const PROGRAM: &str = "insula-monitor";
const PIECE: usize = 4096;

/// A monitor that runs.
#[derive(Debug)]
pub(super) struct Monitor {
    socket: UnixStream,
    waiting: Mutex<Waiting>,
    closed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    calls: HashMap<u64, Sender<Option<Outcome>>>,
    closed: bool,
}

/// What happens by itself; none is the end.
pub(super) type Events = Box<dyn FnMut(Option<Outcome>) + Send>;

/// Starts the program, in the network namespace of the calling thread; its standard input is returned.
pub(super) fn execute(verb: &str) -> Result<(UnixStream, Process)> {
    let (ours, theirs) = UnixStream::pair().context("socketpair", PROGRAM)?;
    let mut command = Command::new(program(PROGRAM)?);
    command.arg(verb).stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
    // Whoever reaps here reaps it, too.
    let child = command.spawn().context("execute", PROGRAM)?;
    let pid = child.id().cast_signed();
    Ok((ours, Process { pid, started: Process::start_time(pid).unwrap_or_default() }))
}

impl Monitor {
    /// A new one, without a container.
    pub(super) fn start(events: Events) -> Result<Arc<Self>> {
        Self::over(execute("serve")?.0, events)
    }

    /// The one that listens in a container's folder.
    pub(super) fn find(folder: &Path) -> std::io::Result<UnixStream> {
        let opened = std::fs::File::open(folder)?;
        UnixStream::connect(insula_sys::socket::path_in(opened.as_fd(), "task.sock"))
    }

    pub(super) fn over(socket: UnixStream, events: Events) -> Result<Arc<Self>> {
        let monitor = Arc::new(Self { socket, waiting: Mutex::default(), closed: Condvar::new() });
        let listening = Arc::clone(&monitor);
        let thread = std::thread::Builder::new().name("monitor".to_owned());
        thread.spawn(move || listening.listen(events)).context("clone", "a thread that listens")?;
        Ok(monitor)
    }

    fn listen(&self, mut events: Events) {
        let mut reader = FrameReader::default();
        let mut piece = [0; PIECE];
        // It sends no descriptors that nobody has asked for.
        while let Ok((count @ 1.., _)) = insula_sys::socket::receive(self.socket.as_fd(), &mut piece) {
            if reader.push(&piece[..count], []).is_err() {
                break;
            }
            while let Ok(Some(reply)) = reader.pop::<Reply>() {
                if reply.id == 0 {
                    events(reply.outcome);
                } else if let Some(call) = lock(&self.waiting).calls.remove(&reply.id) {
                    // Who asked may have given up.
                    let _ = call.send(reply.outcome);
                }
            }
        }
        let mut waiting = lock(&self.waiting);
        waiting.closed = true;
        waiting.calls.clear();
        drop(waiting);
        events(None);
        self.closed.notify_all();
    }

    /// Asks and waits.
    pub(super) fn call(&self, call: Call, descriptors: &[BorrowedFd<'_>]) -> Result<Outcome> {
        let (sender, receiver) = mpsc::channel();
        {
            // One frame at a time.
            let mut waiting = lock(&self.waiting);
            if waiting.closed {
                return Err(Error::Ended);
            }
            waiting.last += 1;
            let id = waiting.last;
            waiting.calls.insert(id, sender);
            let frame = encode(&Request::new(id, call));
            if insula_sys::socket::send_all(self.socket.as_fd(), &frame, descriptors).is_err() {
                waiting.calls.remove(&id);
                return Err(Error::Ended);
            }
        }
        match receiver.recv() {
            Ok(Some(Outcome::Failed(failed))) => {
                Err(Error::Wall { kind: failed.kind(), message: failed.message })
            }
            Ok(Some(outcome)) => Ok(outcome),
            Ok(None) => Err(Error::Wall {
                kind: Kind::Internal,
                message: "the monitor's answer is not to be understood".to_owned(),
            }),
            Err(_) => Err(Error::Ended),
        }
    }

    /// Waits until it has ended, which says that everything is free; whether it has.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let open = |waiting: &mut Waiting| !waiting.closed;
        let waited = self.closed.wait_timeout_while(lock(&self.waiting), patience, open);
        waited.map_or_else(|poisoned| poisoned.into_inner().0.closed, |(waiting, _)| waiting.closed)
    }
}
