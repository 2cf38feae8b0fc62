//! Many byte streams in one: both ends of the channel into a tenant's machine. Each stream is a socket here, and a
//! number in the channel; see [`insula_proto::channel`] for the format.
//!
//! Neither side holds more than a window of a stream, and a stream whose reader is slow keeps no other back.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use insula_proto::channel::{ChannelError, ChannelFrame, ChannelReader, Kind, Window, put_frame};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::Shutdown;

use crate::{Error, Result};

/// Bytes taken of the channel at once.
const PIECE: usize = 64 << 10;
/// Bytes that wait for the channel at which no stream is read any more.
pub const MOST_WAITING: usize = 256 << 10;

/// One end of a channel with its streams.
#[derive(Debug)]
pub struct Mux {
    channel: OwnedFd,
    reader: ChannelReader,
    /// What the channel did not take yet.
    out: Vec<u8>,
    streams: Vec<Stream>,
}

/// What came of a turn.
#[derive(Debug)]
pub struct Turn {
    /// The other end is there.
    pub open: bool,
    /// Frames that are of no stream.
    pub frames: Vec<ChannelFrame>,
}

impl Mux {
    /// Over a stream that does not wait from now on.
    pub fn new(channel: OwnedFd) -> Result<Self> {
        no_wait(&channel)?;
        Ok(Self { channel, reader: ChannelReader::default(), out: Vec::new(), streams: Vec::new() })
    }

    /// What passes through `socket` is stream `number` from now on, until both sides have ended it.
    pub fn open(&mut self, number: u32, socket: OwnedFd) -> Result<()> {
        self.streams.push(Stream::new(number, socket)?);
        Ok(())
    }

    /// Whether a stream is still there.
    #[must_use]
    pub fn has(&self, number: u32) -> bool {
        self.streams.iter().any(|stream| stream.number == number)
    }

    /// Sends a frame that is of no stream.
    pub fn put(&mut self, kind: Kind, stream: u32, payload: &[u8]) {
        put_frame(&mut self.out, kind, stream, payload);
    }

    /// What to wait for.
    pub fn watched(&self) -> impl Iterator<Item = PollFd<'_>> {
        let writing = if self.out.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let room = self.out.len() < MOST_WAITING;
        let streams = self.streams.iter().filter_map(move |stream| stream.watched(room));
        std::iter::once(PollFd::new(&self.channel, PollFlags::IN | writing)).chain(streams)
    }

    /// Takes what there is and passes on what can be; never waits.
    pub fn turn(&mut self) -> Result<Turn> {
        let mut frames = Vec::new();
        let open = self.hear(&mut frames)?;
        for stream in &mut self.streams {
            stream.pump(&mut self.out);
        }
        self.streams.retain(|stream| !stream.over());
        let open = self.flush() && open;
        Ok(Turn { open, frames })
    }

    fn hear(&mut self, frames: &mut Vec<ChannelFrame>) -> Result<bool> {
        let mut piece = vec![0; PIECE];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.channel, &mut piece)) {
            Ok(0) => return Ok(false),
            Ok(count) => self.reader.push(&piece[..count]),
            Err(Errno::AGAIN) => return Ok(true),
            Err(_) => return Ok(false),
        }
        while let Some(frame) = self.reader.pop()? {
            match frame.kind {
                Kind::Data | Kind::Credit | Kind::End => self.pass(&frame)?,
                _ => frames.push(frame),
            }
        }
        Ok(true)
    }

    fn pass(&mut self, frame: &ChannelFrame) -> Result<(), ChannelError> {
        // One that was given up meanwhile.
        let found = self.streams.iter_mut().find(|stream| stream.number == frame.stream);
        found.map_or(Ok(()), |stream| stream.take(frame))
    }

    fn flush(&mut self) -> bool {
        let mut sent = 0;
        let mut open = true;
        while sent < self.out.len() {
            match rustix::io::retry_on_intr(|| rustix::io::write(&self.channel, &self.out[sent..])) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    open = false;
                    break;
                }
            }
        }
        self.out.drain(..sent);
        open
    }
}

