//! One request: a header, data, and a byte for the outcome.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::backend::{Access, Image, SECTOR};
use crate::error::{Error, Result};
use crate::memory::{GuestRam, GuestSlice};
use crate::virtio::Chain;

const HEADER: u32 = 16;
/// A range of a discard: sector, count, flags.
const RANGE: usize = 16;
/// The length of an id.
pub(super) const ID: usize = 20;

/// A buffer of the guest.
#[derive(Debug, Clone, Copy)]
struct Buffer {
    address: GuestAddress,
    length: u32,
    fill: bool,
}

/// A request that makes sense; whether it can be done is another question.
#[derive(Debug)]
pub(super) struct Request {
    operation: u32,
    sector: u64,
    data: Vec<Buffer>,
    outcome: GuestAddress,
}

impl Request {
    /// `Err` when the chain has no header to read or no byte for the outcome.
    pub(super) fn parse(chain: Chain<'_>, memory: &GuestRam) -> Result<Self> {
        let mut buffers: Vec<Buffer> = chain
            .map(|descriptor| Buffer {
                address: descriptor.addr(),
                length: descriptor.len(),
                fill: descriptor.is_write_only(),
            })
            .collect();
        let (Some(header), Some(outcome)) = (buffers.first().copied(), buffers.pop()) else {
            return Err(misuse("a request without buffers"));
        };
        if header.fill || header.length < HEADER || !outcome.fill || outcome.length != 1 || buffers.is_empty()
        {
            return Err(misuse("a request without a header or a place for its outcome"));
        }
        buffers.remove(0);
        let read =
            |address| -> Result<u64> { memory.read_obj(address).map_err(|error| misuse(&error.to_string())) };
        let operation = read(header.address)? as u32;
        let sector = read(GuestAddress(header.address.0.wrapping_add(8)))?;
        Ok(Self { operation, sector, data: buffers, outcome: outcome.address })
    }

    /// Does it, and says how many bytes of the guest's were filled.
    pub(super) fn execute(&self, image: &Image, id: &[u8; ID], memory: &GuestRam) -> Result<u32> {
        let (outcome, filled) = match self.perform(image, id, memory) {
            Ok(filled) => (VIRTIO_BLK_S_OK, filled),
            Err(outcome) => (outcome, 0),
        };
        memory.write_obj(outcome as u8, self.outcome).map_err(|error| misuse(&error.to_string()))?;
        Ok(filled + 1)
    }

    fn perform(&self, image: &Image, id: &[u8; ID], memory: &GuestRam) -> Result<u32, u32> {
        match self.operation {
            VIRTIO_BLK_T_IN => {
                let buffers = self.buffers(memory, true)?;
                let offset = self.range(image, length(&buffers))?;
                image.read(offset, &buffers).map_err(failed)?;
                Ok(length(&buffers) as u32)
            }
            VIRTIO_BLK_T_OUT => {
                let buffers = self.buffers(memory, false)?;
                let offset = self.range(image, length(&buffers))?;
                writable(image)?;
                image.write(offset, &buffers).map_err(failed)?;
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH => image.flush().map_err(failed).map(|()| 0),
            VIRTIO_BLK_T_GET_ID => {
                let buffer = self.buffers(memory, true)?.into_iter().next().ok_or(VIRTIO_BLK_S_IOERR)?;
                Ok(buffer.write(id, 0).unwrap_or(0) as u32)
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.discard(image, memory),
            _ => Err(VIRTIO_BLK_S_UNSUPP),
        }
    }

    fn discard(&self, image: &Image, memory: &GuestRam) -> Result<u32, u32> {
        writable(image)?;
        let [buffer] = self.data[..] else { return Err(VIRTIO_BLK_S_UNSUPP) };
        let mut range = [0; RANGE];
        if buffer.fill || buffer.length as usize != RANGE {
            return Err(VIRTIO_BLK_S_UNSUPP);
        }
        memory.read_slice(&mut range, buffer.address).map_err(|_| VIRTIO_BLK_S_IOERR)?;
        let sector = u64::from_le_bytes(range[..8].try_into().map_err(|_| VIRTIO_BLK_S_IOERR)?);
        let count = u32::from_le_bytes(range[8..12].try_into().map_err(|_| VIRTIO_BLK_S_IOERR)?);
        let bytes = u64::from(count) * SECTOR;
        let offset = within(image, sector, bytes)?;
        image.discard(offset, bytes).map_err(failed).map(|()| 0)
    }

    /// All data buffers, which must be to fill, or to read.
    fn buffers<'a>(&self, memory: &'a GuestRam, fill: bool) -> Result<Vec<GuestSlice<'a>>, u32> {
        let mut slices = Vec::with_capacity(self.data.len());
        for buffer in &self.data {
            if buffer.fill != fill {
                return Err(VIRTIO_BLK_S_IOERR);
            }
            for slice in GuestMemoryBackend::get_slices(memory, buffer.address, buffer.length as usize) {
                slices.push(slice.map_err(|_| VIRTIO_BLK_S_IOERR)?);
            }
        }
        Ok(slices)
    }

    fn range(&self, image: &Image, bytes: u64) -> Result<u64, u32> {
        within(image, self.sector, bytes)
    }
}

/// The offset of `sector`, when whole sectors from it on lie within the image.
fn within(image: &Image, sector: u64, bytes: u64) -> Result<u64, u32> {
    let fits = bytes.is_multiple_of(SECTOR)
        && sector.checked_add(bytes / SECTOR).is_some_and(|end| end <= image.sectors);
    if fits { Ok(sector * SECTOR) } else { Err(VIRTIO_BLK_S_IOERR) }
}

fn writable(image: &Image) -> Result<(), u32> {
    if image.access == Access::ReadWrite { Ok(()) } else { Err(VIRTIO_BLK_S_IOERR) }
}

fn length(buffers: &[GuestSlice<'_>]) -> u64 {
    buffers.iter().map(|buffer| buffer.len() as u64).sum()
}

fn failed(error: std::io::Error) -> u32 {
    tracing::warn!(%error, "a disk's file");
    VIRTIO_BLK_S_IOERR
}

fn misuse(why: &str) -> Error {
    Error::Guest { device: "disk", why: why.to_owned() }
}
