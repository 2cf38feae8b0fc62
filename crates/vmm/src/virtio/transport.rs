//! The registers of a device (specification 1.2, 4.2.2), its queues and its life.
//!
//! ```text
//!  reset ──ACKNOWLEDGE, DRIVER──> features ──FEATURES_OK──> queues ──DRIVER_OK──> active
//!    ^                                                                              │
//!    └──────────────────────────── status 0 ───────────────────────────────────────┤
//!                                                 guest breaks the rules ──> NEEDS_RESET
//! ```

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::{Device, Kind, Progress, QUEUE_SIZE, Queues};
use crate::bus::Registers;
use crate::error::{Error, Result};
use crate::memory::Memory;

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = 0x616c_736e;
/// `VIRTIO_F_VERSION_1`, and the two that make rings cheaper: indirect descriptors, event indices.
const VERSION_1: u64 = 1 << 32;
const INDIRECT: u64 = 1 << 28;
const EVENT_INDEX: u64 = 1 << 29;

mod status {
    pub(super) const DRIVER_OK: u32 = 4;
    pub(super) const FEATURES_OK: u32 = 8;
    pub(super) const NEEDS_RESET: u32 = 64;
    pub(super) const FAILED: u32 = 128;
}

/// Offset of the configuration space.
const CONFIGURATION: u64 = 0x100;

/// The interrupt of one device, and why it was raised.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    line: Arc<EventFd>,
    status: Arc<AtomicU32>,
}

impl Interrupt {
    pub(crate) fn new(line: EventFd) -> Self {
        Self { line: Arc::new(line), status: Arc::default() }
    }

    pub(super) fn queue(&self) {
        self.raise(1);
    }

    pub(super) fn configuration(&self) {
        self.raise(2);
    }

    fn raise(&self, why: u32) {
        self.status.fetch_or(why, Ordering::AcqRel);
        // The counter of an eventfd is full after 2^64 - 2 interrupts that nobody took.
        let _ = self.line.write(1);
    }
}

/// A device with its registers.
#[derive(Debug)]
pub(crate) struct Transport {
    device: Box<dyn Device>,
    name: &'static str,
    memory: Arc<Memory>,
    interrupt: Interrupt,
    queues: Vec<Queue>,
    status: u32,
    features: u64,
    device_page: u32,
    driver_page: u32,
    queue: u32,
    generation: u32,
}

/// What a snapshot keeps.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TransportState {
    kind: Kind,
    status: u32,
    features: u64,
    pages: [u32; 2],
    queue: u32,
    generation: u32,
    interrupt: u32,
    queues: Vec<Ring>,
    device: serde_json::Value,
}

/// [`QueueState`], which has no serde of its own.
#[derive(Debug, Serialize, Deserialize)]
struct Ring {
    next_available: u16,
    next_used: u16,
    event_index: bool,
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl Transport {
    pub(crate) fn new(device: Box<dyn Device>, memory: Arc<Memory>, interrupt: Interrupt) -> Result<Self> {
        let name = name(device.kind());
        let queues = (0..device.queues())
            .map(|_| Queue::new(QUEUE_SIZE).map_err(|error| Error::Shape(error.to_string())))
            .collect::<Result<_>>()?;
        Ok(Self {
            device,
            name,
            memory,
            interrupt,
            queues,
            status: 0,
            features: 0,
            device_page: 0,
            driver_page: 0,
            queue: 0,
            generation: 0,
        })
    }

    /// Duplicates of the descriptors that the device wants watched.
    pub(crate) fn sources(&self) -> Result<Vec<std::os::fd::OwnedFd>> {
        let duplicate = |source: std::os::fd::BorrowedFd<'_>| {
            source.as_fd().try_clone_to_owned().map_err(|error| Error::call("dup", self.name, error))
        };
        self.device.sources().into_iter().map(duplicate).collect()
    }