/// One stream: a socket, and a number in the channel.
#[derive(Debug)]
pub struct Stream {
    number: u32,
    socket: OwnedFd,
    window: Window,
    /// Came from the other side, was not passed on yet; at most a window.
    inbound: Vec<u8>,
    /// The other side has said that no more comes.
    input_ends: bool,
    /// That was passed on.
    input_ended: bool,
    /// No more comes from the socket, and the other side was told.
    output_ended: bool,
}

impl Stream {
    /// Over a socket that does not wait from now on.
    pub fn new(number: u32, socket: OwnedFd) -> Result<Self> {
        no_wait(&socket)?;
        let window = Window::default();
        let inbound = Vec::new();
        let (input_ends, input_ended, output_ended) = (false, false, false);
        Ok(Self { number, socket, window, inbound, input_ends, input_ended, output_ended })
    }

    /// In the channel.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether the other side was told that no more comes from the socket.
    #[must_use]
    pub fn output_ended(&self) -> bool {
        self.output_ended
    }

    fn over(&self) -> bool {
        self.input_ended && self.output_ended
    }

    /// None while there is nothing that it could do: a socket whose other end has gone is always ready.
    pub fn watched(&self, room: bool) -> Option<PollFd<'_>> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::OUT, !self.inbound.is_empty());
        flags.set(PollFlags::IN, room && !self.output_ended && self.window.sendable() > 0);
        (!flags.is_empty()).then(|| PollFd::new(&self.socket, flags))
    }

    /// Takes data, a credit or the end.
    pub fn take(&mut self, frame: &ChannelFrame) -> Result<(), ChannelError> {
        match frame.kind {
            Kind::Data => self.received(&frame.payload)?,
            Kind::Credit => self.window.credited(self.number, frame.credit()?)?,
            Kind::End => self.input_ends = true,
            _ => {}
        }
        Ok(())
    }

    fn received(&mut self, bytes: &[u8]) -> Result<(), ChannelError> {
        self.window.received(self.number, bytes.len())?;
        self.inbound.extend_from_slice(bytes);
        Ok(())
    }

    /// Passes on what can be, both ways; frames for the other side go to `out`.
    pub fn pump(&mut self, out: &mut Vec<u8>) {
        self.pass_on(out);
        while out.len() < MOST_WAITING && self.window.sendable() > 0 && !self.output_ended {
            let mut piece = Vec::with_capacity(self.window.sendable());
            match rustix::io::retry_on_intr(|| {
                rustix::io::read(&self.socket, rustix::buffer::spare_capacity(&mut piece))
            }) {
                Ok(1..) => {
                    self.window.sent(piece.len());
                    put_frame(out, Kind::Data, self.number, &piece);
                }
                Err(Errno::AGAIN) => return,
                Ok(0) | Err(_) => {
                    put_frame(out, Kind::End, self.number, b"");
                    self.output_ended = true;
                }
            }
        }
    }

    fn pass_on(&mut self, out: &mut Vec<u8>) {
        let mut passed = 0;
        while passed < self.inbound.len() {
            match insula_sys::socket::send(self.socket.as_fd(), &self.inbound[passed..], &[]) {
                Ok(count) => passed += count,
                Err(Errno::AGAIN) => break,
                // Nobody takes it any more.
                Err(_) => passed = self.inbound.len(),
            }
        }
        self.inbound.drain(..passed);
        if self.input_ends && self.inbound.is_empty() && !self.input_ended {
            // Who has gone already needs no word.
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
            self.input_ended = true;
        }
        if !self.input_ends {
            self.window.passed(out, self.number, passed);
        }
    }
}

