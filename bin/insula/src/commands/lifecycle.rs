//! `start stop restart kill rm wait rename pause unpause`.

use clap::Args;
use insula_base::Kinded;
use insula_client::AttachOptions;

use super::each;
use crate::arguments::Run;
use crate::context::Context;
use crate::failure::{self, Failure, Outcome};
use crate::printer;
use crate::run::attached::{Attached, Left, Target};
use crate::run::exit::Exit;
use crate::run::start::start;
use crate::streams::{self, Wiring};
use crate::terminal::{DetachKeys, RawMode};

/// Start containers that are stopped
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula start web db
  insula start -ai shell         with its output and input")]
pub(crate) struct StartArgs {
    /// Attach to output; the exit code is the container's
    #[arg(short, long)]
    attach: bool,
    /// Attach to standard input too
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave the container running
    #[arg(long, value_name = "KEYS", default_value = "", hide_default_value = true)]
    detach_keys: String,
    /// Pass signals on to the container
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Run for StartArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = context.client().await?;
        if !(self.attach || self.interactive) {
            let client = &client;
            return each(&self.containers, async |name| Ok(client.start_container(&name).await?)).await;
        }
        let [name] = &self.containers[..] else {
            let message = "you cannot start and attach multiple containers at once".to_owned();
            return Err(Failure { code: 1, message }.into());
        };
        self.attached(&context, &client, name).await
    }
}

impl StartArgs {
    async fn attached(&self, context: &Context, client: &insula_client::Client, name: &str) -> Outcome {
        let container = client.inspect_container(name).await?;
        let tty = container.config.tty;
        let stdin = self.interactive && container.config.open_stdin;
        let keys = DetachKeys::parse(&self.detach_keys)?;
        let options = AttachOptions {
            logs: false,
            stdin,
            stdout: true,
            stderr: true,
            detach_keys: self.detach_keys.clone(),
        };
        let id = container.id.as_str();
        let mut session = Attached::new(client, Target::Container(id), tty, self.sig_proxy)?;
        let hijacked = client.attach_container(id, &options).await?;
        let condition = if container.host_config.auto_remove { "removed" } else { "next-exit" };
        let mut exit = Exit::of(context, client, id, condition).await?;
        let raw_mode = if stdin && tty { RawMode::enter()? } else { None };
        let wiring = Wiring { tty, stdin, detach: raw_mode.is_some().then_some(keys) };
        let mut streams = streams::connect(hijacked, wiring)?;
        if let Err(error) = start(client, id).await {
            drop(raw_mode);
            return Err(error);
        }
        if tty {
            session.resize().await;
        }
        let left = session.follow(&mut streams).await;
        drop(raw_mode);
        match left? {
            Left::Detached => Ok(0),
            Left::Signalled(number) => Ok(128 + u8::try_from(number).unwrap_or(0)),
            Left::Ended => exit.code().await,
        }
    }
}

/// Stop containers that run
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula stop web
  insula stop -t 30 db           30 seconds to end by itself, then it is killed")]
pub(crate) struct StopArgs {
    /// Signal to send first
    #[arg(short, long, value_name = "SIGNAL", default_value = "", hide_default_value = true)]
    signal: String,
    /// Seconds to wait before it is killed; -1 waits for ever
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true)]
    time: Option<i64>,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Run for StopArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = &context.client().await?;
        let (time, signal) = (self.time, self.signal.as_str());
        each(&self.containers, async |name| Ok(client.stop_container(&name, time, signal).await?)).await
    }
}

/// Stop containers and start them again
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula restart web")]
pub(crate) struct RestartArgs {
    /// Signal to send first
    #[arg(short, long, value_name = "SIGNAL", default_value = "", hide_default_value = true)]
    signal: String,
    /// Seconds to wait before it is killed; -1 waits for ever
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true)]
    time: Option<i64>,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Run for RestartArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = &context.client().await?;
        let (time, signal) = (self.time, self.signal.as_str());
        each(&self.containers, async |name| Ok(client.restart_container(&name, time, signal).await?)).await
    }
}

/// Send a signal to containers
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula kill web
  insula kill -s HUP web         let it read its configuration again")]
pub(crate) struct KillArgs {
    /// Name or number [default: KILL]
    #[arg(short, long, value_name = "SIGNAL", default_value = "", hide_default_value = true)]
    signal: String,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Run for KillArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = &context.client().await?;
        let signal = self.signal.as_str();
        each(&self.containers, async |name| Ok(client.kill_container(&name, signal).await?)).await
    }
}

/// Remove containers
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula rm web
  insula rm -fv db               kill it first, and remove its anonymous volumes
  insula rm $(insula ps -aq -f status=exited)")]
pub(crate) struct RmArgs {
    /// Kill the container first if it runs; a container that does not exist is no failure
    #[arg(short, long)]
    force: bool,
    /// Remove the container's anonymous volumes too
    #[arg(short, long)]
    volumes: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Run for RmArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = &context.client().await?;
        let (force, volumes) = (self.force, self.volumes);
        let mut code = 0;
        for name in &self.containers {
            let name = name.trim_matches('/');
            match client.remove_container(name, force, volumes).await {
                Ok(()) => printer::line(name)?,
                Err(error) => {
                    printer::error(&failure::describe_client(&error));
                    if !(force && error.kind() == insula_base::Kind::NotFound) {
                        code = 1;
                    }
                }
            }
        }
        Ok(code)
    }
}

/// Wait until containers end, then print their exit codes
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula wait job")]
pub(crate) struct WaitArgs {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Run for WaitArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = context.client().await?;
        let mut code = 0;
        for name in &self.containers {
            let answer = match client.wait_container(name, "").await {
                Ok(mut wait) => wait.next().await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(Some(answer)) => printer::line(&answer.status_code.to_string())?,
                Ok(None) => anyhow::bail!("the daemon ended before {name} did"),
                Err(error) => {
                    printer::error(&failure::describe_client(&error));
                    code = 1;
                }
            }
        }
        Ok(code)
    }
}

/// Rename a container
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula rename web web-old")]
pub(crate) struct RenameArgs {
    /// Name or id
    container: String,
    /// The name it gets
    new_name: String,
}

impl Run for RenameArgs {
    async fn run(self, context: Context) -> Outcome {
        context.client().await?.rename_container(&self.container, &self.new_name).await?;
        Ok(0)
    }
}

/// Freeze all processes of containers
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula pause web")]
pub(crate) struct PauseArgs {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Run for PauseArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = &context.client().await?;
        each(&self.containers, async |name| Ok(client.pause_container(&name).await?)).await
    }
}

/// Let paused containers run on
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula unpause web")]
pub(crate) struct UnpauseArgs {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Run for UnpauseArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = &context.client().await?;
        each(&self.containers, async |name| Ok(client.unpause_container(&name).await?)).await
    }
}
