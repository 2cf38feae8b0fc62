//! Sockets between a machine and its host: one in the machine's folder, by which programs of the host reach those of
//! the guest, and connections for the guest to those that listen beside it.
//!
//! ```text
//! FOLDER/vsock      programs connect and say "CONNECT port"; the machine's process takes them
//! FOLDER/vsock_90   who listens there is port 90 of the guest's host, CID 2
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::{Error, Result};

const NAME: &str = "vsock";
/// Who has connected and was not taken yet.
const BACKLOG: i32 = 64;
/// Questions that are answered before something else has its turn.
const ROUND: usize = 64;

/// The host's side.
#[derive(Debug)]
pub(super) struct Sockets {
    folder: OwnedFd,
    path: PathBuf,
    broker: OwnedFd,
}

/// The machine's: see `insula_vmm_core::virtio::vsock`.
#[derive(Debug)]
pub(super) struct Inside {
    /// None in a template, which nobody connects to.
    pub(super) listener: Option<OwnedFd>,
    pub(super) broker: OwnedFd,
}

impl Inside {
    /// Of a machine that nobody connects to, and that reaches nobody.
    pub(super) fn alone() -> Result<Self> {
        brokers().map(|(_, broker)| Self { listener: None, broker })
    }
}

impl Sockets {
    /// Listens in a folder that only the machine's owner can enter.
    pub(super) fn open(folder: &Path) -> Result<(Self, Inside)> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(folder, flags, Mode::empty()).map_err(failed("open"))?;
        let (broker, inside) = brokers()?;
        let this = Self { folder: opened, path: folder.join(NAME), broker };
        this.remove();
        let listener = stream()?;
        // The socket's own mode is that of its file: unix(7).
        rustix::fs::fchmod(&listener, Mode::from_raw_mode(0o600)).map_err(failed("fchmod"))?;
        rustix::net::bind(&listener, &this.address(NAME)?).map_err(failed("bind"))?;
        rustix::net::listen(&listener, BACKLOG).map_err(failed("listen"))?;
        Ok((this, Inside { listener: Some(listener), broker: inside }))
    }

    /// Where programs of the host connect.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Readable when the guest wants a connection.
    pub(super) fn watched(&self) -> BorrowedFd<'_> {
        self.broker.as_fd()
    }

    /// Connects the guest to who it wants, or says that nobody is there. Nothing of this waits. False if its machine
    /// has closed its end.
    pub(super) fn serve(&self) -> Result<bool> {
        for _ in 0..ROUND {
            // One byte more than a question has, so that a longer message is none.
            let mut question = [0; 13];
            let length = match rustix::net::recv(&self.broker, &mut question, RecvFlags::DONTWAIT) {
                Ok((_, 0)) | Err(Errno::CONNRESET) => return Ok(false),
                Ok((_, length)) => length,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(true),
                Err(error) => return Err(failed("recv")(error)),
            };
            let (Some((number, port)), 12) = (question.split_first_chunk::<8>(), length) else {
                return Err(Error::Machine(format!("it asks for a socket with {length} bytes, not 12")));
            };
            self.answer(number, u32::from_le_bytes([port[0], port[1], port[2], port[3]]));
        }
        Ok(true)
    }

    fn answer(&self, number: &[u8; 8], port: u32) {
        let send = |connection: &[BorrowedFd<'_>]| {
            insula_sys::socket::send(self.broker.as_fd(), number, connection).is_ok()
        };
        let sent = self.connect(port).is_ok_and(|connection| send(&[connection.as_fd()]));
        if !sent {
            // Nobody is there, or too many descriptors are under way. A machine that takes no answer has none.
            send(&[]);
        }
    }

    fn connect(&self, port: u32) -> Result<OwnedFd> {
        let socket = stream()?;
        // Who has too many waiting already refuses at once.
        rustix::net::connect(&socket, &self.address(&format!("{NAME}_{port}"))?)
            .map_err(failed("connect"))?;
        Ok(socket)
    }

    fn address(&self, name: &str) -> Result<SocketAddrUnix> {
        SocketAddrUnix::new(insula_sys::socket::path_in(self.folder.as_fd(), name)).map_err(failed("bind"))
    }

    fn remove(&self) {
        // What is not there need not go, and what stays has nobody behind it.
        let _ = rustix::fs::unlinkat(&self.folder, NAME, AtFlags::empty());
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The ends of a stream of messages that do not wait.
fn brokers() -> Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(failed("socketpair"))
}

fn stream() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed("socket"))
}

fn failed(call: &'static str) -> impl Fn(Errno) -> Error {
    move |source| Error::call(call, "the sockets of a machine", source)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn ask(inside: &Inside, number: u64, port: u32) {
        let question = [&number.to_le_bytes()[..], &port.to_le_bytes()].concat();
        rustix::io::write(&inside.broker, &question).unwrap();
    }

    fn answer(inside: &Inside) -> (u64, Option<OwnedFd>) {
        let mut number = [0; 8];
        let (count, mut sockets) = insula_sys::socket::receive(inside.broker.as_fd(), &mut number).unwrap();
        assert!(count == 8 && sockets.len() < 2);
        (u64::from_le_bytes(number), sockets.pop())
    }

    #[test]
    fn a_guest_reaches_who_listens_beside_its_socket() {
        // A path that is too long for an address.
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("x".repeat(150));
        std::fs::create_dir(&folder).unwrap();
        let (sockets, inside) = Sockets::open(&folder).unwrap();
        assert_eq!(sockets.path(), folder.join("vsock"));
        let mode = std::fs::metadata(sockets.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let listener = stream().unwrap();
        rustix::net::bind(&listener, &sockets.address("vsock_90").unwrap()).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let listener = UnixListener::from(listener);
        ask(&inside, 7, 90);
        ask(&inside, 8, 91);
        assert!(sockets.serve().unwrap());
        let (number, connection) = answer(&inside);
        let mut guest = UnixStream::from(connection.unwrap());
        assert_eq!(number, 7);
        let (mut host, _) = listener.accept().unwrap();
        host.write_all(b"hello").unwrap();
        guest.read_exact(&mut [0; 5]).unwrap();
        let refused = answer(&inside);
        assert!(refused.0 == 8 && refused.1.is_none());
        // Not more than there is room for among those who wait.
        let connected = (0..10).filter(|number| {
            ask(&inside, *number, 90);
            sockets.serve().unwrap();
            answer(&inside).1.is_some()
        });
        assert!((1..5).contains(&connected.count()));
        drop(sockets);
        assert!(!folder.join("vsock").exists());
        // Another machine can have the folder, and one that was killed has left its socket.
        let (first, _inside) = Sockets::open(&folder).unwrap();
        std::mem::forget(first);
        Sockets::open(&folder).unwrap();
    }

    #[test]
    fn a_machine_that_speaks_otherwise_is_not_served() {
        let folder = tempfile::tempdir().unwrap();
        let (sockets, inside) = Sockets::open(folder.path()).unwrap();
        for wrong in [&b"half"[..], b"a byte too much".first_chunk::<13>().unwrap()] {
            rustix::io::write(&inside.broker, wrong).unwrap();
            assert!(sockets.serve().unwrap_err().to_string().contains("bytes, not 12"));
        }
        assert!(sockets.serve().unwrap());
        drop(inside);
        assert!(!sockets.serve().unwrap());
    }
}
