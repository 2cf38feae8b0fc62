//! The standard streams of one process, and the clients that are attached to them.
//!
//! Nothing grows: output is read only while every client has taken what came before, and input only while
//! the process has. A client that reads slowly therefore slows the process down and gets every byte. One
//! that leaves a piece lying for [`PATIENCE`] is waited for no longer: it loses what comes until it reads
//! again, and is told. Only who started the process with its output in a pipe is waited for as any pipe's
//! reader is: it may be a pager. The log never holds the process up.

mod client;
mod input;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use insula_proto::Attachment;
use insula_sandbox::Streams;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{Context, Result};
use crate::log::{Load, Log, Stream};
use crate::poll::{Interest, Place, Poll, ProcessKey, Ready, Token};
use client::{Client, Taken};
use input::Input;

/// Bytes read at once: half of a pipe.
const PIECE: usize = 32 << 10;

/// How long a client may take for a piece of output before the process goes on without it. At least 3 KiB
/// a second have to be read, then; sockets hold some hundred KiB more.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is at most taken of a process' output after its end: what a pipe holds that was made as large as
/// users may make it, pipe(7).
const LARGEST_REST: usize = 1 << 20;

/// The streams of a process, from its start to the moment when every client has got everything.
#[derive(Debug)]
pub(crate) struct ProcessStreams {
    key: ProcessKey,
    outputs: Vec<Output>,
    input: Input,
    clients: Vec<Client>,
    log: Option<Log>,
    terminal: bool,
    /// The process has ended.
    ended: bool,
    patience: Duration,
}

#[derive(Debug)]
struct Output {
    pipe: OwnedFd,
    stream: Stream,
    /// Absent while nobody may read.
    token: Option<Token>,
}

impl ProcessStreams {
    /// Takes the ends over and begins to read. `closes` says whether the end of a client's input ends that
    /// of the process.
    pub(crate) fn new(
        poll: &mut Poll,
        key: ProcessKey,
        streams: Streams,
        log: Option<Log>,
        closes: bool,
    ) -> Result<Self> {
        let mut this = Self {
            key,
            outputs: Vec::new(),
            input: Input::new(key, closes),
            clients: Vec::new(),
            log,
            terminal: matches!(streams, Streams::Terminal(_)),
            ended: false,
            patience: PATIENCE,
        };
        match streams {
            Streams::Terminal(master) => {
                let input = rustix::io::fcntl_dupfd_cloexec(&master, 3).context("fcntl", "a terminal")?;
                nonblocking(&master)?;
                this.input.open(input);
                this.outputs.push(Output { pipe: master, stream: Stream::Stdout, token: None });
            }
            // Of bundles, which no monitor builds.
            Streams::Inherited => {}
            Streams::Pipes { stdin, stdout, stderr } => {
                if let Some(stdin) = stdin {
                    nonblocking(&stdin)?;
                    this.input.open(stdin);
                }
                for (pipe, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
                    nonblocking(&pipe)?;
                    this.outputs.push(Output { pipe, stream, token: None });
                }
            }
        }
        this.pace(poll)?;
        Ok(this)
    }

    /// Adds a client; `starts` says whether it is the one that starts the process.
    pub(crate) fn attach(
        &mut self,
        poll: &mut Poll,
        socket: OwnedFd,
        attachment: Attachment,
        starts: bool,
    ) -> Result<()> {
        nonblocking(&socket)?;
        let (mut client, first) = Client::new(poll, self.key, socket, attachment, self.terminal)?;
        client.is_pipe = starts && !self.terminal;
        self.clients.push(client);
        if !first.is_empty() {
            let at = self.clients.len() - 1;
            self.feed(poll, at, &first)?;
        }
        self.pace(poll)
    }

    /// Serves one of its descriptors.
    pub(crate) fn ready(&mut self, poll: &mut Poll, place: Place, ready: Ready) -> Result<()> {
        match place {
            Place::Output(_) => self.read_output(poll, ready.token)?,
            Place::Input(_) => self.input.flush(poll)?,
            Place::Client(_) => self.serve_client(poll, ready)?,
            Place::Listener | Place::Sandbox | Place::Connection(_) => {}
        }
        self.pace(poll)
    }

    /// The process has ended: takes what is left in the pipes, completes the log. Clients keep
    /// what they have not got yet, at most what the pipes held.
    pub(crate) fn finish(&mut self, poll: &mut Poll) -> Result<()> {
        for mut output in std::mem::take(&mut self.outputs) {
            if let Some(token) = output.token.take() {
                poll.remove(&output.pipe, token)?;
            }
            // Who inherited the pipe may go on writing as fast as it is read here.
            let mut left = LARGEST_REST;
            while let Some(piece) = read(&output.pipe).filter(|piece| left > 0 && !piece.is_empty()) {
                left = left.saturating_sub(piece.len());
                self.distribute(output.stream, &piece);
            }
        }
        self.input.close(poll)?;
        if let Some(log) = &mut self.log {
            log.finish();
        }
        self.ended = true;
        self.pace(poll)
    }

