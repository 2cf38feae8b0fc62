//! The loop: what is ready is served, one thing after the other.

mod requests;

use insula_sys::failpoint::failpoint;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use insula_proto::{ExecExited, Exited, Outcome, Phase, Status};
use insula_sandbox::{Event, Sandbox};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::clock;
use crate::connection::Connection;
use crate::error::{Context, Result};
use crate::log::Load;
use crate::poll::{Interest, Patience, Place, Poll, ProcessKey, Ready, Token};
use crate::record::{self, ExitRecord};
use crate::streams::ProcessStreams;

/// How long nothing has to happen before memory is given back.
const QUIET: Duration = Duration::from_secs(1);

/// A sandbox being served.
pub struct Monitor<S> {
    sandbox: S,
    poll: Poll,
    phase: Phase,
    pid: i32,
    started: i64,
    frozen: bool,
    oom: bool,
    exit: Option<Exited>,
    connections: Vec<Connection>,
    connected: u64,
    listener: Option<(OwnedFd, Token)>,
    folder: Option<PathBuf>,
    processes: Vec<Process>,
    next_key: ProcessKey,
    destroyed: bool,
    /// See [`Status::ended_execs`].
    ended_execs: VecDeque<ExecExited>,
    /// What its container had of the host's is given back.
    freed: bool,
}

/// A process with its streams; the first one has no exec id.
struct Process {
    key: ProcessKey,
    exec: Option<String>,
    running: bool,
    /// Whether later daemons are told how it ended.
    remembered: bool,
    streams: ProcessStreams,
}

