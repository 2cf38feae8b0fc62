//! The channel between the builder and the process inside, a pair of sequenced-packet sockets:
//! one packet is one message. It is close-on-exec on both sides, so that the end of the stream
//! tells the builder that the program was executed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use insula_base::{Kind, Kinded};
use insula_sys::socket;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Context, Error, Result};

/// Longest error text that crosses; the rest is cut.
const LONGEST: usize = 4000;

/// One end of the channel.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
    /// An eventfd that counts orders, where one was asked for.
    bell: Option<Arc<OwnedFd>>,
}

/// Builder to inside.
pub(crate) enum Order {
    /// Ids are mapped: what takes nothing of the builder's can be made.
    Prepare,
    /// Attach what was made and what follows, descriptors, maybe more than one packet takes: go on.
    Build { start: bool },
    /// Execute the program.
    Start,
    /// The process that was cloned is known to who made it under this number: go on.
    Known { pid: i32 },
    /// Wait for a start by somebody else.
    Park,
    /// Be the init of the container whose plan follows, a text of so many bytes. The descriptors of its streams and of
    /// its control groups come in one packet, with a ring of their own.
    Become { length: usize },
}

/// Inside to builder.
#[derive(Debug)]
pub(crate) enum Report {
    /// The master of the process' terminal.
    Terminal(OwnedFd),
    /// The process that was asked for is not the cloned one but this child of it.
    Process { pid: i32, pidfd: OwnedFd },
    /// A spare is in the control groups and the mount namespace of its container.
    Entered,
    /// Everything is mounted, and the root is not entered yet: time for hooks.
    Mounted,
    /// All is built; the program is executed on [`Order::Start`].
    Ready,
    /// The end of the stream: the program was executed.
    Executed,
}

pub(crate) fn pair() -> Result<(Channel, Channel)> {
    connected(None)
}

/// For a builder that goes on while its order is carried out. The kernel takes who writes to a socket to be about to
/// sleep, and runs who is woken on the same processor though others are idle (`sock_def_readable` in net/core/sock.c,
/// `wake_affine` in kernel/sched/fair.c): the two would not work side by side. An eventfd wakes without that.
pub(crate) fn pair_with_bell() -> Result<(Channel, Channel)> {
    let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE);
    connected(Some(Arc::new(bell.context("eventfd", "for the handshake")?)))
}

fn connected(bell: Option<Arc<OwnedFd>>) -> Result<(Channel, Channel)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map(|(left, right)| (Channel { socket: left, bell: bell.clone() }, Channel { socket: right, bell }))
        .context("socketpair", "for the handshake")
}

/// A place where an init waits for whoever starts it, in a folder that only the runtime's user can enter.
pub(crate) fn listen(folder: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let socket = stream_socket()?;
    rustix::net::bind(&socket, &address(folder, name)?).context("bind", name)?;
    rustix::net::listen(&socket, 8).context("listen", name)?;
    Ok(socket)
}

/// The channel to an init that waits there. `ECONNREFUSED`: it does not any more.
pub(crate) fn connect(folder: BorrowedFd<'_>, name: &str) -> Result<Channel> {
    let socket = stream_socket()?;
    rustix::net::connect(&socket, &address(folder, name)?).context("connect", name)?;
    Ok(Channel { socket, bell: None })
}

pub(crate) fn accept(listener: BorrowedFd<'_>) -> Result<Channel> {
    rustix::io::retry_on_intr(|| rustix::net::accept_with(listener, SocketFlags::CLOEXEC))
        .map(|socket| Channel { socket, bell: None })
        .context("accept4", "who starts the container")
}

fn stream_socket() -> Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .context("socket", "for the start of a container")
}

