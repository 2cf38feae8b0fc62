//! Records as messages of syslog: RFC 3164 or RFC 5424, over a local socket, UDP or TCP.
//!
//! The container never waits for the one who receives: what does not get away is kept up to a bound, then
//! it is lost, which is said once.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use insula_spec::plan::{SyslogAddress, SyslogFormat, SyslogPlan};
use rustix::io::Errno;

use super::{Moment, Record, Stream};
use crate::clock;
use crate::error::{Context, Result};

/// Bytes that wait for a receiver that does not take them.
const MOST: usize = 1 << 20;
/// How long a connection may take to be made, and the last messages to be sent.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to connect again.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Syslog {
    plan: SyslogPlan,
    socket: Option<OwnedFd>,
    attempted: Instant,
    waiting: VecDeque<Vec<u8>>,
    /// Of the first message that waits, how many bytes are sent.
    sent: usize,
    bytes: usize,
    losing: bool,
}

impl Syslog {
    /// Fails where nobody receives.
    pub(super) fn connect(plan: &SyslogPlan) -> Result<Self> {
        let socket = connect(&plan.address)?;
        Ok(Self {
            plan: plan.clone(),
            socket: Some(socket),
            attempted: Instant::now(),
            waiting: VecDeque::new(),
            sent: 0,
            bytes: 0,
            losing: false,
        })
    }

    pub(super) fn record(&mut self, record: &Record<'_>, moment: &Moment) {
        let mut message = message(&self.plan, record, moment).into_bytes();
        message.extend_from_slice(record.line.strip_suffix(b"\n").unwrap_or(record.line));
        message.push(b'\n');
        if self.bytes + message.len() > MOST {
            if !std::mem::replace(&mut self.losing, true) {
                eprintln!("insula-monitor[{}]: syslog takes no more: messages are lost", std::process::id());
            }
            return;
        }
        self.losing = false;
        self.bytes += message.len();
        self.waiting.push_back(message);
    }

    /// Sends what can be sent now.
    pub(super) fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        if self.socket.is_none() {
            if self.attempted.elapsed() < PAUSE {
                return;
            }
            self.attempted = Instant::now();
            self.socket = connect_soon(&self.plan.address).ok();
        }
        let Some(socket) = &self.socket else { return };
        while let Some(message) = self.waiting.front() {
            match insula_sys::socket::send(socket.as_fd(), &message[self.sent..], &[]) {
                Ok(count) if self.sent + count < message.len() => self.sent += count,
                // Datagrams that are too long for the receiver never get better.
                Ok(_) | Err(Errno::MSGSIZE) => {
                    self.bytes -= message.len();
                    self.sent = 0;
                    self.waiting.pop_front();
                }
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::INPROGRESS | Errno::ALREADY) => return,
                Err(_) => {
                    // A message that was cut off is sent anew on the next connection.
                    self.sent = 0;
                    self.socket = None;
                    return;
                }
            }
        }
    }

    /// Whether something waits to be sent.
    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends the rest, for as long as there is patience.
    pub(super) fn finish(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        self.flush();
        while self.waits() && Instant::now() < deadline {
            let Some(socket) = &self.socket else { return };
            let mut poll = [rustix::event::PollFd::new(socket, rustix::event::PollFlags::OUT)];
            let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            let _ = rustix::event::poll(&mut poll, Some(&second));
            self.flush();
        }
    }
}

fn connect(address: &SyslogAddress) -> Result<OwnedFd> {
    const CALL: &str = "failed to initialize logging driver: connect to syslog at";
    let socket: OwnedFd = match address {
        SyslogAddress::Unixgram { path } => {
            let socket = UnixDatagram::unbound().context("socket", path.display())?;
            socket.connect(path).context(CALL, path.display())?;
            socket.into()
        }
        SyslogAddress::Unix { path } => UnixStream::connect(path).context(CALL, path.display())?.into(),
        SyslogAddress::Udp { address } => {
            let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
            let socket = UdpSocket::bind(any).context("bind", "a UDP socket")?;
            socket.connect(address).context(CALL, address)?;
            socket.into()
        }
        SyslogAddress::Tcp { address } => {
            TcpStream::connect_timeout(address, PATIENCE).context(CALL, address)?.into()
        }
    };
    rustix::io::ioctl_fionbio(&socket, true).context("ioctl FIONBIO", "syslog")?;
    Ok(socket)
}

