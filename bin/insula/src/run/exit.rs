//! The exit code of a container that one is attached to. The daemon may end meanwhile: the container
//! and its streams go on without it, and another daemon finds it again.

use std::time::Duration;

use insula_client::{Address, Client, Error, JsonStream};
use insula_models::WaitResponse;
use tokio::task::JoinHandle;

use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::follow;

/// Between two looks whether there is a daemon again.
const LOOK: Duration = Duration::from_millis(100);
/// How long, after the streams have ended, another may start one; then this process does.
const PATIENCE: Duration = Duration::from_secs(2);

/// Waits for the end beside everything else that is done.
#[derive(Debug)]
pub(crate) struct Exit {
    context: Context,
    code: JoinHandle<Outcome>,
}

impl Exit {
    /// Asks the daemon to tell the end: `condition` is that of the API. Returns once it listens.
    pub(crate) async fn of(
        context: &Context,
        client: &Client,
        id: &str,
        condition: &str,
    ) -> anyhow::Result<Self> {
        let wait = client.wait_container(id, condition).await?;
        // What ended while nobody listened has no next exit.
        let again = if condition == "removed" { "removed" } else { "" };
        let code = tokio::spawn(wait_through_restarts(client.address().clone(), id.to_owned(), again, wait));
        Ok(Self { context: context.clone(), code })
    }

    /// The exit code, for when the streams have ended.
    pub(crate) async fn code(&mut self) -> Outcome {
        if let Ok(code) = tokio::time::timeout(PATIENCE, &mut self.code).await {
            return code?;
        }
        // Most likely it merely takes long, and this changes nothing.
        match self.context.address()? {
            (address, true) => follow::next_daemon(&address).await?,
            (_, false) => self.context.client().await?,
        };
        (&mut self.code).await?
    }
}

async fn wait_through_restarts(
    address: Address,
    id: String,
    again: &'static str,
    mut wait: JsonStream<WaitResponse>,
) -> Outcome {
    loop {
        match wait.next().await {
            Ok(Some(answer)) if !is_ending(&answer) => return code(answer),
            Ok(_) | Err(Error::Connection { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        wait = loop {
            // The daemon that ends may answer still.
            tokio::time::sleep(LOOK).await;
            match ask_again(&address, &id, again).await {
                Ok(wait) => break wait,
                Err(Error::Daemon { status: 404, .. }) => {
                    let message = format!(
                        "the daemon ended while container {id} ran, and the next one removed it before its exit \
                         code was asked for"
                    );
                    return Err(Failure { code: 125, message }.into());
                }
                Err(Error::Connect { .. } | Error::Connection { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        };
    }
}

async fn ask_again(address: &Address, id: &str, condition: &str) -> Result<JsonStream<WaitResponse>, Error> {
    Client::connect(address.clone()).await?.wait_container(id, condition).await
}

/// The daemon ends in good order, and says so to who waits.
pub(crate) fn is_ending(answer: &WaitResponse) -> bool {
    answer.error.as_ref().is_some_and(|error| error.message == insula_models::WAIT_CUT_SHORT)
}

/// What the daemon answers to a wait.
fn code(answer: WaitResponse) -> Outcome {
    match answer.error {
        Some(error) if !error.message.is_empty() => {
            Err(Failure { code: 125, message: format!("Error waiting for container: {}", error.message) }
                .into())
        }
        // Exit codes are 8 bits wide, in Docker's answers too.
        _ => Ok((answer.status_code & 0xff) as u8),
    }
}
