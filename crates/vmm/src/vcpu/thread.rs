//! The thread that runs a processor, and how it is stopped in the middle of a guest that never
//! leaves by itself: a signal interrupts `KVM_RUN`, and its handler makes sure that a run that was
//! just about to begin ends at once.

use std::cell::Cell;
use std::ptr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::{Turn, Vcpu, VcpuState};
use crate::error::{Error, Result};
use crate::jail::Filter;
use crate::machine::{Stop, Stopper};

/// A signal that came too early is sent again after this.
const PATIENCE: Duration = Duration::from_millis(1);

thread_local! {
    /// The `immediate_exit` byte of this thread's processor.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn interrupt(_signal: libc::c_int, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let byte = IMMEDIATE_EXIT.with(Cell::get);
    if !byte.is_null() {
        // SAFETY: the thread sets the pointer to its own processor's shared page, which lives as long
        // as the thread runs, and this handler runs on that thread.
        unsafe { ptr::write_volatile(byte, 1) };
    }
}

/// What a thread is asked; each request is answered.
enum Request {
    Pause(Sender<()>),
    Resume,
    Save(Vec<u32>, Sender<Result<VcpuState>>),
    End(Sender<()>),
}

/// A processor in its thread, paused at first.
#[derive(Debug)]
pub(crate) struct VcpuThread {
    index: u8,
    requests: Sender<Request>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Starts the thread, behind `filter`. When the guest ends, by itself or by an error, `stopper` learns it.
    pub(crate) fn spawn(vcpu: Vcpu, stopper: Stopper, filter: Option<Arc<Filter>>) -> Result<Self> {
        register_signal_handler(SIGRTMIN(), interrupt)
            .map_err(|error| Error::call("sigaction", "the vcpus' signal", std::io::Error::from(error)))?;
        let index = vcpu.index;
        let (requests, inbox) = channel();
        let thread = Builder::new()
            .name(format!("vcpu-{index}"))
            .spawn(move || Runner { vcpu, inbox, stopper, paused: true }.run(filter.as_deref()))
            .map_err(|error| Error::call("clone", format!("the thread of vcpu {index}"), error))?;
        Ok(Self { index, requests, thread: Some(thread) })
    }

    pub(crate) fn resume(&self) -> Result<()> {
        self.send(Request::Resume)
    }

    /// Returns when the processor stands still.
    pub(crate) fn pause(&self) -> Result<()> {
        self.interrupt(Request::Pause)
    }

    /// Asks a thread that may be in the middle of its guest, and waits for the answer. The signal may
    /// come when the thread is not waiting for one: it is sent again until the request was seen.
    fn interrupt(&self, request: impl FnOnce(Sender<()>) -> Request) -> Result<()> {
        let (done, answer) = channel();
        self.send(request(done))?;
        loop {
            self.kick();
            match answer.recv_timeout(PATIENCE) {
                Ok(()) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.gone()),
            }
        }
    }

    /// The state of a paused processor.
    pub(crate) fn save(&self, msrs: &[u32]) -> Result<VcpuState> {
        let (done, answer) = channel();
        self.send(Request::Save(msrs.to_vec(), done))?;
        answer.recv().map_err(|_| self.gone())?
    }

    fn kick(&self) {
        if let Some(thread) = &self.thread {
            // A thread that has ended needs no kick.
            let _ = thread.kill(SIGRTMIN());
        }
    }

    fn send(&self, request: Request) -> Result<()> {
        self.requests.send(request).map_err(|_| self.gone())
    }

    fn gone(&self) -> Error {
        Error::Shape(format!("vcpu {} has stopped", self.index))
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        // A thread that has ended by itself needs not be told.
        let _ = self.interrupt(Request::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Runner {
    vcpu: Vcpu,
    inbox: Receiver<Request>,
    stopper: Stopper,
    paused: bool,
}

impl Runner {
    fn run(mut self, filter: Option<&Filter>) {
        if let Some(Err(error)) = filter.map(Filter::install) {
            return self.stopper.stop(Stop::Crash(insula_base::chain(&error)));
        }
        let byte = &raw mut self.vcpu.descriptor.get_kvm_run().immediate_exit;
        IMMEDIATE_EXIT.with(|cell| cell.set(byte));
        let stop = self.serve();
        // The processor's page goes with `self`.
        IMMEDIATE_EXIT.with(|cell| cell.set(ptr::null_mut()));
        if let Some(stop) = stop {
            self.stopper.stop(stop);
        }
    }

    /// `None` when it was told to end.
    fn serve(&mut self) -> Option<Stop> {
        loop {
            self.vcpu.descriptor.set_kvm_immediate_exit(0);
            while let Some(request) = self.next_request() {
                match request {
                    Request::Pause(done) => {
                        self.paused = true;
                        let _ = done.send(());
                    }
                    Request::Resume => self.paused = false,
                    Request::Save(msrs, done) => {
                        let _ = done.send(self.vcpu.save(&msrs));
                    }
                    Request::End(done) => {
                        let _ = done.send(());
                        return None;
                    }
                }
            }
            loop {
                match self.vcpu.turn() {
                    Ok(Turn::Again) => {}
                    Ok(Turn::Interrupted) => break,
                    Ok(Turn::Ended(stop)) => return Some(stop),
                    Err(error) => return Some(Stop::Crash(insula_base::chain(&error))),
                }
            }
        }
    }

    /// The next one; waits for it while paused. The other end lives until it has asked to end.
    fn next_request(&self) -> Option<Request> {
        if self.paused { self.inbox.recv().ok() } else { self.inbox.try_recv().ok() }
    }
}
