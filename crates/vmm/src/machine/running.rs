//! A machine with its processors in their threads, and the loop that serves its devices.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::event::{Timespec, epoll};

use super::devices::{Wake, lock};
use super::dirty::{DirtyLog, Meter};
use super::{Machine, Stop};
use crate::error::{Error, Result};
use crate::vcpu::{Vcpu, VcpuThread};
use crate::virtio::Progress;

/// Told apart from every [`Wake`], none of which has all bits.
const STOPPED: u64 = u64::MAX;
/// As this one and the next: no machine has so many devices.
const ASKED: u64 = u64::MAX - 1;
const MEASURED: u64 = u64::MAX - 2;
/// So many wakes are taken at once.
const BATCH: usize = 32;

/// A machine that began. It is paused until it is told to go on.
///
/// Whoever holds it calls [`Running::turn`] whenever [`Running::event_fd`] is readable.
#[derive(Debug)]
pub struct Running {
    /// First, so that no processor runs when the rest is taken away.
    vcpus: Vec<VcpuThread>,
    pub(super) machine: Machine,
    epoll: OwnedFd,
    /// Descriptors with more to read than one turn took.
    unfinished: VecDeque<Wake>,
    /// Of a machine that somebody may ask what its guest writes.
    meter: Option<Mutex<Meter>>,
}

impl Running {
    pub(super) fn new(mut machine: Machine, vcpus: Vec<Vcpu>) -> Result<Self> {
        let failed = |error| Error::call("epoll", "a machine", error);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        // SAFETY: the event lives in `machine`, which outlives this call.
        let stopped = unsafe { BorrowedFd::borrow_raw(machine.stopper.event().as_raw_fd()) };
        epoll::add(&epoll, stopped, epoll::EventData::new_u64(STOPPED), epoll::EventFlags::IN)
            .map_err(failed)?;
        machine.devices.watch(&epoll)?;
        let log = || DirtyLog::new(Arc::clone(&machine.vm), Arc::clone(&machine.memory));
        let meter = machine.asker.take().map(|asker| Meter::new(asker, log())).transpose()?;
        if let Some(meter) = &meter {
            // Once for each change: who has gone is not heard of again and again.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            for (descriptor, number) in [(meter.control(), ASKED), (meter.timer(), MEASURED)] {
                epoll::add(&epoll, descriptor, epoll::EventData::new_u64(number), flags).map_err(failed)?;
            }
        }
        let vcpus = vcpus
            .into_iter()
            .map(|vcpu| VcpuThread::spawn(vcpu, machine.stopper.clone(), machine.filter.clone()))
            .collect::<Result<_>>()?;
        Ok(Self { vcpus, machine, epoll, unfinished: VecDeque::new(), meter: meter.map(Mutex::new) })
    }

    /// Lets the processors run.
    pub fn resume(&self) -> Result<()> {
        self.vcpus.iter().try_for_each(VcpuThread::resume)
    }

    /// Returns when all of them stand still. What they write is not counted any more.
    pub fn pause(&self) -> Result<()> {
        self.meter.iter().for_each(|meter| lock(meter).interrupt());
        self.vcpus.iter().try_for_each(VcpuThread::pause)
    }

    /// The guest's memory.
    #[must_use]
    pub fn ram(&self) -> &crate::memory::GuestRam {
        self.machine.memory.ram()
    }

    pub(super) fn vcpus(&self) -> &[VcpuThread] {
        &self.vcpus
    }

    /// Readable when there is something to do for [`Running::turn`].
    #[must_use]
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Whether [`Running::turn`] must be called without waiting.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Serves what is due, without waiting, and tells why the machine stopped once it has.
    pub fn turn(&mut self) -> Result<Option<Stop>> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.serve(Some(&now))
    }

    /// Serves the machine until it stops.
    pub fn run(&mut self) -> Result<Stop> {
        loop {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let timeout = self.has_more().then_some(&now);
            if let Some(stop) = self.serve(timeout)? {
                return Ok(stop);
            }
        }
    }

    fn serve(&mut self, timeout: Option<&Timespec>) -> Result<Option<Stop>> {
        let mut events = Vec::with_capacity(BATCH);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::call("epoll_wait", "a machine", error)),
        }
        let mut wakes = std::mem::take(&mut self.unfinished);
        for event in events {
            match event.data.u64() {
                STOPPED => return Ok(self.machine.stopper.reason()),
                ASKED => self.meter.iter().for_each(|meter| lock(meter).hear()),
                MEASURED => self.meter.iter().for_each(|meter| lock(meter).look()),
                number => wakes.push_back(Wake::of_number(number)),
            }
        }
        for wake in wakes {
            if self.machine.devices.wake(wake) == Progress::More && !self.unfinished.contains(&wake) {
                self.unfinished.push_back(wake);
            }
        }
        Ok(None)
    }
}
