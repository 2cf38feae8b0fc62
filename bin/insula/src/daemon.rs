//! Starting insulad: in the background when a command finds none, or in place of `insula daemon`.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};
use clap::Args;
use insula_base::{Instance, env};

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::printer;

const DAEMON: &str = "insulad";

/// insulad: in `INSULA_LIBEXEC`, beside this program, or in `PATH`.
fn program() -> anyhow::Result<PathBuf> {
    let libexec = std::env::var_os(env::LIBEXEC).map(PathBuf::from);
    let own = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    libexec
        .into_iter()
        .chain(own)
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(DAEMON))
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!(
                "{DAEMON} is neither in {}, nor beside insula, nor in PATH: the daemon cannot be started",
                env::LIBEXEC
            )
        })
}

/// Starts a daemon in the background and waits until it serves.
pub(crate) fn start(instance: &Instance, debug: bool) -> anyhow::Result<()> {
    let program = program()?;
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(instance.run()).with_context(|| {
        format!(
            "start insulad: make the folder {} (or choose others with --root and --run)",
            instance.run().display()
        )
    })?;
    let log = instance.run().join("insulad.log");
    // What an earlier daemon wrote is not why this one fails.
    let begin = std::fs::metadata(&log).map_or(0, |meta| meta.len());
    let (mut child, ready) = spawn(&program, instance, &log, debug)
        .with_context(|| format!("start {} (log {})", program.display(), log.display()))?;
    await_ready(ready, &mut child, &log, begin)?;
    printer::notice(&format!("started insulad (pid {}), log {}", child.id(), log.display()));
    Ok(())
}

/// Starts it as a session of its own: a child of ours becomes the session's leader and then the
/// daemon, because nothing may run between fork and exec in a process with threads.
fn spawn(program: &Path, instance: &Instance, log: &Path, debug: bool) -> anyhow::Result<(Child, File)> {
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    let (ready, ready_writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // The child inherits the writing end; nothing else is started here meanwhile.
    rustix::io::fcntl_setfd(&ready_writer, rustix::io::FdFlags::empty())?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--root")
        .arg(instance.root())
        .arg("--run")
        .arg(instance.run())
        .args(["daemon", "--own-session", "--program"])
        .arg(program)
        .args(["--", "--ready-fd", &ready_writer.as_raw_fd().to_string()])
        .env_remove(env::HOST)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    if debug {
        command.env(env::LOG, "debug");
    }
    Ok((command.spawn()?, File::from(ready)))
}

/// One byte says that the daemon serves; the end of the pipe without it that it has died.
fn await_ready(mut ready: File, child: &mut Child, log: &Path, begin: u64) -> anyhow::Result<()> {
    let mut byte = [0];
    if ready.read(&mut byte).context("wait for insulad")? == 1 {
        return Ok(());
    }
    let status = child.wait().context("wait for insulad")?;
    let mut text = String::new();
    if let Ok(mut file) = File::open(log) {
        // A log that cannot be read says nothing; the status does.
        let _ = file.seek(SeekFrom::Start(begin)).and_then(|_| file.read_to_string(&mut text));
    }
    let last = text.lines().rev().take(5).collect::<Vec<_>>();
    let last = last.into_iter().rev().collect::<Vec<_>>().join("\n  ");
    bail!("insulad did not start ({status}); see {}:\n  {last}", log.display());
}

/// Run the daemon in the foreground
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula daemon                                  the default instance
  insula --root /srv/b --run /run/b daemon       another one beside it
  insula daemon -- --log debug                   what stands behind -- is given to insulad")]
pub(crate) struct DaemonArgs {
    /// Become the leader of a session before (used when a command starts the daemon)
    #[arg(long, hide = true)]
    own_session: bool,
    /// The daemon's program
    #[arg(long, value_name = "PROGRAM")]
    program: Option<PathBuf>,
    /// Arguments of insulad
    #[arg(last = true, value_name = "ARG")]
    arguments: Vec<OsString>,
}

impl Run for DaemonArgs {
    async fn run(self, context: Context) -> Outcome {
        let program = self.program.map_or_else(program, Ok)?;
        if self.own_session {
            rustix::process::setsid().context("setsid")?;
        }
        let instance = context.instance()?;
        let mut command = Command::new(&program);
        command.arg("--root").arg(instance.root()).arg("--run").arg(instance.run());
        if let (address, true) = context.address()? {
            command.arg("--host").arg(address.to_string());
        }
        if context.debug() {
            command.args(["--log", "debug"]);
        }
        let error = command.args(self.arguments).exec();
        Err(error).with_context(|| format!("execute {}", program.display()))
    }
}
