//! What answers at which port or address.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};

/// Registers at a range of ports or addresses. The guest chooses offset, length and data: whatever
/// comes must be answered.
pub(crate) trait Registers: Send {
    /// Fills `data`; `offset` counts from the range's begin and is below its length.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Ranges that do not overlap. What nobody answers reads as ones, as on a bus without a device.
#[derive(Default, Clone)]
pub(crate) struct Bus {
    ranges: BTreeMap<u64, Range>,
}

#[derive(Clone)]
struct Range {
    length: u64,
    registers: Arc<Mutex<dyn Registers>>,
}

impl Bus {
    pub(crate) fn insert(
        &mut self,
        base: u64,
        length: u64,
        registers: Arc<Mutex<dyn Registers>>,
    ) -> Result<()> {
        let overlaps = self
            .ranges
            .range(..base + length)
            .next_back()
            .is_some_and(|(at, range)| at + range.length > base);
        if overlaps || length == 0 {
            return Err(Error::Shape(format!("two devices at {base:#x}")));
        }
        self.ranges.insert(base, Range { length, registers });
        Ok(())
    }

    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((offset, registers)) => {
                registers.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, registers)) = self.find(address) {
            registers.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(u64, &Mutex<dyn Registers>)> {
        let (base, range) = self.ranges.range(..=address).next_back()?;
        let offset = address - base;
        (offset < range.length).then_some((offset, &*range.registers))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.ranges.iter().map(|(base, range)| (base, range.length))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u64);

    impl Registers for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 as u8 + offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0 = offset + u64::from(data[0]);
        }
    }

    #[test]
    fn an_access_reaches_the_range_it_lies_in() {
        let mut bus = Bus::default();
        let echo = Arc::new(Mutex::new(Echo(10)));
        bus.insert(0x100, 8, echo.clone()).unwrap();
        assert!(bus.insert(0x107, 4, echo.clone()).is_err());
        assert!(bus.insert(0xf8, 9, echo.clone()).is_err());
        bus.insert(0x108, 8, Arc::new(Mutex::new(Echo(90)))).unwrap();
        let mut data = [0];
        for (address, expected) in [(0x100, 10), (0x107, 17), (0x108, 90), (0x110, 0xff), (0xff, 0xff)] {
            bus.read(address, &mut data);
            assert_eq!(data, [expected], "{address:#x}");
        }
        bus.write(0x102, &[5]);
        assert_eq!(echo.lock().unwrap().0, 7);
    }
}
