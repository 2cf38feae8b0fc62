//! `ps`.

use std::collections::BTreeSet;

use clap::Args;
use insula_client::ListOptions;
use insula_models::ContainerSummary;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::filters;
use crate::format::table::{self, Columns, Row};
use crate::format::{ago, ellipsis, labels, ports, quote, short_id};
use crate::printer;

/// List containers
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula ps                                  what runs
  insula ps -a -f status=exited
  insula ps --format 'table {{.Names}}\\t{{.Status}}'
  insula ps -q | xargs insula stop")]
pub(crate) struct PsArgs {
    /// Those that do not run, too
    #[arg(short, long)]
    all: bool,
    /// Only: status=exited, name=web, label=tier=db, ancestor=nginx, …
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Go template, 'table' and a template, 'json' or 'raw'
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// The last so many made, whatever their state
    #[arg(short = 'n', long, value_name = "NUMBER", allow_negative_numbers = true)]
    last: Option<i64>,
    /// The last one made
    #[arg(short, long)]
    latest: bool,
    /// Do not cut long texts
    #[arg(long)]
    no_trunc: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// With the sizes of the writable layers
    #[arg(short, long)]
    size: bool,
}

const HEADERS: &[(&str, &str)] = &[
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
    ("Size", "SIZE"),
    ("Isolation", "WALL"),
    ("CreatedAt", "CREATED AT"),
    ("State", "STATE"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Networks", "NETWORKS"),
];

/// What `raw` stands for, as Docker has it.
const RAW: &str = "container_id: {{.ID}}\nimage: {{.Image}}\ncommand: {{.Command}}\ncreated_at: {{.CreatedAt}}\n\
    state:{{pad .State 1 0}}\nstatus:{{pad .Status 1 0}}\nnames: {{.Names}}\nlabels:{{pad .Labels 1 0}}\n\
    ports:{{pad .Ports 1 0}}\n";

impl Run for PsArgs {
    async fn run(self, context: Context) -> Outcome {
        let limit = if self.latest { Some(1) } else { self.last.filter(|last| *last > 0) };
        let options = ListOptions {
            all: self.all || limit.is_some(),
            limit,
            size: self.size || self.format.contains(".Size"),
            filters: filters::parse(&self.filter)?,
        };
        let containers = context.client().await?.list_containers(&options).await?;
        if self.quiet && self.format.is_empty() {
            for container in &containers {
                printer::line(if self.no_trunc { &container.id } else { short_id(&container.id) })?;
            }
            return Ok(0);
        }
        let now = ago::now();
        let rows: Vec<Row> = containers.iter().map(|container| row(container, now, !self.no_trunc)).collect();
        let walls = containers.iter().any(|container| !container.host_config.isolation.is_empty());
        let format = match (self.format.as_str(), self.quiet, self.size) {
            ("raw", true, _) => "container_id: {{.ID}}",
            ("raw", _, true) => &format!("{RAW}size: {{{{.Size}}}}\n"),
            ("raw", ..) => RAW,
            (format, ..) => format,
        };
        table::print(&columns(self.size, walls), &rows, format)?;
        Ok(0)
    }
}

/// As Docker's; walls where there is one that Docker has not.
fn columns(size: bool, walls: bool) -> Columns {
    let mut shown = vec!["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"];
    if walls {
        shown.push("Isolation");
    }
    if size {
        shown.push("Size");
    }
    Columns { headers: HEADERS, shown }
}

fn row(container: &ContainerSummary, now: i64, cut: bool) -> Row {
    let command = if cut { ellipsis(&container.command, 20) } else { container.command.clone() };
    let names: Vec<&str> = container.names.iter().map(|name| name.trim_start_matches('/')).collect();
    let mounts: Vec<String> = container
        .mounts
        .iter()
        .map(|mount| if mount.name.is_empty() { mount.source.clone() } else { mount.name.clone() })
        .map(|mount| if cut { ellipsis(&mount, 15) } else { mount })
        .collect();
    let volumes = container.mounts.iter().filter(|mount| mount.driver == "local").count();
    let networks: BTreeSet<&str> = container.network_settings.networks.keys().map(String::as_str).collect();
    Row {
        cells: vec![
            ("ID", if cut { short_id(&container.id) } else { &container.id }.to_owned()),
            ("Image", image(&container.image, cut)),
            ("Command", quote(&command)),
            ("RunningFor", ago::ago(container.created, now)),
            ("Status", container.status.clone()),
            ("Ports", ports::with_names(&container.ports, &container.network_settings.host_names, cut)),
            ("Names", names.join(",")),
            ("Isolation", wall(container).to_owned()),
            ("Size", size(container)),
            ("CreatedAt", ago::local(container.created)),
            ("State", container.state.clone()),
            ("Labels", labels(&container.labels)),
            ("Mounts", mounts.join(",")),
            ("LocalVolumes", volumes.to_string()),
            ("Networks", networks.into_iter().collect::<Vec<_>>().join(",")),
        ],
        labels: container.labels.clone(),
    }
}

fn wall(container: &ContainerSummary) -> &str {
    match container.host_config.isolation.as_str() {
        "" => "process",
        wall => wall,
    }
}

fn image(image: &str, cut: bool) -> String {
    match image {
        "" => "<no image>".to_owned(),
        image if cut && image.starts_with("sha256:") => short_id(image).to_owned(),
        image => image.to_owned(),
    }
}

fn size(container: &ContainerSummary) -> String {
    let bytes = |size: Option<i64>| insula_base::format_decimal(size.unwrap_or(0).max(0).cast_unsigned());
    match container.size_root_fs {
        Some(root) if root > 0 => format!("{} (virtual {})", bytes(container.size_rw), bytes(Some(root))),
        _ => bytes(container.size_rw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a daemon answers.
    const LIST: &str = r#"[
      {"Id":"8f1c0a3b5d7e8f1c0a3b5d7e8f1c0a3b5d7e8f1c0a3b5d7e8f1c0a3b5d7e8f1c","Names":["/web"],
       "Image":"nginx","ImageID":"sha256:00","Command":"nginx -g 'daemon off;'","Created":1700000000,
       "Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}],"Labels":{"tier":"front"},
       "State":"running","Status":"Up 2 minutes","NetworkSettings":{"Networks":{"bridge":{}}},"Mounts":[]},
      {"Id":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","Names":["/job"],
       "Image":"sha256:fedcba9876543210","Command":"sh","Created":1699990000,"Ports":[],"Labels":null,
       "State":"exited","Status":"Exited (0) 2 hours ago","NetworkSettings":null,"Mounts":null,
       "SizeRw":1000,"SizeRootFs":4261550}]"#;

    #[test]
    fn the_table_is_dockers() {
        let list: Vec<ContainerSummary> = insula_models::from_json(LIST.as_bytes()).unwrap();
        let rows: Vec<Row> = list.iter().map(|container| row(container, 1_700_000_150, true)).collect();
        insta::assert_snapshot!(table::render(&columns(true, false), &rows, "").unwrap());
        let names =
            table::render(&columns(false, false), &rows, "{{.Names}}: {{.Image}} {{.Networks}}").unwrap();
        assert_eq!(names, "web: nginx bridge\njob: fedcba987654 \n");
    }
}
