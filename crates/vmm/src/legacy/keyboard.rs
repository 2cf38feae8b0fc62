//! The i8042 keyboard controller, of which one thing is left: it resets the machine.

use crate::bus::Registers;
use crate::machine::{Stop, Stopper};

const COMMAND: u64 = 4;
const RESET_CPU: u8 = 0xfe;

/// Nothing is ever in its buffers, so a guest that probes finishes at once.
#[derive(Debug)]
pub(super) struct Controller {
    stopper: Stopper,
}

impl Controller {
    pub(super) fn new(stopper: Stopper) -> Self {
        Self { stopper }
    }
}

impl Registers for Controller {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == COMMAND && data == [RESET_CPU] {
            self.stopper.stop(Stop::Reset);
        }
    }
}
