//! An exec that nobody asked for: the engine runs it to see how it ends, and what it says.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use insula_base::{ExecId, format_duration};
use insula_models::{ExecCreateRequest, ExecStartRequest};
use insula_proto::{Call, Signal};
use tokio::io::AsyncReadExt;

use super::{Exec, ExecState, call, told, with};
use crate::containers::container::Container;
use crate::monitor::Task;
use crate::{AttachedStream, Engine, Error, Result};

/// Bytes of output that are kept; the rest is read and forgotten.
const MOST: usize = 4096;
/// How long output may come after the end.
const SETTLED: Duration = Duration::from_secs(1);
/// How long one that was killed may take to be gone: what it was busy with in the kernel.
const DEATH: Duration = Duration::from_secs(10);

/// What to run and for how long.
#[derive(Debug)]
pub(crate) struct Probe<'a> {
    pub(crate) id: &'a ExecId,
    pub(crate) command: &'a [String],
    pub(crate) timeout: Duration,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probed {
    /// -1 when it did not end by itself.
    pub(crate) code: i64,
    pub(crate) output: String,
}

impl Engine {
    /// Runs a probe to its end, or ends it with everything that it started when its time is over.
    pub(crate) async fn probe(
        &self,
        container: &Arc<Container>,
        task: &Arc<Task>,
        probe: &Probe<'_>,
    ) -> Probed {
        let request = ExecCreateRequest {
            cmd: probe.command.to_vec(),
            attach_stdout: true,
            attach_stderr: true,
            ..ExecCreateRequest::default()
        };
        let exec = Exec {
            request: request.clone(),
            state: ExecState::Starting,
            pid: 0,
            since: Instant::now(),
            over: Arc::default(),
        };
        container.state().execs.insert(probe.id.clone(), exec);
        self.0.execs.insert(probe.id.clone(), container.id.clone());
        let attributes = [("execID", probe.id.as_str())];
        for action in ["exec_create", "exec_start"] {
            self.publish(&container.row(), &told(action, probe.command), &attributes);
        }
        let probed = self.run_probe(container, task, probe, &request).await;
        container.state().execs.remove(probe.id);
        self.0.execs.remove(probe.id);
        probed.unwrap_or_else(|error| Probed { code: -1, output: insula_base::chain(&error) })
    }

    async fn run_probe(
        &self,
        container: &Arc<Container>,
        task: &Arc<Task>,
        probe: &Probe<'_>,
        request: &ExecCreateRequest,
    ) -> Result<Probed> {
        let over = with(container, probe.id, |exec| Ok(exec.over.clone()))?;
        let mut told = pin!(over.notified());
        // Short ones end before their start is answered.
        told.as_mut().enable();
        let (output, stream) = Output::new()?;
        let mut call =
            call(&container.row(), probe.id, request, &ExecStartRequest::default(), Some(&stream))?;
        for attachment in &mut call.attachments {
            attachment.multiplexed = false;
        }
        // Nobody will ask for it: the next daemon ends what runs, and looks anew.
        call.remembered = false;
        let run = async {
            let answer = task.call(Call::Exec(call), &[stream.descriptor]).await?;
            drop(answer);
            told.as_mut().await;
            Ok::<_, Error>(())
        };
        let in_time = tokio::time::timeout(probe.timeout, run).await;
        if let Ok(ran) = in_time {
            ran?;
            let code = with(container, probe.id, |exec| match exec.state {
                ExecState::Ended { code } => Ok(i64::from(code)),
                _ => Ok(-1),
            })?;
            return Ok(Probed { code, output: output.finish().await });
        }
        let exec = probe.id.to_string();
        let kill = Call::Signal(Signal { exec, signal: 9, group: true, ..Signal::default() });
        task.call(kill, &[]).await?;
        let _ = tokio::time::timeout(DEATH, told).await;
        let said = output.finish().await;
        let output = format!("Health check exceeded timeout ({})", format_duration(probe.timeout));
        Ok(Probed { code: -1, output: if said.is_empty() { output } else { format!("{output}: {said}") } })
    }
}

/// What a probe says, read as it comes.
struct Output {
    kept: Arc<Mutex<Kept>>,
    reading: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    cut: bool,
}

impl Output {
    fn new() -> Result<(Self, AttachedStream)> {
        let fail = |error| Error::Internal(format!("a pair of sockets for a check: {error}"));
        let (ours, theirs) = UnixStream::pair().map_err(fail)?;
        ours.set_nonblocking(true).map_err(fail)?;
        let mut ours = tokio::net::UnixStream::from_std(ours).map_err(fail)?;
        let kept = Arc::<Mutex<Kept>>::default();
        let keeping = kept.clone();
        let reading = tokio::spawn(async move {
            let mut piece = [0; MOST];
            while let Ok(count @ 1..) = ours.read(&mut piece).await {
                keeping.lock().unwrap_or_else(PoisonError::into_inner).keep(&piece[..count]);
            }
        });
        let stream = AttachedStream { descriptor: OwnedFd::from(theirs), already_read: Vec::new() };
        Ok((Self { kept, reading }, stream))
    }

    async fn finish(mut self) -> String {
        let _ = tokio::time::timeout(SETTLED, &mut self.reading).await;
        self.reading.abort();
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&kept.bytes);
        if kept.cut { format!("{text}...") } else { text.into_owned() }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Kept {
    fn keep(&mut self, piece: &[u8]) {
        let room = MOST - self.bytes.len();
        self.cut |= piece.len() > room;
        self.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_bounded() {
        let mut kept = Kept::default();
        kept.keep(&[b'x'; MOST]);
        assert!(!kept.cut);
        kept.keep(b"y");
        assert_eq!((kept.bytes.len(), kept.cut), (MOST, true));
    }
}
