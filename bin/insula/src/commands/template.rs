//! `warm`, `vm-template ls rm prune`: machines that were booted before containers need them.

use clap::Args;
use insula_models::{Template, TemplateRequest};

use super::each;
use super::prune::{confirmed, report};
use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::format::table::{self, Columns, Row};
use crate::format::{ago, binary_size};
use crate::options::{self, limits};
use crate::printer;

/// Boot machines now for containers that will need them
///
/// A machine is booted and saved; containers with --isolation vm and these limits start from a copy of it, in a
/// fraction of the time. Without --networks both a machine with one network interface and one without any are made.
/// With --tenant the tenant's own machine starts from a copy.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula warm
  insula warm --cpus 2 -m 1g --networks 1
  insula warm --networks 0 --device /dev/vsock
  insula warm --tenant acme")]
pub(crate) struct WarmArgs {
    /// CPUs that the containers may use
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Their limit of memory, with unit b, k, m or g
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// The device that they have: /dev/vsock, sockets between a machine and its host
    #[arg(long, value_name = "DEVICE", value_parser = ["/dev/vsock"])]
    device: Option<String>,
    /// How many networks they are connected to
    #[arg(long, value_name = "NUMBER")]
    networks: Option<u64>,
    /// For the machine of this tenant, whose size it has
    #[arg(long, value_name = "TENANT", conflicts_with_all = ["cpus", "device", "memory", "networks"])]
    tenant: Option<String>,
}

impl Run for WarmArgs {
    async fn run(self, context: Context) -> Outcome {
        let nano_cpus = self.cpus.as_deref().map_or(Ok(0), limits::cpus)?;
        let memory = self.memory.as_deref().map_or(Ok(0), |text| options::bytes("memory", text))?;
        let client = context.client().await?;
        let many = match (&self.tenant, self.networks) {
            (Some(_), _) => vec![0],
            (None, Some(one)) => vec![one],
            (None, None) => vec![1, 0],
        };
        let (vsock, tenant) = (self.device.is_some(), self.tenant.unwrap_or_default());
        for interfaces in many {
            let request = TemplateRequest { nano_cpus, memory, interfaces, vsock, tenant: tenant.clone() };
            let template = client.warm(&request).await?;
            printer::line(&template.id)?;
        }
        Ok(0)
    }
}

/// List machines that containers start from
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula vm-template ls
  insula vm-template ls --format '{{.ID}} {{.Stale}}'")]
pub(crate) struct ListTemplatesArgs {
    /// Go template, 'table' and a template, or 'json'
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
}

const HEADERS: &[(&str, &str)] = &[
    ("ID", "TEMPLATE ID"),
    ("Backend", "BACKEND"),
    ("Kernel", "KERNEL"),
    ("CPUs", "CPUS"),
    ("Memory", "MEMORY"),
    ("Networks", "NETWORKS"),
    ("Tenant", "TENANT"),
    ("Vsock", "VSOCK"),
    ("Boot", "BOOT"),
    ("CreatedSince", "CREATED"),
    ("Size", "SIZE"),
    ("Stale", "STALE"),
];

impl Run for ListTemplatesArgs {
    async fn run(self, context: Context) -> Outcome {
        let templates = context.client().await?.templates().await?;
        if self.quiet && self.format.is_empty() {
            for template in &templates {
                printer::line(&template.id)?;
            }
            return Ok(0);
        }
        let now = ago::now();
        let rows: Vec<Row> = templates.iter().map(|template| row(template, now)).collect();
        let shown =
            vec!["ID", "Backend", "Kernel", "CPUs", "Memory", "Networks", "CreatedSince", "Size", "Stale"];
        table::print(&Columns { headers: HEADERS, shown }, &rows, &self.format)?;
        Ok(0)
    }
}

fn row(template: &Template, now: i64) -> Row {
    let known = !template.backend.is_empty();
    let or_none = |text: String| if known { text } else { "N/A".to_owned() };
    Row {
        cells: vec![
            ("ID", template.id.clone()),
            ("Backend", or_none(template.backend.clone())),
            ("Kernel", or_none(template.kernel.clone())),
            ("CPUs", or_none(template.cpus.to_string())),
            ("Memory", or_none(binary_size(template.memory as f64))),
            ("Networks", or_none(template.interfaces.to_string())),
            ("Tenant", template.tenant.to_string()),
            ("Vsock", template.vsock.to_string()),
            ("Boot", or_none(format!("{}ms", template.boot_milliseconds))),
            ("CreatedSince", or_none(ago::ago(template.created, now))),
            ("Size", insula_base::format_decimal(template.size)),
            ("Stale", template.stale.to_string()),
        ],
        labels: Default::default(),
    }
}

/// Remove machines that containers start from
///
/// Containers that run go on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula vm-template rm 3f2a")]
pub(crate) struct RemoveTemplatesArgs {
    /// Ids, or how they begin
    #[arg(required = true, value_name = "TEMPLATE")]
    templates: Vec<String>,
}

impl Run for RemoveTemplatesArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = &context.client().await?;
        each(&self.templates, async |id| Ok(client.remove_template(&id).await?)).await
    }
}

/// Remove machines that no new container starts from, since kernel, agent or emulator have changed
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula vm-template prune -f
  insula vm-template prune -af        all of them")]
pub(crate) struct PruneTemplatesArgs {
    /// Those that are used, too
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

impl Run for PruneTemplatesArgs {
    async fn run(self, context: Context) -> Outcome {
        let which =
            if self.all { "all templates" } else { "all templates that no new container starts from" };
        if !self.force && !confirmed(&format!("This will remove {which}."))? {
            return Ok(1);
        }
        let pruned = context.client().await?.prune_templates(self.all).await?;
        report("Deleted Templates:", &pruned.templates_deleted, pruned.space_reclaimed)?;
        Ok(0)
    }
}
