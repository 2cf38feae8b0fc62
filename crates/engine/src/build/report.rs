//! What a client is told: in the words of Docker's legacy builder, or step by step for who shows it otherwise.

use std::future::Future;
use std::sync::Mutex;

use insula_base::{Digest, chain};
use insula_models::{BuildStep, ProgressMessage};

use super::cache;
use crate::images::ProgressSender;
use crate::{Error, Result};

tokio::task_local! {
    /// The step that the running task is about.
    static STEP: String;
}

/// A step before it begins.
pub(super) struct Step<'a> {
    /// Tells it from the others of the build.
    pub(super) id: String,
    /// Which of all steps it is.
    pub(super) number: usize,
    pub(super) all: usize,
    /// Which of its stage's, and the stage if there are several.
    pub(super) place: String,
    pub(super) text: &'a str,
}

/// How much of what a quiet build does not tell is kept, in bytes: the end of it says why it failed.
const KEPT: usize = 1 << 20;

pub(super) struct Report {
    sender: ProgressSender,
    /// What a quiet build has not told.
    untold: Option<Mutex<String>>,
    /// Steps are told as they are, and no words.
    traced: bool,
}

impl Report {
    pub(super) fn new(sender: ProgressSender, quiet: bool, traced: bool) -> Self {
        Self { sender, untold: quiet.then(Mutex::default), traced }
    }

    /// A step from its beginning to its end: what is told meanwhile is about it.
    pub(super) async fn step<T>(&self, step: Step<'_>, work: impl Future<Output = Result<T>>) -> Result<T> {
        if !self.traced {
            self.line(format!("Step {}/{} : {}\n", step.number, step.all, step.text)).await;
            return work.await;
        }
        let name = format!("[{}] {}", step.place, step.text);
        self.trace(BuildStep { name, ..about(&step.id, "begun") }).await;
        let done = STEP.scope(step.id.clone(), work).await;
        let error = done.as_ref().err().map(why).unwrap_or_default();
        self.trace(BuildStep { error, ..about(&step.id, "ended") }).await;
        done
    }

    /// The step was found in the cache.
    pub(super) async fn cached(&self) {
        match self.current() {
            Some(id) => self.trace(about(&id, "cached")).await,
            None => self.line(" ---> Using cache\n".to_owned()).await,
        }
    }

    /// What only who reads lines wants to know.
    pub(super) async fn aside(&self, text: String) {
        if !self.traced {
            self.line(text).await;
        }
    }

    /// What a command said.
    pub(super) async fn output(&self, log: String) {
        match self.current() {
            Some(id) => self.trace(BuildStep { log, ..about(&id, "log") }).await,
            None => self.line(log).await,
        }
    }

    /// A line, or part of one.
    pub(super) async fn line(&self, text: String) {
        let Some(untold) = &self.untold else { return self.stream(text).await };
        let mut untold = cache::locked(untold);
        untold.push_str(&text);
        let beyond = untold.len().saturating_sub(KEPT);
        let from = (beyond..=untold.len()).find(|at| untold.is_char_boundary(*at));
        untold.drain(..from.unwrap_or_default());
    }

    /// What a quiet build has kept to itself, now that it has failed.
    pub(super) async fn failed(&self) {
        let untold = self.untold.as_ref().map(|untold| std::mem::take(&mut *cache::locked(untold)));
        if let Some(text) = untold.filter(|text| !text.is_empty()) {
            self.stream(text).await;
        }
    }

    fn current(&self) -> Option<String> {
        self.traced.then(|| STEP.try_with(Clone::clone).ok()).flatten()
    }

    async fn trace(&self, step: BuildStep) {
        let aux = Some(serde_json::json!({ "Step": step }));
        self.tell(ProgressMessage { aux, ..ProgressMessage::default() }).await;
    }

    /// Where a pull tells how far it is.
    pub(super) fn sender(&self) -> ProgressSender {
        self.sender.clone()
    }

    /// From here on connections for agents may come.
    pub(super) async fn begun(&self) {
        let aux = Some(serde_json::json!({ "Agents": true }));
        self.tell(ProgressMessage { aux, ..ProgressMessage::default() }).await;
    }

    /// From here on the output is there to be read.
    pub(super) async fn putting_out(&self) {
        let aux = Some(serde_json::json!({ "Output": true }));
        self.tell(ProgressMessage { aux, ..ProgressMessage::default() }).await;
    }

    pub(super) async fn built(&self, id: &Digest) {
        let aux = Some(serde_json::json!({ "ID": id.to_string() }));
        self.tell(ProgressMessage { aux, ..ProgressMessage::default() }).await;
        let quiet = self.untold.is_some();
        self.stream(if quiet { format!("{id}\n") } else { format!("Successfully built {}\n", id.short()) })
            .await;
    }

    async fn stream(&self, stream: String) {
        self.tell(ProgressMessage { stream, ..ProgressMessage::default() }).await;
    }

    async fn tell(&self, message: ProgressMessage) {
        // Who asked may be gone, and the build is then ended from elsewhere.
        let _ = self.sender.send(message).await;
    }
}

fn about(id: &str, state: &str) -> BuildStep {
    let at = jiff::Timestamp::now().to_string();
    BuildStep { id: id.to_owned(), state: state.to_owned(), at, ..BuildStep::default() }
}

/// The step is told anyway.
fn why(error: &Error) -> String {
    match error {
        Error::Build { source, .. } => chain(source.as_ref()),
        error => chain(error),
    }
}