fn address(folder: BorrowedFd<'_>, name: &str) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(socket::path_in(folder, name)).context("name", name)
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Channel {
    /// What it needs open.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.socket.as_fd()].into_iter().chain(self.bell.iter().map(AsFd::as_fd))
    }

    pub(crate) fn order(&self, order: &Order) -> Result<()> {
        self.announce(order)?;
        self.ring()
    }

    /// Sends an order that a few descriptors belong to; it is awaited until [`Self::ring`]. What is more than a
    /// socket takes would wait for ever for who waits for the bell.
    pub(crate) fn announce(&self, order: &Order) -> Result<()> {
        let byte = match order {
            Order::Prepare => b'I',
            Order::Build { start: false } => b'b',
            Order::Build { start: true } => b'B',
            Order::Start => b'S',
            Order::Park => b'K',
            Order::Known { pid } => {
                let [a, b, c, d] = pid.to_le_bytes();
                return self.send(&[b'H', a, b, c, d], &[]);
            }
            Order::Become { length } => {
                let packet = [&b"L"[..], &(*length as u64).to_le_bytes()].concat();
                return self.send(&packet, &[]);
            }
        };
        self.send(&[byte], &[])
    }

    /// Lets the order and what belongs to it be received.
    pub(crate) fn ring(&self) -> Result<()> {
        let Some(bell) = &self.bell else { return Ok(()) };
        rustix::io::write(bell, &1_u64.to_ne_bytes()).map(drop).context("write", "to the handshake's bell")
    }

    /// Waits for the next order, or the end of who gives them, which receiving says.
    fn listen(&self) -> Result<()> {
        let Some(bell) = &self.bell else { return Ok(()) };
        // That something is to be read there would wake us, and on the wrong processor.
        let mut either = [PollFd::new(bell, PollFlags::IN), PollFd::new(&self.socket, PollFlags::empty())];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut either, None))
            .context("poll", "the handshake")?;
        if either[0].revents().contains(PollFlags::IN) {
            rustix::io::read(bell, &mut [0_u8; 8]).context("read", "the handshake's bell")?;
        }
        Ok(())
    }

    pub(crate) fn await_order(&self) -> Result<Order> {
        self.listen()?;
        match self.receive()? {
            (bytes, _) if bytes == b"I" => Ok(Order::Prepare),
            (bytes, _) if bytes == b"b" => Ok(Order::Build { start: false }),
            (bytes, _) if bytes == b"B" => Ok(Order::Build { start: true }),
            (bytes, _) if bytes == b"S" => Ok(Order::Start),
            (bytes, _) if bytes == b"K" => Ok(Order::Park),
            (bytes, _) if bytes.len() == 5 && bytes[0] == b'H' => {
                Ok(Order::Known { pid: i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) })
            }
            (bytes, _) => match bytes.split_first() {
                Some((b'L', length)) if length.len() == 8 => {
                    let length = length.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                    Ok(Order::Become { length })
                }
                _ => Err(Error::Lost),
            },
        }
    }

    /// Sends a text of any length, as many packets as it takes.
    pub(crate) fn give_text(&self, text: &[u8]) -> Result<()> {
        text.chunks(LONGEST).try_for_each(|part| self.send(part, &[]))
    }

    /// Receives a text of exactly `length` bytes.
    pub(crate) fn take_text(&self, length: usize) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        while text.len() < length {
            match self.receive()? {
                (part, _) if part.is_empty() => return Err(Error::Lost),
                (part, _) => text.extend(part),
            }
        }
        if text.len() == length { Ok(text) } else { Err(Error::Lost) }
    }

    /// Waits for the descriptors of one packet, which are announced by the bell.
    pub(crate) fn await_any(&self) -> Result<Vec<OwnedFd>> {
        self.listen()?;
        match self.receive()? {
            (bytes, descriptors) if bytes == b"F" => Ok(descriptors),
            (bytes, _) => Err(failure(&bytes)),
        }
    }

    /// Hands over descriptors, as many packets as it takes.
    pub(crate) fn give(&self, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        descriptors.chunks(socket::MAX_DESCRIPTORS).try_for_each(|part| self.send(b"F", part))
    }

    /// Receives exactly `count` descriptors.
    pub(crate) fn take(&self, count: usize) -> Result<Vec<OwnedFd>> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            // What exceeds the limit of open files is dropped without a word, unix(7).
            let expected = (count - all.len()).min(socket::MAX_DESCRIPTORS);
            match self.receive()? {
                (bytes, descriptors) if bytes == b"F" && descriptors.len() == expected => {
                    all.extend(descriptors)
                }
                (bytes, descriptors) if bytes == b"F" => {
                    let came = format!("{} of {expected} descriptors", descriptors.len());
                    return Err(Errno::MFILE).context("recvmsg", came);
                }
                (bytes, _) => return Err(failure(&bytes)),
            }
        }
        Ok(all)
    }

    pub(crate) fn report_terminal(&self, master: BorrowedFd<'_>) -> Result<()> {
        self.send(b"T", &[master])
    }

    pub(crate) fn report_process(&self, pid: i32, pidfd: BorrowedFd<'_>) -> Result<()> {
        let mut packet = vec![b'P'];
        packet.extend_from_slice(&pid.to_le_bytes());
        self.send(&packet, &[pidfd])
    }

    pub(crate) fn report_entered(&self) -> Result<()> {
        self.send(b"N", &[])
    }

    pub(crate) fn report_mounted(&self) -> Result<()> {
        self.send(b"M", &[])
    }

    pub(crate) fn report_ready(&self) -> Result<()> {
        self.send(b"R", &[])
    }

    /// The last words of a process inside. Nobody may listen any more.
    pub(crate) fn report_failure(&self, error: &Error) {
        let text = insula_base::chain(error);
        let kind = error.kind().code() as u8;
        let packet = [&[b'E', kind, error.exit_code().unwrap_or(0)], cut(&text)].concat();
        let _ = self.send(&packet, &[]);
    }

    pub(crate) fn await_report(&self) -> Result<Report> {
        let (bytes, mut descriptors) = self.receive()?;
        match (bytes.first(), descriptors.pop()) {
            (None, _) => Ok(Report::Executed),
            (Some(b'T'), Some(master)) => Ok(Report::Terminal(master)),
            (Some(b'P'), Some(pidfd)) if bytes.len() == 5 => {
                let pid = i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
                Ok(Report::Process { pid, pidfd })
            }
            (Some(b'R'), _) => Ok(Report::Ready),
            (Some(b'M'), _) => Ok(Report::Mounted),
            (Some(b'N'), _) => Ok(Report::Entered),
            _ => Err(failure(&bytes)),
        }
    }

    /// Whether one is there, or the end of all.
    pub(crate) fn has_report(&self) -> Result<bool> {
        let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut ready, Some(&now)).map(|count| count == 1).context("poll", "the handshake")
    }

    /// Why the other side failed, if it has said so: who trips over its end had better say that.
    pub(crate) fn last_words(&self) -> Option<Error> {
        while self.has_report().is_ok_and(|there| there) {
            match self.receive().ok()?.0.as_slice() {
                // What went well before.
                b"N" => {}
                bytes => return (bytes.first() == Some(&b'E')).then(|| failure(bytes)),
            }
        }
        None
    }

    fn send(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        match socket::send(self.socket.as_fd(), packet, descriptors) {
            // The other side is gone. What it said before tells why.
            Err(Errno::PIPE | Errno::CONNRESET) => Err(failure(&self.receive()?.0)),
            sent => sent.map(drop).context("sendmsg", "to the handshake"),
        }
    }

    fn receive(&self) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        match self.packet() {
            // The other side is gone with packets of ours unread: it was not done. What it said before is told after
            // the reset.
            Err(Errno::CONNRESET) => match self.packet() {
                Ok((bytes, _)) if bytes.is_empty() => Err(Error::Lost),
                last => last.context("recvmsg", "from the handshake"),
            },
            other => other.context("recvmsg", "from the handshake"),
        }
    }

    fn packet(&self) -> Result<(Vec<u8>, Vec<OwnedFd>), Errno> {
        let mut buffer = [0; LONGEST + 8];
        let (count, descriptors) = socket::receive(self.socket.as_fd(), &mut buffer)?;
        Ok((buffer[..count].to_vec(), descriptors))
    }
}

