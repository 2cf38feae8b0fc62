//! `run`: make, attach, start, wait.

use clap::Args;
use insula_client::{AttachOptions, Client};
use insula_models::ContainerCreateRequest;

use super::attached::{Attached, Left, Target};
use super::create::create;
use super::exit::Exit;
use super::flags::CreateFlags;
use super::resolve;
use super::timing::Timing;
use crate::arguments::Run;
use crate::context::Context;
use crate::failure::{self, Failure, Outcome, with_code};
use crate::printer;
use crate::streams::{self, Streams, Wiring};
use crate::terminal::{self, DetachKeys, RawMode};

/// Make a container from an image and run a command in it
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    override_usage = "insula run [OPTIONS] IMAGE [COMMAND] [ARG...]",
    after_help = "Examples:
  insula run --rm -it host bash                    a shell in a copy of this host
  insula run --rm busybox echo hello
  insula run -d --name web -p 8080:80 nginx        in the background, with a published port
  insula run -d --publish-host www.example.org nginx   a site at the host's ports 80 and 443
  insula run --rm -v \"$PWD:/src\" -w /src debian make
  insula run --rm -m 256m --cpus 0.5 --read-only --tmpfs /tmp debian sh
  insula run -d --restart unhealthy --health-cmd 'wget -qO- localhost' nginx

The exit code is that of the command; 125 when insula itself fails,
126 when the command cannot be executed, 127 when it is not found."
)]
pub(crate) struct RunArgs {
    /// Run in the background and print the id
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave the container running: ctrl-p,ctrl-q
    #[arg(long, value_name = "KEYS", default_value = "", hide_default_value = true)]
    detach_keys: String,
    /// Pass signals on to the container
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Print on standard error what the start spent its time on
    #[arg(long)]
    timing: bool,
    #[command(flatten)]
    flags: CreateFlags,
}

impl Run for RunArgs {
    async fn run(self, context: Context) -> Outcome {
        match self.execute(&context).await {
            Ok(code) => Ok(code),
            Err(error) if error.is::<Failure>() => Err(error),
            Err(error) => Err(with_code(125, with_hint(error))),
        }
    }
}

fn with_hint(error: anyhow::Error) -> anyhow::Error {
    if error.is::<failure::OutputError>() {
        // Silent only where the reader has gone.
        return with_code(1, error);
    }
    anyhow::anyhow!(hinted(&failure::describe(&error)))
}

fn hinted(message: &str) -> String {
    format!("insula: {message}\n\nRun 'insula run --help' for more information")
}

impl RunArgs {
    async fn execute(self, context: &Context) -> Outcome {
        let mut timing = Timing::begin(self.timing);
        let request = resolve::request(&self.flags, self.detach)?;
        let attached = request.attach_stdin || request.attach_stdout || request.attach_stderr;
        if attached && request.attach_stdin && request.tty && !terminal::input_is_terminal() {
            return Err(Failure { code: 1, message: "the input device is not a TTY".to_owned() }.into());
        }
        let keys = DetachKeys::parse(&self.detach_keys)?;
        let client = context.client().await?;
        timing.lap("connect");
        let id = if attached {
            tokio::join!(create(&client, &self.flags, &request), connect_ahead(&client)).0?
        } else {
            create(&client, &self.flags, &request).await?
        };
        timing.answered(&client, "create");
        if !attached {
            start(&client, &id).await.map_err(|failed| failed.hinted())?;
            timing.answered(&client, "start");
            printer::line(&id)?;
            timing.print();
            return Ok(0);
        }
        let code = self.attached(context, &client, &id, (&request, keys), &mut timing).await?;
        timing.lap("run");
        timing.print();
        Ok(code)
    }

