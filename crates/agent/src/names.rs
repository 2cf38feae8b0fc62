//! The address at which containers find their name server: what is asked there is asked of the host.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use insula_proto::channel::{Kind, LARGEST_LONG_QUERY, LARGEST_QUERY, put_frame};
use rustix::event::{PollFd, PollFlags};

use crate::error::{Context, Result};

/// Questions that may be under way; older ones are not answered.
const UNDER_WAY: usize = 256;
/// Connections; the oldest gives way to one more.
const TALKS: usize = 32;

/// Its sockets, and who asked.
#[derive(Debug)]
pub(crate) struct Names {
    socket: UdpSocket,
    listener: TcpListener,
    asked: Vec<Option<(u32, SocketAddr)>>,
    /// The oldest first.
    talks: Vec<Talk>,
    last: u32,
}

/// A connection. It asks one question at a time.
#[derive(Debug)]
struct Talk {
    stream: TcpStream,
    /// What came, from the length of a question on.
    input: Vec<u8>,
    /// The number of the question that the host has.
    waits: Option<u32>,
    /// What is left of an answer.
    output: Vec<u8>,
}

impl Names {
    pub(crate) fn new() -> Result<Self> {
        Self::at((insula_host::resolver::ADDRESS, 53).into())
    }

    fn at(address: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind(address).context("bind", "the name server's address")?;
        socket.set_nonblocking(true).context("fcntl", "the name server's socket")?;
        let listener = TcpListener::bind(address).context("listen", "at the name server's address")?;
        listener.set_nonblocking(true).context("fcntl", "the name server's socket")?;
        Ok(Self { socket, listener, asked: vec![None; UNDER_WAY], talks: Vec::new(), last: 0 })
    }

    /// What to wait for.
    pub(crate) fn watched(&self) -> impl Iterator<Item = PollFd<'_>> {
        let sockets = [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        sockets.into_iter().chain(self.talks.iter().filter_map(Talk::watched))
    }

    /// Passes questions on, as many as there are.
    pub(crate) fn ask(&mut self, out: &mut Vec<u8>) {
        let mut question = [0; LARGEST_QUERY];
        while let Ok((count, from)) = self.socket.recv_from(&mut question) {
            self.last = self.last.wrapping_add(1);
            self.asked[self.last as usize % UNDER_WAY] = Some((self.last, from));
            put_frame(out, Kind::Query, self.last, &question[..count]);
        }
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                if self.talks.len() >= TALKS {
                    self.talks.remove(0);
                }
                self.talks.push(Talk::new(stream));
            }
        }
        let last = &mut self.last;
        self.talks.retain_mut(|talk| talk.go_on(last, out));
    }

    pub(crate) fn answer(&mut self, number: u32, answer: &[u8]) {
        let slot = &mut self.asked[number as usize % UNDER_WAY];
        if let Some((_, from)) = slot.take_if(|(known, _)| *known == number) {
            // Who asked may have gone.
            let _ = self.socket.send_to(answer, from);
        }
    }

    /// The answer to a question by TCP; without one its connection ends.
    pub(crate) fn answer_long(&mut self, number: u32, answer: &[u8]) {
        let Some(at) = self.talks.iter().position(|talk| talk.waits == Some(number)) else { return };
        if answer.is_empty() {
            self.talks.remove(at);
            return;
        }
        let talk = &mut self.talks[at];
        talk.waits = None;
        // Frames of this kind are no longer.
        talk.output.extend_from_slice(&(answer.len() as u16).to_be_bytes());
        talk.output.extend_from_slice(answer);
    }
}

impl Talk {
    fn new(stream: TcpStream) -> Self {
        Self { stream, input: Vec::new(), waits: None, output: Vec::new() }
    }

    /// Nothing while the host has its question: who asked and has gone is no reason to wake up.
    fn watched(&self) -> Option<PollFd<'_>> {
        let flags = if self.output.is_empty() { PollFlags::IN } else { PollFlags::OUT };
        self.waits.is_none().then(|| PollFd::new(&self.stream, flags))
    }

    /// Goes on as far as it can; false at its end.
    fn go_on(&mut self, last: &mut u32, out: &mut Vec<u8>) -> bool {
        if self.waits.is_some() {
            return true;
        }
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) => return later(&error),
            }
        }
        loop {
            if let Some(question) = self.question() {
                *last = last.wrapping_add(1);
                self.waits = Some(*last);
                put_frame(out, Kind::LongQuery, *last, &question);
                return true;
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return false,
                Ok(count) => self.input.extend_from_slice(&piece[..count]),
                Err(error) => return later(&error),
            }
        }
    }

    /// The next whole question.
    fn question(&mut self) -> Option<Vec<u8>> {
        let (length, rest) = self.input.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length));
        debug_assert!(length <= LARGEST_LONG_QUERY);
        let question = rest.get(..length)?.to_vec();
        self.input.drain(..2 + length);
        Some(question)
    }
}

fn later(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use insula_proto::channel::ChannelReader;

    use super::*;

    /// The next question that the host would get.
    fn asked(names: &mut Names) -> (u32, Vec<u8>) {
        let mut reader = ChannelReader::default();
        loop {
            let mut out = Vec::new();
            names.ask(&mut out);
            reader.push(&out);
            if let Some(frame) = reader.pop().unwrap() {
                assert_eq!(frame.kind, Kind::LongQuery);
                return (frame.stream, frame.payload);
            }
            let mut polled: Vec<_> = names.watched().collect();
            rustix::event::poll(&mut polled, None).unwrap();
        }
    }

    fn turn(names: &mut Names) {
        names.ask(&mut Vec::new());
    }

    #[test]
    fn questions_by_tcp_are_answered_one_after_the_other() {
        let mut names = Names::at("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut client = TcpStream::connect(names.listener.local_addr().unwrap()).unwrap();
        client.write_all(b"\0\x05first\0\x06second").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let (number, question) = asked(&mut names);
        assert_eq!(question, b"first");
        names.answer_long(number.wrapping_add(9), b"to nobody");
        names.answer_long(number, b"one");
        let (number, question) = asked(&mut names);
        assert_eq!(question, b"second");
        names.answer_long(number, &[b'x'; 65_535]);
        let reader = std::thread::spawn(move || {
            let mut answers = Vec::new();
            client.read_to_end(&mut answers).unwrap();
            answers
        });
        while !names.talks.is_empty() {
            let mut polled: Vec<_> = names.watched().collect();
            rustix::event::poll(&mut polled, None).unwrap();
            drop(polled);
            turn(&mut names);
        }
        let answers = reader.join().unwrap();
        assert!(answers.starts_with(b"\0\x03one\xff\xffxx") && answers.len() == 5 + 2 + 65_535);
    }

    #[test]
    fn what_is_not_answered_ends_and_the_oldest_gives_way() {
        let mut names = Names::at("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = names.listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"\0\x01?").unwrap();
        let (number, _) = asked(&mut names);
        names.answer_long(number, b"");
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
        let clients: Vec<_> = (0..TALKS + 1).map(|_| TcpStream::connect(address).unwrap()).collect();
        // Whoever connects is there when it returns, on the loopback.
        turn(&mut names);
        assert_eq!(names.talks.len(), TALKS);
        assert_eq!((&clients[0]).read(&mut [0; 8]).unwrap(), 0);
    }
}
