//! Times commands in another mount namespace. crun refuses hybrid cgroup hosts, so it and Podman
//! run where `/sys/fs/cgroup/unified` is not mounted; a worker that stays there keeps the cost of
//! getting there out of their times.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

pub(crate) const FLAG: &str = "--worker";

/// Bytes on one stream.
const MOST_PRINTED: usize = 1 << 20;

/// Some runtimes wait for ever now and then.
const LONGEST: Timespec = Timespec { tv_sec: 900, tv_nsec: 0 };

/// Program and arguments.
#[derive(Debug, Serialize, Deserialize)]
struct Job(Vec<String>);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) nanoseconds: u64,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    /// The time of a command that succeeded.
    pub(crate) fn time(&self) -> anyhow::Result<Duration> {
        if self.code == 0 {
            return Ok(Duration::from_nanos(self.nanoseconds));
        }
        bail!("exit {}: {}{}", self.code, self.stdout.trim(), self.stderr.trim())
    }

    /// What a command that succeeded wrote.
    pub(crate) fn output(&self) -> anyhow::Result<String> {
        self.time()?;
        Ok(self.stdout.trim().to_owned())
    }
}

/// Runs a command to its end.
pub(crate) fn execute(words: &[String]) -> anyhow::Result<Done> {
    let (program, arguments) = words.split_first().context("a command has a program")?;
    let began = Instant::now();
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {program}"))?;
    for stream in [child.stdout.as_ref().map(AsFd::as_fd), child.stderr.as_ref().map(AsFd::as_fd)] {
        // Nobody reads before the end: a command that prints more than this would wait for ever.
        stream.map(|stream| fcntl_setpipe_size(stream, MOST_PRINTED)).transpose().context("widen a pipe")?;
    }
    finish(child, began, &LONGEST)
}

/// The exit of the command is what counts, not the end of its streams: a detached container may
/// hold them.
fn finish(mut child: Child, began: Instant, limit: &Timespec) -> anyhow::Result<Done> {
    let pid = Pid::from_child(&child);
    let ended = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open of the command")?;
    if poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(limit)).context("wait for the command")? == 0 {
        child.kill().context("kill the command")?;
        child.wait().context("wait for the command")?;
        bail!("no end within {} seconds", limit.tv_sec);
    }
    let status = child.wait().context("wait for the command")?;
    let nanoseconds = began.elapsed().as_nanos() as u64;
    let stdout = child.stdout.take().map(available).unwrap_or_default();
    let stderr = child.stderr.take().map(available).unwrap_or_default();
    Ok(Done { code: status.code().unwrap_or(-1), nanoseconds, stdout, stderr })
}

fn available(mut stream: impl std::io::Read + AsFd) -> String {
    // That it blocks is harmless where the flag cannot be set: the writer is gone.
    let _ = rustix::io::ioctl_fionbio(&stream, true);
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The worker's side: one job a line, one answer a line.
pub(crate) fn serve() -> anyhow::Result<()> {
    for line in std::io::stdin().lock().lines() {
        let Job(words) = serde_json::from_str(&line?).context("a job")?;
        let done = execute(&words).unwrap_or_else(|error| Done {
            code: -1,
            nanoseconds: 0,
            stdout: String::new(),
            stderr: format!("{error:#}"),
        });
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, &done)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(())
}

/// Our side.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    jobs: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts one where cgroup2 is not mounted beside version 1.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("find this program")?;
        let script =
            "! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; exec \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(own).arg(FLAG);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("run unshare")?;
        let jobs = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("the worker answers")?);
        Ok(Self { child, jobs, answers })
    }

    /// Of the process that is the parent of what is executed.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn execute(&mut self, words: &[String]) -> anyhow::Result<Done> {
        let jobs = self.jobs.as_mut().context("the worker was stopped")?;
        let mut line = serde_json::to_vec(&Job(words.to_vec()))?;
        line.push(b'\n');
        jobs.write_all(&line).context("give a job")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).context("read an answer")?;
        serde_json::from_str(&answer).context("an answer")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        // It ends with its input.
        let _ = self.child.wait();
    }
}

/// Words of a command from literals.
pub(crate) fn words(program: &Path, rest: &[&str]) -> Vec<String> {
    let program = program.display().to_string();
    std::iter::once(program).chain(rest.iter().map(|word| (*word).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_waits_for_ever_is_ended() {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let limit = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let error = finish(child, Instant::now(), &limit).unwrap_err();
        assert!(error.to_string().contains("no end within"), "{error}");
    }
}
