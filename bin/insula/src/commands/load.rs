//! `load import`.

use std::fs::File;

use anyhow::Context as _;
use clap::Args;
use insula_client::{ImportOptions, JsonStream, Upload};
use insula_models::ProgressMessage;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::{printer, terminal};

/// Load images from an archive of 'save' or in OCI layout
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula load -i busybox.tar
  zcat images.tar.gz | insula load")]
pub(crate) struct LoadArgs {
    /// Archive to read [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    input: Option<String>,
    /// Print nothing but errors and the images' names
    #[arg(short, long)]
    quiet: bool,
}

impl Run for LoadArgs {
    async fn run(self, context: Context) -> Outcome {
        let archive = match self.input.as_deref() {
            Some(file) if file != "-" => Upload::read(open(file)?),
            _ if terminal::input_is_terminal() => {
                let message = "requested load from stdin, but stdin is empty".to_owned();
                return Err(Failure { code: 1, message }.into());
            }
            _ => Upload::read(std::io::stdin()),
        };
        let client = context.client().await?;
        let mut progress = client.load_images(archive, self.quiet).await?;
        show(self.input.as_deref().unwrap_or("-"), &mut progress).await?;
        Ok(0)
    }
}

fn open(file: &str) -> anyhow::Result<File> {
    let opened = File::open(file).with_context(|| format!("open {file}"))?;
    if opened.metadata().is_ok_and(|meta| meta.is_dir()) {
        anyhow::bail!("open {file}: is a directory");
    }
    Ok(opened)
}

/// Prints what the daemon reports about an archive; the first error ends it.
async fn show(archive: &str, progress: &mut JsonStream<ProgressMessage>) -> anyhow::Result<()> {
    while let Some(message) = progress.next().await? {
        let error = match &message.error_detail {
            Some(detail) if !detail.message.is_empty() => &detail.message,
            _ => &message.error,
        };
        if !error.is_empty() {
            return Err(Failure { code: 1, message: format!("{archive}: {error}") }.into());
        }
        if !message.stream.is_empty() {
            printer::text(&message.stream)?;
        } else if !message.status.is_empty() && message.progress_detail.is_none() {
            printer::line(&message.status)?;
        }
    }
    Ok(())
}

/// Make an image of a root file system
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mmdebstrap --variant=minbase bookworm - | insula import - debian:bookworm
  insula import -c 'CMD [\"/bin/sh\"]' rootfs.tar.gz alpine")]
pub(crate) struct ImportArgs {
    /// Dockerfile instruction for the image's configuration: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, …
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Message of the image's history
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    message: String,
    /// Platform of the image: os/architecture
    #[arg(long, value_name = "PLATFORM", default_value = "", hide_default_value = true)]
    platform: String,
    /// Archive (tar, plain or compressed), or - for standard input
    file: String,
    /// Name of the image: repository[:tag]
    reference: Option<String>,
}

impl Run for ImportArgs {
    async fn run(self, context: Context) -> Outcome {
        if self.file.starts_with("http://") || self.file.starts_with("https://") {
            let message = format!(
                "import from {} is not supported in this version: download it and use 'insula import FILE'",
                self.file
            );
            return Err(Failure { code: 1, message }.into());
        }
        let archive = match self.file.as_str() {
            "-" => Upload::read(std::io::stdin()),
            file => Upload::read(open(file)?),
        };
        let options = ImportOptions {
            reference: self.reference.unwrap_or_default(),
            message: self.message,
            changes: self.change,
            platform: self.platform,
        };
        let client = context.client().await?;
        show(&self.file, &mut client.import_image(archive, &options).await?).await?;
        Ok(0)
    }
}
