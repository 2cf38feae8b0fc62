//! The driver's side of a split virtqueue (specification 1.2, 2.7): a slot is two descriptors, what is asked
//! and where the answer goes.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::lost;
use crate::error::{Error, Result};
use crate::memory::GuestRam;

/// Messages under way at once.
pub(super) const SLOTS: u16 = 32;

const DESCRIPTORS: u16 = 2 * SLOTS;
const PAGE: u64 = 4096;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// One queue: a page of descriptors, a page of what is offered, a page of what was returned.
#[derive(Debug)]
pub(super) struct Ring {
    base: u64,
    offered: u16,
    returned: u16,
}

impl Ring {
    pub(super) fn new(base: u64) -> Self {
        Self { base, offered: 0, returned: 0 }
    }

    /// As the server is told of it.
    pub(super) fn queue(&self) -> Result<Queue> {
        let mut queue = Queue::new(DESCRIPTORS).map_err(|error| Error::Shape(error.to_string()))?;
        queue.set_size(DESCRIPTORS);
        // Three pages near zero.
        let low = |page: u64| Some((self.base + page * PAGE) as u32);
        queue.set_desc_table_address(low(0), Some(0));
        queue.set_avail_ring_address(low(1), Some(0));
        queue.set_used_ring_address(low(2), Some(0));
        queue.set_ready(true);
        Ok(queue)
    }

    /// Offers a slot: address and length of its question, and of the place for its answer.
    pub(super) fn put(
        &mut self,
        ram: &GuestRam,
        slot: u16,
        question: (u64, u32),
        answer: (u64, u32),
    ) -> Result<()> {
        let head = 2 * slot;
        self.describe(ram, head, question, NEXT, head + 1)?;
        self.describe(ram, head + 1, answer, WRITE, 0)?;
        let entry = 4 + u64::from(self.offered % DESCRIPTORS) * 2;
        ram.write_obj(head, GuestAddress(self.base + PAGE + entry)).map_err(lost)?;
        self.offered = self.offered.wrapping_add(1);
        ram.store(self.offered, GuestAddress(self.base + PAGE + 2), Ordering::Release).map_err(lost)
    }

    fn describe(&self, ram: &GuestRam, at: u16, buffer: (u64, u32), flags: u16, next: u16) -> Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&buffer.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&buffer.1.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        ram.write_slice(&bytes, GuestAddress(self.base + u64::from(at) * 16)).map_err(lost)
    }

    /// The next slot that the server has returned.
    pub(super) fn returned(&mut self, ram: &GuestRam) -> Result<Option<u16>> {
        let used = self.base + 2 * PAGE;
        let index: u16 = ram.load(GuestAddress(used + 2), Ordering::Acquire).map_err(lost)?;
        if index == self.returned {
            return Ok(None);
        }
        let entry = 4 + u64::from(self.returned % DESCRIPTORS) * 8;
        let head: u32 = ram.read_obj(GuestAddress(used + entry)).map_err(lost)?;
        self.returned = self.returned.wrapping_add(1);
        if head >= u32::from(DESCRIPTORS) || !head.is_multiple_of(2) {
            return Err(Error::Shape(format!("the server of shared folders returned descriptor {head}")));
        }
        Ok(Some((head / 2) as u16))
    }
}
