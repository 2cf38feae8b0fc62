//! The channel into a guest: one byte stream, and no descriptors can pass.
//!
//! Every frame is a head of nine bytes and a payload: length of the payload (four bytes, little endian),
//! kind, stream (four bytes, little endian).
//!
//! ```text
//! guest ── Hello ──────────────────────────> host      once, the first frame
//! host  ── Request (protobuf) ─────────────> guest     as in the task protocol; stream 0
//! guest ── Reply (protobuf) ───────────────> host      answers and events; stream 0
//! both  ── Data, Credit, End ──────────────> both      the standard streams of one process
//! both  ── Query, LongQuery ───────────────> both      a question to the name server, and its answer
//! host  ── Open ───────────────────────────> guest     a container comes to a tenant's machine: its two streams
//! ```
//!
//! A request that starts a process opens the stream that has the request's number. Input goes to the guest
//! as it is; output comes back as Docker's stream format has it, or plain for a terminal. Each direction of
//! a stream starts with [`WINDOW`] bytes that may be sent; the receiver gives more with `Credit` as it passes
//! bytes on, so neither side ever holds more than a window for a stream. Who sends more than it may is not
//! to be listened to any longer.
//!
//! In the machine of a tenant the channel carries others: each container has a stream that is a channel of its own
//! as above, and one for its files. `Open` names the first of the two; the other has the number behind it.

use insula_base::{Kind as ErrorKind, Kinded};

/// Version of the channel, in [`Kind::Hello`].
pub const CHANNEL_VERSION: u32 = 3;

/// Bytes that may be under way in one direction of one stream.
pub const WINDOW: usize = 64 << 10;

/// Largest payload of a data frame.
pub const LARGEST_PIECE: usize = 16 << 10;

/// Largest payload of any frame: a plan with everything in it is far below.
pub const LARGEST_PAYLOAD: usize = 4 << 20;

/// Largest message of DNS in one datagram.
pub const LARGEST_QUERY: usize = 4096;

/// Largest message of DNS by TCP, RFC 1035 section 4.2.2.
pub const LARGEST_LONG_QUERY: usize = 65535;

const HEAD: usize = 9;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// [`CHANNEL_VERSION`] in four bytes, little endian, then the release of the guest's kernel as text.
    Hello = 1,
    Request = 2,
    Reply = 3,
    Data = 4,
    /// So many more bytes may be sent: four bytes, little endian.
    Credit = 5,
    /// No more data in this direction.
    End = 6,
    /// A message of DNS; the stream is the question's number, which its answer repeats.
    Query = 7,
    /// The same for a question that came by TCP. An answer without a payload is none.
    LongQuery = 8,
    /// Two streams begin, this one and the next, of a container that comes.
    Open = 9,
}

impl Kind {
    fn parse(byte: u8) -> Option<Self> {
        use Kind::{Credit, Data, End, Hello, LongQuery, Open, Query, Reply, Request};
        [Hello, Request, Reply, Data, Credit, End, Query, LongQuery, Open]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }

    fn largest(self) -> usize {
        match self {
            Self::Hello => 256,
            Self::Request | Self::Reply => LARGEST_PAYLOAD,
            Self::Data => LARGEST_PIECE,
            Self::Credit => 4,
            Self::End | Self::Open => 0,
            Self::Query => LARGEST_QUERY,
            Self::LongQuery => LARGEST_LONG_QUERY,
        }
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelFrame {
    pub kind: Kind,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A peer that does not keep to the format.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("the channel carries a frame of unknown kind {0}")]
    UnknownKind(u8),
    #[error("the channel carries a frame of {length} bytes of kind {kind:?}")]
    TooLarge { kind: Kind, length: usize },
    #[error("the channel carries {0} that cannot be read")]
    Malformed(&'static str),
    #[error("more was sent on stream {0} than was allowed")]
    Window(u32),
    #[error("the guest's agent speaks version {0} of the channel, not {CHANNEL_VERSION}")]
    Version(u32),
}

impl Kinded for ChannelError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// What an agent says first: our version and the release of its kernel.
#[must_use]
pub fn greeting(release: &str) -> Vec<u8> {
    [&CHANNEL_VERSION.to_le_bytes(), release.as_bytes()].concat()
}

/// Appends a frame; `payload` is within the bounds of its kind.
pub fn put_frame(out: &mut Vec<u8>, kind: Kind, stream: u32, payload: &[u8]) {
    out.reserve(HEAD + payload.len());
    // Bounded by `largest`.
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.push(kind as u8);
    out.extend_from_slice(&stream.to_le_bytes());
    out.extend_from_slice(payload);
}

/// Collects bytes as they arrive and gives them back frame by frame.
#[derive(Debug, Default)]
pub struct ChannelReader {
    bytes: Vec<u8>,
    /// How much of `bytes` was given back.
    taken: usize,
}

impl ChannelReader {
    /// Takes in what one read returned.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 && (self.taken == self.bytes.len() || self.taken > LARGEST_PIECE) {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if it is there. A length is checked before anything is stored for it.
    pub fn pop(&mut self) -> Result<Option<ChannelFrame>, ChannelError> {
        let rest = &self.bytes[self.taken..];
        let Some(head) = rest.first_chunk::<HEAD>() else { return Ok(None) };
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = Kind::parse(head[4]).ok_or(ChannelError::UnknownKind(head[4]))?;
        let stream = u32::from_le_bytes([head[5], head[6], head[7], head[8]]);
        if length > kind.largest() {
            return Err(ChannelError::TooLarge { kind, length });
        }
        let Some(payload) = rest.get(HEAD..HEAD + length) else { return Ok(None) };
        let frame = ChannelFrame { kind, stream, payload: payload.to_vec() };
        self.taken += HEAD + length;
        Ok(Some(frame))
    }
}

impl ChannelFrame {
    /// The number in a credit frame.
    pub fn credit(&self) -> Result<usize, ChannelError> {
        let bytes: [u8; 4] =
            self.payload.as_slice().try_into().map_err(|_| ChannelError::Malformed("a credit"))?;
        Ok(u32::from_le_bytes(bytes) as usize)
    }

    /// The kernel's release in a hello of our version.
    pub fn hello(&self) -> Result<String, ChannelError> {
        let (version, release) =
            self.payload.split_first_chunk::<4>().ok_or(ChannelError::Malformed("a greeting"))?;
        let release = std::str::from_utf8(release).map_err(|_| ChannelError::Malformed("a greeting"))?;
        let printable = release.bytes().all(|byte| byte.is_ascii_graphic());
        if !printable {
            return Err(ChannelError::Malformed("a greeting"));
        }
        match u32::from_le_bytes(*version) {
            CHANNEL_VERSION => Ok(release.to_owned()),
            version => Err(ChannelError::Version(version)),
        }
    }
}

/// One stream's books: what this side may still send, and what the other one may.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    sendable: usize,
    receivable: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { sendable: WINDOW, receivable: WINDOW }
    }
}

