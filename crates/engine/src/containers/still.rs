//! Containers that are held still while their files are read. That the engine does it, and no user, is in their
//! rows first: whatever becomes of the daemon, they go on.

use std::sync::Arc;

use insula_base::{Kind, Kinded};

use super::container::Container;
use crate::{Engine, Error, Result};

/// Those that are held still.
#[derive(Debug)]
pub(crate) struct Held(Vec<Arc<Container>>);

impl Engine {
    /// Pauses those that run and are not paused already, all of them for the same moment. One that cannot be lets
    /// all of them go.
    pub(crate) async fn hold_still(&self, containers: &[Arc<Container>]) -> Result<Held> {
        let mut held = Held(Vec::new());
        for container in containers {
            if !container.row().running() || container.state().paused {
                continue;
            }
            let marked = container.change(self.store(), |row| row.held = true);
            let paused = match marked {
                Ok(_) => self.pause_container(container.id.as_str()).await,
                Err(error) => Err(error),
            };
            if let Err(error) = paused {
                self.unmark(container);
                self.let_go(held).await;
                return Err(match error.kind() {
                    Kind::Unsupported => Error::Unsupported(format!(
                        "container {} cannot be held still ({}): with --pause=false it is read while it runs",
                        container.id.short(),
                        insula_base::chain(&error)
                    )),
                    _ => error,
                });
            }
            held.0.push(container.clone());
        }
        Ok(held)
    }

    /// Has them go on.
    pub(crate) async fn let_go(&self, held: Held) {
        for container in held.0 {
            // It may have been killed meanwhile, and what was read is whole all the same.
            if let Err(error) = self.unpause_container(container.id.as_str()).await {
                let error = insula_base::chain(&error);
                tracing::info!(container = container.id.short(), error, "not let go");
            }
            self.unmark(&container);
        }
    }

    /// What a former daemon held still goes on.
    pub(crate) async fn let_go_again(&self, container: &Arc<Container>) {
        // Who has not heard of it knows nothing, and asks again.
        let unheard = container.state().task.as_ref().is_some_and(|task| !task.heard());
        if container.row().held && !unheard {
            let frozen = container.row().running() && container.state().paused;
            match frozen {
                true => self.let_go(Held(vec![container.clone()])).await,
                false => self.unmark(container),
            }
        }
    }

    fn unmark(&self, container: &Container) {
        if let Err(error) = container.change(self.store(), |row| row.held = false) {
            let error = insula_base::chain(&error);
            tracing::warn!(container = container.id.short(), error, "it is still marked as held");
        }
    }
}
