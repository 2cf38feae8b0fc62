//! What the guest sees of a shared folder.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use super::backend::{Events, Server};
use crate::error::{Error, Result};
use crate::virtio::{Device, Kind, Progress, Queues};

/// One for urgent requests, one for the others.
const QUEUES: usize = 2;
/// The length of a tag.
const TAG: usize = 36;

/// A folder that the guest mounts by its tag.
#[derive(Debug)]
pub struct SharedFolder {
    tag: [u8; TAG],
    server: Server,
    events: Vec<Events>,
    /// The server has the queues.
    active: bool,
}

impl SharedFolder {
    /// A folder served by the process at the other end of `socket`.
    pub fn new(tag: &str, socket: UnixStream) -> Result<Self> {
        let mut bytes = [0; TAG];
        let Some(place) = bytes.get_mut(..tag.len()) else {
            return Err(Error::Shape(format!("the tag {tag} of a shared folder is longer than {TAG} bytes")));
        };
        place.copy_from_slice(tag.as_bytes());
        let events = (0..QUEUES).map(|_| Events::new()).collect::<Result<_>>()?;
        Ok(Self { tag: bytes, server: Server::connect(socket, QUEUES)?, events, active: false })
    }
}

impl Device for SharedFolder {
    fn kind(&self) -> Kind {
        Kind::SharedFolder
    }

    fn features(&self) -> u64 {
        self.server.features()
    }

    fn queues(&self) -> usize {
        QUEUES
    }

    /// `struct virtio_fs_config` (specification 1.2, 5.11.4).
    fn configuration(&self) -> Vec<u8> {
        let mut space = self.tag.to_vec();
        space.extend((QUEUES as u32 - 1).to_le_bytes());
        space
    }

    fn activate(&mut self, features: u64, queues: &Queues<'_>) -> Result<()> {
        self.active = true;
        self.server.begin(features, queues.memory(), queues.rings(), &self.events)
    }

    fn reset(&mut self) {
        // Every driver resets first, when there is nothing to take back yet.
        if std::mem::take(&mut self.active) {
            self.server.end(QUEUES);
        }
    }

    fn notified(&mut self, queue: usize, _queues: &mut Queues<'_>) -> Result<Progress> {
        if let Some(events) = self.events.get(queue) {
            events.kick.write(1).map_err(|error| Error::call("write", "a shared folder", error))?;
        }
        Ok(Progress::Waits)
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        // SAFETY: each event lives as long as `self`, which the result borrows.
        self.events.iter().map(|events| unsafe { BorrowedFd::borrow_raw(events.call.as_raw_fd()) }).collect()
    }

    /// The server returned something; whether the guest wants to know, it has seen itself.
    fn ready(&mut self, source: usize, queues: &mut Queues<'_>) -> Result<Progress> {
        if self.events.get(source).is_some_and(|events| events.call.read().is_ok()) {
            queues.interrupt();
        }
        Ok(Progress::Waits)
    }

    /// What the server knows of open files cannot be taken from it.
    fn save(&self) -> Result<Value> {
        Err(Error::Unsupported("a machine with shared folders cannot be saved"))
    }

    fn restore(&mut self, _state: &Value) -> Result<()> {
        Err(Error::Unsupported("a machine with shared folders cannot be restored"))
    }
}
