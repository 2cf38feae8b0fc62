//! The name server of a machine's container: its sockets are in a namespace that nobody else is in, and
//! questions of the guest reach them through the channel.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use insula_host::netlink::{EmptyNamespace, Routes};
use insula_host::resolver::Sockets;
use insula_proto::channel::{LARGEST_LONG_QUERY, LARGEST_QUERY};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::link::Query;
use crate::{Error, Result};

/// Questions that may be under way; older ones are not answered, and asked again by who wants to know.
const UNDER_WAY: usize = 256;
/// As many by TCP.
const TALKS: usize = 16;
/// Head of a message of DNS, RFC 1035 section 4.1.1; it begins with the number of the question.
const HEAD: usize = 12;

/// Both sides of the name server.
#[derive(Debug)]
pub(super) struct Names {
    server: Sockets,
    namespace: EmptyNamespace,
    /// Where it listens for TCP.
    address: SocketAddr,
    client: UdpSocket,
    /// By the number that was asked with: that number, the channel's, and the question's own.
    asked: Vec<Option<(u16, u32, [u8; 2])>>,
    next: u16,
    /// The oldest first.
    talks: Vec<Talk>,
    /// Answers that are none.
    refused: Vec<u32>,
    /// Of the client and the talks.
    events: OwnedFd,
}

impl Names {
    pub(super) fn new() -> Result<Self> {
        let namespace = EmptyNamespace::new().map_err(insula_container::Error::from)?;
        let made = namespace.inside(|| {
            Routes::open()?.configure(&[])?;
            Ok::<_, insula_host::netlink::Error>(sockets())
        });
        let (server, address, client) = made
            .and_then(|made| made)
            .map_err(insula_container::Error::from)?
            .map_err(|source| Error::Call { call: "bind", on: "a name server's sockets", source })?;
        let events = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|source| Error::call("epoll_create1", "for a name server", source))?;
        epoll::add(&events, &client, EventData::new_u64(0), EventFlags::IN)
            .map_err(|source| Error::call("epoll_ctl", "for a name server", source))?;
        Ok(Self {
            server,
            namespace,
            address,
            client,
            asked: vec![None; UNDER_WAY],
            next: 0,
            talks: Vec::new(),
            refused: Vec::new(),
            events,
        })
    }

    /// Duplicates of the server's side.
    pub(super) fn server(&self) -> Result<Sockets> {
        Ok(Sockets {
            udp: crate::duplicate(self.server.udp.as_fd())?,
            tcp: crate::duplicate(self.server.tcp.as_fd())?,
        })
    }

    /// Readable when there may be an answer.
    pub(super) fn answers(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Asks what the guest asks. One that cannot be asked is not answered.
    pub(super) fn ask(&mut self, question: Query) {
        if question.long {
            let number = question.number;
            if self.talk(question).is_err() {
                self.refused.push(number);
            }
        } else {
            self.ask_short(question);
        }
    }

    fn ask_short(&mut self, Query { number, mut message, .. }: Query) {
        if message.len() < HEAD {
            return;
        }
        self.next = self.next.wrapping_add(1);
        let own = [message[0], message[1]];
        message[..2].copy_from_slice(&self.next.to_be_bytes());
        self.asked[usize::from(self.next) % UNDER_WAY] = Some((self.next, number, own));
        let _ = self.client.send(&message);
    }

    /// A connection for one question. The oldest gives way.
    fn talk(&mut self, question: Query) -> Result<()> {
        let call = |call| move |source| Error::call(call, "for a name server", source);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = || rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
        let made = self.namespace.inside(socket).map_err(insula_container::Error::from)?;
        let stream = made.map_err(call("socket"))?;
        match rustix::net::connect(&stream, &self.address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(source) => return Err(call("connect")(source)),
        }
        if self.talks.len() >= TALKS {
            self.refused.push(self.talks.remove(0).number);
        }
        epoll::add(&self.events, &stream, EventData::new_u64(0), EventFlags::OUT)
            .map_err(call("epoll_ctl"))?;
        self.talks.push(Talk::new(stream, question));
        Ok(())
    }

    /// The next answer.
    pub(super) fn answer(&mut self) -> Option<Query> {
        self.short_answer().or_else(|| self.long_answer())
    }

    fn short_answer(&mut self) -> Option<Query> {
        loop {
            let mut message = vec![0; LARGEST_QUERY];
            let count = self.client.recv(&mut message).ok()?;
            message.truncate(count);
            let asked =
                message.first_chunk::<2>().map(|id| u16::from_be_bytes(*id)).filter(|_| count >= HEAD);
            let Some(asked) = asked else { continue };
            let slot = &mut self.asked[usize::from(asked) % UNDER_WAY];
            if let Some((_, number, own)) = slot.take_if(|(known, ..)| *known == asked) {
                message[..2].copy_from_slice(&own);
                return Some(Query { number, long: false, message });
            }
        }
    }

    fn long_answer(&mut self) -> Option<Query> {
        if let Some(number) = self.refused.pop() {
            return Some(Query { number, long: true, message: Vec::new() });
        }
        for at in 0..self.talks.len() {
            let talk = &mut self.talks[at];
            let message = match talk.go_on(&self.events) {
                Ok(None) => continue,
                Ok(Some(message)) => message,
                Err(_) => Vec::new(),
            };
            let number = self.talks.remove(at).number;
            return Some(Query { number, long: true, message });
        }
        None
    }
}

