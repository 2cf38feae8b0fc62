//! Progress in Docker's words.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use insula_models::{ProgressDetail, ProgressMessage};
use serde_json::Value;

use crate::images::ProgressSender;

/// Where lines about a pull or a push go. Who receives them may be slow, or gone.
#[derive(Debug, Clone)]
pub(super) struct Lines(ProgressSender);

impl Lines {
    pub(super) fn new(sender: ProgressSender) -> Self {
        Self(sender)
    }

    /// A line of its own.
    pub(super) async fn status(&self, text: impl Into<String>) {
        self.send(ProgressMessage { status: text.into(), ..ProgressMessage::default() }).await;
    }

    /// The state of a layer, which replaces the one before on a terminal.
    pub(super) async fn state(&self, id: &str, text: impl Into<String>) {
        let message = ProgressMessage {
            status: text.into(),
            id: id.to_owned(),
            progress_detail: Some(ProgressDetail::default()),
            ..ProgressMessage::default()
        };
        self.send(message).await;
    }

    /// A line about a layer, or a tag, that is no progress.
    pub(super) async fn about(&self, id: &str, text: impl Into<String>) {
        self.send(ProgressMessage { status: text.into(), id: id.to_owned(), ..ProgressMessage::default() })
            .await;
    }

    /// How far a layer is; left out when the receiver is not ready for it.
    pub(super) fn bytes(&self, id: &str, text: &str, current: u64, total: u64) {
        let message = ProgressMessage {
            status: text.to_owned(),
            id: id.to_owned(),
            progress_detail: Some(ProgressDetail { current: signed(current), total: signed(total) }),
            ..ProgressMessage::default()
        };
        let _ = self.0.try_send(message);
    }

    /// A result for programs.
    pub(super) async fn aux(&self, result: Value) {
        self.send(ProgressMessage { aux: Some(result), ..ProgressMessage::default() }).await;
    }

    async fn send(&self, message: ProgressMessage) {
        // Whether anybody is there is watched where the request is.
        let _ = self.0.send(message).await;
    }
}

/// Between two lines about the same layer.
const PACE: Duration = Duration::from_millis(100);

/// When the last line was.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// Whether it is time for a line, or for the last one.
    pub(super) fn is_due(&self, last: bool) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last || told.is_none_or(|told| told.elapsed() >= PACE);
        if due {
            *told = Some(Instant::now());
        }
        due
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
