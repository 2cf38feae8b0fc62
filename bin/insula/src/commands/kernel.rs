//! `kernel ls use`: what containers with a kernel of their own boot.

use clap::Args;
use insula_models::{Kernel, KernelUseRequest};

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::format::table::{self, Columns, Row};
use crate::printer;

/// List kernels that containers can have as their own
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula kernel ls
  insula kernel ls -q")]
pub(crate) struct ListKernelsArgs {
    /// Go template, 'table' and a template, or 'json'
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Only releases
    #[arg(short, long)]
    quiet: bool,
}

const HEADERS: &[(&str, &str)] =
    &[("Current", ""), ("Release", "RELEASE"), ("Image", "IMAGE"), ("Modules", "MODULES")];

impl Run for ListKernelsArgs {
    async fn run(self, context: Context) -> Outcome {
        let kernels = context.client().await?.kernels().await?;
        if self.quiet && self.format.is_empty() {
            for kernel in &kernels {
                printer::line(&kernel.release)?;
            }
            return Ok(0);
        }
        let rows: Vec<Row> = kernels.iter().map(row).collect();
        let shown = vec!["Current", "Release", "Image"];
        table::print(&Columns { headers: HEADERS, shown }, &rows, &self.format)?;
        Ok(0)
    }
}

fn row(kernel: &Kernel) -> Row {
    Row {
        cells: vec![
            ("Current", if kernel.current { "*" } else { "" }.to_owned()),
            ("Release", kernel.release.clone()),
            ("Image", kernel.image.clone()),
            ("Modules", kernel.modules.clone()),
        ],
        labels: Default::default(),
    }
}

/// Choose the kernel that containers get as their own
///
/// PATH is a bootable file (/boot/vmlinuz-...), or a folder with one in boot/ and its modules in
/// lib/modules/, as a distribution's package unpacks it. Containers that run keep theirs.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula kernel use /boot/vmlinuz-6.1.0-56-cloud-amd64
  apt-get download linux-image-6.1.0-56-cloud-amd64 && dpkg-deb -x linux-image-*.deb /srv/kernel
  insula kernel use /srv/kernel")]
pub(crate) struct UseKernelArgs {
    path: std::path::PathBuf,
}

impl Run for UseKernelArgs {
    async fn run(self, context: Context) -> Outcome {
        let path = std::path::absolute(&self.path).map_err(anyhow::Error::from)?;
        let request = KernelUseRequest { path: path.to_string_lossy().into_owned() };
        let kernel = context.client().await?.use_kernel(&request).await?;
        printer::line(&kernel.release)?;
        Ok(0)
    }
}
