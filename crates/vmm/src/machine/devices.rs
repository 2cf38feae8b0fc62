//! The virtio devices of a machine: where their registers are, and what wakes the thread that works
//! their queues off.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::{IoEventAddress, VmFd};
use rustix::event::epoll;
use vmm_sys_util::eventfd::EventFd;

use super::{Shared, event};
use crate::boot::acpi::Slot;
use crate::bus::Bus;
use crate::error::{Error, Result};
use crate::layout::{DEVICES, MMIO, MMIO_STEP, gsi};
use crate::memory::Memory;
use crate::virtio::{Device, Interrupt, Progress, Transport};

/// Offset of the register by which a driver says that a queue has something.
const NOTIFY: u64 = 0x50;

/// What woke the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    Queue { device: usize, queue: usize },
    Source { device: usize, source: usize },
}

#[derive(Debug)]
struct Plugged {
    slot: Slot,
    transport: Shared<Transport>,
    /// One for each queue.
    notifications: Vec<EventFd>,
    /// Kept open, and closed before the device: an epoll instance watches them.
    sources: Vec<OwnedFd>,
}

#[derive(Debug)]
pub(super) struct Devices {
    vm: Arc<VmFd>,
    memory: Arc<Memory>,
    plugged: Vec<Plugged>,
}

impl Devices {
    pub(super) fn new(vm: Arc<VmFd>, memory: Arc<Memory>) -> Self {
        Self { vm, memory, plugged: Vec::new() }
    }

    pub(super) fn attach(&mut self, device: Box<dyn Device>) -> Result<()> {
        let index = self.plugged.len();
        if index >= DEVICES {
            return Err(Error::Shape(format!("a machine has room for {DEVICES} devices")));
        }
        let slot = Slot { address: MMIO + index as u64 * MMIO_STEP, gsi: gsi(index) };
        let (line, queues) = (event()?, device.queues());
        self.vm
            .register_irqfd(&line, slot.gsi)
            .map_err(|error| Error::kvm("KVM_IRQFD", format!("device {index}"), error))?;
        let transport = Transport::new(device, Arc::clone(&self.memory), Interrupt::new(line))?;
        let sources = transport.sources()?;
        let notifications = (0..queues).map(|queue| self.notification(slot, queue)).collect::<Result<_>>()?;
        let transport = Arc::new(Mutex::new(transport));
        self.plugged.push(Plugged { slot, transport, notifications, sources });
        Ok(())
    }

    /// An event that the kernel raises when the guest writes the number of a queue.
    fn notification(&self, slot: Slot, queue: usize) -> Result<EventFd> {
        let event = event()?;
        self.vm
            .register_ioevent(&event, &IoEventAddress::Mmio(slot.address + NOTIFY), queue as u32)
            .map_err(|error| {
                Error::kvm("KVM_IOEVENTFD", format!("queue {queue} at {:#x}", slot.address), error)
            })?;
        Ok(event)
    }

    pub(super) fn slots(&self) -> Vec<Slot> {
        self.plugged.iter().map(|plugged| plugged.slot).collect()
    }

    /// All registers.
    pub(super) fn bus(&self) -> Result<Bus> {
        let mut bus = Bus::default();
        for plugged in &self.plugged {
            bus.insert(plugged.slot.address, MMIO_STEP, plugged.transport.clone())?;
        }
        Ok(bus)
    }

    pub(super) fn transports(&self) -> impl Iterator<Item = &Shared<Transport>> {
        self.plugged.iter().map(|plugged| &plugged.transport)
    }

    /// Watches everything that can wake a device. Sources are told of once, when they change.
    pub(super) fn watch(&self, epoll: &OwnedFd) -> Result<()> {
        for (device, plugged) in self.plugged.iter().enumerate() {
            for (queue, event) in plugged.notifications.iter().enumerate() {
                // SAFETY: the event outlives this call.
                let event = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
                add(epoll, event, Wake::Queue { device, queue }, epoll::EventFlags::IN)?;
            }
            for (source, descriptor) in plugged.sources.iter().enumerate() {
                let changes = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
                add(epoll, descriptor, Wake::Source { device, source }, changes)?;
            }
        }
        Ok(())
    }

    /// Works off what the wake is about.
    pub(super) fn wake(&self, wake: Wake) -> Progress {
        match wake {
            Wake::Queue { device, queue } => {
                let Some(plugged) = self.plugged.get(device) else { return Progress::Waits };
                if let Some(event) = plugged.notifications.get(queue) {
                    // Somebody else may have taken it, at a restore for one.
                    let _ = event.read();
                }
                lock(&plugged.transport).notified(queue)
            }
            Wake::Source { device, source } => match self.plugged.get(device) {
                Some(plugged) => lock(&plugged.transport).ready(source),
                None => Progress::Waits,
            },
        }
    }

    /// Every device looks at all it has: after a restore nobody tells it.
    pub(super) fn wake_all(&self) {
        for plugged in &self.plugged {
            let mut transport = lock(&plugged.transport);
            transport.remind();
            for queue in 0..plugged.notifications.len() {
                while transport.notified(queue) == Progress::More {}
            }
            for source in 0..plugged.sources.len() {
                while transport.ready(source) == Progress::More {}
            }
        }
    }
}

pub(super) fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(
    epoll: &OwnedFd,
    descriptor: impl std::os::fd::AsFd,
    wake: Wake,
    flags: epoll::EventFlags,
) -> Result<()> {
    epoll::add(epoll, descriptor, epoll::EventData::new_u64(wake.number()), flags)
        .map_err(|error| Error::call("epoll_ctl", "a device", error))
}

/// The low half of a number: which queue or source.
const INDEX: u64 = 0xffff_ffff;
const SOURCE: u64 = 1 << 63;

impl Wake {
    fn number(self) -> u64 {
        match self {
            Self::Queue { device, queue } => (device as u64) << 32 | queue as u64,
            Self::Source { device, source } => SOURCE | (device as u64) << 32 | source as u64,
        }
    }

    pub(super) fn of_number(number: u64) -> Self {
        let (device, index) = (((number & !SOURCE) >> 32) as usize, (number & INDEX) as usize);
        if number & SOURCE == 0 {
            Self::Queue { device, queue: index }
        } else {
            Self::Source { device, source: index }
        }
    }
}
