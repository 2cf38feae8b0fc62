//! A connection: to the bus that systemd has its name on, or where there is no bus to systemd itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::{Context, Error, Result};
use super::message::{self, Body, ERROR, FIXED, Item, Message, READ, RETURN, SIGNAL, Target};
use super::units::MANAGER;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest line while who calls is made sure of.
const LONGEST_LINE: u64 = 512;
/// Ends of jobs that are kept for who asks for them.
const MOST_ENDS: usize = 1024;

const BUS: Target = Target {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

/// What may be listening at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// A bus, which wants to be greeted.
    Bus(PathBuf),
    /// systemd alone.
    Itself(PathBuf),
}

impl Address {
    fn path(&self) -> &Path {
        let (Self::Bus(path) | Self::Itself(path)) = self;
        path
    }

    pub(super) fn exists(&self) -> bool {
        self.path().exists()
    }
}

/// Who speaks at the other end.
#[derive(Debug)]
enum Peers {
    /// systemd alone.
    One,
    /// Whoever is on the bus, which tells them apart by unique names; that of systemd as soon as it has answered.
    Many { systemd: Option<String> },
}

/// A connection that was made.
#[derive(Debug)]
pub(super) struct Bus {
    stream: BufReader<UnixStream>,
    serial: u32,
    deadline: Instant,
    peers: Peers,
    /// Jobs that have ended meanwhile, and how.
    ends: Vec<(String, String)>,
}

impl Bus {
    pub(super) fn connect(address: &Address) -> Result<Self> {
        let path = address.path();
        let stream = UnixStream::connect(path).context("connect", path.display())?;
        stream.set_write_timeout(Some(PATIENCE)).context("setsockopt", path.display())?;
        let deadline = Instant::now() + PATIENCE;
        let is_bus = matches!(address, Address::Bus(_));
        let peers = if is_bus { Peers::Many { systemd: None } } else { Peers::One };
        let mut bus = Self { stream: BufReader::new(stream), serial: 0, deadline, peers, ends: Vec::new() };
        bus.authenticate()?;
        if is_bus {
            bus.call(BUS, "Hello", &Body::default())?;
        }
        Ok(bus)
    }

    /// Has the bus tell of signals of systemd's that this rule describes. `asked` is a first call of systemd, whose
    /// answer says who on the bus it is.
    pub(super) fn watch(&mut self, rule: &str, target: Target, asked: &'static str) -> Result<()> {
        self.call(BUS, "AddMatch", &Body::default().text(rule))?;
        let answer = self.call(target, asked, &Body::default())?;
        if let Peers::Many { systemd } = &mut self.peers {
            *systemd = Some(answer.sender);
        }
        Ok(())
    }

    /// Whether it is from who may say such a thing: everybody on a bus may send to us.
    fn is_from(&self, destination: &str, message: &Message) -> bool {
        match &self.peers {
            Peers::One => true,
            Peers::Many { .. } if destination == BUS.destination => message.sender == BUS.destination,
            Peers::Many { systemd: Some(name) } => message.sender == *name,
            // The bus gives answers on only to who has asked for them.
            Peers::Many { systemd: None } => message.sender.starts_with(':'),
        }
    }

