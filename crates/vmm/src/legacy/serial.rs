//! The first serial line, the kernel's console. Output only: terminals are virtio's.

use std::convert::Infallible;
use std::fmt;
use std::io::Write;

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Registers;

/// Where the guest's console goes. A write must not wait: a guest must not be able to hold its own
/// machine up by a reader that is slow.
pub type Console = Box<dyn Write + Send>;

/// Raises the line's interrupt.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        // The counter of an eventfd is full after 2^64 - 2 interrupts that nobody took.
        let _ = self.0.write(1);
        Ok(())
    }
}

/// The registers of a 16550A.
pub(crate) struct SerialLine(Serial<Interrupt, NoEvents, Tolerant>);

impl SerialLine {
    pub(crate) fn new(interrupt: EventFd, console: Console) -> Self {
        Self(Serial::new(Interrupt(interrupt), Tolerant(console)))
    }
}

impl fmt::Debug for SerialLine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SerialLine").finish_non_exhaustive()
    }
}

impl Registers for SerialLine {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(self.0.read(offset as u8));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let [value] = data {
            // Bytes that do not fit are lost, as on a line that nobody listens to.
            let _ = self.0.write(offset as u8, *value);
        }
    }
}

/// A console whose reader may be slow or gone.
struct Tolerant(Console);

impl Write for Tolerant {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(self.0.write(bytes).unwrap_or(bytes.len()))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}