    /// Interrupts the guest again for what it has not seen to. An interrupt that was on its way when a snapshot was
    /// taken is in neither of its parts; one too many does no harm.
    pub(crate) fn remind(&self) {
        if self.interrupt.status.load(Ordering::Acquire) != 0 {
            self.interrupt.raise(0);
        }
    }

    /// The guest put something into a queue.
    pub(crate) fn notified(&mut self, queue: usize) -> Progress {
        self.work(|device, queues| device.notified(queue, queues))
    }

    /// Something happened to a descriptor of the device.
    pub(crate) fn ready(&mut self, source: usize) -> Progress {
        self.work(|device, queues| device.ready(source, queues))
    }

    fn work(&mut self, work: impl FnOnce(&mut dyn Device, &mut Queues<'_>) -> Result<Progress>) -> Progress {
        if !self.active() {
            return Progress::Waits;
        }
        let mut queues = Queues::new(self.memory.ram(), &mut self.queues, &self.interrupt, self.name);
        work(&mut *self.device, &mut queues).unwrap_or_else(|error| {
            tracing::warn!(device = self.name, error = insula_base::chain(&error), "the device stops");
            self.status |= status::NEEDS_RESET;
            self.interrupt.configuration();
            Progress::Waits
        })
    }

    fn active(&self) -> bool {
        self.status & status::DRIVER_OK != 0 && self.status & (status::NEEDS_RESET | status::FAILED) == 0
    }

    fn offered(&self) -> u64 {
        self.device.features() | VERSION_1 | INDIRECT | EVENT_INDEX
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.device.kind() as u32,
            0x0c => VENDOR,
            0x10 => half(self.offered(), self.device_page),
            0x34 => self.selected().map_or(0, |queue| u32::from(queue.max_size())),
            0x44 => self.selected().map_or(0, |queue| u32::from(queue.ready())),
            0x60 => self.interrupt.status.load(Ordering::Acquire),
            0x70 => self.status,
            0xfc => self.generation,
            // Shared memory regions: none, which a length of ones says.
            0xb0..=0xbc => u32::MAX,
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.device_page = value,
            0x20 if self.status & status::FEATURES_OK == 0 => self.accept(value),
            0x24 => self.driver_page = value,
            0x30 => self.queue = value,
            0x64 => {
                self.interrupt.status.fetch_and(!value, Ordering::AcqRel);
            }
            0x70 => self.set_status(value),
            _ if self.status & status::DRIVER_OK == 0 => self.set_queue(offset, value),
            _ => {}
        }
    }

    fn accept(&mut self, value: u32) {
        let (shift, mask) = match self.driver_page {
            0 => (0, 0xffff_ffffu64),
            1 => (32, 0xffff_ffff << 32),
            _ => return,
        };
        self.features = (self.features & !mask) | u64::from(value) << shift;
    }

    fn set_queue(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queues.get_mut(self.queue as usize) else { return };
        match offset {
            // A size that is no power of two or too large leaves the queue as it was.
            0x38 => queue.set_size(u16::try_from(value).unwrap_or(0)),
            0x44 => queue.set_ready(value == 1),
            0x80 => queue.set_desc_table_address(Some(value), None),
            0x84 => queue.set_desc_table_address(None, Some(value)),
            0x90 => queue.set_avail_ring_address(Some(value), None),
            0x94 => queue.set_avail_ring_address(None, Some(value)),
            0xa0 => queue.set_used_ring_address(Some(value), None),
            0xa4 => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(self.queue as usize)
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let added = value & !self.status;
        if added & status::FEATURES_OK != 0 && self.features & !self.offered() != 0 {
            // The driver reads the status again, and sees that its features were refused.
            self.status |= value & !status::FEATURES_OK;
            return;
        }
        // The driver only adds bits; the device alone sets that it needs a reset.
        self.status |= value & !status::NEEDS_RESET;
        if added & status::DRIVER_OK != 0 {
            self.activate();
        }
    }

    fn activate(&mut self) {
        let events = self.features & EVENT_INDEX != 0;
        for queue in &mut self.queues {
            queue.set_event_idx(events);
            if queue.ready() && !queue.is_valid(self.memory.ram()) {
                tracing::warn!(device = self.name, "a queue lies outside the guest's memory");
                self.status |= status::NEEDS_RESET;
                return self.interrupt.configuration();
            }
        }
        let features = self.features;
        self.work(|device, queues| device.activate(features, queues).map(|()| Progress::Waits));
    }

    fn reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(QueueT::reset);
        (self.status, self.features, self.queue) = (0, 0, 0);
        (self.device_page, self.driver_page) = (0, 0);
        self.interrupt.status.store(0, Ordering::Release);
    }

