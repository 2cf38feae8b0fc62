//! The queues of an active device, as its code uses them.

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use super::transport::Interrupt;
use super::{Progress, ROUND};
use crate::error::{Error, Result};
use crate::memory::GuestRam;

/// A request of the guest: buffers to read, then buffers to fill. A chain that loops or leaves the
/// memory ends there.
pub type Chain<'a> = DescriptorChain<&'a GuestRam>;

/// A device's queues and the memory they lie in.
#[derive(Debug)]
pub struct Queues<'a> {
    memory: &'a GuestRam,
    queues: &'a mut [Queue],
    interrupt: &'a Interrupt,
    device: &'static str,
}

impl<'a> Queues<'a> {
    pub(crate) fn new(
        memory: &'a GuestRam,
        queues: &'a mut [Queue],
        interrupt: &'a Interrupt,
        device: &'static str,
    ) -> Self {
        Self { memory, queues, interrupt, device }
    }

    /// The rings themselves, for a server that works them off.
    pub(crate) fn rings(&self) -> &[Queue] {
        self.queues
    }

    /// Interrupts the guest for a server that has returned requests.
    pub(crate) fn interrupt(&self) {
        self.interrupt.queue();
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &'a GuestRam {
        self.memory
    }

    /// The next request of a queue. When there is none the guest is asked to tell of the next one.
    pub fn pop(&mut self, queue: usize) -> Result<Option<Chain<'a>>> {
        let Some(ring) = self.queues.get_mut(queue).filter(|ring| ring.ready()) else { return Ok(None) };
        loop {
            // An index that claims more requests than the ring holds is an error of the iterator.
            let next = ring.iter(self.memory).map_err(|error| misuse(self.device, &error))?.next();
            if let Some(chain) = next {
                return bounded(chain, ring.size(), self.device).map(Some);
            }
            if !ring.enable_notification(self.memory).map_err(|error| misuse(self.device, &error))? {
                return Ok(None);
            }
        }
    }

    /// Works off the requests of a queue, one round of them at most; `work` says how many bytes it filled of one.
    pub fn drain(
        &mut self,
        queue: usize,
        mut work: impl FnMut(Chain<'a>) -> Result<u32>,
    ) -> Result<Progress> {
        let mut returned = 0;
        while returned < ROUND {
            let Some(chain) = self.pop(queue)? else { break };
            let head = chain.head_index();
            let written = work(chain)?;
            self.done(queue, head, written)?;
            returned += 1;
        }
        if returned > 0 {
            self.signal(queue)?;
        }
        Ok(Progress::after(returned))
    }

    /// Puts back the request that [`Queues::pop`] gave last.
    pub fn unpop(&mut self, queue: usize) {
        if let Some(ring) = self.queues.get_mut(queue) {
            ring.go_to_previous_position();
        }
    }

    /// Returns a request, `written` bytes of whose buffers were filled.
    pub fn done(&mut self, queue: usize, head: u16, written: u32) -> Result<()> {
        let Some(ring) = self.queues.get_mut(queue) else { return Ok(()) };
        ring.add_used(self.memory, head, written).map_err(|error| misuse(self.device, &error))
    }

    /// Interrupts the guest if it wants to know of what was returned.
    pub fn signal(&mut self, queue: usize) -> Result<()> {
        let Some(ring) = self.queues.get_mut(queue) else { return Ok(()) };
        if ring.needs_notification(self.memory).map_err(|error| misuse(self.device, &error))? {
            self.interrupt.queue();
        }
        Ok(())
    }

    /// Tells the guest that the configuration space says something else now.
    pub fn configuration_changed(&self) {
        self.interrupt.configuration();
    }
}

/// A table of indirect descriptors may say that it is far longer than the queue, and a chain in it may go in
/// circles: as many steps, for each of the queue's entries. The specification allows as many as the queue has
/// (1.2, 2.7.5.3.1).
fn bounded<'a>(chain: Chain<'a>, size: u16, device: &'static str) -> Result<Chain<'a>> {
    let most = usize::from(size);
    if chain.clone().take(most + 1).count() > most {
        return Err(Error::Guest { device, why: format!("a request of more than {most} buffers") });
    }
    Ok(chain)
}

fn misuse(device: &'static str, error: &virtio_queue::Error) -> Error {
    Error::Guest { device, why: error.to_string() }
}
