//! `start stop restart kill rm wait rename pause unpause`.

use clap::Args;
use insula_base::Kinded;
use insula_client::{AttachOptions, Client, Error, Removal};

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::{self, Failure, Outcome};
use crate::follow;
use crate::printer;
use crate::run::attached::{Attached, Left, Target};
use crate::run::exit::{self, Exit};
use crate::run::start::start;
use crate::streams::{self, Wiring};
use crate::terminal::{DetachKeys, RawMode};

/// The containers that a command is about.
#[derive(Debug, Args)]
struct Containers {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

impl Containers {
    /// Runs `act` on every one, prints the names of those where it succeeds and what went wrong with the
    /// others, whose names it returns.
    async fn each(
        &self,
        context: &Context,
        act: impl AsyncFn(&Client, &str) -> Result<(), Error>,
    ) -> anyhow::Result<Vec<&str>> {
        let client = &context.client().await?;
        let mut failed = Vec::new();
        for name in &self.names {
            match act(client, name).await {
                Ok(()) => printer::line(name)?,
                Err(error) => {
                    printer::error(&failure::describe_client(&error));
                    failed.push(name.as_str());
                }
            }
        }
        Ok(failed)
    }

    /// The same; any failure makes the exit code 1.
    async fn all(&self, context: &Context, act: impl AsyncFn(&Client, &str) -> Result<(), Error>) -> Outcome {
        Ok(u8::from(!self.each(context, act).await?.is_empty()))
    }
}

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
    #[command(flatten)]
    containers: Containers,
}

impl Run for StartArgs {
    async fn run(self, context: Context) -> Outcome {
        if !(self.attach || self.interactive) {
            let failed = self.containers.each(&context, Client::start_container).await?;
            if !failed.is_empty() {
                printer::error(&format!("Error: failed to start containers: {}", failed.join(", ")));
            }
            return Ok(u8::from(!failed.is_empty()));
        }
        let [name] = &self.containers.names[..] else {
            let message = "you cannot start and attach multiple containers at once".to_owned();
            return Err(Failure { code: 1, message }.into());
        };
        self.attached(&context, &context.client().await?, name).await
    }
}

impl StartArgs {
    async fn attached(&self, context: &Context, client: &Client, name: &str) -> Outcome {
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
        if let Err(failed) = start(client, id).await {
            drop(raw_mode);
            return Err(failed.into());
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

/// How a container is told to end.
#[derive(Debug, Args)]
struct Ending {
    /// Signal to send first
    #[arg(short, long, value_name = "SIGNAL", default_value = "", hide_default_value = true)]
    signal: String,
    /// Seconds to wait before it is killed; -1 waits for ever
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true)]
    time: Option<i64>,
}

/// Stop containers that run
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula stop web
  insula stop -t 30 db           30 seconds to end by itself, then it is killed")]
pub(crate) struct StopArgs {
    #[command(flatten)]
    ending: Ending,
    #[command(flatten)]
    containers: Containers,
}

impl Run for StopArgs {
    async fn run(self, context: Context) -> Outcome {
        let Ending { signal, time } = &self.ending;
        self.containers
            .all(&context, async |client, name| client.stop_container(name, *time, signal).await)
            .await
    }
}

/// Stop containers and start them again
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula restart web")]
pub(crate) struct RestartArgs {
    #[command(flatten)]
    ending: Ending,
    #[command(flatten)]
    containers: Containers,
}

impl Run for RestartArgs {
    async fn run(self, context: Context) -> Outcome {
        let Ending { signal, time } = &self.ending;
        let restart = async |client: &Client, name: &str| client.restart_container(name, *time, signal).await;
        self.containers.all(&context, restart).await
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
    #[command(flatten)]
    containers: Containers,
}

impl Run for KillArgs {
    async fn run(self, context: Context) -> Outcome {
        self.containers
            .all(&context, async |client, name| client.kill_container(name, &self.signal).await)
            .await
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
    /// Remove a link, CONTAINER/ALIAS, and not the container
    #[arg(short, long)]
    link: bool,
    /// Remove the container's anonymous volumes too
    #[arg(short, long)]
    volumes: bool,
    #[command(flatten)]
    containers: Containers,
}

impl Run for RmArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = &context.client().await?;
        let mut code = 0;
        let removal = Removal { force: self.force, volumes: self.volumes, link: self.link };
        for name in &self.containers.names {
            let name = name.trim_matches('/');
            match client.remove_container(name, &removal).await {
                Ok(()) => printer::line(name)?,
                Err(error) => {
                    printer::error(&failure::describe_client(&error));
                    if !(self.force && error.kind() == insula_base::Kind::NotFound) {
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
    #[command(flatten)]
    containers: Containers,
}

impl Run for WaitArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = context.client().await?;
        let mut code = 0;
        for name in &self.containers.names {
            match waited(&client, name).await {
                Ok(status) => printer::line(&status.to_string())?,
                Err(error) => {
                    printer::error(&failure::describe(&error));
                    code = 1;
                }
            }
        }
        Ok(code)
    }
}

/// The exit code of a container, whichever daemon tells it.
async fn waited(client: &Client, name: &str) -> anyhow::Result<i64> {
    let mut wait = client.wait_container(name, "").await?;
    loop {
        match wait.next().await {
            Ok(Some(answer)) if !exit::is_ending(&answer) => return Ok(answer.status_code),
            Ok(_) => {}
            Err(error) if follow::is_lost(&error) => {}
            Err(error) => return Err(error.into()),
        }
        wait = loop {
            match follow::next_daemon(client.address()).await?.wait_container(name, "").await {
                Err(error) if follow::is_lost(&error) => {}
                other => break other?,
            }
        };
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
        if self.container.is_empty() || self.new_name.is_empty() {
            anyhow::bail!("Neither old nor new names may be empty");
        }
        let renamed = context.client().await?.rename_container(&self.container, &self.new_name).await;
        renamed.map_err(|error| {
            let message = failure::describe_client(&error);
            anyhow::anyhow!("{message}\nError: failed to rename container named {}", self.container)
        })?;
        Ok(0)
    }
}

/// Freeze all processes of containers
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula pause web")]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    containers: Containers,
}

impl Run for PauseArgs {
    async fn run(self, context: Context) -> Outcome {
        self.containers.all(&context, Client::pause_container).await
    }
}

/// Let paused containers run on
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula unpause web")]
pub(crate) struct UnpauseArgs {
    #[command(flatten)]
    containers: Containers,
}

impl Run for UnpauseArgs {
    async fn run(self, context: Context) -> Outcome {
        self.containers.all(&context, Client::unpause_container).await
    }
}