    fn read_configuration(&self, offset: u64, data: &mut [u8]) {
        let configuration = self.device.configuration();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = from.checked_add(index).and_then(|at| configuration.get(at)).copied().unwrap_or(0);
        }
    }

    pub(crate) fn save(&self) -> Result<TransportState> {
        Ok(TransportState {
            kind: self.device.kind(),
            status: self.status,
            features: self.features,
            pages: [self.device_page, self.driver_page],
            queue: self.queue,
            generation: self.generation,
            interrupt: self.interrupt.status.load(Ordering::Acquire),
            queues: self.queues.iter().map(|queue| Ring::of(&queue.state())).collect(),
            device: self.device.save()?,
        })
    }

    /// Makes a new device what the saved one was. One in a place that was vacant is as no driver has seen it.
    pub(crate) fn restore(&mut self, state: &TransportState) -> Result<()> {
        if state.kind == Kind::Vacant {
            return Ok(());
        }
        if state.kind != self.device.kind() || state.queues.len() != self.queues.len() {
            return Err(Error::Shape(format!(
                "a {} stands where the snapshot has another device",
                self.name
            )));
        }
        self.device.restore(&state.device)?;
        for (queue, ring) in self.queues.iter_mut().zip(&state.queues) {
            *queue = Queue::try_from(ring.state()).map_err(|error| Error::Shape(error.to_string()))?;
        }
        (self.status, self.features, self.queue) = (state.status, state.features, state.queue);
        [self.device_page, self.driver_page] = state.pages;
        self.generation = state.generation;
        self.interrupt.status.store(state.interrupt, Ordering::Release);
        if self.active() {
            let queues = Queues::new(self.memory.ram(), &mut self.queues, &self.interrupt, self.name);
            self.device.activate(self.features, &queues)?;
        }
        Ok(())
    }
}

impl Registers for Transport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIGURATION {
            self.read_configuration(offset - CONFIGURATION, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(&mut *data) {
            *data = self.register(offset).to_le_bytes();
        } else {
            // The specification allows no other width; a driver that tries reads zeros.
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= CONFIGURATION {
            self.device.configure(offset - CONFIGURATION, data);
        } else if let Ok(data) = <[u8; 4]>::try_from(data) {
            self.set_register(offset, u32::from_le_bytes(data));
        }
    }
}

impl Ring {
    fn of(state: &QueueState) -> Self {
        Self {
            next_available: state.next_avail,
            next_used: state.next_used,
            event_index: state.event_idx_enabled,
            size: state.size,
            ready: state.ready,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
        }
    }

    fn state(&self) -> QueueState {
        QueueState {
            max_size: QUEUE_SIZE,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: self.event_index,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        }
    }
}

/// The low half of `word`, the high half, or nothing, as the page register says.
fn half(word: u64, page: u32) -> u32 {
    match page {
        0 => word as u32,
        1 => (word >> 32) as u32,
        _ => 0,
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Net => "network card",
        Kind::Block => "disk",
        Kind::Console => "console",
        Kind::Entropy => "entropy source",
        Kind::Balloon => "balloon",
        Kind::Socket => "socket device",
        Kind::SharedFolder => "shared folder",
        Kind::PersistentMemory => "image",
        Kind::Vacant => "vacant place",
    }
}
