//! Running out of memory behind the process wall, which the control group tells.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use containerd_shim_protos::events::task::TaskOOM;
use containerd_shim_protos::topics::TASK_OOM_EVENT_TOPIC;
use insula_host::cgroup::Group;
use insula_runtime_core as core;
use rustix::event::{PollFd, PollFlags};
use tracing::warn;

use crate::error::Result;
use crate::events::Publisher;
use crate::lock;
use crate::runtime::Runtime;

/// Tells when the kernel kills for want of memory.
#[derive(Debug)]
pub(crate) struct OutOfMemory {
    root: PathBuf,
    id: String,
    publisher: Arc<Publisher>,
    told: Mutex<u64>,
    kills: AtomicU64,
}

impl OutOfMemory {
    pub(crate) fn new(runtime: &Runtime, publisher: &Arc<Publisher>) -> Self {
        Self {
            root: runtime.root().to_owned(),
            id: runtime.id().to_owned(),
            publisher: Arc::clone(publisher),
            told: Mutex::default(),
            kills: AtomicU64::new(0),
        }
    }

    pub(crate) fn kills(&self) -> u64 {
        self.look();
        self.kills.load(Ordering::Relaxed)
    }

    fn group(&self) -> Result<Group> {
        Ok(core::find(&self.root, &self.id)?.record.group()?)
    }

    /// One event for each look that finds more.
    pub(crate) fn look(&self) {
        // After the end of the group there is nothing more to find.
        let Ok(kills) = self.group().and_then(|group| Ok(group.oom_kills()?)) else { return };
        let mut told = lock(&self.told);
        if kills > *told {
            *told = kills;
            self.kills.store(kills, Ordering::Relaxed);
            let mut event = TaskOOM::new();
            event.container_id = self.id.clone();
            self.publisher.publish(TASK_OOM_EVENT_TOPIC, &event);
        }
    }

    /// Looks whenever memory runs out, as long as the first process lives.
    pub(crate) fn watch(self: &Arc<Self>, pid: i32) {
        let watched = self.group().and_then(|group| Ok(group.oom_descriptor()?));
        let descriptor = match watched {
            Ok(Some(descriptor)) => descriptor,
            Ok(None) => return,
            Err(error) => {
                return warn!(task = self.id, error = insula_base::chain(&error), "memory is not watched");
            }
        };
        let Some(init) = rustix::process::Pid::from_raw(pid)
            .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok())
        else {
            return;
        };
        let watching = Arc::downgrade(self);
        let thread = std::thread::Builder::new().name("memory".to_owned());
        if let Err(error) = thread.spawn(move || watch(&watching, &descriptor, &init)) {
            warn!(task = self.id, %error, "memory is not watched");
        }
    }
}

fn watch(watching: &Weak<OutOfMemory>, descriptor: &OwnedFd, init: &OwnedFd) {
    let mut block = [0; 4096];
    loop {
        let mut poll =
            [PollFd::from_borrowed_fd(descriptor.as_fd(), PollFlags::IN), PollFd::new(init, PollFlags::IN)];
        if rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, None)).is_err() {
            return;
        }
        if !poll[1].revents().is_empty() {
            return;
        }
        let _ = rustix::io::read(descriptor, &mut block);
        match watching.upgrade() {
            Some(oom) => oom.look(),
            None => return,
        }
    }
}
