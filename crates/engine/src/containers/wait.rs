//! Wait: registered before whatever is waited for can happen.

use insula_models::{WaitError, WaitResponse};
use tokio::sync::watch;

use super::WaitCondition;
use super::container::Progress;
use crate::{Engine, Result};

/// A wait that is registered: nothing that happens from now on is missed.
#[derive(Debug)]
pub struct ContainerWait {
    progress: watch::Receiver<Progress>,
    condition: WaitCondition,
    /// Exits before this wait.
    exits: u64,
}

impl ContainerWait {
    /// Resolves when the condition has come true.
    pub async fn finish(mut self) -> WaitResponse {
        let (condition, exits) = (self.condition, self.exits);
        let reached = |progress: &Progress| match condition {
            _ if progress.removed => true,
            WaitCondition::NotRunning => !progress.running,
            WaitCondition::NextExit => progress.exits > exits,
            WaitCondition::Removed => false,
        };
        let told = self.progress.wait_for(|progress| progress.ending || reached(progress)).await;
        match told.map(|progress| progress.clone()) {
            Ok(progress) if !reached(&progress) => cut_short(),
            // Why a start failed is the start's answer; here it would be an error of the wait itself.
            Ok(progress) => WaitResponse { error: None, status_code: progress.code.into() },
            Err(_) => cut_short(),
        }
    }
}

/// The engine ends; who waits asks the next one.
fn cut_short() -> WaitResponse {
    let error = Some(WaitError { message: insula_models::WAIT_CUT_SHORT.to_owned() });
    WaitResponse { error, ..WaitResponse::default() }
}

impl Engine {
    /// Registers a wait: answer the headers when this returns, the body when it is finished. One that
    /// was removed a moment ago is still known by its complete id.
    pub async fn wait_container(&self, reference: &str, condition: WaitCondition) -> Result<ContainerWait> {
        let mut progress = match self.find(reference) {
            Ok(container) => container.subscribe(),
            Err(error) => {
                let departed = reference.parse().ok().and_then(|id| self.0.containers.departed(&id));
                watch::channel(departed.ok_or(error)?).1
            }
        };
        let exits = progress.borrow_and_update().exits;
        Ok(ContainerWait { progress, condition, exits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(sender: &watch::Sender<Progress>, condition: WaitCondition) -> ContainerWait {
        let mut progress = sender.subscribe();
        let exits = progress.borrow_and_update().exits;
        ContainerWait { progress, condition, exits }
    }

    #[tokio::test]
    async fn an_exit_between_registration_and_wait_is_not_missed() {
        let sender = watch::Sender::new(Progress::default());
        let wait = waiting(&sender, WaitCondition::NextExit);
        sender.send_modify(|p| p.running = true);
        sender.send_modify(|p| {
            p.running = false;
            p.exits += 1;
            p.code = 3;
        });
        assert_eq!(wait.finish().await.status_code, 3);
        let old = waiting(&sender, WaitCondition::NotRunning);
        assert_eq!(old.finish().await.status_code, 3);
    }

    #[tokio::test]
    async fn who_waits_is_told_that_the_daemon_ends() {
        let sender = watch::Sender::new(Progress { running: true, ..Progress::default() });
        let wait = waiting(&sender, WaitCondition::NotRunning);
        sender.send_modify(|p| p.ending = true);
        assert_eq!(wait.finish().await.error.unwrap().message, insula_models::WAIT_CUT_SHORT);
        let late = waiting(&sender, WaitCondition::NotRunning);
        sender.send_modify(|p| (p.running, p.code) = (false, 4));
        assert_eq!(late.finish().await.status_code, 4);
    }

    #[tokio::test]
    async fn an_earlier_exit_does_not_count_for_the_next() {
        let sender = watch::Sender::new(Progress { exits: 1, ..Progress::default() });
        let wait = tokio::spawn(waiting(&sender, WaitCondition::NextExit).finish());
        tokio::task::yield_now().await;
        assert!(!wait.is_finished());
        sender.send_modify(|p| p.removed = true);
        wait.await.unwrap();
    }
}
