//! Connections on their way to a container.
//!
//! A client attaches, is told that its connection is taken over, and then starts the container, on
//! another connection. The first connection leaves HTTP only after that answer was sent, so the start
//! has to wait for it, or the first output would have nowhere to go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// A client that never reads its answer does not keep others from starting the container.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many connections are on their way, by what clients call the container.
#[derive(Debug, Default)]
pub(super) struct Attaching {
    pending: Mutex<HashMap<String, usize>>,
    arrived: Notify,
}

/// One connection on its way, until it is dropped.
#[derive(Debug)]
pub(super) struct Pending {
    attaching: Arc<Attaching>,
    names: [String; 2],
}

impl Attaching {
    /// Notes a connection to the container that is called by these names.
    pub(super) fn begin(self: &Arc<Self>, names: [String; 2]) -> Pending {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &names {
            *pending.entry(name.clone()).or_default() += 1;
        }
        Pending { attaching: self.clone(), names }
    }

    /// Returns when no connection to the container is on its way.
    pub(super) async fn settled(&self, name: &str) {
        let all = async {
            loop {
                let arrived = self.arrived.notified();
                tokio::pin!(arrived);
                // Before the look, so that no arrival is missed in between.
                arrived.as_mut().enable();
                if !self.is_pending(name) {
                    return;
                }
                arrived.await;
            }
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::warn!(container = name, "a client that attached has not taken its answer yet");
        }
    }

    fn is_pending(&self, name: &str) -> bool {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut pending = self.attaching.pending.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &self.names {
            if let Some(count) = pending.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    pending.remove(name);
                }
            }
        }
        drop(pending);
        self.attaching.arrived.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_start_waits_for_all_connections() {
        let attaching = Arc::new(Attaching::default());
        let names = || ["web".to_owned(), "0123".to_owned()];
        let (first, second) = (attaching.begin(names()), attaching.begin(names()));
        attaching.settled("other").await;
        let waiting = tokio::spawn({
            let attaching = attaching.clone();
            async move { attaching.settled("0123").await }
        });
        drop(first);
        tokio::task::yield_now().await;
        assert!(attaching.is_pending("web") && !waiting.is_finished());
        drop(second);
        waiting.await.unwrap();
        assert!(attaching.pending.lock().unwrap().is_empty());
    }
}
