//! A connection: to the bus that systemd has its name on, or where there is no bus to systemd itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::{Context, Error, Result};
use super::message::{self, Body, ERROR, FIXED, Item, Message, RETURN, SIGNAL, Target};

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

/// A connection that was made.
#[derive(Debug)]
pub(super) struct Bus {
    stream: BufReader<UnixStream>,
    serial: u32,
    deadline: Instant,
    /// Jobs that have ended meanwhile, and how.
    ends: Vec<(String, String)>,
}

impl Bus {
    pub(super) fn connect(address: &Address) -> Result<Self> {
        let path = address.path();
        let stream = UnixStream::connect(path).context("connect", path.display())?;
        stream.set_write_timeout(Some(PATIENCE)).context("setsockopt", path.display())?;
        let deadline = Instant::now() + PATIENCE;
        let mut bus = Self { stream: BufReader::new(stream), serial: 0, deadline, ends: Vec::new() };
        bus.authenticate()?;
        if matches!(address, Address::Bus(_)) {
            bus.call(BUS, "Hello", &Body::default())?;
        }
        Ok(bus)
    }

    /// Has the bus tell of signals that this rule describes.
    pub(super) fn watch(&mut self, rule: &str) -> Result<()> {
        self.call(BUS, "AddMatch", &Body::default().text(rule)).map(drop)
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
            match message.kind {
                RETURN if message.reply_to == Some(serial) => return Ok(message),
                ERROR if message.reply_to == Some(serial) => {
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
        if message.kind != SIGNAL || message.member != "JobRemoved" {
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

    fn receive(&mut self, what: &'static str) -> Result<Message> {
        let mut bytes = vec![0; FIXED];
        self.fill(&mut bytes, what)?;
        let begin = bytes.first_chunk().ok_or(Error::Protocol("a message that is cut off"))?;
        let length = message::length(begin)?;
        bytes.resize(length, 0);
        self.fill(&mut bytes[FIXED..], what)?;
        Message::parse(&bytes)
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
