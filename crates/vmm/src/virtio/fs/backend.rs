//! The connection to the process that serves the folder.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};
use crate::machine::event;
use crate::memory::GuestRam;
use crate::virtio::QUEUE_SIZE;

/// Wakes the server when a queue has something, and is woken by it.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
}

impl Events {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { kick: event()?, call: event()? })
    }
}

/// A server that has been spoken to.
pub(crate) struct Server {
    frontend: Frontend,
    features: u64,
}

impl Server {
    pub(crate) fn connect(socket: UnixStream, queues: usize) -> Result<Self> {
        let mut frontend = Frontend::from_stream(socket, queues as u64);
        frontend.set_owner().map_err(failed("SET_OWNER"))?;
        let features = frontend.get_features().map_err(failed("GET_FEATURES"))?;
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
            let offered = frontend.get_protocol_features().map_err(failed("GET_PROTOCOL_FEATURES"))?;
            frontend
                .set_protocol_features(offered & VhostUserProtocolFeatures::REPLY_ACK)
                .map_err(failed("SET_PROTOCOL_FEATURES"))?;
        }
        Ok(Self { frontend, features })
    }

    /// What it offers a driver.
    pub(crate) fn features(&self) -> u64 {
        self.features & !VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    /// Hands it the guest's memory and the queues that the driver made ready.
    pub(crate) fn begin(
        &mut self,
        features: u64,
        memory: &GuestRam,
        queues: &[Queue],
        events: &[Events],
    ) -> Result<()> {
        let own = self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.frontend.set_features(features | own).map_err(failed("SET_FEATURES"))?;
        self.frontend.set_mem_table(&regions(memory)?).map_err(failed("SET_MEM_TABLE"))?;
        for (index, (queue, events)) in
            queues.iter().zip(events).enumerate().filter(|(_, (queue, _))| queue.ready())
        {
            self.frontend.set_vring_num(index, queue.size()).map_err(failed("SET_VRING_NUM"))?;
            self.frontend
                .set_vring_addr(index, &addresses(queue, memory)?)
                .map_err(failed("SET_VRING_ADDR"))?;
            self.frontend.set_vring_base(index, queue.next_avail()).map_err(failed("SET_VRING_BASE"))?;
            self.frontend.set_vring_call(index, &events.call).map_err(failed("SET_VRING_CALL"))?;
            self.frontend.set_vring_kick(index, &events.kick).map_err(failed("SET_VRING_KICK"))?;
            if own != 0 {
                self.frontend.set_vring_enable(index, true).map_err(failed("SET_VRING_ENABLE"))?;
            }
        }
        Ok(())
    }

    /// Takes the first `queues` queues away from it: its answer says that it looks at them no more.
    pub(super) fn end(&mut self, queues: usize) {
        for index in 0..queues {
            // A queue that was never ready has no base, which the server may say.
            if let Err(error) = self.frontend.get_vring_base(index) {
                tracing::debug!(%error, index, "GET_VRING_BASE");
            }
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Server").field("features", &self.features).finish_non_exhaustive()
    }
}

fn regions(memory: &GuestRam) -> Result<Vec<VhostUserMemoryRegionInfo>> {
    memory
        .iter()
        .map(|region| {
            let file =
                region.file_offset().ok_or_else(|| Error::Shape("guest memory without a file".to_owned()))?;
            Ok(VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                mmap_offset: file.start(),
                mmap_handle: file.file().as_raw_fd(),
            })
        })
        .collect()
}

/// Where a queue lies, in addresses of this process: so the protocol wants it.
fn addresses(queue: &Queue, memory: &GuestRam) -> Result<VringConfigData> {
    let host = |address: u64| {
        memory
            .get_host_address(GuestAddress(address))
            .map(|pointer| pointer as u64)
            .map_err(|error| Error::Guest { device: "shared folder", why: error.to_string() })
    };
    Ok(VringConfigData {
        queue_max_size: QUEUE_SIZE,
        queue_size: queue.size(),
        flags: 0,
        desc_table_addr: host(queue.desc_table())?,
        used_ring_addr: host(queue.used_ring())?,
        avail_ring_addr: host(queue.avail_ring())?,
        log_addr: None,
    })
}

fn failed(request: &'static str) -> impl Fn(vhost::Error) -> Error + Copy {
    move |error| Error::call(request, "the server of a shared folder", std::io::Error::other(error))
}