    async fn attached(
        &self,
        context: &Context,
        client: &Client,
        id: &str,
        (request, keys): (&ContainerCreateRequest, DetachKeys),
        timing: &mut Timing,
    ) -> Outcome {
        let options = AttachOptions {
            logs: false,
            stdin: request.attach_stdin,
            stdout: request.attach_stdout,
            stderr: request.attach_stderr,
            detach_keys: self.detach_keys.clone(),
        };
        let mut session = Attached::new(client, Target::Container(id), request.tty, self.sig_proxy)?;
        let condition = if self.flags.rm { "removed" } else { "next-exit" };
        // Side by side, since neither needs the other.
        let (hijacked, mut exit) = tokio::try_join!(
            async { Ok(client.attach_container(id, &options).await?) },
            Exit::of(context, client, id, condition),
        )?;
        let stdin = request.attach_stdin;
        let raw_mode = if stdin && request.tty { RawMode::enter()? } else { None };
        let wiring = Wiring { tty: request.tty, stdin, detach: raw_mode.is_some().then_some(keys) };
        timing.lap("attach");
        // The threads are made while the daemon works. What the command says before waits in the socket.
        let (started, streams) = tokio::join!(start_attached(client, id), async {
            tokio::task::yield_now().await;
            streams::connect(hijacked, wiring)
        });
        let started = match started {
            Ok(started) => started,
            Err(failed) => {
                drop(raw_mode);
                return Err(failed.hinted().into());
            }
        };
        let mut streams = match streams {
            Ok(streams) => streams,
            Err(error) => {
                // Nobody sees what it says. Of the two failures this one is said.
                let _ = client.kill_container(id, "KILL").await;
                return Err(error);
            }
        };
        timing.answered(client, "start");
        if request.tty {
            session.resize().await;
        }
        let left = follow(&mut session, &mut streams).await;
        drop(raw_mode);
        let left = left?;
        if started == Started::Unanswered && matches!(left, Left::Ended) {
            check_started(context, id).await?;
        }
        finish(left, &mut session, &mut exit).await
    }
}

/// Opens the connections for the two requests that come with the creation's own, while the daemon is busy with that.
async fn connect_ahead(client: &Client) {
    // The request goes first.
    tokio::task::yield_now().await;
    for _ in 0..2 {
        // What fails here is said where the connection is needed, which opens another.
        let _ = client.connect_ahead().await;
    }
}

async fn follow(session: &mut Attached<'_>, streams: &mut Streams) -> anyhow::Result<Left> {
    session.follow(streams).await
}

/// The exit code, once the daemon knows it.
async fn finish(left: Left, session: &mut Attached<'_>, exit: &mut Exit) -> Outcome {
    match left {
        Left::Detached => {
            printer::error_text("\n");
            return Ok(0);
        }
        Left::Signalled(number) => return Ok(128 + u8::try_from(number).unwrap_or(0)),
        Left::Ended => {}
    }
    match session.during(exit.code()).await {
        Ok(code) => code,
        Err(number) => Ok(128 + u8::try_from(number).unwrap_or(0)),
    }
}

/// Starts the container; a failure to execute its command has a code of its own.
pub(crate) async fn start(client: &Client, id: &str) -> Result<(), Failure> {
    client.start_container(id).await.map_err(|error| refused(&error))
}

fn refused(error: &insula_client::Error) -> Failure {
    Failure { code: start_failure(&error.to_string()), message: failure::describe_client(error) }
}

/// How the start of a container went that one is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Started {
    Yes,
    /// The daemon ended before it answered. If the container runs, so do its streams.
    Unanswered,
}

async fn start_attached(client: &Client, id: &str) -> Result<Started, Failure> {
    match client.start_container(id).await {
        Ok(()) => Ok(Started::Yes),
        Err(insula_client::Error::Connection { .. }) => Ok(Started::Unanswered),
        Err(error) => Err(refused(&error)),
    }
}

/// Fails when the next daemon knows that the container never ran.
async fn check_started(context: &Context, id: &str) -> anyhow::Result<()> {
    let found = context.client().await?.inspect_container(id).await;
    if found.is_ok_and(|found| found.state.status == "created") {
        let message = format!("the daemon ended before it had started container {id}");
        return Err(Failure { code: 125, message }.hinted().into());
    }
    // Anything else the question for its exit code says.
    Ok(())
}

impl Failure {
    /// As `run` says it.
    fn hinted(self) -> Self {
        Self { message: hinted(&self.message), ..self }
    }
}

/// 127 when the command was not found, 126 when it cannot be executed, 125 otherwise.
pub(crate) fn start_failure(message: &str) -> u8 {
    let has = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    let about_exec = has(&["exec", "executable file"]);
    if about_exec
        && has(&["executable file not found", "no such file or directory", "No such file or directory"])
    {
        127
    } else if about_exec
        && has(&[
            "permission denied",
            "Permission denied",
            "is a directory",
            "Is a directory",
            "exec format error",
            "Exec format error",
        ])
    {
        126
    } else {
        125
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_to_execute_have_their_codes() {
        assert_eq!(start_failure("exec: \"x\": executable file not found in $PATH"), 127);
        assert_eq!(start_failure("exec /x: no such file or directory"), 127);
        assert_eq!(start_failure("exec: \"/etc\": permission denied"), 126);
        assert_eq!(start_failure("port is already allocated"), 125);
        assert_eq!(start_failure("mount /a: permission denied"), 125);
    }
}
