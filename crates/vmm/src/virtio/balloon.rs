//! Memory that the guest does not use goes back to the host (specification 1.2, 5.5).
//!
//! The guest's kernel reports pages that have been free for a while (`VIRTIO_BALLOON_F_PAGE_REPORTING`) and may use
//! them again at any time without a word: they are zeros then. The balloon itself is never asked to grow; a driver
//! that puts pages into it all the same has less memory, and the host more.

use serde_json::Value;
use vm_memory::{Bytes, GuestAddress};

use super::{Chain, Device, Kind, Progress, Queues};
use crate::error::{Error, Result};
use crate::memory::{GuestRam, PAGE, discard};

/// `VIRTIO_BALLOON_F_PAGE_REPORTING`
const PAGE_REPORTING: u64 = 1 << 5;
/// Numbers are of pages of this many bits.
const NUMBER_SHIFT: u32 = 12;
/// Pages into the balloon, pages out of it, reports.
const QUEUES: usize = 3;
const INFLATE: usize = 0;
const REPORTS: usize = 2;
/// Numbers of pages in one request: drivers send 256.
const MOST_NUMBERS: u32 = 1024;
/// Where the driver says how many pages are in the balloon.
const ACTUAL: std::ops::Range<usize> = 4..8;
/// `struct virtio_balloon_config`.
const CONFIGURATION: usize = 16;

/// A balloon that nobody blows up, and takes reports of what is free.
#[derive(Debug)]
pub struct Balloon {
    actual: [u8; 4],
}

impl Balloon {
    #[must_use]
    pub fn new() -> Self {
        Self { actual: [0; 4] }
    }
}

impl Default for Balloon {
    fn default() -> Self {
        Self::new()
    }
}

impl Device for Balloon {
    fn kind(&self) -> Kind {
        Kind::Balloon
    }

    fn features(&self) -> u64 {
        PAGE_REPORTING
    }

    fn queues(&self) -> usize {
        QUEUES
    }

    /// The host wants no page: all zero but what the driver wrote.
    fn configuration(&self) -> Vec<u8> {
        let mut space = vec![0; CONFIGURATION];
        space[ACTUAL].copy_from_slice(&self.actual);
        space
    }

    fn configure(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            let place = at.checked_sub(ACTUAL.start as u64).and_then(|at| usize::try_from(at).ok());
            if let Some(place) = place.and_then(|at| self.actual.get_mut(at)) {
                *place = *byte;
            }
        }
    }

    fn reset(&mut self) {
        self.actual = [0; 4];
    }

    fn notified(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Progress> {
        let memory = queues.memory();
        queues.drain(queue, |chain| {
            match queue {
                INFLATE => take_pages(chain, memory)?,
                REPORTS => take_reports(chain, memory)?,
                // What comes out of the balloon is there when it is touched.
                _ => {}
            }
            Ok(0)
        })
    }

    fn save(&self) -> Result<Value> {
        Ok(Value::from(u32::from_le_bytes(self.actual)))
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        let actual = state.as_u64().and_then(|actual| u32::try_from(actual).ok());
        self.actual = actual.ok_or_else(|| Error::Shape("a balloon's state".to_owned()))?.to_le_bytes();
        Ok(())
    }
}

/// Each buffer is memory that is free.
fn take_reports(chain: Chain<'_>, memory: &GuestRam) -> Result<()> {
    for buffer in chain.filter(|buffer| buffer.is_write_only()) {
        discard(memory, buffer.addr(), buffer.len().into()).map_err(misuse)?;
    }
    Ok(())
}

/// Each buffer is a list of numbers of pages, which are 4 KiB whatever the guest's are.
fn take_pages(chain: Chain<'_>, memory: &GuestRam) -> Result<()> {
    const NUMBER: u32 = 4;
    for buffer in chain.filter(|buffer| !buffer.is_write_only()) {
        let count = buffer.len() / NUMBER;
        if count > MOST_NUMBERS {
            return Err(misuse(format!("{count} pages at once")));
        }
        for at in 0..count {
            let place = GuestAddress(buffer.addr().0.wrapping_add(u64::from(at * NUMBER)));
            let number: u32 = memory.read_obj(place).map_err(|error| misuse(error.to_string()))?;
            let address = u64::from(u32::from_le(number)) << NUMBER_SHIFT;
            discard(memory, GuestAddress(address), PAGE).map_err(misuse)?;
        }
    }
    Ok(())
}

