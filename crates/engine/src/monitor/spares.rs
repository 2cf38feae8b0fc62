//! Monitors that wait for a container: to start one takes longer than to build a container.
//!
//! Each has made a control group already, by the name of a container to come: the next one that is created gets that
//! id, and the monitor is kept for it. Any other container can have it too, and makes a group of its own then.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use insula_base::ContainerId;
use tokio::signal::unix::{SignalKind, signal};

use super::departures::Departures;
use super::program::Program;
use super::{Process, is_stopped};
use crate::{Error, Result};

/// How many wait for whoever comes. The next one is started when one is taken, beside its container's work.
const SPARES: usize = 2;

/// How many wait for containers that were created and not started yet. The one that has waited longest makes room.
const PROMISED: usize = 8;

/// How long a missing one is waited with while another waits.
const PAUSE: Duration = Duration::from_millis(25);

/// A monitor that has nothing to do yet.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) process: Process,
    pub(crate) socket: UnixStream,
    /// Of the container that its group is made for.
    id: ContainerId,
    /// There is such a container.
    promised: bool,
}

/// The pool, and the children to reap.
#[derive(Debug)]
pub(crate) struct Spares {
    program: Program,
    departures: Departures,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Spare>,
    /// Somebody is about to refill.
    coming: bool,
    /// No more are wanted.
    over: bool,
    /// Every monitor that this daemon started and that has not ended.
    children: Vec<Child>,
}

impl Spares {
    /// `parent` is the control group that those of containers are made in.
    pub(crate) fn new(program: PathBuf, parent: String) -> Self {
        Self { program: Program::new(program), departures: Departures::new(parent), inner: Arc::default() }
    }

