//! What a client is told, in the words of Docker's legacy builder.

use insula_base::Digest;
use insula_models::ProgressMessage;

use crate::images::ProgressSender;

pub(super) struct Report {
    sender: ProgressSender,
    quiet: bool,
}

impl Report {
    pub(super) fn new(sender: ProgressSender, quiet: bool) -> Self {
        Self { sender, quiet }
    }

    /// A line, or part of one.
    pub(super) async fn line(&self, text: String) {
        if !self.quiet {
            self.tell(ProgressMessage { stream: text, ..ProgressMessage::default() }).await;
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
        let stream = match self.quiet {
            true => format!("{id}\n"),
            false => format!("Successfully built {}\n", id.short()),
        };
        self.tell(ProgressMessage { stream, ..ProgressMessage::default() }).await;
    }

    async fn tell(&self, message: ProgressMessage) {
        // Who asked may be gone, and the build is then ended from elsewhere.
        let _ = self.sender.send(message).await;
    }
}
