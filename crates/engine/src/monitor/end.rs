//! The end of a monitor that is of no use any more: what it has is freed only when nothing can go on with it.

use std::path::Path;
use std::time::Duration;

use insula_proto::{Call, Empty};
use tokio::time::timeout;

use super::{Process, Reached, SandboxFolder, reach};
use crate::{Error, Result, blocking};

/// How long a monitor that was killed may take to be gone: what it was busy with in the kernel, and no more of it.
const DEATH: Duration = Duration::from_secs(10);

/// Kills the monitor of a sandbox, if there is one still, and waits for its end.
pub(crate) async fn end_monitor(container: &str, sandbox: &SandboxFolder) {
    let Some(monitor) = sandbox.monitor() else { return };
    if let Err(error) = end(container, monitor).await {
        let error = insula_base::chain(&error);
        tracing::error!(container, pid = monitor.pid, error, "end a monitor");
    }
}

/// The same; one that answers may free by itself what it has before.
pub(crate) async fn end_politely(container: &str, sandbox: &SandboxFolder) {
    if let Reached::Answers(mut connection, _) = reach(sandbox).await {
        // It may end before it answers.
        let _ = timeout(DEATH, connection.call(Call::Destroy(Empty {}), &[])).await;
    }
    end_monitor(container, sandbox).await;
}

async fn end(container: &str, monitor: Process) -> Result<()> {
    let failed = |call| move |error: rustix::io::Errno| Error::io(call, Path::new("the monitor"), error);
    if monitor.gone() {
        return Ok(());
    }
    tracing::warn!(container, pid = monitor.pid, "its monitor is killed");
    monitor.kill().map_err(failed("kill"))?;
    if !blocking(move || monitor.ended_within(DEATH).map_err(failed("wait for"))).await? {
        tracing::error!(container, pid = monitor.pid, "its monitor was killed and does not end");
    }
    Ok(())
}