/// The same without waiting for an answer from afar.
fn connect_soon(address: &SyslogAddress) -> Result<OwnedFd> {
    let SyslogAddress::Tcp { address } = address else { return connect(address) };
    let family =
        if address.is_ipv4() { rustix::net::AddressFamily::INET } else { rustix::net::AddressFamily::INET6 };
    let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, rustix::net::SocketType::STREAM, flags, None)
        .context("socket", "syslog")?;
    match rustix::net::connect(&socket, address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error).context("connect", address),
    }
}

/// What is before the text of a message.
fn message(plan: &SyslogPlan, record: &Record<'_>, moment: &Moment) -> String {
    let severity = match record.stream {
        Stream::Stdout => 6,
        Stream::Stderr => 3,
    };
    let priority = u32::from(plan.facility) * 8 + severity;
    let (tag, host, pid) = (&plan.tag, &plan.hostname, std::process::id());
    let local = moment.nanoseconds + i64::from(plan.utc_offset) * 1_000_000_000;
    match plan.format {
        SyslogFormat::Local => format!("<{priority}>{} {tag}[{pid}]: ", clock::stamp(local)),
        SyslogFormat::Rfc3164 => format!("<{priority}>{} {host} {tag}[{pid}]: ", clock::stamp(local)),
        SyslogFormat::Rfc5424 => {
            let time = clock::rfc3339(moment.nanoseconds / 1_000_000_000 * 1_000_000_000);
            format!("<{priority}>1 {time} {host} {tag} {pid} {tag} - ")
        }
        SyslogFormat::Rfc5424Micro => {
            let time = clock::rfc3339_micro(moment.nanoseconds);
            format!("<{priority}>1 {time} {host} {tag} {pid} {tag} - ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::Folder;

    fn plan(address: SyslogAddress, format: SyslogFormat) -> SyslogPlan {
        SyslogPlan {
            address,
            facility: 3,
            format,
            tag: "web".into(),
            hostname: "box".into(),
            utc_offset: 3600,
        }
    }

    fn record(line: &[u8]) -> Record<'_> {
        Record { stream: Stream::Stderr, line, part: None }
    }

    #[test]
    fn messages_have_the_form_that_is_asked_for() {
        let moment = Moment { nanoseconds: 1_767_225_600_123_456_789, digits: Vec::new() };
        let pid = std::process::id();
        for (format, expected) in [
            (SyslogFormat::Local, format!("<27>Jan  1 01:00:00 web[{pid}]: ")),
            (SyslogFormat::Rfc3164, format!("<27>Jan  1 01:00:00 box web[{pid}]: ")),
            (SyslogFormat::Rfc5424, format!("<27>1 2026-01-01T00:00:00Z box web {pid} web - ")),
            (SyslogFormat::Rfc5424Micro, format!("<27>1 2026-01-01T00:00:00.123456Z box web {pid} web - ")),
        ] {
            let address = SyslogAddress::Unix { path: "/x".into() };
            assert_eq!(message(&plan(address, format), &record(b"x"), &moment), expected);
        }
    }

    #[test]
    fn a_receiver_that_goes_away_and_comes_back_gets_what_waited() {
        let folder = Folder::new();
        let path = folder.path("log.sock");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let address = SyslogAddress::Unixgram { path: path.clone() };
        let mut syslog = Syslog::connect(&plan(address.clone(), SyslogFormat::Local)).unwrap();
        let moment = Moment { nanoseconds: 0, digits: Vec::new() };
        let hear = |receiver: &UnixDatagram| {
            let mut bytes = [0; 512];
            let count = receiver.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..count]).into_owned()
        };
        syslog.record(&record(b"one\n"), &moment);
        syslog.flush();
        assert!(hear(&receiver).ends_with("]: one\n"));
        drop(receiver);
        std::fs::remove_file(&path).unwrap();
        syslog.record(&record(b"two\n"), &moment);
        syslog.flush();
        assert!(syslog.waits());
        let receiver = UnixDatagram::bind(&path).unwrap();
        syslog.attempted = Instant::now().checked_sub(PAUSE).unwrap();
        syslog.flush();
        assert!(hear(&receiver).ends_with("]: two\n") && !syslog.waits());
    }

    #[test]
    fn one_that_takes_nothing_costs_bounded_memory() {
        let folder = Folder::new();
        let path = folder.path("log.sock");
        let _receiver = UnixDatagram::bind(&path).unwrap();
        let address = SyslogAddress::Unixgram { path };
        let mut syslog = Syslog::connect(&plan(address, SyslogFormat::Local)).unwrap();
        let moment = Moment { nanoseconds: 0, digits: Vec::new() };
        for _ in 0..5000 {
            syslog.record(&record(&[b'x'; 1000]), &moment);
            syslog.flush();
        }
        assert!(syslog.losing && syslog.bytes <= MOST);
    }
}
