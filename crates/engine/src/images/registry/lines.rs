//! Progress in Docker's words.

use insula_models::{ProgressDetail, ProgressMessage};

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

    async fn send(&self, message: ProgressMessage) {
        // Whether anybody is there is watched where the request is.
        let _ = self.0.send(message).await;
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
