//! `attach`.

use clap::Args;
use insula_client::AttachOptions;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::printer;
use crate::run::attached::{Attached, Left, Target};
use crate::run::exit::Exit;
use crate::streams::{self, Wiring};
use crate::terminal::{self, DetachKeys, RawMode};

/// Attach to the input and output of a running container
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula attach shell            ctrl-p ctrl-q leaves it running
  insula attach --no-stdin web   watch the output")]
pub(crate) struct AttachArgs {
    /// Keys that leave the container running
    #[arg(long, value_name = "KEYS", default_value = "", hide_default_value = true)]
    detach_keys: String,
    /// Do not attach standard input
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the container
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Name or id
    container: String,
}

fn refuse<T>(message: &str) -> anyhow::Result<T> {
    Err(Failure { code: 1, message: message.to_owned() }.into())
}

impl Run for AttachArgs {
    async fn run(self, context: Context) -> Outcome {
        let keys = DetachKeys::parse(&self.detach_keys)?;
        let client = context.client().await?;
        let container = client.inspect_container(&self.container).await?;
        if !container.state.running {
            return refuse("You cannot attach to a stopped container, start it first");
        }
        if container.state.paused {
            return refuse("You cannot attach to a paused container, unpause it first");
        }
        let tty = container.config.tty;
        let stdin = !self.no_stdin && container.config.open_stdin;
        if tty && stdin && !terminal::input_is_terminal() {
            return refuse("the input device is not a TTY");
        }
        let id = container.id.as_str();
        let options = AttachOptions {
            logs: false,
            stdin,
            stdout: true,
            stderr: true,
            detach_keys: self.detach_keys.clone(),
        };
        let mut session = Attached::new(&client, Target::Container(id), tty, self.sig_proxy)?;
        let mut exit = Exit::of(&context, &client, id, "").await?;
        let hijacked = client.attach_container(id, &options).await?;
        let raw_mode = if stdin && tty { RawMode::enter()? } else { None };
        let wiring = Wiring { tty, stdin, detach: raw_mode.is_some().then_some(keys) };
        let mut streams = streams::connect(hijacked, wiring)?;
        if tty {
            session.repaint().await;
        }
        let left = session.follow(&mut streams).await;
        drop(raw_mode);
        match left? {
            Left::Detached => {
                printer::error_text("read escape sequence\n");
                Ok(0)
            }
            Left::Signalled(number) => Ok(128 + u8::try_from(number).unwrap_or(0)),
            Left::Ended => exit.code().await,
        }
    }
}
