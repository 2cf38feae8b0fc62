//! `system df`, `system prune`.

use clap::Args;
use insula_models::{
    BuildCacheItem, ContainerSummary, DiskUsage, ImageSummary, MachineFile, StorageUse, Volume,
};

use super::prune::{confirmed, image_lines};
use crate::arguments::Run;
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::format::table::{self, Columns, Row};
use crate::format::{ago, ellipsis, short_id};
use crate::{filters, printer};

/// Show what is on the disk
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula system df
  insula system df -v                  each image, container and volume, and all that is below the root
  insula system df --format '{{.Type}} {{.Size}}'")]
pub(crate) struct DiskArgs {
    /// Go template, 'table' and a template, 'json' or 'raw'
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Each image, container and volume
    #[arg(short, long)]
    verbose: bool,
}

const HEADERS: &[(&str, &str)] = &[
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];

/// What `raw` stands for, as Docker has it.
const RAW: &str = "type: {{.Type}}\ntotal: {{.TotalCount}}\nactive: {{.Active}}\nsize: {{.Size}}\n\
    reclaimable: {{.Reclaimable}}\n";

impl Run for DiskArgs {
    async fn run(self, context: Context) -> Outcome {
        if self.verbose && !matches!(self.format.as_str(), "" | "json") {
            let message = "the verbose and the format options conflict".to_owned();
            return Err(Failure { code: 1, message }.into());
        }
        let usage = context.client().await?.disk_usage().await?;
        match (self.verbose, self.format.as_str()) {
            (true, "json") => printer::line(&serde_json::to_string(&usage)?)?,
            (true, _) => printer::text(&verbose(&usage, ago::now())?)?,
            (false, format) => {
                let shown = HEADERS.iter().map(|(name, _)| *name).collect();
                let format = if format == "raw" { RAW } else { format };
                table::print(&Columns { headers: HEADERS, shown }, &summary(&usage), format)?;
            }
        }
        Ok(0)
    }
}

fn size(bytes: i64) -> String {
    insula_base::format_decimal(u64::try_from(bytes).unwrap_or_default())
}

fn share(part: i64, whole: i64) -> String {
    if whole > 0 { format!("{} ({}%)", size(part), part * 100 / whole) } else { size(part) }
}

