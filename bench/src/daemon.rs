//! A daemon that a comparison starts and ends.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Daemon(Child);

impl Daemon {
    /// Starts it and waits until it accepts connections.
    pub(crate) fn start(mut command: Command, socket: &Path, log: &Path) -> anyhow::Result<Self> {
        let log_file = File::create(log).with_context(|| format!("make {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(log_file.try_clone()?).stderr(log_file);
        let child = command.spawn().with_context(|| format!("run {:?}", command.get_program()))?;
        let mut daemon = Self(child);
        let began = Instant::now();
        while UnixStream::connect(socket).is_err() {
            let ended = daemon.0.try_wait()?.is_some();
            if ended || began.elapsed() > PATIENCE {
                let text = std::fs::read_to_string(log).unwrap_or_default();
                let end: Vec<&str> = text.lines().rev().take(5).collect();
                bail!("{:?} does not answer: {}", command.get_program(), end.join(" | "));
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to end, and makes it end when it does not.
    pub(crate) fn stop(&mut self) {
        // It may have ended by itself.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let began = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) {
            if began.elapsed() > PATIENCE {
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}
