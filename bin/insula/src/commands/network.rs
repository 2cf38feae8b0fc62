//! `network ls inspect`.

use clap::Args;
use insula_models::Network;

use super::inspect::{self, Kind, Request};
use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::format::table::{self, Columns, Row};
use crate::format::{labels, short_id};
use crate::{filters, printer};

/// List networks
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula network ls
  insula network ls -q -f driver=bridge")]
pub(crate) struct ListNetworksArgs {
    /// Only: driver=bridge, name=web, label=tier=db, …
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Go template, 'table' and a template, or 'json'
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Do not cut ids
    #[arg(long)]
    no_trunc: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
}

const HEADERS: &[(&str, &str)] = &[
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
];

impl Run for ListNetworksArgs {
    async fn run(self, context: Context) -> Outcome {
        let mut networks = context.client().await?.list_networks(&filters::parse(&self.filter)?).await?;
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        let id =
            |network: &Network| if self.no_trunc { &network.id } else { short_id(&network.id) }.to_owned();
        if self.quiet && self.format.is_empty() {
            for network in &networks {
                printer::line(&id(network))?;
            }
            return Ok(0);
        }
        let row = |network: &Network| Row {
            cells: vec![
                ("ID", id(network)),
                ("Name", network.name.clone()),
                ("Driver", network.driver.clone()),
                ("Scope", network.scope.clone()),
                ("IPv6", network.enable_ipv6.to_string()),
                ("Internal", network.internal.to_string()),
                ("Labels", labels(&network.labels)),
                ("CreatedAt", network.created.clone()),
            ],
            labels: network.labels.clone(),
        };
        let rows: Vec<Row> = networks.iter().map(row).collect();
        let columns = Columns { headers: HEADERS, shown: vec!["ID", "Name", "Driver", "Scope"] };
        table::print(&columns, &rows, &self.format)?;
        Ok(0)
    }
}

/// Show everything about networks
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula network inspect bridge")]
pub(crate) struct InspectNetworkArgs {
    /// Go template, or 'json'
    #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Names or ids
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

impl Run for InspectNetworkArgs {
    async fn run(self, context: Context) -> Outcome {
        let request =
            Request { kinds: &[Kind::Network], size: false, format: self.format, names: self.names };
        inspect::inspect(&context, &request).await
    }
}