/// The last words of the other side, where they are that.
fn failure(bytes: &[u8]) -> Error {
    match bytes {
        [b'E', kind, exit_code, message @ ..] => Error::Inside {
            kind: Kind::from_code(u32::from(*kind)),
            exit_code: *exit_code,
            message: String::from_utf8_lossy(message).into_owned(),
        },
        _ => Error::Lost,
    }
}

fn cut(text: &str) -> &[u8] {
    &text.as_bytes()[..text.len().min(LONGEST)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_reports_arrive_as_they_were_sent() {
        let (outside, inside) = pair().unwrap();
        outside.order(&Order::Build { start: true }).unwrap();
        assert!(matches!(inside.await_order().unwrap(), Order::Build { start: true }));
        inside.report_terminal(inside.as_fd()).unwrap();
        inside.report_ready().unwrap();
        assert!(matches!(outside.await_report().unwrap(), Report::Terminal(_)));
        assert!(matches!(outside.await_report().unwrap(), Report::Ready));
        drop(inside);
        assert!(matches!(outside.await_report().unwrap(), Report::Executed));
    }

    #[test]
    fn a_text_of_any_length_follows_its_order() {
        for length in [0, 1, LONGEST, LONGEST + 1, 5 * LONGEST] {
            let text: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let (outside, inside) = pair().unwrap();
            outside.order(&Order::Become { length }).unwrap();
            outside.give_text(&text).unwrap();
            outside.give(&[outside.as_fd(); 3]).unwrap();
            let Order::Become { length } = inside.await_order().unwrap() else { panic!("another order") };
            assert_eq!(inside.take_text(length).unwrap(), text);
            assert_eq!(inside.await_any().unwrap().len(), 3);
        }
    }

    /// It fails while orders are on their way to it, or before they are sent.
    #[test]
    fn last_words_arrive_whatever_was_left_unread() {
        for unread in [0, 1, 2] {
            let (outside, inside) = pair().unwrap();
            for _ in 0..unread {
                outside.order(&Order::Prepare).unwrap();
            }
            inside.report_failure(&Error::Program { program: "x".into(), reason: "no", exit_code: 127 });
            drop(inside);
            let said = match unread {
                0 => outside.order(&Order::Prepare).unwrap_err(),
                _ => outside.await_report().unwrap_err(),
            };
            assert_eq!(said.to_string(), "exec: \"x\": no");
        }
        let (outside, inside) = pair().unwrap();
        assert!(outside.last_words().is_none(), "nothing was said");
        outside.order(&Order::Prepare).unwrap();
        inside.report_failure(&Error::Lost);
        assert!(outside.last_words().is_some());
        drop(inside);
        assert!(matches!(outside.await_report(), Err(Error::Lost)), "it was not done");
    }

    #[test]
    fn each_order_rings_once_and_an_end_needs_no_bell() {
        let rung = |channel: &Channel| {
            let bell = channel.bell.as_ref().unwrap();
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&now)).unwrap() == 1
        };
        let (outside, inside) = pair_with_bell().unwrap();
        outside.order(&Order::Prepare).unwrap();
        outside.announce(&Order::Build { start: true }).unwrap();
        assert!(rung(&inside));
        assert!(matches!(inside.await_order().unwrap(), Order::Prepare));
        // More belongs to the second one.
        assert!(!rung(&inside));
        outside.give(&[outside.as_fd()]).unwrap();
        outside.ring().unwrap();
        assert!(matches!(inside.await_order().unwrap(), Order::Build { start: true }));
        assert_eq!(inside.take(1).unwrap().len(), 1);
        assert!(!rung(&inside));
        drop(outside);
        assert!(inside.await_order().is_err());
    }

    #[test]
    fn what_went_well_is_not_the_last_word() {
        let (outside, inside) = pair().unwrap();
        inside.report_entered().unwrap();
        inside.report_failure(&Error::Lost);
        assert!(matches!(outside.last_words(), Some(Error::Inside { .. })));
        assert!(outside.last_words().is_none());
    }

    #[test]
    fn failures_keep_kind_and_exit_code() {
        let (outside, inside) = pair().unwrap();
        inside.report_failure(&Error::Program { program: "x".into(), reason: "no", exit_code: 127 });
        let error = outside.await_report().unwrap_err();
        assert_eq!((error.kind(), error.exit_code()), (Kind::InvalidArgument, Some(127)));
        assert_eq!(error.to_string(), "exec: \"x\": no");
    }

    #[test]
    fn more_descriptors_than_one_packet_takes_arrive_in_order() {
        let (outside, inside) = pair().unwrap();
        let file = outside.as_fd();
        outside.give(&[file; socket::MAX_DESCRIPTORS + 5]).unwrap();
        assert_eq!(inside.take(socket::MAX_DESCRIPTORS + 5).unwrap().len(), socket::MAX_DESCRIPTORS + 5);
    }
}
