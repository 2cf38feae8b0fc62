//! Monitors of a former daemon: which of them answer, and which have ended.

use std::io::ErrorKind;
use std::time::Duration;

use insula_proto::Status;
use tokio::time::{Instant, sleep};

use super::{Connection, Process, SandboxFolder, is_stopped};
use crate::Error;

/// How long a monitor that was cut off in the middle of a start, or is on its way out, may take.
const CUT_OFF: Duration = Duration::from_secs(3);

/// What became of a monitor.
#[derive(Debug)]
pub(crate) enum Reached {
    /// How it stands.
    Answers(Box<Connection>, Status),
    /// It may answer later.
    Silent(Option<Process>),
    /// It has ended, or can never be asked again: nobody listens where it should.
    Never,
}

/// The monitor of a sandbox.
pub(crate) async fn reach(sandbox: &SandboxFolder) -> Reached {
    let deadline = Instant::now() + CUT_OFF;
    loop {
        let monitor = sandbox.monitor();
        // Who connects to one that is stopped waits for nothing.
        let tried = match monitor.is_some_and(is_stopped) && sandbox.socket().exists() {
            true => return Reached::Silent(monitor),
            false => Connection::open(&sandbox.socket()).await,
        };
        let error = match tried {
            Ok((connection, status)) => return Reached::Answers(Box::new(connection), status),
            Err(error) => error,
        };
        tracing::debug!(error = insula_base::chain(&error), "no monitor");
        if monitor.is_some_and(Process::gone) {
            return Reached::Never;
        }
        if !nobody_listens(&error) {
            return Reached::Silent(monitor);
        }
        if monitor.is_none() || Instant::now() > deadline {
            return Reached::Never;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a connection failed for want of a listener.
pub(crate) fn nobody_listens(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. }
        if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused))
}
