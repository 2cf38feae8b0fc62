//! `exec`.

use clap::Args;
use insula_client::{Client, Error};
use insula_models::{ExecCreateRequest, ExecStartRequest};

use crate::arguments::{Run, first_word};
use crate::context::Context;
use crate::failure::{self, Failure, Outcome};
use crate::follow;
use crate::options::env;
use crate::run::attached::{Attached, Left, Target};
use crate::run::start::start_failure;
use crate::streams::{self, Wiring};
use crate::terminal::{self, DetachKeys, RawMode};

/// Run another command in a running container
#[derive(Debug, Args)]
#[command(
    override_usage = "insula exec [OPTIONS] CONTAINER COMMAND [ARG...]",
    after_help = "Examples:
  insula exec -it web sh
  insula exec -u postgres db psql -c 'select 1'
  insula exec -d web nginx -s reload"
)]
pub(crate) struct ExecArgs {
    /// Run in the background
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave the command running
    #[arg(long, value_name = "KEYS", default_value = "", hide_default_value = true)]
    detach_keys: String,
    /// Set an environment variable; a name alone takes the value from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// All capabilities
    #[arg(long)]
    privileged: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// User and group: name or number [:name or number]
    #[arg(short, long, value_name = "USER[:GROUP]", default_value = "", hide_default_value = true)]
    user: String,
    /// Working directory in the container
    #[arg(short, long, value_name = "PATH", default_value = "", hide_default_value = true)]
    workdir: String,
    /// Container, and the command to run in it
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, allow_hyphen_values = true, value_names = ["CONTAINER", "COMMAND"])]
    words: Vec<String>,
}

impl Run for ExecArgs {
    async fn run(self, context: Context) -> Outcome {
        let keys = DetachKeys::parse(&self.detach_keys)?;
        let (container, command) = first_word(&self.words, "a container")?;
        if self.interactive && self.tty && !self.detach && !terminal::input_is_terminal() {
            return Err(Failure { code: 1, message: "the input device is not a TTY".to_owned() }.into());
        }
        let console_size = terminal::size()
            .filter(|_| self.tty)
            .map(|(rows, columns)| [u32::from(rows), u32::from(columns)]);
        let request = ExecCreateRequest {
            user: self.user.clone(),
            privileged: self.privileged,
            tty: self.tty,
            console_size,
            attach_stdin: self.interactive && !self.detach,
            attach_stdout: !self.detach,
            attach_stderr: !self.detach,
            detach_keys: self.detach_keys.clone(),
            env: env::environment(&self.env_file, &self.env)?,
            working_dir: self.workdir.clone(),
            cmd: command.to_vec(),
        };
        let client = context.client().await?;
        let id = client.create_exec(container, &request).await?;
        let start = ExecStartRequest { detach: self.detach, tty: self.tty, console_size };
        if self.detach {
            client.start_exec_detached(&id, &start).await.map_err(exec_failure)?;
            return Ok(0);
        }
        self.attached(&client, &id, &start, keys).await
    }
}

fn exec_failure(error: insula_client::Error) -> anyhow::Error {
    let code = match start_failure(&error.to_string()) {
        125 => 1,
        code => code,
    };
    Failure { code, message: failure::describe_client(&error) }.into()
}

impl ExecArgs {
    async fn attached(
        &self,
        client: &Client,
        id: &str,
        start: &ExecStartRequest,
        keys: DetachKeys,
    ) -> Outcome {
        let mut session = Attached::new(client, Target::Exec(id), self.tty, false)?;
        let hijacked = client.start_exec(id, start).await.map_err(exec_failure)?;
        let raw_mode = if self.interactive && self.tty { RawMode::enter()? } else { None };
        let detach = raw_mode.is_some().then_some(keys);
        let mut streams =
            streams::connect(hijacked, Wiring { tty: self.tty, stdin: self.interactive, detach })?;
        if self.tty {
            session.resize().await;
        }
        // For the question how it ended. If this fails, that says so.
        let _ = client.connect_ahead().await;
        let left = session.follow(&mut streams).await;
        drop(raw_mode);
        match left? {
            Left::Detached => Ok(0),
            Left::Signalled(number) => Ok(128 + u8::try_from(number).unwrap_or(0)),
            Left::Ended => exit_code(client, id).await,
        }
    }
}

/// How the command ended, as the daemon knows it: the next one, if need be.
async fn exit_code(client: &Client, id: &str) -> Outcome {
    let mut asked = client.inspect_exec(id).await;
    loop {
        match asked {
            Ok(exec) => return Ok((exec.exit_code.unwrap_or(0) & 0xff) as u8),
            Err(Error::Daemon { status: 404, .. }) => {
                let message = "the exit code of the command is not known: the daemon was replaced while it ran, or \
                               its container was removed";
                return Err(Failure { code: 125, message: message.to_owned() }.into());
            }
            Err(error) if follow::is_lost(&error) => {
                asked = follow::next_daemon(client.address()).await?.inspect_exec(id).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
