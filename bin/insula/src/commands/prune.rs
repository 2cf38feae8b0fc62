//! `container prune`, `image prune`, and how pruning asks and reports.

use std::io::BufRead;

use clap::Args;
use insula_models::ImagesPruneResponse;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::{Outcome, OutputError};
use crate::{filters, printer};

/// Whether the user agrees.
pub(crate) fn confirmed(warning: &str) -> anyhow::Result<bool> {
    printer::text(&format!("WARNING! {warning}\nAre you sure you want to continue? [y/N] "))?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Says what is gone.
pub(crate) fn report(title: &str, deleted: &[String], reclaimed: u64) -> Result<(), OutputError> {
    let mut text = String::new();
    if !deleted.is_empty() {
        text.push_str(title);
        text.push('\n');
        for name in deleted {
            text.push_str(name);
            text.push('\n');
        }
        text.push('\n');
    }
    text.push_str(&format!("Total reclaimed space: {}\n", insula_base::format_decimal(reclaimed)));
    printer::text(&text)
}

/// The names and images that are gone.
pub(crate) fn image_lines(pruned: &ImagesPruneResponse) -> Vec<String> {
    pruned
        .images_deleted
        .iter()
        .flat_map(|item| [("untagged", &item.untagged), ("deleted", &item.deleted)])
        .filter(|(_, name)| !name.is_empty())
        .map(|(what, name)| format!("{what}: {name}"))
        .collect()
}

/// Remove all containers that do not run
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula container prune -f --filter until=24h")]
pub(crate) struct PruneContainersArgs {
    /// Only: until=24h, label=tier=db
    #[arg(long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

impl Run for PruneContainersArgs {
    async fn run(self, context: Context) -> Outcome {
        if !self.force && !confirmed("This will remove all stopped containers.")? {
            return Ok(1);
        }
        let pruned = context.client().await?.prune_containers(&filters::parse(&self.filter)?).await?;
        report("Deleted Containers:", &pruned.containers_deleted, pruned.space_reclaimed)?;
        Ok(0)
    }
}

/// Remove images that nothing uses
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula image prune
  insula image prune -af         those with a name too, without asking
  insula image prune -af --filter keep=3 --filter 'reference=registry.example/web'")]
pub(crate) struct PruneImagesArgs {
    /// Images with a name that no container uses, too
    #[arg(short, long)]
    all: bool,
    /// Only: until=24h, label=tier=db, reference='web:*'; and keep=3, not the three newest of each repository
    #[arg(long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

impl Run for PruneImagesArgs {
    async fn run(self, context: Context) -> Outcome {
        let which = if self.all {
            "all images without at least one container associated to them"
        } else {
            "all dangling images"
        };
        if !self.force && !confirmed(&format!("This will remove {which}."))? {
            return Ok(1);
        }
        let mut filters = filters::parse(&self.filter)?;
        filters.add("dangling", if self.all { "false" } else { "true" });
        let pruned = context.client().await?.prune_images(&filters).await?;
        report("Deleted Images:", &image_lines(&pruned), pruned.space_reclaimed)?;
        Ok(0)
    }
}
