//! All ports of a machine without the machine, for tests that are hostile guests.

use super::{Console, SerialLine, plug};
use crate::bus::Bus;
use crate::error::Result;
use crate::machine::{Stop, Stopper, event};

/// Serial line, keyboard controller, clock, power: at the ports where a machine has them.
#[derive(Debug)]
pub struct Ports {
    bus: Bus,
    stopper: Stopper,
}

impl Ports {
    /// What is printed on the serial line goes to `console`.
    pub fn new(console: Console) -> Result<Self> {
        let (mut bus, stopper) = (Bus::default(), Stopper::new()?);
        plug(&mut bus, SerialLine::new(event()?, console), &stopper)?;
        Ok(Self { bus, stopper })
    }

    /// A processor reads a port.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        self.bus.read(port.into(), data);
    }

    /// A processor writes to a port.
    pub fn write(&self, port: u16, data: &[u8]) {
        self.bus.write(port.into(), data);
    }

    /// How the machine would have ended, if one of them ends it.
    #[must_use]
    pub fn stop(&self) -> Option<Stop> {
        self.stopper.reason()
    }
}
