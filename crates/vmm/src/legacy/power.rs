//! Power off and reset, as the ACPI tables describe them (ACPI 6.5, 4.8.3.7 and 4.8.3.6).

use crate::bus::Registers;
use crate::machine::{Stop, Stopper};

/// Offsets from [`crate::layout::SLEEP_CONTROL`].
const CONTROL: u64 = 0;
const RESET: u64 = 2;

/// Bits of the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
/// The type that `\_S5` names.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;
/// The value that the fixed description table names.
pub(crate) const RESET_VALUE: u8 = 1;

#[derive(Debug)]
pub(super) struct Power {
    stopper: Stopper,
}

impl Power {
    pub(super) fn new(stopper: Stopper) -> Self {
        Self { stopper }
    }
}

impl Registers for Power {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let sleep_type = (value >> SLEEP_TYPE_SHIFT) & 7;
        match offset {
            CONTROL if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_OFF => {
                self.stopper.stop(Stop::PowerOff)
            }
            RESET if value == RESET_VALUE => self.stopper.stop(Stop::Reset),
            _ => {}
        }
    }
}
