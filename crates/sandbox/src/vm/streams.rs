//! The standard streams of one process in a guest: between the channel and the ends that the monitor has.

use std::os::fd::{AsFd, OwnedFd};

use insula_proto::channel::{ChannelError, Kind, Window, put_frame};
use insula_spec::plan::StdioPlan;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;

use crate::{Error, Result, Streams};

/// What a pipe holds at least once the process has ended: everything that may be under way, so that the end
/// does not wait for who reads.
const LAST_PIPE: usize = 1 << 20;

/// Head of a piece in Docker's stream format: the stream, three zeros, the length in big endian.
const HEAD: usize = 8;

/// Our ends, with what is under way.
#[derive(Debug)]
pub(super) struct GuestStreams {
    /// Its number in the channel.
    number: u32,
    window: Window,
    /// Came from the guest, was not passed on yet; at most a window.
    inbound: Vec<u8>,
    /// The piece that `inbound` starts in: its stream and what is left of it.
    piece: Option<(usize, usize)>,
    /// A terminal is one stream without heads.
    plain: bool,
    /// Standard output and error; for a terminal one for both directions. Closed at their end.
    outputs: Vec<OwnedFd>,
    input: Option<OwnedFd>,
    /// The guest has said that no more comes.
    ended: bool,
    /// Which ends are in the set that is waited for: both outputs, the input.
    watched: [bool; 3],
}

