//! Netlink's framing, both ways: several requests in one datagram, and what the kernel answers.
//!
//! Hand-built because one small writer and reader serve routes and nf_tables alike, and because the
//! monitor and a container's first process, which use it, are counted in kilobytes.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use insula_sys::netlink::Socket;

use super::Error;

/// `nlmsghdr`.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const ACK_TLVS: u16 = 0x200;
const ATTR_MSG: u16 = 1;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
/// The kernel sends at most this much in one datagram of a dump, and this much about one object.
const DUMP_DATAGRAM: usize = 32 * 1024;
const DATAGRAM: usize = 8 * 1024;

/// Far more messages than one batch holds.
const MOST_STEPS: u32 = 1 << 12;

/// Flags of requests.
pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;

/// What a request does, for its error.
#[derive(Debug, Clone, Copy)]
struct Step<'a> {
    action: &'static str,
    operand: &'a str,
}

/// Requests that go to the kernel in one datagram.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
    /// Sequence number of the first message.
    base: u32,
    datagram: usize,
    steps: Vec<Step<'a>>,
}

/// A nest that is open; [`Batch::close`] writes its length.
#[derive(Debug)]
#[must_use]
pub(crate) struct Nest(usize);

impl<'a> Batch<'a> {
    pub(crate) fn new() -> Self {
        // Sockets are used again: what answers an earlier batch must not pass for an answer to this one.
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let base = NEXT.fetch_add(MOST_STEPS, Ordering::Relaxed);
        Self { bytes: Vec::with_capacity(512), last: 0, base, datagram: DATAGRAM, steps: Vec::new() }
    }

    /// Begins a request with the family's fixed header; attributes follow.
    pub(crate) fn begin(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        action: &'static str,
        operand: &'a str,
    ) {
        self.last = self.bytes.len();
        if flags & DUMP == DUMP {
            self.datagram = DUMP_DATAGRAM;
        }
        let sequence = self.base.wrapping_add(u32::try_from(self.steps.len()).unwrap_or(u32::MAX));
        self.steps.push(Step { action, operand });
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(fixed);
        self.finish();
    }

    /// Pads what was written and corrects the length of the message.
    fn finish(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let length = u32::try_from(self.bytes.len() - self.last).unwrap_or(u32::MAX);
        self.bytes[self.last..self.last + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// An attribute; values are names, addresses and numbers, far below its limit of 64 KiB.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.finish();
    }

    /// A string attribute with its final zero.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend(value.as_bytes());
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    /// Opens an attribute that holds attributes.
    pub(crate) fn nest(&mut self, kind: u16) -> Nest {
        self.open(kind | NESTED)
    }

    /// Opens an attribute that holds attributes and, by old custom, does not say so.
    pub(crate) fn open(&mut self, kind: u16) -> Nest {
        let start = self.bytes.len();
        self.attribute(kind, &[]);
        Nest(start)
    }

    /// Bytes within an open nest that are no attribute (the header of a veth's peer).
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.finish();
    }

    pub(crate) fn close(&mut self, nest: &Nest) {
        let length = u16::try_from(self.bytes.len() - nest.0).unwrap_or(u16::MAX);
        self.bytes[nest.0..nest.0 + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Asks for an answer to the last request, which shows that all were carried out.
    pub(crate) fn acknowledge(&mut self) {
        let at = self.last + 6;
        if let Some(flags) = self.bytes.get_mut(at..at + 2) {
            let with = u16::from_ne_bytes([flags[0], flags[1]]) | ACK;
            flags.copy_from_slice(&with.to_ne_bytes());
        }
    }

    /// Sends all requests and reports the first that failed. The kernel works them off before the
    /// send returns, so every answer is there by then.
    pub(crate) fn run(&self, socket: &Socket) -> Result<(), Error> {
        self.exchange(socket, |_, _| {})
    }

    /// As [`Batch::run`], with the kernel's answers other than acknowledgements.
    pub(crate) fn exchange(&self, socket: &Socket, mut visit: impl FnMut(u16, &[u8])) -> Result<(), Error> {
        socket.send(&self.bytes).map_err(|source| Error::Socket { call: "send to netlink", source })?;
        let mut buffer = vec![0; self.datagram];
        let mut result = Ok(());
        loop {
            let count = match socket.receive(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return result,
                Err(source) => return Err(Error::Socket { call: "receive from netlink", source }),
            };
            for message in messages(&buffer[..count]) {
                let Some(position) = self.position(message.sequence) else { continue };
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        if let (Err(error), true) = (self.answer(&message, position), result.is_ok()) {
                            result = Err(error);
                        }
                        if message.kind == NLMSG_DONE || position + 1 == self.steps.len() {
                            return result;
                        }
                    }
                    kind => visit(kind, message.payload),
                }
            }
        }
    }