    /// Whether the process has ended and every client has got everything.
    pub(crate) fn done(&self) -> bool {
        self.ended && self.clients.is_empty()
    }

    /// Gives back memory that a burst needed.
    pub(crate) fn trim(&mut self) {
        if let Some(log) = &mut self.log {
            log.trim();
        }
    }

    /// Does a piece of what the log has left to do, and goes on without clients that were waited for long
    /// enough; when to come back, if ever.
    pub(crate) fn work(&mut self, poll: &mut Poll, load: Load) -> Result<Option<Duration>> {
        let log = self.log.as_mut().and_then(|log| log.work(load));
        Ok(log.into_iter().chain(self.wait_for_clients(poll)?).min())
    }

    /// How long the process still waits for its clients. After its end nothing waits for them.
    fn wait_for_clients(&mut self, poll: &mut Poll) -> Result<Option<Duration>> {
        if self.ended {
            return Ok(None);
        }
        let patience = self.patience;
        let waits = |client: &Client| client.patience(patience);
        let mut late = false;
        for client in self.clients.iter_mut().filter(|client| waits(client) == Some(Duration::ZERO)) {
            client.overdue();
            late = true;
        }
        if late {
            self.pace(poll)?;
        }
        Ok(self.clients.iter().filter_map(waits).min())
    }

    fn read_output(&mut self, poll: &mut Poll, token: Token) -> Result<()> {
        let Some(at) = self.outputs.iter().position(|output| output.token == Some(token)) else {
            return Ok(());
        };
        match read(&self.outputs[at].pipe) {
            // Nothing yet; the event was for an earlier piece.
            Some(piece) if piece.is_empty() => Ok(()),
            Some(piece) => {
                let stream = self.outputs[at].stream;
                self.distribute(stream, &piece);
                Ok(())
            }
            None => {
                let output = self.outputs.remove(at);
                poll.remove(&output.pipe, token)
            }
        }
    }

    fn distribute(&mut self, stream: Stream, piece: &[u8]) {
        if let Some(log) = &mut self.log {
            log.take(stream, piece);
        }
        for client in &mut self.clients {
            client.output(stream, piece);
        }
    }

    fn serve_client(&mut self, poll: &mut Poll, ready: Ready) -> Result<()> {
        let Some(at) = self.clients.iter().position(|client| client.token() == ready.token) else {
            return Ok(());
        };
        if ready.write {
            self.clients[at].flush();
        }
        if ready.read && self.clients[at].reads() {
            return match self.clients[at].take() {
                Taken::Input(bytes) => self.feed(poll, at, &bytes),
                Taken::End => self.input.client_ended(poll),
                Taken::Nothing => Ok(()),
            };
        }
        if ready.gone {
            self.clients[at].leave();
            return self.input.client_ended(poll);
        }
        Ok(())
    }

    fn feed(&mut self, poll: &mut Poll, client: usize, bytes: &[u8]) -> Result<()> {
        let (input, detached) = self.clients[client].filter(bytes);
        self.input.write(poll, &input)?;
        if detached {
            self.clients[client].leave();
        }
        Ok(())
    }

