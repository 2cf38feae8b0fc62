//! `tenant create ls inspect rm`: containers that share a machine.

use clap::Args;
use insula_models::{Machine, Tenant, TenantCreateRequest};

use super::each;
use super::inspect::{self, Kind, Request};
use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::format::table::{self, Columns, Row};
use crate::format::{ago, binary_size};
use crate::options::{self, limits};
use crate::printer;

/// Make a tenant, whose containers share one machine
///
/// The machine starts with the first container and ends with the last one. Containers of two tenants never share a
/// kernel.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula tenant create acme --cpus 2 -m 1g
  insula run -d --isolation tenant:acme -m 256m nginx")]
pub(crate) struct CreateTenantArgs {
    /// Networks that its containers are in, counted for each container: network cards of the machine, at most 16
    #[arg(long, value_name = "NUMBER", default_value_t = 8)]
    cards: u64,
    /// CPUs that its containers have together
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    cpus: String,
    /// Let the machine run on when its last container has ended, until the tenant is removed
    #[arg(long)]
    keep: bool,
    /// Memory that its containers have together, with unit b, k, m or g
    #[arg(short, long, value_name = "BYTES", default_value = "512m")]
    memory: String,
    /// Name
    #[arg(value_name = "TENANT")]
    name: String,
}

impl Run for CreateTenantArgs {
    async fn run(self, context: Context) -> Outcome {
        let request = TenantCreateRequest {
            nano_cpus: limits::cpus(&self.cpus)?,
            memory: options::bytes("memory", &self.memory)?,
            cards: Some(self.cards),
            keep: self.keep,
            name: self.name,
        };
        let tenant = context.client().await?.create_tenant(&request).await?;
        printer::line(&tenant.name)?;
        Ok(0)
    }
}

/// List tenants
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula tenant ls
  insula tenant ls --format '{{.Name}} {{.Containers}}'")]
pub(crate) struct ListTenantsArgs {
    /// Go template, 'table' and a template, or 'json'
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
}

const HEADERS: &[(&str, &str)] = &[
    ("Name", "TENANT"),
    ("CPUs", "CPUS"),
    ("Memory", "MEMORY"),
    ("Cards", "CARDS"),
    ("Keep", "KEEP"),
    ("Containers", "CONTAINERS"),
    ("Machine", "MACHINE"),
    ("Kernel", "KERNEL"),
    ("CreatedSince", "CREATED"),
];

impl Run for ListTenantsArgs {
    async fn run(self, context: Context) -> Outcome {
        let tenants = context.client().await?.tenants().await?;
        if self.quiet && self.format.is_empty() {
            for tenant in &tenants {
                printer::line(&tenant.name)?;
            }
            return Ok(0);
        }
        let now = ago::now();
        let rows: Vec<Row> = tenants.iter().map(|tenant| row(tenant, now)).collect();
        let shown = vec!["Name", "CPUs", "Memory", "Containers", "Machine", "CreatedSince"];
        table::print(&Columns { headers: HEADERS, shown }, &rows, &self.format)?;
        Ok(0)
    }
}

fn row(tenant: &Tenant, now: i64) -> Row {
    let machine = tenant.machine.as_ref();
    Row {
        cells: vec![
            ("Name", tenant.name.clone()),
            ("CPUs", (tenant.nano_cpus as f64 / 1e9).to_string()),
            ("Memory", binary_size(tenant.memory as f64)),
            ("Cards", tenant.cards.to_string()),
            ("Keep", tenant.keep.to_string()),
            ("Containers", tenant.containers.len().to_string()),
            ("Machine", state(machine).to_owned()),
            ("Kernel", machine.map_or_else(|| "N/A".to_owned(), |machine| machine.kernel.clone())),
            ("CreatedSince", ago::ago(tenant.created, now)),
        ],
        labels: Default::default(),
    }
}

fn state(machine: Option<&Machine>) -> &'static str {
    match machine {
        None => "stopped",
        // It has not said which yet.
        Some(machine) if machine.kernel.is_empty() => "starting",
        Some(_) => "running",
    }
}

/// Show everything about tenants
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula tenant inspect -f '{{.Machine.Pid}}' acme")]
pub(crate) struct InspectTenantArgs {
    /// Go template, or 'json'
    #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Names
    #[arg(required = true, value_name = "TENANT")]
    names: Vec<String>,
}

impl Run for InspectTenantArgs {
    async fn run(self, context: Context) -> Outcome {
        let request = Request { kinds: &[Kind::Tenant], size: false, format: self.format, names: self.names };
        inspect::inspect(&context, &request).await
    }
}

/// Remove tenants that no container belongs to
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula tenant rm acme")]
pub(crate) struct RemoveTenantsArgs {
    /// Names
    #[arg(required = true, value_name = "TENANT")]
    tenants: Vec<String>,
}

impl Run for RemoveTenantsArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = &context.client().await?;
        each(&self.tenants, async |name| Ok(client.remove_tenant(&name).await?)).await
    }
}