/// A question by TCP: each message has its length before it.
#[derive(Debug)]
struct Talk {
    number: u32,
    stream: OwnedFd,
    /// What is left to be sent.
    question: Vec<u8>,
    answer: Vec<u8>,
}

impl Talk {
    fn new(stream: OwnedFd, question: Query) -> Self {
        let Query { number, mut message, .. } = question;
        message.truncate(LARGEST_LONG_QUERY);
        // At most 65535, as of now.
        let length = (message.len() as u16).to_be_bytes();
        message.splice(0..0, length);
        Self { number, stream, question: message, answer: Vec::new() }
    }

    /// Sends and receives what it can; the answer, once it is complete.
    fn go_on(&mut self, events: &OwnedFd) -> Result<Option<Vec<u8>>, Errno> {
        while !self.question.is_empty() {
            match rustix::net::send(&self.stream, &self.question, SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.question.drain(..count)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error),
            }
            if self.question.is_empty() {
                epoll::modify(events, &self.stream, EventData::new_u64(0), EventFlags::IN)?;
            }
        }
        let mut piece = [0; 4096];
        loop {
            match rustix::net::recv(&self.stream, &mut piece, RecvFlags::empty()) {
                // It ended in the middle.
                Ok((0, _)) => return Err(Errno::CONNRESET),
                Ok((count, _)) => self.answer.extend_from_slice(&piece[..count]),
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error),
            }
            let Some((length, rest)) = self.answer.split_first_chunk::<2>() else { continue };
            if let Some(answer) = rest.get(..usize::from(u16::from_be_bytes(*length))) {
                return Ok(Some(answer.to_vec()));
            }
        }
    }
}

fn sockets() -> std::io::Result<(Sockets, SocketAddr, UdpSocket)> {
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    client.connect(udp.local_addr()?)?;
    for prepared in [udp.set_nonblocking(true), tcp.set_nonblocking(true), client.set_nonblocking(true)] {
        prepared?;
    }
    let address = tcp.local_addr()?;
    Ok((Sockets { udp: udp.into(), tcp: tcp.into() }, address, client))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustix::event::{PollFd, PollFlags};

    use super::*;

    fn names() -> Option<Names> {
        if rustix::process::geteuid().is_root() {
            return Some(Names::new().unwrap());
        }
        assert!(!std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default().contains("root"), "needs root");
        eprintln!("skipped: needs root");
        None
    }

    fn next(names: &mut Names) -> Query {
        loop {
            if let Some(answer) = names.answer() {
                return answer;
            }
            let mut polled = [PollFd::from_borrowed_fd(names.answers(), PollFlags::IN)];
            rustix::event::poll(&mut polled, None).unwrap();
        }
    }

    #[test]
    fn long_questions_and_answers_pass_whole() {
        let Some(mut names) = names() else { return };
        let listener = TcpListener::from(names.server().unwrap().tcp);
        listener.set_nonblocking(false).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = vec![0; 40_002];
            stream.read_exact(&mut question).unwrap();
            assert_eq!(question[..2], 40_000u16.to_be_bytes());
            assert!(question[2..].iter().all(|byte| *byte == b'q'));
            stream.write_all(&65_535u16.to_be_bytes()).unwrap();
            stream.write_all(&[b'a'; 65_535]).unwrap();
            // The next one is not answered.
            drop(listener.accept().unwrap());
        });
        names.ask(Query { number: 5, long: true, message: vec![b'q'; 40_000] });
        let answer = next(&mut names);
        assert_eq!((answer.number, answer.long, answer.message.len()), (5, true, 65_535));
        names.ask(Query { number: 6, long: true, message: vec![b'q'; 20] });
        assert_eq!(next(&mut names), Query { number: 6, long: true, message: Vec::new() });
        server.join().unwrap();
    }

    #[test]
    fn the_oldest_of_many_long_questions_gives_way() {
        let Some(mut names) = names() else { return };
        for number in 0..=TALKS as u32 {
            names.ask(Query { number, long: true, message: vec![0; 20] });
        }
        assert_eq!(next(&mut names), Query { number: 0, long: true, message: Vec::new() });
        assert_eq!(names.answer(), None, "nobody answers the others");
    }
}