fn no_wait(descriptor: impl AsFd) -> Result<()> {
    fn set(descriptor: BorrowedFd<'_>) -> Result<()> {
        rustix::io::ioctl_fionbio(descriptor, true)
            .map_err(|source| Error::call("ioctl FIONBIO", "a stream", source))
    }
    set(descriptor.as_fd())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let (one, other) = UnixStream::pair().unwrap();
        (one.into(), other.into())
    }

    /// Both ends of a channel with stream 7, and who is at it on each side.
    fn ends() -> ([Mux; 2], [UnixStream; 2]) {
        let (host, guest) = pair();
        let ([a, b], [c, d]) = (<[OwnedFd; 2]>::from(pair()), <[OwnedFd; 2]>::from(pair()));
        let mut both = [Mux::new(host).unwrap(), Mux::new(guest).unwrap()];
        both[0].open(7, b).unwrap();
        both[1].open(7, d).unwrap();
        (both, [a.into(), c.into()])
    }

    fn settle(both: &mut [Mux; 2]) {
        // More turns than a window has pieces, both ways.
        for _ in 0..32 {
            for mux in both.iter_mut() {
                assert!(mux.turn().unwrap().frames.is_empty());
            }
        }
    }

    #[test]
    fn bytes_pass_both_ways_and_so_does_the_end() {
        let (mut both, [mut left, mut right]) = ends();
        left.write_all(b"question").unwrap();
        right.write_all(b"answer").unwrap();
        settle(&mut both);
        let mut bytes = [0; 8];
        right.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"question");
        left.read_exact(&mut bytes[..6]).unwrap();
        assert_eq!(&bytes[..6], b"answer");
        drop(left);
        settle(&mut both);
        assert_eq!(right.read(&mut bytes).unwrap(), 0);
        assert!(both[0].has(7) && both[1].has(7), "one direction is open");
        drop(right);
        settle(&mut both);
        assert!(!both[0].has(7) && !both[1].has(7));
        assert!(both.iter().all(|mux| mux.watched().count() == 1));
    }

    #[test]
    fn a_reader_that_is_slow_holds_a_window_and_nobody_else() {
        let (mut both, [left, mut right]) = ends();
        let (a, b) = UnixStream::pair().unwrap();
        let (c, d) = UnixStream::pair().unwrap();
        both[0].open(9, b.into()).unwrap();
        both[1].open(9, d.into()).unwrap();
        left.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(count) = (&left).write(&[b'x'; 4096]) {
            written += count;
            settle(&mut both);
        }
        assert!(written > insula_proto::channel::WINDOW);
        assert!(both[1].streams[0].inbound.len() <= insula_proto::channel::WINDOW);
        (&a).write_all(b"past").unwrap();
        settle(&mut both);
        let mut bytes = [0; 4];
        (&c).read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"past");
        // What waited comes, all of it.
        drop(left);
        right.set_nonblocking(true).unwrap();
        let mut got = 0;
        loop {
            settle(&mut both);
            let mut piece = vec![0; 1 << 20];
            match right.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!(got, written);
    }

    #[test]
    fn who_sends_past_a_window_is_caught_and_others_frames_are_handed_on() {
        let (host, guest) = pair();
        let (_end, socket) = pair();
        let mut mux = Mux::new(host).unwrap();
        mux.open(1, socket).unwrap();
        let mut bytes = Vec::new();
        put_frame(&mut bytes, Kind::Reply, 0, b"word");
        put_frame(&mut bytes, Kind::Data, 99, b"to nobody");
        put_frame(&mut bytes, Kind::Credit, 1, &1u32.to_le_bytes());
        rustix::io::write(&guest, &bytes).unwrap();
        assert!(matches!(mux.turn(), Err(Error::Channel(ChannelError::Window(1)))));
        let (host, guest) = pair();
        let mut mux = Mux::new(host).unwrap();
        bytes.truncate(13);
        rustix::io::write(&guest, &bytes).unwrap();
        assert_eq!(mux.turn().unwrap().frames[0].payload, b"word");
        drop(guest);
        assert!(!mux.turn().unwrap().open);
    }
}
