//! Between a stream of messages and the queue of a server, without sockets.

use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress};

use super::message::{self, LARGEST, Message, Opcode};
use super::ring::{Ring, SLOTS};
use crate::error::{Error, Result};
use crate::memory::{GuestRam, Memory};

/// Where the rings begin: three pages for each queue.
const RINGS: u64 = 3 * 4096;
/// Where the slots begin.
const BUFFERS: u64 = super::QUEUES as u64 * RINGS;
/// What the port has not taken at which no more answers are fetched.
const MOST_WAITING: usize = 1 << 20;

/// Messages of the guest go into slots, and what the server answers comes out of them.
#[derive(Debug)]
pub struct Exchange {
    memory: Memory,
    urgent: Ring,
    ring: Ring,
    /// What each slot's message asks for; none in a free one.
    slots: Vec<Option<Opcode>>,
    inbound: Vec<u8>,
    outbound: Vec<u8>,
    /// So much of `outbound` has left.
    sent: usize,
}

impl Exchange {
    /// One with queues in new memory.
    pub fn new() -> Result<Self> {
        let size = (BUFFERS + u64::from(SLOTS) * 2 * LARGEST).next_multiple_of(1 << 20);
        Ok(Self {
            memory: Memory::new(size)?,
            urgent: Ring::new(0),
            ring: Ring::new(RINGS),
            slots: vec![None; usize::from(SLOTS)],
            inbound: Vec::new(),
            outbound: Vec::new(),
            sent: 0,
        })
    }

    /// What the server sees: both queues, and a slot's question and answer for each message.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        self.memory.ram()
    }

    /// As the server is told of them.
    pub(super) fn queues(&self) -> Result<[Queue; super::QUEUES]> {
        Ok([self.urgent.queue()?, self.ring.queue()?])
    }

    /// Whether more of the guest is taken: one whole message at most is kept beside those in slots.
    #[must_use]
    pub fn listens(&self) -> bool {
        self.slots.contains(&None) && self.inbound.len() <= LARGEST as usize
    }

    /// Whether answers are taken.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.outbound().len() < MOST_WAITING
    }

    /// What the guest says.
    pub fn hear(&mut self, piece: &[u8]) {
        self.inbound.extend_from_slice(piece);
    }

    /// Puts whole messages into free slots; whether there was any.
    pub fn ask(&mut self) -> Result<bool> {
        let mut taken = 0;
        while let Some(slot) = self.slots.iter().position(Option::is_none) {
            let Some(message) = Message::first(&self.inbound[taken..])? else { break };
            let ram = self.memory.ram();
            let (question, answer) = buffers(slot);
            ram.write_slice(message.bytes, GuestAddress(question)).map_err(super::lost)?;
            self.ring.put(
                ram,
                slot as u16,
                (question, message.bytes.len() as u32),
                (answer, message.room),
            )?;
            self.slots[slot] = Some(message.opcode);
            taken += message.bytes.len();
        }
        self.inbound.drain(..taken);
        Ok(taken > 0)
    }

    /// Takes what the server answered. A message that has no answer frees its slot all the same.
    pub fn take_answers(&mut self) -> Result<()> {
        self.outbound.drain(..std::mem::take(&mut self.sent));
        while self.has_room() {
            let Some(slot) = self.ring.returned(self.memory.ram())? else { return Ok(()) };
            let slot = usize::from(slot);
            let opcode = self.slots.get_mut(slot).and_then(Option::take);
            let opcode = opcode.ok_or_else(|| Error::Shape(format!("slot {slot} was returned twice")))?;
            if !opcode.answered() {
                continue;
            }
            let mut head = [0; 4];
            let (_, answer) = buffers(slot);
            let ram = self.memory.ram();
            ram.read_slice(&mut head, GuestAddress(answer)).map_err(super::lost)?;
            let length = message::answer_length(head)?;
            let from = self.outbound.len();
            self.outbound.resize(from + length, 0);
            ram.read_slice(&mut self.outbound[from..], GuestAddress(answer)).map_err(super::lost)?;
            if opcode == Opcode::INIT {
                message::bound(&mut self.outbound[from..]);
            }
        }
        Ok(())
    }

    /// Answers that the port has not taken yet.
    #[must_use]
    pub fn outbound(&self) -> &[u8] {
        &self.outbound[self.sent..]
    }

    /// The port took `count` bytes of them.
    pub fn sent(&mut self, count: usize) {
        self.sent = self.outbound.len().min(self.sent + count);
        if self.sent == self.outbound.len() {
            self.outbound.clear();
            self.sent = 0;
        }
    }

    /// Messages under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// What was heard and is not in a slot yet, in bytes.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inbound.len()
    }
}

/// Where a slot's question and its answer lie.
fn buffers(slot: usize) -> (u64, u64) {
    let question = BUFFERS + slot as u64 * 2 * LARGEST;
    (question, question + LARGEST)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    fn question(length: u32, opcode: u32) -> Vec<u8> {
        let mut bytes = [length.to_le_bytes(), opcode.to_le_bytes()].concat();
        bytes.resize(length as usize, 7);
        bytes
    }

    /// The server returns `slot` with an answer, as the `number`th one.
    fn answer(exchange: &Exchange, number: u16, slot: u16, bytes: &[u8]) {
        let ram = exchange.ram();
        ram.write_slice(bytes, GuestAddress(buffers(slot.into()).1)).unwrap();
        let used = RINGS + 2 * 4096;
        ram.write_obj(u32::from(slot) * 2, GuestAddress(used + 4 + u64::from(number) * 8)).unwrap();
        ram.store(number + 1, GuestAddress(used + 2), Ordering::Release).unwrap();
    }

    #[test]
    fn questions_take_slots_and_answers_free_them() {
        let mut exchange = Exchange::new().unwrap();
        exchange.hear(&question(56, 3));
        assert!(exchange.ask().unwrap());
        assert_eq!(exchange.under_way(), 1);
        answer(&exchange, 0, 0, &question(20, 0));
        exchange.take_answers().unwrap();
        assert_eq!((exchange.outbound().len(), exchange.under_way()), (20, 0));
        // One that is not answered.
        exchange.hear(&question(48, 2));
        assert!(exchange.ask().unwrap());
        answer(&exchange, 1, 0, b"");
        exchange.sent(5);
        exchange.take_answers().unwrap();
        assert_eq!((exchange.outbound().len(), exchange.under_way()), (15, 0));
        exchange.sent(15);
        assert!(exchange.outbound().is_empty() && !exchange.ask().unwrap());
    }

    #[test]
    fn no_more_are_under_way_than_there_are_slots() {
        let mut exchange = Exchange::new().unwrap();
        exchange.hear(&question(40, 3).repeat(usize::from(SLOTS) + 2));
        assert!(exchange.ask().unwrap());
        assert_eq!((exchange.under_way(), exchange.waiting()), (usize::from(SLOTS), 80));
        assert!(!exchange.listens());
    }

    #[test]
    fn what_breaks_the_rules_ends_it() {
        let mut exchange = Exchange::new().unwrap();
        exchange.hear(&[0xff; 64]);
        assert!(exchange.ask().is_err(), "a guest");

        let mut exchange = Exchange::new().unwrap();
        answer(&exchange, 0, 3, &question(20, 0));
        assert!(exchange.take_answers().is_err(), "a slot that nobody asked with");
    }
}