    /// Lets flow what may flow: called after every change.
    fn pace(&mut self, poll: &mut Poll) -> Result<()> {
        for client in &mut self.clients {
            client.settle(poll, self.ended, self.input.hungry())?;
        }
        if self.clients.iter().any(Client::took_input_along) {
            self.input.client_ended(poll)?;
        }
        self.clients.retain(|client| !client.left());
        let free = !self.clients.iter().any(Client::holds_up);
        for output in &mut self.outputs {
            match (free, output.token) {
                (true, None) => {
                    output.token = Some(poll.add(&output.pipe, Interest::READ, Place::Output(self.key))?);
                }
                // Not merely uninterested: the end of a pipe is told whether asked for or not.
                (false, Some(token)) => {
                    poll.remove(&output.pipe, token)?;
                    output.token = None;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A piece of output; empty when there is none now, none at the end.
fn read(pipe: &OwnedFd) -> Option<Vec<u8>> {
    let mut piece = Vec::with_capacity(PIECE);
    match rustix::io::retry_on_intr(|| rustix::io::read(pipe, rustix::buffer::spare_capacity(&mut piece))) {
        Ok(1..) => Some(piece),
        Err(Errno::AGAIN) => Some(Vec::new()),
        // The end; EIO is that of a terminal whose last user is gone, tty_ioctl(4), and what cannot be
        // read for another reason will not come either.
        Ok(0) | Err(_) => None,
    }
}

fn nonblocking(descriptor: impl AsFd) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(&descriptor).context("fcntl F_GETFL", "a stream")?;
    rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK).context("fcntl F_SETFL", "a stream")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// What a process writes while its client does not read; the client's end, and what it is to get.
    fn stalled(terminal: bool, starts: bool) -> (Poll, ProcessStreams, std::io::PipeWriter, UnixStream) {
        let mut poll = Poll::new().unwrap();
        let (stdout, writer) = std::io::pipe().unwrap();
        let (stderr, _) = std::io::pipe().unwrap();
        let pipes = Streams::Pipes { stdin: None, stdout: stdout.into(), stderr: stderr.into() };
        let mut streams = ProcessStreams::new(&mut poll, 0, pipes, None, false).unwrap();
        streams.terminal = terminal;
        streams.patience = Duration::ZERO;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let attachment =
            Attachment { stdout: true, stderr: true, multiplexed: true, ..Attachment::default() };
        streams.attach(&mut poll, ours.into(), attachment, starts).unwrap();
        (poll, streams, writer, theirs)
    }

    /// Serves what is ready; how often the process would have had to wait.
    fn serve(poll: &mut Poll, streams: &mut ProcessStreams) -> usize {
        let mut waits = 0;
        for ready in poll.wait(crate::poll::Patience::Some(Duration::ZERO)).unwrap() {
            if let Some(place) = poll.place(ready.token) {
                streams.ready(poll, place, ready).unwrap();
            }
        }
        waits += usize::from(streams.clients.iter().any(Client::holds_up));
        streams.work(poll, Load::Idle).unwrap();
        waits
    }

    /// Writes until the client has lost something; what was written.
    fn write_past(poll: &mut Poll, streams: &mut ProcessStreams, writer: &mut std::io::PipeWriter) -> usize {
        let (mut written, mut waits) = (0, 0);
        for _ in 0..1000 {
            writer.write_all(&[b'x'; 4096]).unwrap();
            written += 4096;
            waits += serve(poll, streams);
        }
        assert_eq!(waits, 1, "waited for once, then no more");
        written
    }

    fn read_all(mut client: UnixStream) -> std::thread::JoinHandle<Vec<u8>> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).unwrap();
            bytes
        })
    }

    #[test]
    fn a_client_that_never_reads_is_left_behind_and_told() {
        let (mut poll, mut streams, mut writer, client) = stalled(false, false);
        let written = write_past(&mut poll, &mut streams, &mut writer);
        let reader = read_all(client);
        while !streams.clients.is_empty() {
            serve(&mut poll, &mut streams);
        }
        let bytes = reader.join().unwrap();
        let (mut got, mut rest, mut word) = (0, bytes.as_slice(), String::new());
        while let [stream, 0, 0, 0, a, b, c, d, body @ ..] = rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            match stream {
                1 => got += length,
                _ => word = String::from_utf8(body[..length].to_vec()).unwrap(),
            }
            rest = &body[length..];
        }
        assert!(rest.is_empty(), "whole frames");
        let lost = format!("{} bytes of output are lost", written - got);
        assert!(got > 0 && word.starts_with(&lost), "{got} of {written}: {word}");
    }

    #[test]
    fn who_starts_a_process_in_a_pipeline_is_waited_for() {
        let (mut poll, mut streams, mut writer, client) = stalled(false, true);
        let mut written = 0;
        while !streams.clients[0].holds_up() {
            writer.write_all(&[b'x'; 4096]).unwrap();
            written += 4096;
            serve(&mut poll, &mut streams);
        }
        assert!(streams.work(&mut poll, Load::Idle).unwrap().is_none(), "there is no end to it");
        let reader = read_all(client);
        drop(writer);
        streams.finish(&mut poll).unwrap();
        while !streams.done() {
            serve(&mut poll, &mut streams);
        }
        assert_eq!(reader.join().unwrap().iter().filter(|byte| **byte == b'x').count(), written);
    }

    #[test]
    fn a_terminal_goes_on_after_a_gap() {
        let (mut poll, mut streams, mut writer, client) = stalled(true, false);
        write_past(&mut poll, &mut streams, &mut writer);
        let mut text = String::new();
        let mut part = [0; PIECE];
        while !text.contains("bytes of output are lost") {
            let count = (&client).read(&mut part).unwrap();
            text.push_str(std::str::from_utf8(&part[..count]).unwrap());
            serve(&mut poll, &mut streams);
        }
        let reader = read_all(client);
        writer.write_all(b"and on").unwrap();
        drop(writer);
        streams.finish(&mut poll).unwrap();
        while !streams.done() {
            serve(&mut poll, &mut streams);
        }
        text.push_str(&String::from_utf8(reader.join().unwrap()).unwrap());
        assert!(text.ends_with("]\r\nand on"), "the end: {:?}", &text[text.len() - 90..]);
    }

    /// A process of another that ended has inherited its output.
    #[test]
    fn the_end_does_not_wait_for_who_writes_on() {
        let mut poll = Poll::new().unwrap();
        let (stdout, writer) = std::io::pipe().unwrap();
        let (stderr, _) = std::io::pipe().unwrap();
        let pipes = Streams::Pipes { stdin: None, stdout: stdout.into(), stderr: stderr.into() };
        let mut streams = ProcessStreams::new(&mut poll, 0, pipes, None, false).unwrap();
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let mut writer = writer.try_clone().unwrap();
                std::thread::spawn(move || while writer.write_all(&[b'y'; 64 << 10]).is_ok() {})
            })
            .collect();
        drop(writer);
        streams.finish(&mut poll).unwrap();
        assert!(streams.done());
        for writer in writers {
            writer.join().unwrap();
        }
    }
}