    /// Which message of the batch is answered.
    fn position(&self, sequence: u32) -> Option<usize> {
        usize::try_from(sequence.wrapping_sub(self.base)).ok().filter(|at| *at < self.steps.len())
    }

    /// The outcome that an acknowledgement or the end of a dump tells.
    fn answer(&self, message: &Message<'_>, position: usize) -> Result<(), Error> {
        let code = message.payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
        if code >= 0 {
            return Ok(());
        }
        let Step { action, operand } = self.steps[position];
        let source = io::Error::from_raw_os_error(code.checked_neg().unwrap_or(0));
        let detail = if message.flags & ACK_TLVS == 0 { String::new() } else { explanation(message) };
        Err(Error::Refused { action, operand: operand.to_owned(), detail, source })
    }
}

/// The kernel's own words, behind the code and the header of the request.
fn explanation(message: &Message<'_>) -> String {
    let tail = message.payload.get(4 + HEADER..).unwrap_or_default();
    attributes(tail)
        .find(|(kind, _)| *kind == ATTR_MSG)
        .map(|(_, text)| text_of(text).chars().filter(|letter| !letter.is_control()).take(200).collect())
        .unwrap_or_default()
}

/// A received message.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    flags: u16,
    sequence: u32,
    /// Name of the socket whose request it answers or tells of.
    pub(crate) socket: u32,
    pub(crate) payload: &'a [u8],
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map(|raw| u16::from_ne_bytes(*raw))
}

/// A native 32-bit number at an offset.
pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map(|raw| u32::from_ne_bytes(*raw))
}

/// The text of an attribute, up to its zero.
pub(crate) fn text_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The messages of a datagram; stops at the first that is malformed.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(word(bytes, 0)?).ok()?;
        let payload = bytes.get(HEADER..length)?;
        let message = Message {
            kind: half(bytes, 4)?,
            flags: half(bytes, 6)?,
            sequence: word(bytes, 8)?,
            socket: word(bytes, 12)?,
            payload,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Type and value of each attribute; stops at the first that is malformed.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?);
        let kind = half(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut batch = Batch::new();
        batch.begin(16, CREATE, &[9; 6], "make", "a");
        let outer = batch.nest(18);
        batch.text(1, "veth");
        batch.attribute(2, &[1, 2, 3, 4, 5]);
        batch.close(&outer);
        batch.begin(17, 0, &[], "drop", "b");
        batch.acknowledge();
        let found: Vec<_> = messages(&batch.bytes).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].kind, found[0].flags, found[0].sequence), (16, CREATE | REQUEST, batch.base));
        assert_eq!((found[1].kind, found[1].flags, found[1].sequence), (17, ACK | REQUEST, batch.base + 1));
        let (kind, inner) = attributes(&found[0].payload[8..]).next().unwrap();
        assert_eq!(kind, 18);
        let inner: Vec<_> = attributes(inner).collect();
        assert_eq!(inner, [(1, &b"veth\0"[..]), (2, &[1, 2, 3, 4, 5][..])]);
        assert_eq!(text_of(inner[0].1), "veth");
    }

    #[test]
    fn malformed_bytes_end_quietly() {
        for length in [0u32, 3, 15, 17, 4096, u32::MAX] {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend([0; 12]);
            assert_eq!(messages(&bytes).count(), 0, "{length}");
        }
        for length in [0u16, 3, 9, u16::MAX] {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend([0; 6]);
            assert_eq!(attributes(&bytes).count(), 0, "{length}");
        }
        assert_eq!(attributes(&[1]).count(), 0);
    }

    #[test]
    fn errors_name_the_step_and_carry_the_kernels_words() {
        let mut batch = Batch::new();
        batch.begin(16, 0, &[], "create bridge", "br0");
        let mut payload = (-17i32).to_ne_bytes().to_vec();
        payload.extend([0; HEADER]);
        payload.extend(9u16.to_ne_bytes());
        payload.extend(ATTR_MSG.to_ne_bytes());
        payload.extend(b"busy\0");
        let message =
            Message { kind: NLMSG_ERROR, flags: ACK_TLVS, sequence: 0, socket: 0, payload: &payload };
        let error = batch.answer(&message, 0).unwrap_err();
        assert_eq!(batch.position(batch.base), Some(0));
        assert_eq!(batch.position(batch.base.wrapping_sub(1)), None);
        assert_eq!(batch.position(batch.base + 1), None);
        assert_eq!(error.to_string(), "create bridge br0 (busy)");
        assert_eq!(error.errno(), Some(17));
    }
}