    /// D-Bus specification, "Authentication Protocol": the socket says who calls. That is left to it, since who is
    /// in a user namespace has another number there.
    fn authenticate(&mut self) -> Result<()> {
        self.send(b"\0AUTH EXTERNAL\r\n")?;
        let mut said = self.line()?;
        if said.starts_with("DATA") {
            self.send(b"DATA\r\n")?;
            said = self.line()?;
        }
        if !said.starts_with("OK ") {
            return Err(Error::Protocol("who calls is not accepted"));
        }
        self.send(b"BEGIN\r\n")
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes).context("write", "to D-Bus")
    }

    /// Until when whatever is asked for next must be there.
    fn be_patient(&mut self) {
        self.deadline = Instant::now() + PATIENCE;
    }

    fn arm(&self, what: &'static str) -> Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Late(what));
        }
        self.stream.get_ref().set_read_timeout(Some(left)).context("setsockopt", "of D-Bus")
    }

    fn line(&mut self) -> Result<String> {
        self.arm("to know who calls")?;
        let mut line = Vec::new();
        let read = (&mut self.stream).take(LONGEST_LINE).read_until(b'\n', &mut line);
        read.map_err(|error| late(error, "to know who calls"))?;
        String::from_utf8(line).map_err(|_| Error::Protocol("a line that is no UTF-8"))
    }

    /// Calls, and returns the answer.
    pub(super) fn call(&mut self, target: Target, member: &'static str, body: &Body) -> Result<Message> {
        self.be_patient();
        self.serial += 1;
        let serial = self.serial;
        self.send(&message::call(serial, target, member, body))?;
        loop {
            let message = self.receive(member)?;
            let answers = message.reply_to == Some(serial) && self.is_from(target.destination, &message);
            match message.kind {
                RETURN if answers => return Ok(message),
                // The bus itself says that there is nobody.
                ERROR
                    if answers
                        || (message.reply_to == Some(serial) && self.is_from(BUS.destination, &message)) =>
                {
                    return Err(Error::Refused { member, text: message.said(), name: message.error });
                }
                _ => self.note(&message)?,
            }
        }
    }

    /// How a job ended, as soon as it has.
    pub(super) fn end_of(&mut self, job: &str) -> Result<String> {
        self.be_patient();
        loop {
            if let Some(at) = self.ends.iter().position(|(ended, _)| ended == job) {
                return Ok(self.ends.swap_remove(at).1);
            }
            let message = self.receive("a job")?;
            self.note(&message)?;
        }
    }

    fn note(&mut self, message: &Message) -> Result<()> {
        let is_end = message.kind == SIGNAL
            && message.member == "JobRemoved"
            && (message.interface.as_str(), message.path.as_str()) == (MANAGER.interface, MANAGER.path);
        if !is_end || !self.is_from(MANAGER.destination, message) {
            return Ok(());
        }
        // Number and path of the job, its unit, and how it ended.
        if let [Item::Number(_), Item::Text(job), Item::Text(_), Item::Text(result)] = &message.items()?[..] {
            if self.ends.len() == MOST_ENDS {
                self.ends.remove(0);
            }
            self.ends.push((job.clone(), result.clone()));
        }
        Ok(())
    }

    /// The next message that can be read. On a bus others may send what cannot, which is passed over.
    fn receive(&mut self, what: &'static str) -> Result<Message> {
        loop {
            let mut bytes = vec![0; FIXED];
            self.fill(&mut bytes, what)?;
            let begin = bytes.first_chunk().ok_or(Error::Protocol("a message that is cut off"))?;
            let length = message::length(begin)?;
            bytes.resize(length.min(READ + 1), 0);
            self.fill(&mut bytes[FIXED..], what)?;
            match (Message::parse(&bytes), &self.peers) {
                (Err(_), Peers::Many { .. }) => self.pass(length - bytes.len(), what)?,
                (message, _) => return message,
            }
        }
    }

    fn pass(&mut self, mut count: usize, what: &'static str) -> Result<()> {
        let mut piece = [0; 4096];
        while count > 0 {
            let next = count.min(piece.len());
            self.fill(&mut piece[..next], what)?;
            count -= next;
        }
        Ok(())
    }

    /// One read at a time, so that who sends byte by byte does not hold us for ever.
    fn fill(&mut self, mut bytes: &mut [u8], what: &'static str) -> Result<()> {
        while !bytes.is_empty() {
            self.arm(what)?;
            match self.stream.read(bytes) {
                Ok(0) => return Err(Error::Protocol("the other side is gone")),
                Ok(count) => bytes = &mut bytes[count..],
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(late(error, what)),
            }
        }
        Ok(())
    }
}

fn late(error: std::io::Error, what: &'static str) -> Error {
    match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => Error::Late(what),
        _ => Error::Call { call: "read", on: "from D-Bus".to_owned(), source: error },
    }
}

/// The sockets of an address: D-Bus specification, "Server Addresses".
pub(super) fn sockets(address: &str) -> Vec<PathBuf> {
    let unix = address.split(';').filter_map(|one| one.strip_prefix("unix:"));
    let paths = unix.filter_map(|keys| keys.split(',').find_map(|key| key.strip_prefix("path=")));
    paths.filter_map(unescape).map(PathBuf::from).collect()
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push((digit()? * 16 + digit()?) as u8);
    }
    String::from_utf8(bytes).ok()
}
