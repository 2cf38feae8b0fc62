//! How a machine ends.

use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::event;
use crate::error::Result;

/// Why a machine does not run any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The guest switched it off.
    PowerOff,
    /// The guest asked for a reset, or fell over three times.
    Reset,
    /// A processor halted with nobody to wake it.
    Halt,
    /// A processor met what no guest should do, or the host failed; for the user.
    Crash(String),
}

/// Tells the machine to stop; the first reason counts.
#[derive(Debug, Clone)]
pub(crate) struct Stopper {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    reason: Mutex<Option<Stop>>,
    event: EventFd,
}

impl Stopper {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { inner: Arc::new(Inner { reason: Mutex::new(None), event: event()? }) })
    }

    pub(crate) fn stop(&self, reason: Stop) {
        let mut held = self.inner.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(reason);
        }
        // Full means that it is readable.
        let _ = self.inner.event.write(1);
    }

    /// The reason, once there is one.
    pub(crate) fn reason(&self) -> Option<Stop> {
        self.inner.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Readable once there is a reason.
    pub(crate) fn event(&self) -> &EventFd {
        &self.inner.event
    }
}
