//! `system check`: what is not as it should be, and, where that is asked for, what could be done about it.
//!
//! An inspection is a function that looks at one kind of things and tells a [`Report`] what it looked at and
//! what it found, with the way to repair it. A new one is a module beside [`content`] and a line in
//! [`Engine::check`].

mod content;
mod disks;
mod folders;
mod network;
mod processes;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use insula_base::{ContainerId, chain};
use insula_models::{CheckFinding, CheckLine};
use tokio::sync::mpsc;

use crate::{Engine, Error, Result, blocking};

/// What becomes of what is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// It is told, and nothing is changed.
    No,
    Yes,
}

impl Engine {
    /// Looks at everything, telling what is found as it comes and at last what was looked at. It ends early
    /// when nobody listens any more.
    pub async fn check(&self, repair: Repair, lines: mpsc::Sender<CheckLine>) {
        let mut report = Report { repair, lines, checked: BTreeMap::new() };
        if let Err(error) = self.inspect_all(&mut report).await {
            report.send(CheckLine { error: chain(&error), ..CheckLine::default() }).await.ok();
            return;
        }
        let checked = std::mem::take(&mut report.checked);
        let checked = checked.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect();
        report.send(CheckLine { checked: Some(checked), ..CheckLine::default() }).await.ok();
    }

    async fn inspect_all(&self, report: &mut Report) -> Result<()> {
        processes::inspect(self, report).await?;
        network::inspect(self, report).await?;
        folders::inspect(self, report).await?;
        content::inspect(self, report).await?;
        disks::inspect(self, report).await
    }

    /// Ids of containers, and which of them have a sandbox, or may have.
    fn known(&self) -> Known {
        let rows = self.0.containers.all().into_iter().map(|container| container.row());
        let mut known = Known::default();
        for row in rows {
            if row.phase.live() {
                known.live.insert(row.id.clone());
            }
            known.all.insert(row.id.clone());
        }
        known
    }
}

#[derive(Debug, Default)]
struct Known {
    all: HashSet<ContainerId>,
    live: HashSet<ContainerId>,
}

/// How often what is found is looked at again, and the pause before each look: what a container has in the
/// middle of its start or end comes or goes meanwhile.
const LOOKS: usize = 8;
const PAUSE: Duration = Duration::from_millis(250);

/// What `look` finds again and again. Where there is nothing to be found it looks once.
async fn lasting<T, F>(look: F) -> Result<Vec<T>>
where
    T: PartialEq + Send + 'static,
    F: Fn() -> Result<Vec<T>> + Clone + Send + 'static,
{
    let mut found = blocking(look.clone()).await?;
    for _ in 1..LOOKS {
        if found.is_empty() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        let again = blocking(look.clone()).await?;
        found.retain(|one| again.contains(one));
    }
    Ok(found)
}

/// What an inspection tells.
#[derive(Debug)]
pub(crate) struct Report {
    repair: Repair,
    lines: mpsc::Sender<CheckLine>,
    checked: BTreeMap<&'static str, u64>,
}

/// Something that is wrong.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    /// `layer`, `mount` and so on.
    pub(crate) kind: &'static str,
    /// A digest, a path, an id.
    pub(crate) subject: String,
    pub(crate) problem: String,
    /// Names of images and containers that need it.
    pub(crate) used_by: Vec<String>,
}

impl Report {
    /// Something was looked at.
    pub(crate) fn looked_at(&mut self, kind: &'static str) {
        self.looked_at_many(kind, 1);
    }

    pub(crate) fn looked_at_many(&mut self, kind: &'static str, count: usize) {
        if count > 0 {
            *self.checked.entry(kind).or_default() += count as u64;
        }
    }

    /// Something is wrong. `repair` is done only where that is wanted; it returns what was done, in a few
    /// words.
    ///
    /// # Errors
    /// Nobody listens any more: the inspection ends.
    pub(crate) async fn found(
        &mut self,
        finding: Finding,
        repair: impl Future<Output = Result<String>>,
    ) -> Result<()> {
        let Finding { kind, subject, problem, used_by } = finding;
        let mut finding =
            CheckFinding { kind: kind.to_owned(), subject, problem, used_by, ..Default::default() };
        tracing::warn!(kind, subject = finding.subject, problem = finding.problem, "found by a check");
        if self.repair == Repair::Yes {
            match repair.await {
                Ok(done) => finding.repaired = done,
                Err(error) => finding.failure = chain(&error),
            }
        }
        self.send(CheckLine { finding: Some(finding), ..CheckLine::default() }).await
    }

    async fn send(&self, line: CheckLine) -> Result<()> {
        let gone = |_| Error::Unavailable("who asked for the check is gone".to_owned());
        self.lines.send(line).await.map_err(gone)
    }

    /// Ends the inspection when nobody listens any more.
    pub(crate) fn go_on(&self) -> Result<()> {
        if self.lines.is_closed() {
            return Err(Error::Unavailable("who asked for the check is gone".to_owned()));
        }
        Ok(())
    }
}
