//! Messages of FUSE, as far as a relay reads them: include/uapi/linux/fuse.h of the kernel.

use crate::error::{Error, Result};

/// A slot, in bytes: the largest write or read with its heads.
pub const LARGEST: u64 = WRITE as u64 + 4096;

/// What one write or read carries at most.
const WRITE: u32 = 128 << 10;
const PAGES: u16 = (WRITE / 4096) as u16;

/// `struct fuse_in_header`.
const QUESTION: usize = 40;
/// `struct fuse_out_header`.
const ANSWER: usize = 16;

/// What a message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opcode(u32);

impl Opcode {
    pub(super) const INIT: Self = Self(26);
    const READ: Self = Self(15);
    const FORGET: Self = Self(2);
    const BATCH_FORGET: Self = Self(42);

    /// Whether there is an answer to it.
    pub(super) fn answered(self) -> bool {
        self != Self::FORGET && self != Self::BATCH_FORGET
    }
}

/// A question of the guest.
#[derive(Debug)]
pub struct Message<'a> {
    pub opcode: Opcode,
    pub bytes: &'a [u8],
    /// Room for the answer. A server fills whatever room a read has.
    pub room: u32,
}

impl<'a> Message<'a> {
    /// The first one of a stream, if all of it is there.
    pub fn first(stream: &'a [u8]) -> Result<Option<Self>> {
        let Some(&head) = stream.first_chunk::<8>() else { return Ok(None) };
        let [l0, l1, l2, l3, o0, o1, o2, o3] = head;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if (length as usize) < QUESTION || u64::from(length) > LARGEST {
            return Err(misuse(format!("a message of {length} bytes")));
        }
        let opcode = Opcode(u32::from_le_bytes([o0, o1, o2, o3]));
        let Some(bytes) = stream.get(..length as usize) else { return Ok(None) };
        let room = if opcode == Opcode::READ { read_room(bytes)? } else { LARGEST as u32 };
        Ok(Some(Self { opcode, bytes, room }))
    }
}

/// From `struct fuse_read_in`.
fn read_room(question: &[u8]) -> Result<u32> {
    let size = question.get(QUESTION + 16..QUESTION + 20).and_then(|size| size.try_into().ok());
    let room = size.map(|size| u64::from(u32::from_le_bytes(size)) + ANSWER as u64);
    // Below `LARGEST` it fits.
    room.filter(|room| *room <= LARGEST).map(|room| room as u32).ok_or_else(|| misuse("a read".to_owned()))
}

/// How long an answer is, from its first four bytes.
pub(super) fn answer_length(head: [u8; 4]) -> Result<usize> {
    let length = u32::from_le_bytes(head);
    if (length as usize) < ANSWER || u64::from(length) > LARGEST {
        return Err(Error::Shape(format!("the server of shared folders answered with {length} bytes")));
    }
    Ok(length as usize)
}

/// Has the guest's kernel send no more than a slot holds: `struct fuse_init_out` of an answer.
pub(super) fn bound(answer: &mut [u8]) {
    let write = ANSWER + 20;
    if let Some(field) = answer.get_mut(write..write + 4) {
        let offered = u32::from_le_bytes([field[0], field[1], field[2], field[3]]);
        field.copy_from_slice(&offered.min(WRITE).to_le_bytes());
    }
    let pages = ANSWER + 28;
    if let Some(field) = answer.get_mut(pages..pages + 2) {
        let offered = u16::from_le_bytes([field[0], field[1]]);
        field.copy_from_slice(&offered.min(PAGES).to_le_bytes());
    }
}

fn misuse(why: String) -> Error {
    Error::Guest { device: "shared folder", why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(length: u32, opcode: u32) -> Vec<u8> {
        let mut bytes = [length.to_le_bytes(), opcode.to_le_bytes()].concat();
        bytes.resize(length as usize, 7);
        bytes
    }

    #[test]
    fn messages_are_taken_whole_and_within_bounds() {
        let stream = [question(40, 26), question(50, 2)].concat();
        for cut in 0..40 {
            assert!(Message::first(&stream[..cut]).unwrap().is_none(), "{cut}");
        }
        let first = Message::first(&stream).unwrap().unwrap();
        assert_eq!((first.bytes.len(), first.opcode), (40, Opcode::INIT));
        let second = Message::first(&stream[40..]).unwrap().unwrap();
        assert!(second.bytes.len() == 50 && !second.opcode.answered());
        for length in [0, 39, LARGEST as u32 + 1, u32::MAX] {
            let head = [length.to_le_bytes(), [0; 4]].concat();
            assert!(Message::first(&head).is_err(), "{length}");
        }
    }

    #[test]
    fn a_read_has_room_for_what_it_asks_for() {
        let read = |size: u32| {
            let mut bytes = question(80, 15);
            bytes[56..60].copy_from_slice(&size.to_le_bytes());
            bytes
        };
        assert_eq!(Message::first(&read(4096)).unwrap().unwrap().room, 4112);
        assert!(Message::first(&read(LARGEST as u32)).is_err() && Message::first(&read(u32::MAX)).is_err());
        assert!(Message::first(&question(50, 15)).is_err(), "cut short");
    }

    #[test]
    fn the_kernel_is_told_of_the_slots() {
        let mut answer = vec![0; 80];
        answer[36..40].copy_from_slice(&(1u32 << 20).to_le_bytes());
        answer[44..46].copy_from_slice(&256u16.to_le_bytes());
        bound(&mut answer);
        assert_eq!(answer[36..40], WRITE.to_le_bytes());
        assert_eq!(answer[44..46], 32u16.to_le_bytes());
        bound(&mut answer[..20]);
    }
}
