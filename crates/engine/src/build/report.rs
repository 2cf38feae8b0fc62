//! What a client is told, in the words of Docker's legacy builder.

use std::sync::Mutex;

use insula_base::Digest;
use insula_models::ProgressMessage;

use super::cache;
use crate::images::ProgressSender;

/// How much of what a quiet build does not tell is kept, in bytes: the end of it says why it failed.
const KEPT: usize = 1 << 20;

pub(super) struct Report {
    sender: ProgressSender,
    /// What a quiet build has not told.
    untold: Option<Mutex<String>>,
}

impl Report {
    pub(super) fn new(sender: ProgressSender, quiet: bool) -> Self {
        Self { sender, untold: quiet.then(Mutex::default) }
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