    /// Reaps monitors as they end, until the pool is gone.
    pub(crate) fn reap(&self) -> Result<()> {
        let mut ended =
            signal(SignalKind::child()).map_err(|e| Error::io("sigaction", Path::new("SIGCHLD"), e))?;
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            while ended.recv().await.is_some() {
                let Some(inner) = inner.upgrade() else { return };
                // An error is as final as an end: the child is not ours to wait for.
                lock(&inner).children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
            }
        });
        Ok(())
    }

    /// The id of a container that is about to be made.
    pub(crate) fn promise(&self) -> ContainerId {
        let mut inner = lock(&self.inner);
        if inner.promised() == PROMISED
            && let Some(oldest) = inner.waiting.iter().position(|spare| spare.promised)
        {
            self.let_go(inner.waiting.remove(oldest));
        }
        match inner.waiting.iter_mut().find(|spare| !spare.promised) {
            Some(spare) => {
                spare.promised = true;
                spare.id.clone()
            }
            None => ContainerId::random(),
        }
    }

    /// Whether more may be started for containers that are created and not started.
    pub(crate) fn promises_more(&self) -> bool {
        lock(&self.inner).promised() < PROMISED
    }

    /// Nobody was told of that container.
    pub(crate) fn take_back(&self, id: &ContainerId) {
        let mut inner = lock(&self.inner);
        if let Some(spare) = inner.waiting.iter_mut().find(|spare| spare.id == *id) {
            spare.promised = false;
        }
    }

    /// There is no such container any more.
    pub(crate) fn release(&self, id: &ContainerId) {
        let mut inner = lock(&self.inner);
        let own = inner.waiting.iter().position(|spare| spare.id == *id);
        self.let_go(own.and_then(|at| inner.waiting.remove(at)));
    }

    /// It takes its group away and ends, when it sees that its socket is closed.
    fn let_go(&self, spare: Option<Spare>) {
        if let Some(Spare { id, process, .. }) = spare {
            self.departures.add(id, Some(process));
        }
    }

    /// Whether a monitor that was this container's, and is not any more, could still remove its group.
    pub(crate) fn is_unsettled(&self, id: &ContainerId) -> bool {
        let mut inner = lock(&self.inner);
        let ended = inner.waiting.iter().position(|spare| spare.id == *id && !spare.alive());
        self.let_go(ended.and_then(|at| inner.waiting.remove(at)));
        self.departures.ids().contains(id)
    }

    /// Sees to it that none can. May take a while.
    pub(crate) fn settle(&self, id: &ContainerId) {
        self.departures.settle(id);
    }

    /// The one that was promised, another that waits, or a new one.
    pub(crate) fn take(&self, id: &ContainerId) -> Result<Spare> {
        loop {
            let Some(spare) = lock(&self.inner).take(id) else { return self.spawn(id.clone()) };
            let of_another = spare.id != *id;
            if is_stopped(spare.process) {
                // Another one begins sooner. This one would end as soon as somebody continues it.
                let _ = spare.process.kill();
            } else if spare.alive() {
                if of_another {
                    self.departures.add(spare.id.clone(), None);
                }
                return Ok(spare);
            }
            // What this container's own has left it finds itself.
            if of_another {
                self.let_go(Some(spare));
            }
        }
    }

    /// Those that wait, and whether they still listen.
    pub(crate) fn waiting(&self) -> Vec<(Process, bool)> {
        lock(&self.inner).waiting.iter().map(|spare| (spare.process, spare.alive())).collect()
    }

    /// Names of the groups of those that wait, and of those that do so no more.
    pub(crate) fn groups(&self) -> Vec<ContainerId> {
        let waiting = lock(&self.inner).waiting.iter().map(|spare| spare.id.clone()).collect::<Vec<_>>();
        waiting.into_iter().chain(self.departures.ids()).collect()
    }

    /// Forgets those that wait no more.
    pub(crate) fn drop_ended(&self) {
        let mut inner = lock(&self.inner);
        let (alive, ended): (_, VecDeque<_>) = inner.waiting.drain(..).partition(Spare::alive);
        inner.waiting = alive;
        ended.into_iter().for_each(|spare| self.let_go(Some(spare)));
    }

    /// From now on none is started ahead.
    pub(crate) fn close(&self) {
        lock(&self.inner).over = true;
    }

    pub(crate) fn are_over(&self) -> bool {
        lock(&self.inner).over
    }

    /// Lets go of all that wait, and waits until they have taken their groups away.
    pub(crate) fn end(&self) {
        self.close();
        let waiting = std::mem::take(&mut lock(&self.inner).waiting);
        waiting.into_iter().for_each(|spare| self.let_go(Some(spare)));
        self.departures.end();
    }

    /// When somebody should refill the pool; never while somebody is about to.
    pub(crate) fn wanted(&self) -> Option<Duration> {
        let mut inner = lock(&self.inner);
        let free = inner.free();
        if free >= SPARES || inner.over || std::mem::replace(&mut inner.coming, true) {
            return None;
        }
        Some(if free == 0 { Duration::ZERO } else { PAUSE })
    }

    /// Starts as many as are missing. Takes a millisecond for each.
    pub(crate) fn refill(&self) -> Result<()> {
        lock(&self.inner).coming = false;
        self.departures.sweep();
        while lock(&self.inner).is_short() {
            let spare = self.spawn(ContainerId::random())?;
            let mut inner = lock(&self.inner);
            if !inner.over {
                inner.waiting.push_back(spare);
            }
        }
        Ok(())
    }

    fn spawn(&self, id: ContainerId) -> Result<Spare> {
        let fail = |call, error| Error::io(call, self.program.path(), error);
        let (ours, theirs) = UnixStream::pair().map_err(|e| fail("socketpair", e))?;
        // Nothing that std would need fork(2) for, which copies the daemon's page tables: the
        // monitor leaves the daemon's session and folder by itself.
        let child = self
            .program
            .command()
            .args(["serve", &self.departures.group(&id)])
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| fail("execute", e))?;
        // The kernel's pids fit.
        let pid = child.id() as i32;
        lock(&self.inner).children.push(child);
        let started = Process::start_time(pid).unwrap_or_default();
        Ok(Spare { process: Process { pid, started }, socket: ours, id, promised: false })
    }
}

impl Inner {
    fn take(&mut self, id: &ContainerId) -> Option<Spare> {
        let own = self.waiting.iter().position(|spare| spare.id == *id);
        let at = own.or_else(|| self.waiting.iter().position(|spare| !spare.promised))?;
        self.waiting.remove(at)
    }

    fn promised(&self) -> usize {
        self.waiting.len() - self.free()
    }

    /// How many wait for whoever comes.
    fn free(&self) -> usize {
        self.waiting.iter().filter(|spare| !spare.promised).count()
    }

