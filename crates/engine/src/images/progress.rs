//! Progress of a load or an import, as lines of the answer's stream.

use std::time::{Duration, Instant};

use insula_models::{ProgressDetail, ProgressMessage};
use insula_store::Progress;
use tokio::sync::mpsc;

/// Where progress is told; what nobody receives any more is dropped.
pub type ProgressSender = mpsc::Sender<ProgressMessage>;

/// Between two lines about the same layer.
const PACE: Duration = Duration::from_millis(100);

/// Tells a receiver that may be slow, or gone.
pub(super) struct Reporter {
    sender: ProgressSender,
    told: Option<Instant>,
}

impl Reporter {
    pub(super) fn new(sender: ProgressSender) -> Self {
        Self { sender, told: None }
    }

    /// A step of the store. Only so many are told a second, and none that the receiver is not ready for.
    pub(super) fn step(&mut self, step: &Progress) {
        let Progress::Layer { id, bytes, total } = step else { return };
        let complete = Some(*bytes) == *total;
        if !complete && self.told.is_some_and(|told| told.elapsed() < PACE) {
            return;
        }
        self.told = Some(Instant::now());
        let message = ProgressMessage {
            status: "Loading layer".to_owned(),
            id: id.clone(),
            progress_detail: Some(ProgressDetail {
                current: signed(*bytes),
                total: signed(total.unwrap_or(0)),
            }),
            ..ProgressMessage::default()
        };
        let _ = self.sender.try_send(message);
    }

    /// A line for people.
    pub(super) fn line(&self, text: String) {
        self.tell(ProgressMessage { stream: text, ..ProgressMessage::default() });
    }

    /// A result.
    pub(super) fn status(&self, text: String) {
        self.tell(ProgressMessage { status: text, ..ProgressMessage::default() });
    }

    fn tell(&self, message: ProgressMessage) {
        // The client may have gone; what it asked for is done all the same.
        let _ = self.sender.blocking_send(message);
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
