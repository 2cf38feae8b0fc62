//! Work that blocks, beside the threads that serve.

use crate::{Error, Result};

/// Runs `work` on a thread that may block. It is not interrupted when the caller goes away.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::Internal(format!("a thread of the engine ended: {error}"))))
}