    fn is_short(&self) -> bool {
        !self.over && self.free() < SPARES
    }
}

impl Spare {
    /// Whether the other end of its socket is open: a peer that has gone has sent an end.
    fn alive(&self) -> bool {
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        rustix::net::recv(&self.socket, &mut [0u8; 1][..], flags) == Err(rustix::io::Errno::AGAIN)
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    /// Spares of processes that only wait, and what keeps them waiting.
    fn spares(many: usize) -> (Spares, Vec<UnixStream>) {
        let spares = Spares::new("/bin/false".into(), "insula-test-spares".to_owned());
        let mut ends = Vec::new();
        for _ in 0..many {
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            let pid = child.id() as i32;
            let (socket, end) = UnixStream::pair().unwrap();
            let process = Process { pid, started: Process::start_time(pid).unwrap() };
            ends.push(end);
            let mut inner = lock(&spares.inner);
            inner.children.push(child);
            let id = ContainerId::random();
            inner.waiting.push_back(Spare { process, socket, id, promised: false });
        }
        (spares, ends)
    }

    fn end(spares: &Spares) {
        for child in &mut lock(&spares.inner).children {
            child.kill().and_then(|()| child.wait()).unwrap();
        }
    }

    #[test]
    fn one_that_is_stopped_is_not_waited_for() {
        let (spares, _ends) = spares(2);
        let waiting = spares.waiting();
        let (stopped, waits) = (waiting[0].0, waiting[1].0);
        let id = spares.groups()[0].clone();
        kill_process(Pid::from_raw(stopped.pid).unwrap(), Signal::STOP).unwrap();
        while !is_stopped(stopped) {
            std::thread::yield_now();
        }
        assert_eq!(spares.take(&ContainerId::random()).unwrap().process, waits);
        assert!(stopped.ended_within(Duration::from_secs(60)).unwrap());
        assert_eq!(spares.groups()[0], id, "it is known until its group is gone");
        end(&spares);
        spares.end();
        assert!(spares.groups().is_empty());
    }

    #[test]
    fn what_one_leaves_that_ended_goes_before_its_container_starts() {
        let (spares, ends) = spares(3);
        let first = spares.promise();
        assert!(!spares.is_unsettled(&first));
        drop(ends);
        assert!(spares.is_unsettled(&first));
        spares.settle(&first);
        assert!(!spares.is_unsettled(&first) && !spares.groups().contains(&first));
        let second = spares.promise();
        spares.release(&second);
        assert!(spares.is_unsettled(&second), "it may not have ended yet");
        let third = spares.promise();
        spares.drop_ended();
        assert!(spares.is_unsettled(&third));
        end(&spares);
        spares.departures.sweep();
        assert!(spares.groups().is_empty());
    }

    #[test]
    fn one_waits_for_the_container_that_it_was_promised_to() {
        let (spares, _ends) = spares(2);
        let groups = spares.groups();
        assert_eq!(spares.promise(), groups[0]);
        assert_eq!(spares.take(&ContainerId::random()).unwrap().id, groups[1]);
        assert!(!groups.contains(&spares.promise()), "one is not promised twice");
        spares.take_back(&groups[0]);
        assert_eq!(spares.promise(), groups[0]);
        let spawned = spares.take(&ContainerId::random());
        assert!(spawned.is_err() || !groups.contains(&spawned.unwrap().id));
        assert_eq!(spares.take(&groups[0]).unwrap().id, groups[0]);
        assert_eq!(spares.groups(), [groups[1].clone()], "whoever has it, nobody has its group");
        end(&spares);
    }

    #[test]
    fn containers_that_are_not_started_keep_few_of_them() {
        let (spares, _ends) = spares(PROMISED + 2);
        let groups = spares.groups();
        let promised: Vec<ContainerId> = groups.iter().map(|_| spares.promise()).collect();
        assert_eq!(promised, groups);
        assert!(!spares.promises_more());
        assert!(spares.is_unsettled(&groups[1]) && !spares.is_unsettled(&groups[2]));
        spares.release(&groups[4]);
        assert!(spares.promises_more() && spares.is_unsettled(&groups[4]));
        end(&spares);
    }
}
