//! The standard streams of one process: containerd names pipes in the file system, the program gets pipes or a
//! terminal of its own, and threads copy between them.
//!
//! The shim holds both ends of what containerd names. So a client, or containerd itself, may go and come back:
//! the program sees no end of its input and no broken pipe, it waits.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as Given};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use insula_proto::Attachment;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::net::Shutdown;
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;

use crate::error::{Context, Error, Result};
use crate::lock;

/// How long the last output may take once the program has ended: whoever reads may be gone.
const LAST_OUTPUT: Duration = Duration::from_secs(10);
const BLOCK: usize = 32 * 1024;

/// What containerd asked for: paths, empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Who owns the pipes that the program gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Streams in use.
#[derive(Debug)]
pub(crate) struct Streams {
    /// Keeps the program's input from ending.
    keeper: Mutex<Option<OwnedFd>>,
    terminal: Mutex<Option<Arc<OwnedFd>>>,
    copies: Arc<Copies>,
}

#[derive(Debug, Default)]
struct Copies {
    output: Mutex<usize>,
    changed: Condvar,
}

impl Streams {
    /// For a program that has no terminal: gives `command` its streams and copies from now on.
    pub(crate) fn connect(stdio: &Stdio, owner: Owner, command: &mut Command) -> Result<Self> {
        let streams = Self::new();
        command.stdin(match stdio.stdin.as_str() {
            "" => Given::null(),
            path => {
                let (reader, writer) = pipe(owner)?;
                streams.feed(path, writer)?;
                reader.into()
            }
        });
        command.stdout(streams.output(&stdio.stdout, owner)?);
        command.stderr(streams.output(&stdio.stderr, owner)?);
        Ok(streams)
    }

    /// For a program with a terminal, of which `master` is the other side.
    pub(crate) fn terminal(stdio: &Stdio, master: OwnedFd) -> Result<Self> {
        let streams = Self::new();
        if !stdio.stdin.is_empty() {
            streams.feed(&stdio.stdin, copy_of(&master)?)?;
        }
        if let Some(sink) = Sink::open(&stdio.stdout)? {
            streams.copy(copy_of(&master)?, sink)?;
        }
        *lock(&streams.terminal) = Some(Arc::new(master));
        Ok(streams)
    }

    /// For a program in a machine: what a monitor is to connect it to, and how. Bytes come and go as they are, those
    /// of standard error by a socket of their own.
    pub(crate) fn sockets(stdio: &Stdio) -> Result<(Self, Vec<(Attachment, OwnedFd)>)> {
        let (streams, mut ends) = (Self::new(), Vec::new());
        let (stdin, stdout) = (!stdio.stdin.is_empty(), Sink::open(&stdio.stdout)?);
        if stdin || stdout.is_some() {
            let (ours, theirs) = UnixStream::pair().context("socketpair", "for a stream")?;
            let attachment = Attachment { stdin, stdout: stdout.is_some(), ..Attachment::default() };
            ends.push((attachment, OwnedFd::from(theirs)));
            if stdin {
                streams.feed(&stdio.stdin, ours.try_clone().context("dup", "a stream")?.into())?;
            }
            if let Some(sink) = stdout {
                streams.copy(ours.into(), sink)?;
            }
        }
        if let Some(sink) = Sink::open(&stdio.stderr)?.filter(|_| !stdio.terminal) {
            let (ours, theirs) = UnixStream::pair().context("socketpair", "for a stream")?;
            ends.push((Attachment { stderr: true, ..Attachment::default() }, theirs.into()));
            streams.copy(ours.into(), sink)?;
        }
        Ok((streams, ends))
    }

    fn new() -> Self {
        Self { keeper: Mutex::default(), terminal: Mutex::default(), copies: Arc::default() }
    }

    fn feed(&self, path: &str, to: OwnedFd) -> Result<()> {
        let from = open(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let keeper = open(path, OFlags::WRONLY | OFlags::NONBLOCK)?;
        rustix::fs::fcntl_setfl(&from, OFlags::empty()).context("fcntl", path)?;
        *lock(&self.keeper) = Some(keeper);
        spawn("stdin", move || {
            feed(&from, &to);
            // A socket has another direction, which keeps it open; a pipe is closed.
            let _ = rustix::net::shutdown(&to, Shutdown::Write);
        })
    }

    fn output(&self, place: &str, owner: Owner) -> Result<Given> {
        match Sink::open(place)? {
            None => Ok(Given::null()),
            Some(Sink { writer, reader: None }) => Ok(writer.into()),
            Some(sink) => {
                let (reader, writer) = pipe(owner)?;
                self.copy(reader, sink)?;
                Ok(writer.into())
            }
        }
    }

    fn copy(&self, from: OwnedFd, to: Sink) -> Result<()> {
        *lock(&self.copies.output) += 1;
        let copies = Arc::clone(&self.copies);
        let copying = spawn("output", move || {
            copy(&from, &to.writer);
            drop(to);
            copies.one_less();
        });
        if copying.is_err() {
            self.copies.one_less();
        }
        copying
    }

    /// The program's input ends with that of who writes it now.
    pub(crate) fn close_stdin(&self) {
        lock(&self.keeper).take();
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let Some(terminal) = lock(&self.terminal).clone() else {
            return Err(Error::Invalid("the process has no terminal".to_owned()));
        };
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&*terminal, size).context("ioctl", "TIOCSWINSZ")
    }

    /// The program has ended: waits for its last output.
    pub(crate) fn drain(&self) {
        self.close_stdin();
        let output = lock(&self.copies.output);
        let waited = self.copies.changed.wait_timeout_while(output, LAST_OUTPUT, |open| *open > 0);
        drop(waited);
        lock(&self.terminal).take();
    }
}