impl GuestStreams {
    /// Both ends: ours, and the monitor's.
    pub(super) fn new(number: u32, stdio: &StdioPlan) -> Result<(Self, Streams)> {
        let mut this = Self {
            number,
            window: Window::default(),
            inbound: Vec::new(),
            piece: None,
            plain: stdio.tty,
            outputs: Vec::new(),
            input: None,
            ended: false,
            watched: [false; 3],
        };
        if stdio.tty {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (ours, theirs) =
                rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
                    .map_err(|source| Error::call("socketpair", "for a terminal", source))?;
            this.input = Some(crate::duplicate(ours.as_fd())?);
            this.outputs.push(ours);
            return Ok((this, Streams::Terminal(theirs)));
        }
        let stdin = if stdio.open_stdin {
            let (reader, writer) = pipe()?;
            this.input = Some(reader);
            Some(writer)
        } else {
            None
        };
        let ((stdout, out), (stderr, err)) = (pipe()?, pipe()?);
        this.outputs.extend([out, err]);
        Ok((this, Streams::Pipes { stdin, stdout, stderr }))
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Whether everything that the guest sent was passed on, and no more comes.
    pub(super) fn done(&self) -> bool {
        self.ended && self.inbound.is_empty()
    }

    pub(super) fn received(&mut self, bytes: &[u8]) -> Result<(), ChannelError> {
        self.window.received(self.number, bytes.len())?;
        self.inbound.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn credited(&mut self, count: usize) -> Result<(), ChannelError> {
        self.window.credited(self.number, count)
    }

    /// No more output comes. What is under way has room now, whoever reads it or not.
    pub(super) fn end(&mut self) {
        self.ended = true;
        for output in &self.outputs {
            // Without it the end waits for who reads.
            let _ = rustix::pipe::fcntl_setpipe_size(output, LAST_PIPE);
        }
    }

    /// Moves what can be moved both ways; frames for the guest go to `out`.
    pub(super) fn pump(&mut self, out: &mut Vec<u8>) -> Result<(), ChannelError> {
        let passed = self.pass_on()?;
        if !self.ended {
            self.window.passed(out, self.number, passed);
            self.take_input(out);
            return Ok(());
        }
        let cut_off = !self.plain && self.piece.is_none() && self.inbound.len() < HEAD;
        if cut_off {
            self.inbound.clear();
        }
        if self.inbound.is_empty() {
            self.outputs.clear();
            self.input = None;
            self.watched = [false; 3];
        }
        Ok(())
    }

    /// Output to the monitor's ends; returns how many bytes of the channel it was.
    fn pass_on(&mut self) -> Result<usize, ChannelError> {
        let mut done = 0;
        while done < self.inbound.len() {
            let rest = &self.inbound[done..];
            let (output, length) = match (self.plain, self.piece) {
                (true, _) => (0, rest.len()),
                (false, Some((output, left))) => (output, left.min(rest.len())),
                (false, None) => {
                    let Some(head) = rest.first_chunk::<HEAD>() else { break };
                    self.piece = parse_head(head)?;
                    done += HEAD;
                    continue;
                }
            };
            let written = match self.outputs.get(output) {
                None => length,
                Some(end) => match rustix::io::retry_on_intr(|| rustix::io::write(end, &rest[..length])) {
                    Ok(count) => count,
                    Err(Errno::AGAIN) => break,
                    // Nobody reads it any more.
                    Err(_) => length,
                },
            };
            done += written;
            if let Some((_, left)) = &mut self.piece {
                *left -= written;
                if *left == 0 {
                    self.piece = None;
                }
            }
        }
        self.inbound.drain(..done);
        Ok(done)
    }

    /// Input from the monitor's end, as much as the guest takes.
    fn take_input(&mut self, out: &mut Vec<u8>) {
        let Some(input) = &self.input else { return };
        while self.window.sendable() > 0 {
            let mut piece = Vec::with_capacity(self.window.sendable());
            let read = rustix::io::retry_on_intr(|| {
                rustix::io::read(input, rustix::buffer::spare_capacity(&mut piece))
            });
            match read {
                Ok(1..) => {
                    self.window.sent(piece.len());
                    put_frame(out, Kind::Data, self.number, &piece);
                }
                Err(Errno::AGAIN) => return,
                Ok(0) | Err(_) => {
                    put_frame(out, Kind::End, self.number, b"");
                    self.input = None;
                    return;
                }
            }
        }
    }

    /// Waits in `events` for what it can go on with.
    pub(super) fn watch(&mut self, events: &OwnedFd) -> Result<()> {
        let hungry = !self.ended && self.window.sendable() > 0;
        let ends = [self.outputs.first(), self.outputs.get(1), self.input.as_ref()];
        let wanted = [!self.inbound.is_empty(), !self.inbound.is_empty(), hungry];
        for (number, end) in ends.into_iter().enumerate() {
            let wanted = end.is_some() && wanted[number];
            if let Some(end) = end
                && wanted != self.watched[number]
            {
                let flags = if number == 2 { EventFlags::IN } else { EventFlags::OUT };
                let result = if wanted {
                    epoll::add(events, end, EventData::new_u64(0), flags)
                } else {
                    epoll::delete(events, end)
                };
                result.map_err(|source| Error::call("epoll_ctl", "for a stream", source))?;
            }
            self.watched[number] = wanted;
        }
        Ok(())
    }
}

/// Stream and length of a piece; none for an empty one.
fn parse_head(head: &[u8; HEAD]) -> Result<Option<(usize, usize)>, ChannelError> {
    let output = match head {
        [1, 0, 0, 0, ..] => 0,
        [2, 0, 0, 0, ..] => 1,
        _ => return Err(ChannelError::Malformed("output")),
    };
    let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
    Ok((length > 0).then_some((output, length)))
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .map_err(|source| Error::call("pipe2", "for a stream", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(open_stdin: bool) -> (GuestStreams, [OwnedFd; 2], Option<OwnedFd>) {
        let stdio = StdioPlan { open_stdin, ..StdioPlan::default() };
        let (ours, theirs) = GuestStreams::new(7, &stdio).unwrap();
        match theirs {
            Streams::Pipes { stdin, stdout, stderr } => (ours, [stdout, stderr], stdin),
            Streams::Terminal(_) | Streams::Inherited => unreachable!("pipes were asked for"),
        }
    }

    fn piece(stream: u8, bytes: &[u8]) -> Vec<u8> {
        let mut piece = vec![stream, 0, 0, 0];
        piece.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        piece.extend_from_slice(bytes);
        piece
    }

    fn read(end: &OwnedFd) -> Vec<u8> {
        let mut bytes = vec![0; WINDOW_AND_MORE];
        let count = rustix::io::read(end, &mut bytes).unwrap_or(0);
        bytes.truncate(count);
        bytes
    }

    const WINDOW_AND_MORE: usize = 128 << 10;

    #[test]
    fn output_is_taken_apart_however_it_arrives() {
        let bytes = [piece(1, b"out"), piece(2, b"error"), piece(1, b""), piece(1, b"more")].concat();
        for cut in 0..bytes.len() {
            let (mut streams, [stdout, stderr], _) = streams(false);
            let mut out = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                streams.received(part).unwrap();
                streams.pump(&mut out).unwrap();
            }
            assert_eq!((read(&stdout), read(&stderr)), (b"outmore".to_vec(), b"error".to_vec()), "{cut}");
            streams.end();
            streams.pump(&mut out).unwrap();
            assert!(streams.done() && streams.outputs.is_empty());
        }
    }

    #[test]
    fn the_end_comes_although_nobody_reads() {
        let (mut streams, [stdout, _stderr], _) = streams(false);
        let mut out = Vec::new();
        let bytes = piece(1, &[b'x'; 50_000]);
        streams.received(&bytes).unwrap();
        streams.pump(&mut out).unwrap();
        streams.received(&bytes[..15_000]).unwrap();
        streams.pump(&mut out).unwrap();
        streams.received(&bytes[15_000..]).unwrap();
        streams.end();
        streams.pump(&mut out).unwrap();
        assert!(streams.done());
        assert_eq!(read(&stdout).len(), 100_000);
    }

    #[test]
    fn input_goes_no_further_than_the_window() {
        let (mut streams, _, stdin) = streams(true);
        let stdin = stdin.unwrap();
        let mut sent = 0;
        let mut out = Vec::new();
        while sent < 100_000 {
            let Ok(count) = rustix::io::write(&stdin, &[b'i'; 10_000]) else { break };
            sent += count;
            streams.pump(&mut out).unwrap();
        }
        assert!(out.len() < insula_proto::channel::WINDOW + 1000, "{}", out.len());
        assert!(streams.credited(1 << 20).is_err(), "more than a window");
    }

    #[test]
    fn a_guest_that_makes_up_streams_is_caught() {
        let (mut streams, _ends, _) = streams(false);
        streams.received(b"\x03\0\0\0\0\0\0\x01x").unwrap();
        assert!(streams.pump(&mut Vec::new()).is_err());
        assert!(streams.received(&vec![0; insula_proto::channel::WINDOW]).is_err());
    }
}
