//! A device without a machine, whose driver is who holds it: for tests that are hostile guests.

use std::sync::Arc;

use super::transport::{Interrupt, Transport};
use super::{Device, Progress};
use crate::bus::Registers;
use crate::error::Result;
use crate::machine::event;
use crate::memory::{GuestRam, Memory};

/// A device behind its registers, and memory for its queues. Everything is done by who calls: there is no
/// thread that works queues off.
#[derive(Debug)]
pub struct Unplugged {
    memory: Arc<Memory>,
    transport: Transport,
    queues: usize,
    sources: usize,
}

impl Unplugged {
    pub fn new(device: Box<dyn Device>, memory: Memory) -> Result<Self> {
        let memory = Arc::new(memory);
        let (queues, sources) = (device.queues(), device.sources().len());
        let transport = Transport::new(device, Arc::clone(&memory), Interrupt::new(event()?))?;
        Ok(Self { memory, transport, queues, sources })
    }

    /// What the device takes for the guest's memory.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        self.memory.ram()
    }

    /// How many queues it has.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.queues
    }

    /// How many descriptors it watches.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.sources
    }

    /// A processor reads registers; `offset` is within their page.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.transport.read(offset, data);
    }

    /// A processor writes registers.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.transport.write(offset, data);
    }

    /// The driver says that a queue has something.
    pub fn notify(&mut self, queue: usize) -> Progress {
        self.transport.notified(queue)
    }

    /// A descriptor changed, by its number.
    pub fn ready(&mut self, source: usize) -> Progress {
        self.transport.ready(source)
    }

    /// Saves the device and gives it back what was saved, as a machine that goes on from a snapshot does.
    pub fn save_and_restore(&mut self) -> Result<()> {
        let state = self.transport.save()?;
        self.transport.restore(&state)
    }

    /// The same with another device of its kind, as in a copy of a template.
    pub fn save_and_restore_in(&mut self, device: Box<dyn Device>) -> Result<()> {
        let state = self.transport.save()?;
        self.transport = Transport::new(device, Arc::clone(&self.memory), Interrupt::new(event()?))?;
        self.transport.restore(&state)
    }
}
