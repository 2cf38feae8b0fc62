//! Making the container: `create`, and the first half of `run`.

use std::fs::File;
use std::io::Write;

use anyhow::{Context as _, bail};
use clap::Args;
use insula_client::{Client, Error};
use insula_models::ContainerCreateRequest;
use insula_spec::reference::Reference;

use super::flags::CreateFlags;
use super::resolve;
use crate::arguments::Run;
use crate::commands::transfer;
use crate::context::Context;
use crate::failure::{Outcome, with_code};
use crate::printer::{self, Sink};

/// Make a container without starting it
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    override_usage = "insula create [OPTIONS] IMAGE [COMMAND] [ARG...]",
    after_help = "Examples:
  insula create --name web -p 8080:80 nginx
  insula start web"
)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    flags: CreateFlags,
}

impl Run for CreateArgs {
    async fn run(self, context: Context) -> Outcome {
        let made = async {
            let request = resolve::request(&self.flags, false)?;
            create(&context.client().await?, &self.flags, &request).await
        };
        let id = made.await.map_err(|error| with_code(1, error))?;
        printer::line(&id)?;
        Ok(0)
    }
}

/// Makes the container; prints warnings and writes the id's file.
pub(crate) async fn create(
    client: &Client,
    flags: &CreateFlags,
    request: &ContainerCreateRequest,
) -> anyhow::Result<String> {
    let mut id_file = flags.cidfile.as_deref().map(IdFile::make).transpose()?;
    let name = flags.name.as_deref().unwrap_or_default();
    if flags.pull == "always" {
        pull(client, flags, request).await?;
    }
    let mut made = client.create_container(name, &flags.platform, request).await;
    if let Err(error) = &made
        && flags.pull == "missing"
        && is_missing(error)
    {
        let reference = Reference::parse(&request.image)?;
        printer::error(&format!("Unable to find image '{}' locally", reference.familiar()));
        pull(client, flags, request).await?;
        made = client.create_container(name, &flags.platform, request).await;
    }
    let made = made?;
    for warning in &made.warnings {
        printer::warning(warning);
    }
    if let Some(file) = &mut id_file {
        file.keep(&made.id)?;
    }
    Ok(made.id)
}

/// Pulls the image; what is shown of it is no output of the container.
async fn pull(client: &Client, flags: &CreateFlags, request: &ContainerCreateRequest) -> anyhow::Result<()> {
    let reference = Reference::parse(&request.image)?;
    let shown = if flags.quiet { None } else { Some(Sink::Stderr) };
    transfer::pull(client, &reference, false, &flags.platform, shown, 125).await
}

fn is_missing(error: &Error) -> bool {
    match error {
        Error::Daemon { status: 404, message } => {
            let message = message.to_ascii_lowercase();
            message.contains("no such image") || message.contains("does not match the specified platform")
        }
        _ => false,
    }
}

/// The file of `--cidfile`, removed again unless the container was made.
struct IdFile<'a> {
    path: &'a str,
    file: File,
    kept: bool,
}

impl<'a> IdFile<'a> {
    fn make(path: &'a str) -> anyhow::Result<Self> {
        match File::create_new(path) {
            Ok(file) => Ok(Self { path, file, kept: false }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                bail!("container ID file found, make sure the other container isn't running or delete {path}")
            }
            Err(error) => {
                Err(error).with_context(|| format!("failed to create the container ID file {path}"))
            }
        }
    }

    fn keep(&mut self, id: &str) -> anyhow::Result<()> {
        self.kept = true;
        self.file.write_all(id.as_bytes()).with_context(|| format!("write {}", self.path))
    }
}

impl Drop for IdFile<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // It is empty: nobody misses it.
            let _ = std::fs::remove_file(self.path);
        }
    }
}
