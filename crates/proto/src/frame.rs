//! Framing, without I/O of its own: the synchronous monitor and the asynchronous daemon both feed
//! a [`FrameReader`] from `recvmsg` and send what [`encode`] returns.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use insula_base::{Kind, Kinded};
use prost::Message;

/// Largest message in bytes: a plan with a long environment, far from what would hurt.
pub const MAX_FRAME: usize = 8 << 20;
/// Most descriptors that one frame brings; the kernel's own limit is 253.
pub const MAX_DESCRIPTORS: usize = 32;

const HEAD: usize = 4;

/// What makes a stream unusable: the connection is to be closed.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes was announced, at most {MAX_FRAME} are allowed")]
    TooLarge(usize),
    #[error("a frame does not hold the expected message")]
    Malformed(#[source] prost::DecodeError),
    #[error("the peer sent more than {MAX_DESCRIPTORS} descriptors that no message counts")]
    TooManyDescriptors,
    #[error("a message counts {expected} descriptors, {found} came")]
    MissingDescriptors { expected: usize, found: usize },
}

impl Kinded for FrameError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

/// One message with its length before it, ready to be sent.
#[must_use]
pub fn encode(message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut frame = Vec::with_capacity(HEAD + length);
    // A length past 32 bits cannot come up: messages are bounded by MAX_FRAME where they are made.
    frame.extend_from_slice(&(length as u32).to_le_bytes());
    message.encode_raw(&mut frame);
    frame
}

/// One message without a length, as it is in a frame of the channel into a guest.
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, FrameError> {
    M::decode(bytes).map_err(FrameError::Malformed)
}

/// Collects bytes and descriptors as they arrive and gives them back message by message.
#[derive(Debug, Default)]
pub struct FrameReader {
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl FrameReader {
    /// Takes in what one receive returned.
    pub fn push(
        &mut self,
        bytes: &[u8],
        descriptors: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<(), FrameError> {
        self.descriptors.extend(descriptors);
        if self.descriptors.len() > MAX_DESCRIPTORS {
            return Err(FrameError::TooManyDescriptors);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole message, if it is there.
    pub fn pop<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let Some(head) = self.bytes.first_chunk::<HEAD>() else { return Ok(None) };
        let length = u32::from_le_bytes(*head) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLarge(length));
        }
        let Some(body) = self.bytes.get(HEAD..HEAD + length) else { return Ok(None) };
        let message = M::decode(body).map_err(FrameError::Malformed)?;
        self.bytes.drain(..HEAD + length);
        if self.bytes.is_empty() && self.bytes.capacity() > 4096 {
            self.bytes = Vec::new();
        }
        Ok(Some(message))
    }

    /// The descriptors of the message that [`FrameReader::pop`] returned last.
    pub fn take(&mut self, count: usize) -> Result<Vec<OwnedFd>, FrameError> {
        if self.descriptors.len() < count {
            let found = self.descriptors.len();
            return Err(FrameError::MissingDescriptors { expected: count, found });
        }
        Ok(self.descriptors.drain(..count).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Call, Request, Signal};
    use proptest::prelude::*;

    fn signal(id: u64) -> Request {
        Request::new(id, Call::Signal(Signal { exec: "e".into(), signal: 15, ..Signal::default() }))
    }

    #[test]
    fn frames_survive_any_split() {
        let stream: Vec<u8> = (1..4).flat_map(|id| encode(&signal(id))).collect();
        for cut in 0..stream.len() {
            let mut reader = FrameReader::default();
            let mut seen = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                reader.push(part, []).unwrap();
                while let Some(request) = reader.pop::<Request>().unwrap() {
                    seen.push(request);
                }
            }
            assert_eq!(seen, [signal(1), signal(2), signal(3)]);
        }
    }

    #[test]
    fn a_frame_past_the_bound_is_refused_before_it_is_stored() {
        let mut reader = FrameReader::default();
        reader.push(&u32::MAX.to_le_bytes(), []).unwrap();
        assert!(matches!(reader.pop::<Request>(), Err(FrameError::TooLarge(_))));
    }

    #[test]
    fn descriptors_that_did_not_come_are_missed() {
        assert!(matches!(
            FrameReader::default().take(1),
            Err(FrameError::MissingDescriptors { expected: 1, found: 0 })
        ));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut reader = FrameReader::default();
            reader.push(&bytes, []).unwrap();
            while let Ok(Some(_)) = reader.pop::<Request>() {}
        }
    }
}
