//! One connection to a monitor: frames with descriptors over a tokio socket.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net;
use std::path::Path;
use std::time::Duration;

use insula_base::Kind;
use insula_proto::{Call, FrameReader, Outcome, Reply, Request, encode};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::{Error, Result};

/// How long a monitor may take to accept a connection and to say where it stands.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection that nobody else uses yet.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) socket: UnixStream,
    pub(super) reader: FrameReader,
    /// Events that came before the reply that was waited for.
    pub(super) early: VecDeque<Outcome>,
}

impl Connection {
    /// Over a connected socket.
    pub(crate) fn new(socket: net::UnixStream) -> Result<Self> {
        let register = |socket: net::UnixStream| {
            socket.set_nonblocking(true)?;
            UnixStream::from_std(socket)
        };
        let socket =
            register(socket).map_err(|e| Error::io("register", Path::new("a monitor's socket"), e))?;
        Ok(Self { socket, reader: FrameReader::default(), early: VecDeque::new() })
    }

    /// To the monitor that listens at `path`, and how it stands.
    pub(crate) async fn open(path: &Path) -> Result<(Self, insula_proto::Status)> {
        let connect = async {
            let socket = dial(path).await.map_err(|e| Error::io("connect", path, e))?;
            let mut connection = Self { socket, reader: FrameReader::default(), early: VecDeque::new() };
            match connection.call(Call::Status(insula_proto::Empty {}), &[]).await? {
                Outcome::Status(status) => Ok((connection, status)),
                other => Err(unexpected(&other)),
            }
        };
        tokio::time::timeout(PATIENCE, connect)
            .await
            .unwrap_or_else(|_| Err(gone(&format!("the monitor at {} does not answer", path.display()))))
    }

    /// Asks and waits, with no task in between.
    pub(crate) async fn call(&mut self, call: Call, descriptors: &[OwnedFd]) -> Result<Outcome> {
        const ID: u64 = 1;
        let frame = encode(&Request::new(ID, call));
        send(&self.socket, &frame, descriptors).await?;
        loop {
            match receive(&self.socket, &mut self.reader).await? {
                Some(Reply { id: ID, outcome }) => return finish(outcome),
                Some(Reply { id: 0, outcome }) => self.early.extend(outcome),
                Some(_) => {}
                None => return Err(gone("the monitor ended before it answered")),
            }
        }
    }
}

/// Connects to a socket whose path may be longer than an address can be.
async fn dial(path: &Path) -> std::io::Result<UnixStream> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(Errno::INVAL.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    UnixStream::connect(insula_sys::socket::path_in(folder.as_fd(), name)).await
}

/// Makes a failure an error.
pub(super) fn finish(outcome: Option<Outcome>) -> Result<Outcome> {
    match outcome {
        Some(Outcome::Failed(failed)) => Err(Error::Wall {
            kind: failed.kind(),
            exit_code: Some(failed.exit_code).filter(|code| *code != 0),
            message: failed.message,
        }),
        Some(outcome) => Ok(outcome),
        None => {
            Err(Error::Internal("the monitor's answer is of a kind that this daemon does not know".into()))
        }
    }
}

pub(super) fn unexpected(outcome: &Outcome) -> Error {
    Error::Internal(format!("the monitor answered something else than was asked: {outcome:?}"))
}

pub(super) fn gone(message: &str) -> Error {
    Error::Wall { kind: Kind::Unavailable, message: message.to_owned(), exit_code: None }
}

/// Sends a frame, the descriptors with its first byte.
pub(super) async fn send(socket: &UnixStream, mut frame: &[u8], descriptors: &[OwnedFd]) -> Result<()> {
    let mut gift: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    while !frame.is_empty() {
        let sent = socket.try_io(Interest::WRITABLE, || {
            insula_sys::socket::send(socket.as_fd(), frame, &gift).map_err(Into::into)
        });
        match sent {
            Ok(count) => {
                frame = &frame[count..];
                gift.clear();
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                socket.writable().await.map_err(|_| gone("the monitor's socket is broken"))?;
            }
            Err(_) => return Err(gone("the monitor has ended")),
        }
    }
    Ok(())
}

/// The next reply; `None` when the monitor has closed the connection.
pub(super) async fn receive(socket: &UnixStream, reader: &mut FrameReader) -> Result<Option<Reply>> {
    loop {
        match reader.pop::<Reply>() {
            Ok(Some(reply)) => return Ok(Some(reply)),
            Ok(None) => {}
            Err(error) => {
                return Err(gone(&format!("the monitor sent nonsense: {}", insula_base::chain(&error))));
            }
        }
        match socket.try_io(Interest::READABLE, || fill(socket, reader)) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                socket.readable().await.map_err(|_| gone("the monitor's socket is broken"))?;
            }
            Err(error) if error.raw_os_error() == Some(Errno::CONNRESET.raw_os_error()) => return Ok(None),
            Err(error) => return Err(gone(&format!("receive from the monitor: {error}"))),
        }
    }
}

fn fill(socket: &UnixStream, reader: &mut FrameReader) -> std::io::Result<usize> {
    let mut buffer = [0; 4096];
    let (count, _unasked) = insula_sys::socket::receive(socket.as_fd(), &mut buffer)?;
    reader.push(&buffer[..count], []).map_err(std::io::Error::other)?;
    Ok(count)
}
