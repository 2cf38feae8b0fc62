//! Virtio devices behind registers in memory (Virtual I/O Device specification 1.2, 4.2).
//!
//! MMIO and not PCI: no bus to enumerate, no configuration space to emulate, and one page of
//! registers a device; QEMU's microvm offers the same, so that one guest serves both. What PCI has
//! beyond it, an interrupt a queue, does not pay for the few queues that a container's machine has.
//!
//! A device of more than one file has a folder: `device.rs` is what the guest sees (features,
//! configuration, queues), `request.rs` what it makes of one descriptor chain, `backend.rs` what stands
//! behind it. Which of them it needs, it has.

pub mod balloon;
pub mod block;
pub mod console;
pub mod entropy;
pub mod fs;
pub mod image;
pub mod net;
mod queues;
mod transport;
mod unplugged;
pub mod vsock;

use std::fmt::Debug;
use std::os::fd::BorrowedFd;

pub use queues::{Chain, Queues};
pub(crate) use transport::{Interrupt, Transport, TransportState};
pub use unplugged::Unplugged;

use crate::error::Result;

/// The largest queue that a device offers.
pub(crate) const QUEUE_SIZE: u16 = 256;

/// After so many requests of one queue the other devices have their turn: a guest may fill a queue as fast as it
/// is worked off.
pub(crate) const ROUND: usize = QUEUE_SIZE as usize;

/// Device types of section 5 of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u32)]
pub enum Kind {
    /// A place without a device.
    Vacant = 0,
    Net = 1,
    Block = 2,
    Console = 3,
    Entropy = 4,
    Balloon = 5,
    Socket = 19,
    SharedFolder = 26,
    PersistentMemory = 27,
}

/// How a device left a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing more is there, or nothing more can be done before something else happens.
    Waits,
    /// There is more, after the other devices had their turn.
    More,
}

impl Progress {
    /// Of who stops after [`ROUND`] requests.
    pub(crate) fn after(requests: usize) -> Self {
        if requests < ROUND { Self::Waits } else { Self::More }
    }

    /// Of two that were worked off together.
    pub(crate) fn or(self, other: Self) -> Self {
        if self == Self::More { self } else { other }
    }
}

/// A device without its registers. It is called by one thread at a time.
///
/// What a device need not have has a default: features, a configuration space, something to know of its driver, other
/// descriptors. What a snapshot keeps has none: who forgets it would lose its state without a word.
pub trait Device: Debug + Send {
    fn kind(&self) -> Kind;

    /// The bits of its type that it offers; those of the transport are added.
    fn features(&self) -> u64 {
        0
    }

    /// How many queues it has.
    fn queues(&self) -> usize;

    /// Its configuration space; what lies beyond reads as zero.
    fn configuration(&self) -> Vec<u8> {
        Vec::new()
    }

    /// The guest wrote into its configuration space, which is read-only by default (specification 1.2, 2.5).
    fn configure(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready, with these features.
    fn activate(&mut self, _features: u64, _queues: &Queues<'_>) -> Result<()> {
        Ok(())
    }

    /// Forget the driver.
    fn reset(&mut self) {}

    /// The driver put something into a queue. Who has worked [`ROUND`] requests off says that there may be more, and
    /// is told again.
    fn notified(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Progress>;

    /// Descriptors to watch beside the queues; constant for its life.
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// One of [`Device::sources`], by its place there, became readable or writable, or its other end
    /// is gone. It is told once: the device reads until there is nothing, or says that there is more.
    fn ready(&mut self, _source: usize, _queues: &mut Queues<'_>) -> Result<Progress> {
        Ok(Progress::Waits)
    }

    /// What a snapshot keeps of it beside its queues.
    fn save(&self) -> Result<serde_json::Value>;

    /// Gives a new device what was saved.
    fn restore(&mut self, state: &serde_json::Value) -> Result<()>;
}
