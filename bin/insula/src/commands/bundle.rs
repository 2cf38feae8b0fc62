//! `bundle`: containers as one file.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use crate::arguments::Run;
use crate::commands::save::Target;
use crate::context::Context;
use crate::failure::Outcome;

/// Write containers with all that they are made of to one file: images, changes, volumes, networks, ports
///
/// 'unbundle' makes them again, on this host or another. Containers that run are paused while their files are
/// read, all of them for the same moment, and go on. What is mounted from the host is named in the file, and is
/// not in it. The file is an image archive too: 'load' and other tools find the images in it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula bundle -o site.insula web db
  insula bundle web db | ssh other insula unbundle -
  insula bundle --base monday.insula -o tuesday.insula web db")]
pub(crate) struct BundleArgs {
    /// Leave out the layers that this bundle or image archive has; the other host must have loaded it
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Hold those that run still meanwhile
    #[arg(
        short,
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "true",
        default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pause: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Run for BundleArgs {
    async fn run(self, context: Context) -> Outcome {
        let target = Target::new(self.output.as_deref())?;
        let without = self.base.as_deref().map(blobs_of).transpose()?.unwrap_or_default();
        let file = context.client().await?.bundle(&self.containers, self.pause, &without).await?;
        target.fill(file).await?;
        Ok(0)
    }
}

/// Digests of what an image archive has.
fn blobs_of(path: &Path) -> anyhow::Result<Vec<String>> {
    let file = File::open(path).with_context(|| format!("open {path:?}"))?;
    let mut digests = Vec::new();
    for entry in tar::Archive::new(file).entries().with_context(|| format!("read {path:?}"))? {
        let entry = entry.with_context(|| format!("read {path:?}"))?;
        let name = entry.path_bytes();
        let hex = std::str::from_utf8(&name).ok().and_then(|name| name.strip_prefix("blobs/sha256/"));
        digests.extend(hex.filter(|hex| hex.len() == 64).map(|hex| format!("sha256:{hex}")));
    }
    Ok(digests)
}