/// Docker's four rows, and insula's own where there is something to count; sizes are those on the disk.
fn summary(usage: &DiskUsage) -> Vec<Row> {
    let row = |kind: &str, total: usize, active: usize, bytes: i64, reclaimable: String| Row {
        cells: vec![
            ("Type", kind.to_owned()),
            ("TotalCount", total.to_string()),
            ("Active", active.to_string()),
            ("Size", size(bytes)),
            ("Reclaimable", reclaimable),
        ],
        ..Row::default()
    };
    let storage = usage.storage.clone().unwrap_or_default();
    let stored: Vec<&ImageSummary> = usage.images.iter().filter(|image| image.size > 0).collect();
    let used: i64 = stored
        .iter()
        .filter(|image| image.containers > 0)
        .map(|image| image.size - image.shared_size.max(0))
        .sum();
    let images = row(
        "Images",
        stored.len(),
        stored.iter().filter(|image| image.containers > 0).count(),
        usage.layers_size,
        share((usage.layers_size - used).max(0), usage.layers_size),
    );
    let runs = |container: &&ContainerSummary| {
        matches!(container.state.as_str(), "running" | "paused" | "restarting")
    };
    let rw = |container: &ContainerSummary| container.size_rw.unwrap_or_default();
    let resting: i64 = usage.containers.iter().filter(|container| !runs(container)).map(rw).sum();
    let containers_size = storage.writable_layers + storage.logs;
    let containers = row(
        "Containers",
        usage.containers.len(),
        usage.containers.iter().filter(runs).count(),
        containers_size,
        share(resting, containers_size),
    );
    let bytes = |volume: &Volume| volume.usage_data.as_ref().map_or(0, |usage| usage.size.max(0));
    let links = |volume: &&Volume| volume.usage_data.as_ref().is_some_and(|usage| usage.ref_count > 0);
    let free: i64 = usage.volumes.iter().filter(|volume| !links(volume)).map(bytes).sum();
    let volumes = row(
        "Local Volumes",
        usage.volumes.len(),
        usage.volumes.iter().filter(links).count(),
        storage.volumes,
        share(free, storage.volumes),
    );
    let cache = |is: &dyn Fn(&&BuildCacheItem) -> bool| {
        usage.build_cache.iter().filter(is).map(|item| item.size).sum::<i64>()
    };
    // What images have too is counted with them.
    let builds = row(
        "Build Cache",
        usage.build_cache.len(),
        usage.build_cache.iter().filter(|item| item.in_use).count(),
        cache(&|item| !item.shared),
        size(cache(&|item| !item.shared && !item.in_use)),
    );
    let machines =
        [("VM Templates", "template"), ("Mapped Images", "image")].into_iter().filter_map(|(name, kind)| {
            let of_kind = || usage.machine_files.iter().filter(move |file| file.r#type == kind);
            let bytes = |used: &dyn Fn(&MachineFile) -> bool| {
                of_kind().filter(|file| used(file)).map(|file| file.size).sum::<i64>()
            };
            let (total, active) = (of_kind().count(), of_kind().filter(|file| file.in_use).count());
            let all = bytes(&|_| true);
            (total > 0).then(|| row(name, total, active, all, share(bytes(&|file| !file.in_use), all)))
        });
    [images, containers, volumes, builds].into_iter().chain(machines).collect()
}

fn verbose(usage: &DiskUsage, now: i64) -> anyhow::Result<String> {
    let mut text = String::from("Images space usage:\n\n");
    text.push_str(&images(&usage.images, now)?);
    text.push_str("\nContainers space usage:\n\n");
    text.push_str(&containers(&usage.containers, now)?);
    text.push_str("\nLocal Volumes space usage:\n\n");
    text.push_str(&volumes(&usage.volumes)?);
    let cached = usage.build_cache.iter().filter(|item| !item.shared).map(|item| item.size).sum();
    text.push_str(&format!("\nBuild cache usage: {}\n", size(cached)));
    if !usage.build_cache.is_empty() {
        text.push_str(&format!("\n{}", builds(&usage.build_cache, now)?));
    }
    if !usage.machine_files.is_empty() {
        text.push_str(&format!("\nMachines' files space usage:\n\n{}", machines(&usage.machine_files)?));
    }
    if let Some(storage) = &usage.storage {
        text.push_str(&format!("\nAll that is below {}:\n\n{}", storage.root, kinds(storage)?));
    }
    Ok(text)
}

fn rendered(headers: &'static [(&'static str, &'static str)], rows: &[Row]) -> anyhow::Result<String> {
    let shown = headers.iter().map(|(name, _)| *name).collect();
    table::render(&Columns { headers, shown }, rows, "")
}

fn images(images: &[ImageSummary], now: i64) -> anyhow::Result<String> {
    const HEADERS: &[(&str, &str)] = &[
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("Size", "SIZE"),
        ("SharedSize", "SHARED SIZE"),
        ("UniqueSize", "UNIQUE SIZE"),
        ("Containers", "CONTAINERS"),
    ];
    let row = |image: &ImageSummary| {
        let name = image.repo_tags.first().map_or("<none>:<none>", String::as_str);
        let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "<none>"));
        Row {
            cells: vec![
                ("Repository", repository.to_owned()),
                ("Tag", tag.to_owned()),
                ("ID", short_id(&image.id).to_owned()),
                (
                    "CreatedSince",
                    if image.created > 0 { ago::ago(image.created, now) } else { "N/A".to_owned() },
                ),
                ("Size", size(image.size)),
                ("SharedSize", size(image.shared_size)),
                ("UniqueSize", size(image.size - image.shared_size.max(0))),
                ("Containers", image.containers.max(0).to_string()),
            ],
            ..Row::default()
        }
    };
    rendered(HEADERS, &images.iter().map(row).collect::<Vec<_>>())
}

