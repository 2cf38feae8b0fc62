//! What a PC has always had, as far as a guest looks for it.

mod clock;
mod keyboard;
mod ports;
pub(crate) mod power;
mod serial;

use std::sync::{Arc, Mutex};

use crate::bus::Bus;
use crate::error::Result;
use crate::layout::SLEEP_CONTROL;
use crate::machine::Stopper;

pub use ports::Ports;
pub use serial::Console;
pub(crate) use serial::SerialLine;

/// Plugs them all; the serial line is returned for its input.
pub(crate) fn plug(ports: &mut Bus, serial: SerialLine, stopper: &Stopper) -> Result<()> {
    ports.insert(0x3f8, 8, Arc::new(Mutex::new(serial)))?;
    ports.insert(0x60, 5, Arc::new(Mutex::new(keyboard::Controller::new(stopper.clone()))))?;
    ports.insert(0x70, 2, Arc::new(Mutex::new(clock::Cmos::default())))?;
    ports.insert(u64::from(SLEEP_CONTROL), 3, Arc::new(Mutex::new(power::Power::new(stopper.clone()))))
}
