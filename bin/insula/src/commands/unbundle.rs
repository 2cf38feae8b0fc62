//! `unbundle`: containers out of one file.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Seek as _};

use anyhow::Context as _;
use clap::Args;
use insula_client::{Client, UnbundleOptions, Upload};
use insula_models::WorkloadConflict;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::{printer, terminal};

/// The first member of a bundle.
const DOCUMENT: &str = "insula.json";
/// Bytes of it.
const DOCUMENT_MAX: u64 = 16 << 20;

/// Make the containers of a bundle, with their state, and start those that ran
///
/// All of it is made or nothing: a file that was cut or altered is refused, and so is one that wants a name, a
/// volume, a network or a port that this host has already. At a terminal you are asked for others, elsewhere
/// the flags name them. Names of images that other images here have stay with those. A network that is here and
/// is the same is used.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula unbundle site.insula
  insula unbundle --rename web=web2 --port 8080=8081 --volume data=data2 site.insula
  ssh other insula bundle web | insula unbundle --no-start -")]
pub(crate) struct UnbundleArgs {
    /// Use another network; one that is here is used as it is
    #[arg(long, value_name = "OLD=NEW")]
    network: Vec<String>,
    /// Only make the containers
    #[arg(long)]
    no_start: bool,
    /// Publish on another port of the host: 8080=8081, or 53/udp=5353
    #[arg(long, value_name = "OLD=NEW")]
    port: Vec<String>,
    /// Give a container another name
    #[arg(long, value_name = "OLD=NEW")]
    rename: Vec<String>,
    /// Give a volume another name
    #[arg(long, value_name = "OLD=NEW")]
    volume: Vec<String>,
    /// Bundle, or - for standard input
    file: String,
}

impl Run for UnbundleArgs {
    async fn run(self, context: Context) -> Outcome {
        let mut options = UnbundleOptions {
            containers: self.rename,
            volumes: self.volume,
            networks: self.network,
            ports: self.port,
        };
        let client = context.client().await?;
        let upload = match self.file.as_str() {
            "-" if terminal::input_is_terminal() => {
                let message = "requested unbundle from stdin, but stdin is empty".to_owned();
                return Err(Failure { code: 1, message }.into());
            }
            "-" => Upload::read(io::stdin()),
            path => {
                let mut file = File::open(path).with_context(|| format!("open {path}"))?;
                if terminal::input_is_terminal() && io::stderr().is_terminal() {
                    ask(&client, &mut file, &mut options).await?;
                }
                Upload::read(file)
            }
        };
        let made = client.unbundle(upload, &options).await?;
        for warning in &made.warnings {
            printer::warning(warning);
        }
        let mut code = 0;
        for container in &made.containers {
            if container.ran
                && !self.no_start
                && let Err(error) = client.start_container(&container.id).await
            {
                printer::error(&format!("{} was made and is not started: {error}", container.name));
                code = 1;
                continue;
            }
            printer::line(&container.name)?;
        }
        Ok(code)
    }
}

/// Asks for other names and ports until nothing is in the way.
async fn ask(client: &Client, file: &mut File, options: &mut UnbundleOptions) -> anyhow::Result<()> {
    // What is no bundle is for the daemon to refuse.
    let Some(document) = document(file)? else { return Ok(()) };
    loop {
        let conflicts = client.check_unbundle(document.clone(), options).await?;
        let Some(conflict) = conflicts.first() else { return Ok(()) };
        let Some(answer) = other(conflict)? else {
            let message = "nothing was made".to_owned();
            return Err(Failure { code: 1, message }.into());
        };
        let changes = match conflict.kind.as_str() {
            "container" => &mut options.containers,
            "volume" => &mut options.volumes,
            "network" => &mut options.networks,
            _ => &mut options.ports,
        };
        change(changes, &conflict.name, &answer);
    }
}

/// What is in the way may itself be an answer from before, to what the bundle calls otherwise.
fn change(changes: &mut Vec<String>, name: &str, answer: &str) {
    let bare = name.split('/').next().unwrap_or(name);
    let before = changes
        .iter()
        .position(|change| change.split_once('=').is_some_and(|(_, new)| new == name || new == bare));
    match before.map(|at| changes.remove(at)) {
        Some(change) => {
            let old = change.split('=').next().unwrap_or_default();
            changes.push(format!("{old}={answer}"));
        }
        None => changes.push(format!("{name}={answer}")),
    }
}

fn other(conflict: &WorkloadConflict) -> anyhow::Result<Option<String>> {
    let what = if conflict.kind == "port" { "Another port" } else { "Another name" };
    printer::error_text(&format!(
        "{} {}: {}\n{what} for it (nothing to give up): ",
        conflict.kind, conflict.name, conflict.reason
    ));
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(Some(line.trim().to_owned()).filter(|answer| !answer.is_empty()))
}

/// The document at the beginning of a bundle; the file is at its beginning afterwards.
fn document(file: &mut File) -> anyhow::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut archive = tar::Archive::new(&mut *file);
    if let Some(Ok(entry)) = archive.entries()?.next()
        && &*entry.path_bytes() == DOCUMENT.as_bytes()
    {
        entry.take(DOCUMENT_MAX).read_to_end(&mut bytes)?;
    }
    file.rewind()?;
    Ok(Some(bytes).filter(|bytes| !bytes.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::change;

    #[test]
    fn an_answer_that_is_taken_too_is_asked_for_again() {
        let mut changes = Vec::new();
        change(&mut changes, "web", "shop");
        change(&mut changes, "shop", "store");
        assert_eq!(changes, ["web=store"]);
        let mut changes = Vec::new();
        change(&mut changes, "8080/tcp", "8081");
        change(&mut changes, "8081/tcp", "8082");
        assert_eq!(changes, ["8080/tcp=8082"]);
    }
}
