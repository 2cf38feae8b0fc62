//! What a build answers: lines for who looks on, and the output.

use insula_client::{BuildAnswer, BuildPart};
use insula_models::ProgressMessage;
use tokio::sync::Notify;

use super::output::Receiver;
use crate::failure::Failure;
use crate::printer::{self, Sink};

/// Prints what the daemon tells and takes the output; notes when connections for agents may be made; returns the image's id, which is empty where none was made.
pub(super) async fn show(
    answer: &mut BuildAnswer,
    mut receiver: Option<Receiver>,
    sink: Sink,
    begun: &Notify,
) -> anyhow::Result<String> {
    let mut id = String::new();
    while let Some(part) = answer.next().await? {
        match (part, &mut receiver) {
            (BuildPart::Progress(message), _) => {
                if message.aux.as_ref().is_some_and(|aux| aux.get("Agents").is_some()) {
                    begun.notify_one();
                }
                tell(&message, sink, &mut id)?;
            }
            (BuildPart::Output(bytes), Some(receiver)) => receiver.take(bytes).await?,
            // It was not asked for.
            (BuildPart::Output(_), None) => {}
        }
    }
    receiver.map_or(Ok(()), Receiver::finish)?;
    Ok(id)
}

fn tell(message: &ProgressMessage, sink: Sink, id: &mut String) -> anyhow::Result<()> {
    let error = match &message.error_detail {
        Some(detail) if !detail.message.is_empty() => &detail.message,
        _ => &message.error,
    };
    if !error.is_empty() {
        return Err(Failure { code: 1, message: error.clone() }.into());
    }
    if let Some(found) = message.aux.as_ref().and_then(|aux| aux.get("ID")).and_then(|id| id.as_str()) {
        found.clone_into(id);
    }
    let text = if !message.stream.is_empty() {
        message.stream.clone()
    } else if !message.status.is_empty() && message.progress_detail.is_none() {
        match message.id.as_str() {
            "" => format!("{}\n", message.status),
            id => format!("{id}: {}\n", message.status),
        }
    } else {
        return Ok(());
    };
    match sink {
        Sink::Stdout => printer::text(&text)?,
        Sink::Stderr => printer::error_text(&text),
    }
    Ok(())
}