fn containers(containers: &[ContainerSummary], now: i64) -> anyhow::Result<String> {
    const HEADERS: &[(&str, &str)] = &[
        ("ID", "CONTAINER ID"),
        ("Image", "IMAGE"),
        ("Command", "COMMAND"),
        ("LocalVolumes", "LOCAL VOLUMES"),
        ("Size", "SIZE"),
        ("CreatedSince", "CREATED"),
        ("Status", "STATUS"),
        ("Names", "NAMES"),
    ];
    let row = |container: &ContainerSummary| {
        let names = container.names.iter().map(|name| name.trim_start_matches('/')).collect::<Vec<_>>();
        let command = ellipsis(&container.command, 20);
        Row {
            cells: vec![
                ("ID", short_id(&container.id).to_owned()),
                ("Image", container.image.clone()),
                ("Command", format!("\"{command}\"")),
                (
                    "LocalVolumes",
                    container.mounts.iter().filter(|mount| mount.r#type == "volume").count().to_string(),
                ),
                ("Size", size(container.size_rw.unwrap_or_default())),
                ("CreatedSince", ago::ago(container.created, now)),
                ("Status", container.status.clone()),
                ("Names", names.join(",")),
            ],
            ..Row::default()
        }
    };
    rendered(HEADERS, &containers.iter().map(row).collect::<Vec<_>>())
}

fn volumes(volumes: &[Volume]) -> anyhow::Result<String> {
    const HEADERS: &[(&str, &str)] = &[("Name", "VOLUME NAME"), ("Links", "LINKS"), ("Size", "SIZE")];
    let row = |volume: &Volume| {
        let usage = volume.usage_data.clone().unwrap_or_default();
        Row {
            cells: vec![
                ("Name", volume.name.clone()),
                ("Links", usage.ref_count.max(0).to_string()),
                ("Size", size(usage.size)),
            ],
            ..Row::default()
        }
    };
    rendered(HEADERS, &volumes.iter().map(row).collect::<Vec<_>>())
}

fn builds(items: &[BuildCacheItem], now: i64) -> anyhow::Result<String> {
    const HEADERS: &[(&str, &str)] = &[
        ("ID", "CACHE ID"),
        ("CacheType", "CACHE TYPE"),
        ("Size", "SIZE"),
        ("CreatedSince", "CREATED"),
        ("LastUsedSince", "LAST USED"),
        ("UsageCount", "USAGE"),
        ("Shared", "SHARED"),
    ];
    let since = |text: &str| {
        let moment = text.parse::<jiff::Timestamp>();
        moment.map_or_else(|_| "N/A".to_owned(), |moment| ago::ago(moment.as_second(), now))
    };
    let row = |item: &BuildCacheItem| Row {
        cells: vec![
            ("ID", item.id.chars().take(12).collect()),
            ("CacheType", item.r#type.clone()),
            ("Size", size(item.size)),
            ("CreatedSince", since(&item.created_at)),
            ("LastUsedSince", since(&item.last_used_at)),
            ("UsageCount", item.usage_count.to_string()),
            ("Shared", item.shared.to_string()),
        ],
        ..Row::default()
    };
    rendered(HEADERS, &items.iter().map(row).collect::<Vec<_>>())
}

fn machines(files: &[MachineFile]) -> anyhow::Result<String> {
    const HEADERS: &[(&str, &str)] = &[("ID", "ID"), ("Type", "TYPE"), ("Size", "SIZE"), ("InUse", "IN USE")];
    let row = |file: &MachineFile| Row {
        cells: vec![
            ("ID", file.id.chars().take(16).collect()),
            ("Type", file.r#type.clone()),
            ("Size", size(file.size)),
            ("InUse", file.in_use.to_string()),
        ],
        ..Row::default()
    };
    rendered(HEADERS, &files.iter().map(row).collect::<Vec<_>>())
}

fn kinds(storage: &StorageUse) -> anyhow::Result<String> {
    const HEADERS: &[(&str, &str)] = &[("Kind", "KIND"), ("Size", "SIZE"), ("Bytes", "BYTES")];
    let all = [
        ("Layers", storage.layers),
        ("Recipes of layers", storage.recipes),
        ("Compressed layers", storage.compressed),
        ("Manifests and configurations", storage.documents),
        ("Writable layers", storage.writable_layers),
        ("Logs", storage.logs),
        ("Volumes", storage.volumes),
        ("Database", storage.database),
        ("On the way in or out", storage.pending),
        ("Templates of machines", storage.templates),
        ("Images that machines map", storage.mapped_images),
        ("What machines boot with", storage.machines),
        ("Other", storage.other),
        ("Total", storage.total),
    ];
    let row = |(kind, bytes): &(&str, i64)| Row {
        cells: vec![("Kind", (*kind).to_owned()), ("Size", size(*bytes)), ("Bytes", bytes.to_string())],
        ..Row::default()
    };
    rendered(HEADERS, &all.iter().map(row).collect::<Vec<_>>())
}

/// Remove what nothing uses: stopped containers, networks, images, templates of machines
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula system prune
  insula system prune -af --volumes --filter until=24h")]
pub(crate) struct PruneArgs {
    /// Images with a name that no container uses, and all templates of machines, too
    #[arg(short, long)]
    all: bool,
    /// Only: until=24h, label=tier=db
    #[arg(long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Volumes without a name that no container uses, too
    #[arg(long)]
    volumes: bool,
}

impl Run for PruneArgs {
    async fn run(self, context: Context) -> Outcome {
        let conditions = filters::parse(&self.filter)?;
        if self.volumes && self.filter.iter().any(|filter| filter.starts_with("until")) {
            let message = "ERROR: The \"until\" filter is not supported with \"--volumes\"".to_owned();
            return Err(Failure { code: 1, message }.into());
        }
        if !self.force && !confirmed(&self.warning())? {
            return Ok(1);
        }
        let client = context.client().await?;
        let mut reclaimed = 0;
        let containers = client.prune_containers(&conditions).await?;
        reclaimed += containers.space_reclaimed;
        section("Deleted Containers:", &containers.containers_deleted)?;
        let networks = client.prune_networks(&conditions).await?;
        section("Deleted Networks:", &networks.networks_deleted)?;
        if self.volumes {
            let volumes = client.prune_volumes(&conditions).await?;
            reclaimed += volumes.space_reclaimed;
            section("Deleted Volumes:", &volumes.volumes_deleted)?;
        }
        let mut conditions = conditions;
        conditions.add("dangling", if self.all { "false" } else { "true" });
        let images = client.prune_images(&conditions).await?;
        reclaimed += images.space_reclaimed;
        section("Deleted Images:", &image_lines(&images))?;
        if self.filter.is_empty() {
            let templates = client.prune_templates(self.all).await?;
            reclaimed += templates.space_reclaimed;
            section("Deleted VM Templates:", &templates.templates_deleted)?;
        }
        printer::line(&format!("Total reclaimed space: {}", insula_base::format_decimal(reclaimed)))?;
        Ok(0)
    }
}

impl PruneArgs {
    fn warning(&self) -> String {
        let mut text = String::from(
            "This will remove:\n  - all stopped containers\n  - all networks not used by at least one container\n",
        );
        if self.volumes {
            text.push_str("  - all anonymous volumes not used by at least one container\n");
        }
        text.push_str(if self.all {
            "  - all images without at least one container associated to them\n"
        } else {
            "  - all dangling images\n"
        });
        if self.filter.is_empty() {
            text.push_str(if self.all {
                "  - all templates of machines\n"
            } else {
                "  - all templates of machines that no new machine starts from\n"
            });
        } else {
            text.push_str(&format!(
                "\n  Items to be pruned will be filtered with:\n  - {}\n",
                self.filter.join("\n  - ")
            ));
        }
        text
    }
}

fn section(title: &str, names: &[String]) -> anyhow::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    Ok(printer::text(&format!("{title}\n{}\n\n", names.join("\n")))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage() -> DiskUsage {
        let image = |id: char, size, shared_size, containers| ImageSummary {
            id: format!("sha256:{}", id.to_string().repeat(64)),
            repo_tags: vec![format!("app:{id}")],
            created: 1_700_000_000,
            containers,
            shared_size,
            size,
            ..ImageSummary::default()
        };
        DiskUsage {
            layers_size: 600_000_000,
            images: vec![image('1', 500_000_000, 100_000_000, 2), image('2', 200_000_000, 100_000_000, 0)],
            containers: vec![ContainerSummary {
                id: "c".repeat(64),
                names: vec!["/web".to_owned()],
                image: "app:1".to_owned(),
                command: "nginx -g daemon off;".to_owned(),
                created: 1_700_000_000,
                state: "exited".to_owned(),
                status: "Exited (0) 2 hours ago".to_owned(),
                size_rw: Some(4096),
                ..ContainerSummary::default()
            }],
            storage: Some(StorageUse {
                root: "/var/lib/insula".to_owned(),
                layers: 590_000_000,
                recipes: 10_000_000,
                writable_layers: 8192,
                total: 600_100_000,
                ..StorageUse::default()
            }),
            build_cache: [(7_000_000, false), (30_000_000, true)]
                .map(|(size, shared)| BuildCacheItem {
                    id: "b".repeat(64),
                    r#type: "regular".to_owned(),
                    shared,
                    size,
                    created_at: "2023-11-15T01:00:00Z".to_owned(),
                    usage_count: 2,
                    ..BuildCacheItem::default()
                })
                .to_vec(),
            machine_files: [
                ("template", 'a', 90_000_000, true),
                ("template", 'b', 80_000_000, false),
                ("image", 'c', 5_000_000, true),
            ]
            .map(|(kind, id, size, in_use)| MachineFile {
                r#type: kind.to_owned(),
                id: id.to_string().repeat(16),
                size,
                in_use,
            })
            .to_vec(),
            ..DiskUsage::default()
        }
    }

    #[test]
    fn what_is_on_the_disk() {
        let shown = HEADERS.iter().map(|(name, _)| *name).collect();
        let columns = Columns { headers: HEADERS, shown };
        insta::assert_snapshot!("disk", table::render(&columns, &summary(&usage()), "").unwrap());
        insta::assert_snapshot!("disk_verbose", verbose(&usage(), 1_700_086_400).unwrap());
    }
}
