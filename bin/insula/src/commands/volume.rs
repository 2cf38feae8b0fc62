//! `volume create ls inspect rm prune`.

use clap::Args;
use insula_models::{Volume, VolumeCreateRequest};

use super::each;
use super::inspect::{self, Kind, Request};
use super::prune::{confirmed, report};
use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::format::labels;
use crate::format::table::{self, Columns, Row};
use crate::{filters, options, printer};

/// Make a volume
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula volume create data
  insula run -v data:/var/lib/postgresql/data postgres")]
pub(crate) struct CreateVolumeArgs {
    /// Driver of the volume
    #[arg(short, long, value_name = "DRIVER", default_value = "local")]
    driver: String,
    /// Set a label: NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Option of the driver: NAME=VALUE
    #[arg(short, long, value_name = "NAME=VALUE")]
    opt: Vec<String>,
    /// The name, as Docker once took it
    #[arg(long = "name", value_name = "NAME", hide = true, conflicts_with = "name")]
    named: Option<String>,
    /// Name [default: random]
    name: Option<String>,
}

impl Run for CreateVolumeArgs {
    async fn run(self, context: Context) -> Outcome {
        let request = VolumeCreateRequest {
            name: self.name.or(self.named).unwrap_or_default(),
            driver: self.driver,
            driver_opts: options::strict_pairs("opt", &self.opt)?,
            labels: options::pairs(&self.label),
            cluster_volume_spec: None,
        };
        let volume = context.client().await?.create_volume(&request).await?;
        printer::line(&volume.name)?;
        Ok(0)
    }
}

/// List volumes
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula volume ls
  insula volume ls -q -f dangling=true")]
pub(crate) struct ListVolumesArgs {
    /// Only: dangling=true, name=data, driver=local, label=tier=db
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Go template, 'table' and a template, 'json' or 'raw'
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
}

const HEADERS: &[(&str, &str)] = &[
    ("Driver", "DRIVER"),
    ("Name", "VOLUME NAME"),
    ("Scope", "SCOPE"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Labels", "LABELS"),
    ("Links", "LINKS"),
    ("Size", "SIZE"),
];

impl Run for ListVolumesArgs {
    async fn run(self, context: Context) -> Outcome {
        let mut list = context.client().await?.list_volumes(&filters::parse(&self.filter)?).await?;
        list.warnings.iter().for_each(|warning| printer::warning(warning));
        list.volumes.sort_by(|a, b| a.name.cmp(&b.name));
        if self.quiet && self.format.is_empty() {
            for volume in &list.volumes {
                printer::line(&volume.name)?;
            }
            return Ok(0);
        }
        let rows: Vec<Row> = list.volumes.iter().map(row).collect();
        let format = match (self.format.as_str(), self.quiet) {
            ("raw", true) => "name: {{.Name}}",
            ("raw", false) => "name: {{.Name}}\ndriver: {{.Driver}}\n",
            (format, _) => format,
        };
        table::print(&Columns { headers: HEADERS, shown: vec!["Driver", "Name"] }, &rows, format)?;
        Ok(0)
    }
}

fn row(volume: &Volume) -> Row {
    let usage = volume.usage_data.as_ref();
    let size = usage.and_then(|usage| u64::try_from(usage.size).ok());
    let links = usage.filter(|usage| usage.ref_count >= 0).map(|usage| usage.ref_count.to_string());
    Row {
        cells: vec![
            ("Driver", volume.driver.clone()),
            ("Name", volume.name.clone()),
            ("Scope", volume.scope.clone()),
            ("Mountpoint", volume.mountpoint.clone()),
            ("Labels", labels(&volume.labels)),
            ("Links", links.unwrap_or_else(|| "N/A".to_owned())),
            ("Size", size.map_or_else(|| "N/A".to_owned(), insula_base::format_decimal)),
        ],
        labels: volume.labels.clone(),
    }
}

/// Show everything about volumes
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula volume inspect -f '{{.Mountpoint}}' data")]
pub(crate) struct InspectVolumeArgs {
    /// Go template, or 'json'
    #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    names: Vec<String>,
}

impl Run for InspectVolumeArgs {
    async fn run(self, context: Context) -> Outcome {
        let request = Request { kinds: &[Kind::Volume], size: false, format: self.format, names: self.names };
        inspect::inspect(&context, &request).await
    }
}

/// Remove volumes
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula volume rm data")]
pub(crate) struct RemoveVolumesArgs {
    /// A volume that does not exist is no failure
    #[arg(short, long)]
    force: bool,
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
}

impl Run for RemoveVolumesArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = &context.client().await?;
        let force = self.force;
        each(&self.volumes, async |name| Ok(client.remove_volume(&name, force).await?)).await
    }
}

/// Remove volumes that no container uses
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula volume prune
  insula volume prune -af        those with a name too, without asking")]
pub(crate) struct PruneVolumesArgs {
    /// Volumes with a name, too
    #[arg(short, long)]
    all: bool,
    /// Only: label=tier=db, label!=keep
    #[arg(long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

impl Run for PruneVolumesArgs {
    async fn run(self, context: Context) -> Outcome {
        let which = if self.all { "all local volumes" } else { "anonymous local volumes" };
        if !self.force
            && !confirmed(&format!("This will remove {which} not used by at least one container."))?
        {
            return Ok(1);
        }
        let mut filters = filters::parse(&self.filter)?;
        if self.all {
            filters.add("all", "1");
        }
        let pruned = context.client().await?.prune_volumes(&filters).await?;
        report("Deleted Volumes:", &pruned.volumes_deleted, pruned.space_reclaimed)?;
        Ok(0)
    }
}
