//! What a build answers: lines for who looks on, and the output.

use insula_client::{BuildAnswer, BuildPart};
use insula_models::ProgressMessage;
use tokio::sync::Notify;

use super::output::{Receiver, Receivers};
use super::progress::Progress;
use crate::failure::Failure;

/// Prints what the daemon tells and takes the output; notes when connections for agents may be made; returns the image's id, which is empty where none was made.
pub(super) async fn show(
    answer: &mut BuildAnswer,
    mut receivers: Receivers,
    progress: &mut Progress,
    begun: &Notify,
) -> anyhow::Result<String> {
    let mut id = String::new();
    while let Some(part) = answer.next().await? {
        match part {
            BuildPart::Progress(message) => {
                if message.aux.as_ref().is_some_and(|aux| aux.get("Agents").is_some()) {
                    begun.notify_one();
                }
                tell(&message, progress, &mut id)?;
            }
            // What was not asked for does not come.
            BuildPart::Output(bytes) => {
                if let Some(receiver) = &mut receivers.output {
                    receiver.take(bytes).await?;
                }
            }
            BuildPart::Cache(bytes) => {
                if let Some(receiver) = &mut receivers.cache {
                    receiver.take(bytes).await?;
                }
            }
        }
    }
    for receiver in [receivers.output, receivers.cache] {
        receiver.map_or(Ok(()), Receiver::finish)?;
    }
    Ok(id)
}

fn tell(message: &ProgressMessage, progress: &mut Progress, id: &mut String) -> anyhow::Result<()> {
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
    progress.show(message)
}
