//! Standard input, output and error of a container or an exec, between the terminal and the
//! hijacked connection. Two threads move bytes with blocking calls, so that neither direction
//! waits for the other; the event loop stays free for signals.

use std::io::Read;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use anyhow::Context as _;
use insula_base::thread;
use insula_client::{Demultiplexer, Hijacked, Source, StdcopyError};
use tokio::sync::oneshot;

use crate::failure::OutputError;
use crate::printer::{Sink, raw};
use crate::terminal::{DetachKeys, Keys};

/// What is connected.
#[derive(Debug, Clone)]
pub(crate) struct Wiring {
    /// Output is a terminal's: raw, not multiplexed.
    pub(crate) tty: bool,
    /// Standard input is sent.
    pub(crate) stdin: bool,
    /// Keys that end the connection, when a person types.
    pub(crate) detach: Option<DetachKeys>,
}

/// The running threads.
#[derive(Debug)]
pub(crate) struct Streams {
    output: oneshot::Receiver<anyhow::Result<()>>,
    detached: Option<oneshot::Receiver<()>>,
}

/// How a stream ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// No more output will come.
    Output,
    /// The user typed the detach keys.
    Detached,
}

/// Moves bytes until the output ends or the user leaves.
pub(crate) fn connect(hijacked: Hijacked, wiring: Wiring) -> anyhow::Result<Streams> {
    let Hijacked { stream, leftover, multiplexed } = hijacked;
    let raw_output = wiring.tty || multiplexed == Some(false);
    let mut detached = None;
    if wiring.stdin {
        let socket = stream.try_clone().context("copy the descriptor of the stream")?;
        let (sender, receiver) = oneshot::channel();
        detached = Some(receiver);
        let keys = wiring.detach;
        thread::spawn("input", move || {
            if send_input(&socket, keys) == InputEnd::Detached {
                // The event loop may have ended already.
                let _ = sender.send(());
            }
        })?;
    }
    let (sender, output) = oneshot::channel();
    thread::spawn("output", move || {
        let _ = sender.send(receive_output(stream, &leftover, raw_output));
    })?;
    Ok(Streams { output, detached })
}

impl Streams {
    /// Waits for the end; may be called again when it was cancelled.
    pub(crate) async fn end(&mut self) -> anyhow::Result<End> {
        tokio::select! {
            biased;
            output = &mut self.output => match output {
                Ok(result) => result.map(|()| End::Output),
                Err(_) => anyhow::bail!("the thread that shows the output has ended"),
            },
            () = detach(&mut self.detached) => Ok(End::Detached),
        }
    }
}

/// Ready when the keys were typed; never when input ends in another way.
async fn detach(detached: &mut Option<oneshot::Receiver<()>>) {
    if let Some(receiver) = detached
        && receiver.await.is_ok()
    {
        *detached = None;
        return;
    }
    *detached = None;
    std::future::pending().await
}

#[derive(Debug, PartialEq, Eq)]
enum InputEnd {
    Closed,
    Detached,
}

fn send_input(mut socket: &UnixStream, mut keys: Option<DetachKeys>) -> InputEnd {
    use std::io::Write;
    let stdin = std::io::stdin();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match rustix::io::read(stdin.as_fd(), &mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::AGAIN) => {
                let mut wait =
                    [rustix::event::PollFd::from_borrowed_fd(stdin.as_fd(), rustix::event::PollFlags::IN)];
                // Whatever it says, the next read tells what is the matter.
                let _ = rustix::event::poll(&mut wait, None);
                continue;
            }
            // A terminal that hung up, a closed descriptor: no more input.
            Err(_) => break,
        };
        let sent = match keys.as_mut().map(|keys| keys.feed(&buffer[..count])) {
            None => socket.write_all(&buffer[..count]),
            Some(Keys::Forward(bytes)) => socket.write_all(&bytes),
            Some(Keys::Detach(bytes)) => {
                let _ = socket.write_all(&bytes);
                return InputEnd::Detached;
            }
        };
        if sent.is_err() {
            // The process has ended or closed its input; what it still prints is read elsewhere.
            return InputEnd::Closed;
        }
    }
    // As above: a socket that is closed already has no input to end.
    let _ = socket.shutdown(Shutdown::Write);
    InputEnd::Closed
}

fn receive_output(mut stream: UnixStream, leftover: &[u8], raw_output: bool) -> anyhow::Result<()> {
    let mut show = Show::new(raw_output);
    show.feed(leftover)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => show.feed(&buffer[..count])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // The other side closed before it had read all input: the process has ended.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error).context("read the output of the container"),
        }
    }
}

/// Shows a stream of output, raw or multiplexed.
#[derive(Debug)]
pub(crate) struct Show(Option<Demultiplexer>);

#[derive(Debug, thiserror::Error)]
enum ShowError {
    #[error(transparent)]
    Stdcopy(#[from] StdcopyError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl Show {
    pub(crate) fn new(raw_output: bool) -> Self {
        Self((!raw_output).then(Demultiplexer::new))
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let Some(demultiplexer) = &mut self.0 else {
            return Ok(raw(Sink::Stdout, bytes)?);
        };
        let shown = demultiplexer.feed(bytes, |source, payload| match source {
            Source::Stdout => raw(Sink::Stdout, payload).map_err(ShowError::from),
            Source::Stderr => raw(Sink::Stderr, payload).map_err(ShowError::from),
        });
        shown.map_err(|error| match error {
            ShowError::Stdcopy(error) => error.into(),
            ShowError::Output(error) => error.into(),
        })
    }
}
