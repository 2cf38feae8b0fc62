//! A file in the guest's memory (specification 1.2, 5.19, a persistent memory device): read-only, so that it is the
//! host's page cache that the guest sees, and all machines with the same file see the same pages.

use serde_json::Value;
use std::io::{Read, Write};

use super::{Chain, Device, Kind, Progress, Queues};
use crate::error::{Error, Result};
use crate::memory::GuestRam;

/// `VIRTIO_PMEM_REQ_TYPE_FLUSH`, which is all that can be asked.
const FLUSH: u32 = 0;
const DONE: u32 = 0;
const FAILED: u32 = 1;

/// Where the file lies in the guest's memory. The mapping itself is the machine's: see
/// [`crate::Machine::attach_image`].
#[derive(Debug)]
pub struct Image {
    address: u64,
    size: u64,
}

impl Image {
    #[must_use]
    pub fn new(address: u64, size: u64) -> Self {
        Self { address, size }
    }
}

impl Device for Image {
    fn kind(&self) -> Kind {
        Kind::PersistentMemory
    }

    fn queues(&self) -> usize {
        1
    }

    /// `struct virtio_pmem_config`: address and size.
    fn configuration(&self) -> Vec<u8> {
        [self.address.to_le_bytes(), self.size.to_le_bytes()].concat()
    }

    fn notified(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Progress> {
        let memory = queues.memory();
        queues.drain(queue, |chain| answer(chain, memory))
    }

    fn save(&self) -> Result<Value> {
        Err(Error::Unsupported("a machine with an image in its memory cannot be saved"))
    }

    fn restore(&mut self, _state: &Value) -> Result<()> {
        Err(Error::Unsupported("a machine with an image in its memory cannot be restored"))
    }
}

/// Nothing was ever written, so everything is on disk.
fn answer(chain: Chain<'_>, memory: &GuestRam) -> Result<u32> {
    let mut request = [0; 4];
    let mut reader = chain.clone().reader(memory).map_err(|error| misuse(&error))?;
    reader.read_exact(&mut request).map_err(|error| misuse(&error))?;
    let outcome = if u32::from_le_bytes(request) == FLUSH { DONE } else { FAILED };
    let mut writer = chain.writer(memory).map_err(|error| misuse(&error))?;
    let written = writer.write(&outcome.to_le_bytes()).map_err(|error| misuse(&error))?;
    Ok(written as u32)
}

fn misuse(error: &dyn std::error::Error) -> Error {
    Error::Guest { device: "image", why: error.to_string() }
}

/// A place where a device may be after a restore: its driver finds that nothing is there (specification 1.2, 4.2.2.2:
/// a device with the id 0).
#[derive(Debug, Default)]
pub struct Vacant;

impl Device for Vacant {
    fn kind(&self) -> Kind {
        Kind::Vacant
    }

    fn queues(&self) -> usize {
        0
    }

    fn notified(&mut self, _queue: usize, _queues: &mut Queues<'_>) -> Result<Progress> {
        Ok(Progress::Waits)
    }

    fn save(&self) -> Result<Value> {
        Ok(Value::Null)
    }

    fn restore(&mut self, _state: &Value) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::Memory;
    use crate::virtio::Unplugged;

    fn read(device: &mut Unplugged, offset: u64) -> u32 {
        let mut value = [0; 4];
        device.read(offset, &mut value);
        u32::from_le_bytes(value)
    }

    #[test]
    fn a_driver_finds_where_it_lies() {
        let image = Box::new(Image::new(0x1_4000_0000, 6 << 20));
        let mut device = Unplugged::new(image, Memory::new(1 << 20).unwrap()).unwrap();
        let words = [8, 0x100, 0x104, 0x108, 0x10c].map(|offset| read(&mut device, offset));
        assert_eq!(words, [27, 0x4000_0000, 1, 6 << 20, 0]);
    }

    #[test]
    fn a_place_that_is_vacant_has_no_device() {
        let mut device = Unplugged::new(Box::new(Vacant), Memory::new(1 << 20).unwrap()).unwrap();
        assert_eq!([0, 8].map(|offset| read(&mut device, offset)), [0x7472_6976, 0]);
        device.save_and_restore().unwrap();
    }

    #[test]
    fn what_is_asked_is_answered() {
        for (asked, said) in [(0, 0), (7, 1u32)] {
            let mut device =
                Unplugged::new(Box::new(Image::new(1 << 30, 1 << 21)), Memory::new(1 << 20).unwrap())
                    .unwrap();
            let mut set = |register: u64, value: u32| device.write(register, &value.to_le_bytes());
            set(0x24, 1);
            set(0x20, 1);
            set(0x70, 1 | 2 | 8);
            set(0x38, 2);
            for (register, address) in [(0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000)] {
                set(register, address);
            }
            set(0x44, 1);
            let ram = device.ram();
            // A request of four bytes, and as many for the answer, the first chained to the second.
            for (at, address, flags, next) in [(0x1000, 0x4000u64, 1u16, 1u16), (0x1010, 0x5000, 2, 0)] {
                ram.write_obj(address, GuestAddress(at)).unwrap();
                ram.write_obj(4u32, GuestAddress(at + 8)).unwrap();
                ram.write_obj(flags, GuestAddress(at + 12)).unwrap();
                ram.write_obj(next, GuestAddress(at + 14)).unwrap();
            }
            ram.write_obj(asked, GuestAddress(0x4000)).unwrap();
            ram.write_obj(9u32, GuestAddress(0x5000)).unwrap();
            ram.write_obj(1u16, GuestAddress(0x2002)).unwrap();
            device.write(0x70, &15u32.to_le_bytes());
            device.notify(0);
            let ram = device.ram();
            assert_eq!(ram.read_obj::<u32>(GuestAddress(0x5000)).unwrap(), said);
            assert_eq!(ram.read_obj::<u16>(GuestAddress(0x3002)).unwrap(), 1, "it was returned");
        }
    }
}