impl<S: std::fmt::Debug> std::fmt::Debug for Monitor<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor")
            .field("sandbox", &self.sandbox)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl<S: Sandbox> Monitor<S> {
    /// A monitor that serves the daemon at the other end of `control`.
    pub fn new(sandbox: S, control: OwnedFd) -> Result<Self> {
        let mut poll = Poll::new()?;
        poll.add(sandbox.event_fd(), Interest::READ, Place::Sandbox)?;
        let first = Connection::new(&mut poll, 1, control)?;
        Ok(Self {
            sandbox,
            poll,
            phase: Phase::Empty,
            pid: 0,
            started: 0,
            frozen: false,
            oom: false,
            exit: None,
            connections: vec![first],
            connected: 1,
            listener: None,
            folder: None,
            processes: Vec::new(),
            next_key: 0,
            destroyed: false,
            ended_execs: VecDeque::new(),
            freed: false,
        })
    }

    /// Serves until there is nothing left to do.
    pub fn run(mut self) -> Result<()> {
        let (mut quiet, mut load) = (false, Load::Idle);
        while !self.done() {
            let work = self.work(load);
            if quiet && work.is_none() {
                self.trim();
            }
            let ready = self.poll.wait(match (self.phase, work, quiet) {
                // A spare is kept warm.
                (Phase::Empty, ..) => Patience::Ready,
                (_, Some(soon), _) => Patience::Some(soon),
                (_, None, true) => Patience::Endless,
                (_, None, false) => Patience::Some(QUIET),
            })?;
            quiet = ready.is_empty() && work.is_none();
            load = Load::Idle;
            for event in ready {
                // Something earlier in the batch may have removed it.
                let Some(place) = self.poll.place(event.token) else { continue };
                if matches!(place, Place::Output(_)) {
                    load = Load::Busy;
                }
                if let Err(error) = self.serve(place, event) {
                    // Nothing that goes wrong here is worth a container.
                    crate::report("serving", &error);
                }
            }
            self.sweep();
        }
        self.leave()
    }

    /// Does a piece of what is left to do without anyone asking; when to come back for more.
    fn work(&mut self, load: Load) -> Option<Duration> {
        let poll = &mut self.poll;
        let piece = |process: &mut Process| {
            process.streams.work(poll, load).unwrap_or_else(|error| {
                crate::report("working", &error);
                None
            })
        };
        self.processes.iter_mut().filter_map(piece).min()
    }

    fn serve(&mut self, place: Place, ready: Ready) -> Result<()> {
        match place {
            Place::Listener => self.accept(),
            Place::Sandbox => self.sandbox_events(),
            Place::Connection(number) => {
                self.serve_connection(number, ready);
                Ok(())
            }
            Place::Output(key) | Place::Input(key) | Place::Client(key) => {
                match self.processes.iter_mut().find(|process| process.key == key) {
                    Some(process) => process.streams.ready(&mut self.poll, place, ready),
                    None => Ok(()),
                }
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        let Some((listener, _)) = &self.listener else { return Ok(()) };
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => {
                self.connected += 1;
                self.connections.push(Connection::new(&mut self.poll, self.connected, socket)?);
                Ok(())
            }
            // Who called is gone again, or descriptors are short for a moment: neither ends a container.
            Err(_) => Ok(()),
        }
    }

    /// What fails here loses no event: no more may come that would wake anybody for it.
    fn sandbox_events(&mut self) -> Result<()> {
        let mut heard = Ok(());
        loop {
            match self.sandbox.next_event() {
                Ok(Some(Event::Oom)) => {
                    self.oom = true;
                    self.tell(&Outcome::Oom(insula_proto::Empty {}));
                }
                Ok(Some(Event::ExecExited { id, code })) => self.exec_exited(id, code),
                Ok(Some(Event::Exited { code, error })) => self.exited(code, error),
                Ok(None) => return heard,
                Err(error) if heard.is_ok() => heard = Err(error.into()),
                // It fails without end.
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn exec_exited(&mut self, id: String, code: i32) {
        let exited = ExecExited { exec: id, code };
        let ended = |process: &Process| process.exec.as_ref() == Some(&exited.exec);
        if self.processes.iter().any(|process| process.remembered && ended(process)) {
            self.ended_execs.truncate(Status::ENDED_EXECS - 1);
            self.ended_execs.push_front(exited.clone());
        }
        self.finish(ended);
        self.tell(&Outcome::ExecExited(exited));
    }

    /// Takes what is left of the output of processes that have ended.
    fn finish(&mut self, ended: impl Fn(&Process) -> bool) {
        for process in self.processes.iter_mut().filter(|process| ended(process)) {
            process.running = false;
            if let Err(error) = process.streams.finish(&mut self.poll) {
                crate::report("the last output", &error);
            }
        }
    }

    /// The container is over: output first, then the record is left, then it is told, then everything of the
    /// host's is freed. Nothing is answered in between: an answer, and the end of the connection too, says
    /// that all is freed.
    fn exited(&mut self, code: i32, error: String) {
        let at = clock::now();
        self.finish(|_| true);
        failpoint("monitor.exit.drained");
        let exited = Exited { code, oom: self.oom, at, error };
        if let Some(folder) = &self.folder
            && let Err(error) = record::write(folder, &ExitRecord::from(&exited))
        {
            crate::report("leaving the exit record", &error);
        }
        failpoint("monitor.exit.recorded");
        self.phase = Phase::Ended;
        self.exit = Some(exited.clone());
        self.tell(&Outcome::Exited(exited));
        failpoint("monitor.exit.told");
        match self.sandbox.destroy() {
            Ok(()) => self.freed = true,
            Err(error) => crate::report("freeing the container", &error),
        }
        failpoint("monitor.exit.freed");
    }

    fn tell(&mut self, outcome: &Outcome) {
        for connection in self.connections.iter_mut().filter(|connection| connection.listens) {
            connection.send(&mut self.poll, 0, outcome.clone());
        }
    }

    fn serve_connection(&mut self, number: u64, ready: Ready) {
        let Some(at) = self.connections.iter().position(|c| c.number == number) else { return };
        if ready.write {
            self.connections[at].flush(&mut self.poll);
        }
        if ready.gone {
            // Nobody waits for the answers: what was asked there and not yet done would surprise who asks next.
            self.connections[at].leave();
            return;
        }
        if !ready.read {
            return;
        }
        self.connections[at].receive();
        while let Some((request, descriptors)) = self.connections[at].next() {
            let outcome = self.answer(at, request.call, descriptors);
            self.connections[at].send(&mut self.poll, request.id, outcome);
        }
        // What the sandbox heard while it carried out a request wakes nobody any more.
        if let Err(error) = self.sandbox_events() {
            crate::report("serving", &error);
        }
    }

    /// Drops what has come to its end.
    fn sweep(&mut self) {
        self.processes.retain(|process| !process.streams.done());
        for at in (0..self.connections.len()).rev() {
            if self.connections[at].broken() {
                self.connections.remove(at).close(&mut self.poll);
            }
        }
    }

    fn done(&self) -> bool {
        let told = self.connections.iter().all(Connection::flushed);
        match self.phase {
            Phase::Empty => self.connections.is_empty() || (self.destroyed && told),
            Phase::Created | Phase::Running => false,
            Phase::Ended => told && self.processes.is_empty(),
        }
    }

    fn leave(mut self) -> Result<()> {
        if !self.destroyed && self.phase != Phase::Ended {
            self.sandbox.destroy()?;
        }
        let tidy = self.freed || self.phase != Phase::Ended;
        if let Some(folder) = self.folder.as_ref().filter(|_| tidy) {
            // The record stays; the daemon removes the folder when it has read it. A socket that nobody listens
            // to says that there is more to take away.
            let _ = std::fs::remove_file(folder.join(record::SOCKET));
        }
        Ok(())
    }

    fn trim(&mut self) {
        for process in &mut self.processes {
            process.streams.trim();
        }
        self.sandbox.trim();
        insula_sys::memory::trim_heap();
    }

    /// Listens for daemons to come.
    fn listen(&mut self, folder: PathBuf) -> Result<()> {
        let path = folder.join(record::SOCKET);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .context("socket", path.display())?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&folder, flags, Mode::empty()).context("open", folder.display())?;
        // The whole path, where it fits: /proc/net/unix shows it, even when the folder is gone.
        let short = || insula_sys::socket::path_in(opened.as_fd(), record::SOCKET);
        let address = SocketAddrUnix::new(&path).or_else(|_| SocketAddrUnix::new(short()));
        let address = address.context("bind", path.display())?;
        rustix::net::bind(&socket, &address).context("bind", path.display())?;
        rustix::net::listen(&socket, 16).context("listen", path.display())?;
        let token = self.poll.add(socket.as_fd(), Interest::READ, Place::Listener)?;
        self.listener = Some((socket, token));
        self.folder = Some(folder);
        Ok(())
    }
}
