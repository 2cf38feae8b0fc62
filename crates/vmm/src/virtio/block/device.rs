//! What the guest sees of a disk.

use std::fs::File;

use serde_json::Value;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::backend::{Access, Image, SECTOR};
use super::request::{ID, Request};
use crate::error::{Error, Result};
use crate::virtio::{Device, Kind, Progress, QUEUE_SIZE, Queues};

/// One discard covers at most so many sectors: 1 GiB.
const DISCARD: u32 = 1 << 21;

/// A disk of whole sectors of 512 bytes.
#[derive(Debug)]
pub struct Disk {
    image: Image,
    id: [u8; ID],
}

impl Disk {
    /// A disk over `file`, a regular file or a block device; the guest reads `id` (20 bytes of it) as
    /// its serial number.
    pub fn new(file: File, access: Access, id: &str) -> Result<Self> {
        let mut bytes = [0; ID];
        for (byte, letter) in bytes.iter_mut().zip(id.bytes()) {
            *byte = letter;
        }
        Ok(Self { image: Image::new(file, access)?, id: bytes })
    }
}

impl Device for Disk {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SEG_MAX;
        match self.image.access {
            Access::ReadOnly => always | 1 << VIRTIO_BLK_F_RO,
            Access::ReadWrite => always | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
        }
    }

    fn queues(&self) -> usize {
        1
    }

    /// `struct virtio_blk_config` (specification 1.2, 5.2.4).
    fn configuration(&self) -> Vec<u8> {
        let mut space = vec![0; 60];
        let mut put = |at: usize, value: &[u8]| space[at..at + value.len()].copy_from_slice(value);
        put(0, &self.image.sectors.to_le_bytes());
        // Header and outcome take a descriptor each.
        put(12, &(u32::from(QUEUE_SIZE) - 2).to_le_bytes());
        put(36, &DISCARD.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &((4096 / SECTOR) as u32).to_le_bytes());
        put(48, &DISCARD.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        // Zeroing may give the blocks back.
        put(56, &[1]);
        space
    }

    fn notified(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Progress> {
        let memory = queues.memory();
        queues.drain(queue, |chain| Request::parse(chain, memory)?.execute(&self.image, &self.id, memory))
    }

    fn save(&self) -> Result<Value> {
        Ok(self.image.sectors.into())
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        if *state == self.image.sectors {
            return Ok(());
        }
        Err(Error::Shape(format!(
            "a disk of {} sectors stands where the snapshot has {state}",
            self.image.sectors
        )))
    }
}
