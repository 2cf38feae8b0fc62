//! The program that carries what comes to published ports, as the daemon tells it. It outlives the daemon: what it is
//! found to serve is taken over.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use insula_spec::outlets::{LARGEST_MESSAGE, MOST_AT_ONCE, Order, Outlet, Reply, VERSION};

use super::error::{Context, Error};

const SOCKET: &str = "ports.sock";
/// All that it sees of the file system.
const EMPTY: &str = "empty";
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where it is, and the connection to it once there is one.
#[derive(Debug)]
pub(super) struct Carrier {
    program: PathBuf,
    folder: PathBuf,
    stream: Option<UnixStream>,
}

impl Carrier {
    pub(super) fn new(program: &Path, folder: &Path) -> Self {
        Self { program: program.to_owned(), folder: folder.to_owned(), stream: None }
    }

    /// What it serves; nothing if it does not run.
    pub(super) fn list(&mut self) -> Result<Vec<Outlet>, Error> {
        if !self.find() {
            return Ok(Vec::new());
        }
        match self.ask(&Order::List, &[]) {
            Ok(Reply::List { version: VERSION, outlets }) => Ok(outlets),
            // Another version's: its ports are bound anew for our own.
            Ok(_) => self.end().map(|()| Vec::new()),
            Err(_) => Ok(Vec::new()),
        }
    }

    /// Serves these too; the program is started if it does not run.
    pub(super) fn serve(&mut self, outlets: &[(Outlet, OwnedFd)]) -> Result<(), Error> {
        if !self.find() {
            self.start()?;
        }
        for some in outlets.chunks(MOST_AT_ONCE) {
            let sockets: Vec<_> = some.iter().map(|(_, socket)| socket.as_fd()).collect();
            let order = Order::Serve(some.iter().map(|(outlet, _)| *outlet).collect());
            done(self.ask(&order, &sockets)?)?;
        }
        Ok(())
    }

    /// Leads what is served elsewhere.
    pub(super) fn turn(&mut self, outlets: Vec<Outlet>) -> Result<(), Error> {
        if outlets.is_empty() || !self.find() {
            return Ok(());
        }
        done(self.ask(&Order::Turn(outlets), &[])?)
    }

    pub(super) fn stop(&mut self, outlets: Vec<Outlet>) -> Result<(), Error> {
        if outlets.is_empty() || !self.find() {
            return Ok(());
        }
        done(self.ask(&Order::Stop(outlets), &[])?)
    }

    pub(super) fn end(&mut self) -> Result<(), Error> {
        if self.find() {
            self.ask(&Order::End, &[])?;
            self.stream = None;
        }
        Ok(())
    }

    /// Whether there is one to speak to.
    fn find(&mut self) -> bool {
        if self.stream.as_ref().is_some_and(ended) {
            self.stream = None;
        }
        if self.stream.is_none() {
            let folder = std::fs::File::open(&self.folder).ok();
            let path = folder.as_ref().map(|folder| insula_sys::socket::path_in(folder.as_fd(), SOCKET));
            let stream = path.and_then(|path| UnixStream::connect(path).ok());
            let patient = |stream: &UnixStream| stream.set_read_timeout(Some(PATIENCE)).is_ok();
            self.stream = stream.filter(patient);
        }
        self.stream.is_some()
    }

    fn start(&mut self) -> Result<(), Error> {
        let program = &self.program;
        let (empty, socket) = (self.folder.join(EMPTY), self.folder.join(SOCKET));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&empty)
            .context("mkdir", empty.display())?;
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context("unlink", socket.display());
            }
            _ => {}
        }
        let folder = std::fs::File::open(&self.folder).context("open", self.folder.display())?;
        let listener = UnixListener::bind(insula_sys::socket::path_in(folder.as_fd(), SOCKET))
            .context("bind", socket.display())?;
        let mut child = Command::new(program)
            .arg("outlets")
            .arg(&empty)
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("execute (published ports of an ordinary user need it)", program.display())?;
        // It ends when it is told to, or with a daemon to come.
        std::thread::Builder::new()
            .name("ports".to_owned())
            .stack_size(64 << 10)
            .spawn(move || child.wait())
            .context("start", "a thread")?;
        if self.find() { Ok(()) } else { Err(gone()) }
    }

    fn ask(&mut self, order: &Order, sockets: &[BorrowedFd<'_>]) -> Result<Reply, Error> {
        let stream = self.stream.as_mut().ok_or_else(gone)?;
        let exchanged = exchange(stream, order, sockets);
        if exchanged.is_err() {
            self.stream = None;
        }
        exchanged.context("ask", "the program that carries ports")
    }
}

/// A peer that has gone has sent an end.
fn ended(stream: &UnixStream) -> bool {
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    rustix::net::recv(stream, &mut [0u8; 1][..], flags) != Err(rustix::io::Errno::AGAIN)
}

fn gone() -> Error {
    let source = io::ErrorKind::NotConnected.into();
    Error::Call { call: "ask", on: "the program that carries ports".to_owned(), source }
}

fn done(reply: Reply) -> Result<(), Error> {
    match reply {
        Reply::Done => Ok(()),
        Reply::Refused { why } => Err(Error::Program { program: "insula-proxy", said: why }),
        other => Err(Error::Program { program: "insula-proxy", said: format!("it answered {other:?}") }),
    }
}

fn exchange(stream: &mut UnixStream, order: &Order, sockets: &[BorrowedFd<'_>]) -> io::Result<Reply> {
    let text = serde_json::to_vec(order)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    let message = [&length.to_be_bytes()[..], &text].concat();
    insula_sys::socket::send_all(stream.as_fd(), &message, sockets)?;
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes(head) as usize;
    if length > LARGEST_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut reply = vec![0; length];
    stream.read_exact(&mut reply)?;
    Ok(serde_json::from_slice(&reply)?)
}
