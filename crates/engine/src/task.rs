//! Work that blocks, beside the threads that serve.

use tokio::sync::{Semaphore, oneshot};

use crate::{Error, Result};

/// Archives that come or go at once. Each holds a thread for as long as its client takes, so they have
/// threads of their own: however many clients are slow, everything else goes on.
static TRANSFERS: Semaphore = Semaphore::const_new(32);
/// What unpacking needs at most: names are walked with descriptors, not by recursion.
const STACK: usize = 1 << 20;

/// Runs `work`, which waits for a client, on a thread of its own; after others where there are many.
pub(crate) async fn transfer<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let ended = |_| Error::Internal("a thread of the engine ended".to_owned());
    // It is never closed.
    let turn = TRANSFERS.acquire().await.map_err(|error| Error::Internal(error.to_string()))?;
    let (tell, told) = oneshot::channel();
    let thread = std::thread::Builder::new().name("transfer".to_owned()).stack_size(STACK);
    thread
        .spawn(move || {
            let result = work();
            drop(turn);
            // Who asked may have gone away.
            let _ = tell.send(result);
        })
        .map_err(|error| Error::Unavailable(format!("start a thread: {error}")))?;
    told.await.unwrap_or_else(|error| Err(ended(error)))
}

/// Runs `work` on a thread that may block. It is not interrupted when the caller goes away.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::Internal(format!("a thread of the engine ended: {error}"))))
}

/// Runs `work` to its end, whether or not the caller waits for that.
pub(crate) async fn beside<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|error| Err(Error::Internal(format!("a task of the engine ended: {error}"))))
}