impl Window {
    /// How much may be sent now, at most one piece.
    #[must_use]
    pub fn sendable(&self) -> usize {
        self.sendable.min(LARGEST_PIECE)
    }

    /// So much was sent; never more than [`Window::sendable`].
    pub fn sent(&mut self, count: usize) {
        self.sendable = self.sendable.saturating_sub(count);
    }

    /// The other side allows more.
    pub fn credited(&mut self, stream: u32, count: usize) -> Result<(), ChannelError> {
        self.sendable += count;
        if self.sendable > WINDOW { Err(ChannelError::Window(stream)) } else { Ok(()) }
    }

    /// The other side sent so much.
    pub fn received(&mut self, stream: u32, count: usize) -> Result<(), ChannelError> {
        self.receivable = self.receivable.checked_sub(count).ok_or(ChannelError::Window(stream))?;
        Ok(())
    }

    /// So much was passed on: the frame that allows the other side as much again.
    pub fn passed(&mut self, out: &mut Vec<u8>, stream: u32, count: usize) {
        if count > 0 {
            self.receivable += count;
            // At most a window.
            put_frame(out, Kind::Credit, stream, &(count as u32).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_survive_any_split() {
        let mut stream = Vec::new();
        put_frame(&mut stream, Kind::Data, 7, b"hello");
        put_frame(&mut stream, Kind::End, 7, b"");
        put_frame(&mut stream, Kind::Credit, 9, &5u32.to_le_bytes());
        for cut in 0..stream.len() {
            let mut reader = ChannelReader::default();
            let mut seen = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                reader.push(part);
                while let Some(frame) = reader.pop().unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen.len(), 3);
            assert_eq!((seen[0].stream, seen[0].payload.as_slice()), (7, &b"hello"[..]));
            assert_eq!(seen[2].credit().unwrap(), 5);
        }
    }

    #[test]
    fn lengths_past_the_bound_of_their_kind_are_refused_before_they_are_stored() {
        for (kind, length) in [(Kind::Data, LARGEST_PIECE + 1), (Kind::End, 1), (Kind::Hello, 257)] {
            let mut reader = ChannelReader::default();
            let mut head = (length as u32).to_le_bytes().to_vec();
            head.extend_from_slice(&[kind as u8, 0, 0, 0, 0]);
            reader.push(&head);
            assert!(matches!(reader.pop(), Err(ChannelError::TooLarge { .. })), "{kind:?}");
        }
    }

    #[test]
    fn who_sends_past_the_window_is_caught() {
        let mut window = Window::default();
        window.received(1, WINDOW).unwrap();
        assert!(matches!(window.received(1, 1), Err(ChannelError::Window(1))));
        window.passed(&mut Vec::new(), 1, 10);
        window.received(1, 10).unwrap();
        assert!(window.credited(1, 1).is_err(), "more than was ever allowed");
        window.sent(10);
        window.credited(1, 9).unwrap();
    }

    #[test]
    fn greetings_are_plain_text() {
        let hello = |payload| ChannelFrame { kind: Kind::Hello, stream: 0, payload }.hello();
        assert_eq!(hello(greeting("6.1.0-1-amd64")).unwrap(), "6.1.0-1-amd64");
        assert!(matches!(hello(greeting("6.1\x1b[2J")), Err(ChannelError::Malformed(_))));
        let mut other = greeting("6.1");
        other[0] ^= 0x80;
        assert!(matches!(hello(other), Err(ChannelError::Version(_))));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut reader = ChannelReader::default();
            reader.push(&bytes);
            while let Ok(Some(frame)) = reader.pop() {
                let _ = (frame.credit(), frame.hello());
            }
        }
    }
}