fn misuse(why: String) -> Error {
    Error::Guest { device: "balloon", why }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::memory::Memory;
    use crate::virtio::Unplugged;

    const READY: u32 = 1 | 2 | 8;
    const DRIVER_OK: u32 = 4;
    const FREE: u64 = 0x8_0000;

    fn set(device: &mut Unplugged, register: u64, value: u32) {
        device.write(register, &value.to_le_bytes());
    }

    fn status(device: &mut Unplugged) -> u32 {
        let mut value = [0; 4];
        device.read(0x70, &mut value);
        u32::from_le_bytes(value)
    }

    /// A driver with one request of one buffer in a queue.
    fn driver(memory: Memory, queue: u32, buffer: (u64, u32, u16)) -> Unplugged {
        let mut device = Unplugged::new(Box::new(Balloon::new()), memory).unwrap();
        for (page, features) in [(0, PAGE_REPORTING as u32), (1, 1)] {
            set(&mut device, 0x24, page);
            set(&mut device, 0x20, features);
        }
        set(&mut device, 0x70, READY);
        set(&mut device, 0x30, queue);
        set(&mut device, 0x38, 1);
        for (register, address) in [(0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000)] {
            set(&mut device, register, address);
        }
        set(&mut device, 0x44, 1);
        let (address, length, flags) = buffer;
        let ram = device.ram();
        ram.write_obj(address, GuestAddress(0x1000)).unwrap();
        ram.write_obj(length, GuestAddress(0x1008)).unwrap();
        ram.write_obj(flags, GuestAddress(0x100c)).unwrap();
        ram.write_obj(1u16, GuestAddress(0x2002)).unwrap();
        set(&mut device, 0x70, READY | DRIVER_OK);
        device
    }

    /// Blocks of the memory's file, and the device after what was asked.
    fn asked(queue: u32, buffer: (u64, u32, u16)) -> (u64, Unplugged) {
        let memory = Memory::new(1 << 20).unwrap();
        let file = memory.file().unwrap().try_clone().unwrap();
        memory.ram().write_slice(&[7; 8 * PAGE as usize], GuestAddress(FREE)).unwrap();
        memory.ram().write_obj((FREE / PAGE) as u32 + 1, GuestAddress(0x4000)).unwrap();
        let mut device = driver(memory, queue, buffer);
        let before = file.metadata().unwrap().blocks();
        device.notify(queue as usize);
        // The used ring has one page of its own.
        let given = before + PAGE / 512 - file.metadata().unwrap().blocks();
        (given * 512 / PAGE, device)
    }

    fn byte(device: &Unplugged, address: u64) -> u8 {
        device.ram().read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn what_is_reported_goes_back_to_the_host_and_reads_as_zeros() {
        const WRITABLE: u16 = 2;
        let (pages, device) = asked(2, (FREE + PAGE, 4 * PAGE as u32, WRITABLE));
        assert_eq!(pages, 4);
        let bytes = [FREE, FREE + PAGE, FREE + 5 * PAGE - 1, FREE + 5 * PAGE].map(|at| byte(&device, at));
        assert_eq!(bytes, [7, 0, 0, 7]);
        // Only whole pages, and only buffers that the host may write.
        assert_eq!(asked(2, (FREE + 1, 2 * PAGE as u32, WRITABLE)).0, 1);
        assert_eq!(asked(2, (FREE, PAGE as u32, 0)).0, 0);
        assert_eq!(asked(2, (FREE, 0, WRITABLE)).0, 0);
    }

    #[test]
    fn a_page_in_the_balloon_is_the_hosts() {
        let (pages, mut device) = asked(0, (0x4000, 4, 0));
        assert_eq!((pages, byte(&device, FREE), byte(&device, FREE + PAGE)), (1, 7, 0));
        device.write(0x104, &1u32.to_le_bytes());
        device.save_and_restore().unwrap();
        let mut actual = [0; 8];
        device.read(0x100, &mut actual);
        assert_eq!(actual, [0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(status(&mut device), READY | DRIVER_OK);
    }

    #[test]
    fn what_lies_outside_the_memory_is_caught() {
        for (queue, buffer) in [
            (2, ((1 << 20) - PAGE, 2 * PAGE as u32, 2)),
            (2, (u64::MAX - 10, u32::MAX, 2)),
            (0, (FREE, 4, 0)),
            (0, (FREE, 8192, 0)),
        ] {
            let (_, mut device) = asked(queue, buffer);
            assert_eq!(status(&mut device) & 64, 64, "{queue} {buffer:?}");
        }
    }

    #[test]
    fn a_private_memory_is_given_back_too_and_its_file_stays() {
        let shared = Memory::new(1 << 20).unwrap();
        shared.ram().write_slice(&[9; PAGE as usize], GuestAddress(FREE)).unwrap();
        let memory = Memory::of_snapshot(shared.file().unwrap().try_clone().unwrap()).unwrap();
        memory.ram().write_slice(&[7; PAGE as usize], GuestAddress(FREE)).unwrap();
        let mut device = driver(memory, 2, (FREE, PAGE as u32, 2));
        device.notify(2);
        assert_eq!(byte(&device, FREE), 9, "the copy is gone");
        assert_eq!(shared.ram().read_obj::<u8>(GuestAddress(FREE)).unwrap(), 9);
    }
}