impl Copies {
    fn one_less(&self) {
        *lock(&self.output) -= 1;
        self.changed.notify_all();
    }
}

/// Where output goes.
struct Sink {
    writer: OwnedFd,
    /// The other end of a named pipe.
    reader: Option<OwnedFd>,
}

impl Sink {
    /// A named pipe, or `file:///path`, which the program gets itself. None where there is to be none.
    fn open(place: &str) -> Result<Option<Self>> {
        if place.is_empty() {
            return Ok(None);
        }
        if let Some(path) = place.strip_prefix("file://") {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
            let writer = rustix::fs::open(path, flags, Mode::from_raw_mode(0o640)).context("open", path)?;
            return Ok(Some(Self { writer, reader: None }));
        }
        if let Some((scheme, _)) = place.split_once("://") {
            return Err(Error::Unsupported(format!("output to {scheme}://")));
        }
        let reader = open(place, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let writer = open(place, OFlags::WRONLY)?;
        Ok(Some(Self { writer, reader: Some(reader) }))
    }
}

fn open(path: &str, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).context("open", path)
}

fn pipe(owner: Owner) -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("pipe2", "for a stream")?;
    if owner != Owner::default() {
        // Both ends are one inode.
        let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
        rustix::fs::fchown(&writer, Some(uid), Some(gid)).context("fchown", "the pipe of a stream")?;
    }
    Ok((reader, writer))
}

fn copy_of(descriptor: &OwnedFd) -> Result<OwnedFd> {
    descriptor.try_clone().context("dup", "a terminal")
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(work).map(drop).context("clone", "a thread that copies a stream")
}

/// Until either side is closed: the program need not read to its input's end, nor the client close it.
fn feed(from: &OwnedFd, to: &OwnedFd) {
    let mut block = vec![0; BLOCK];
    loop {
        let mut poll = [PollFd::new(from, PollFlags::IN), PollFd::new(to, PollFlags::empty())];
        if rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, None)).is_err() {
            return;
        }
        if !poll[1].revents().is_empty() {
            return;
        }
        match rustix::io::retry_on_intr(|| rustix::io::read(from, &mut block)) {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                if write_all(to, &block[..count]).is_err() {
                    return;
                }
            }
        }
    }
}

/// Until the end, which is an error for a terminal that nobody has open any more. By read(2) and write(2): while
/// splice(2) waits for a terminal it keeps everybody from reading the pipe that it writes to.
fn copy(from: &OwnedFd, to: &OwnedFd) {
    let mut block = vec![0; BLOCK];
    loop {
        match rustix::io::retry_on_intr(|| rustix::io::read(from, &mut block)) {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                if write_all(to, &block[..count]).is_err() {
                    return;
                }
            }
        }
    }
}

fn write_all(to: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(to, bytes))?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Where a new terminal is handed over.
#[derive(Debug)]
pub(crate) struct Console {
    listener: UnixListener,
    /// The folder stays open, so that the path is short, whatever the folder's own is: unix(7).
    path: PathBuf,
    _folder: File,
}

impl Console {
    pub(crate) fn listen(folder: &Path, name: &str) -> Result<Self> {
        let open = File::open(folder).context("open", folder.display())?;
        use std::os::fd::AsRawFd;
        let path = PathBuf::from(format!("/proc/{}/fd/{}/{name}", std::process::id(), open.as_raw_fd()));
        let listener = UnixListener::bind(&path).context("bind", path.display())?;
        listener.set_nonblocking(true).context("fcntl", path.display())?;
        Ok(Self { listener, path, _folder: open })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What was handed over before this is called.
    pub(crate) fn receive(&self) -> Result<OwnedFd> {
        let (stream, _): (UnixStream, _) = self.listener.accept().context("accept", "a terminal")?;
        let mut name = [0; 64];
        let (_, descriptors) =
            insula_sys::socket::receive(stream.as_fd(), &mut name).context("recvmsg", "a terminal")?;
        descriptors
            .into_iter()
            .next()
            .ok_or_else(|| Error::Invalid("the runtime sent no terminal".to_owned()))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // With the bundle, at the latest.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn fifo(folder: &Path, name: &str) -> String {
        let path = folder.join(name);
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        path.display().to_string()
    }

    #[test]
    fn a_program_reads_and_writes_what_containerd_names() {
        let folder = tempfile::tempdir().unwrap();
        let stdio = Stdio {
            stdin: fifo(folder.path(), "in"),
            stdout: fifo(folder.path(), "out"),
            stderr: format!("file://{}", folder.path().join("err").display()),
            terminal: false,
        };
        let mut command = Command::new("sh");
        command.args(["-c", "cat; echo last >&2"]);
        let streams = Streams::connect(&stdio, Owner::default(), &mut command).unwrap();
        let mut child = command.spawn().unwrap();
        drop(command);
        // A client that goes does not end the input, one that closes it does.
        for word in ["one ", "two"] {
            File::options().write(true).open(&stdio.stdin).unwrap().write_all(word.as_bytes()).unwrap();
        }
        let mut client = File::open(&stdio.stdout).unwrap();
        streams.close_stdin();
        assert!(child.wait().unwrap().success());
        streams.drain();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
        assert_eq!(std::fs::read_to_string(folder.path().join("err")).unwrap(), "last\n");
    }

    #[test]
    fn output_that_cannot_be_had_is_refused() {
        assert!(matches!(Sink::open("binary:///bin/log"), Err(Error::Unsupported(_))));
        assert!(matches!(Sink::open("/no/such/pipe"), Err(Error::Call { .. })));
        assert!(Sink::open("").unwrap().is_none());
    }
}
