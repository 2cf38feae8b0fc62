//! `images rmi tag`.

use clap::Args;
use insula_models::ImageSummary;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::{self, Outcome};
use crate::filters;
use crate::format::table::{self, Columns, Row};
use crate::format::{ago, short_id};
use crate::printer;

/// List images
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula images
  insula images --digests nginx
  insula images --tree nginx
  insula images --format '{{.Repository}}:{{.Tag}} {{.Size}}'")]
pub(crate) struct ImagesArgs {
    /// Intermediate images too
    #[arg(short, long)]
    all: bool,
    /// With digests
    #[arg(long)]
    digests: bool,
    /// Only: dangling=true, label=tier=db, reference='nginx:*', …
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Go template, 'table' and a template, 'json' or 'raw'
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Do not cut ids
    #[arg(long)]
    no_trunc: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// With the layers of each, and how much of them upper layers hide
    #[arg(long)]
    tree: bool,
    /// Only this repository, or repository:tag
    repository: Option<String>,
}

const HEADERS: &[(&str, &str)] = &[
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("Size", "SIZE"),
    ("CreatedAt", "CREATED AT"),
    ("Containers", "CONTAINERS"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("VirtualSize", "SIZE"),
];

/// What `raw` stands for, as Docker has it.
const RAW: &str = "repository: {{.Repository}}\ntag: {{.Tag}}\nimage_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\n\
    virtual_size: {{.Size}}\n";

impl Run for ImagesArgs {
    async fn run(self, context: Context) -> Outcome {
        let mut filters = filters::parse(&self.filter)?;
        if let Some(repository) = &self.repository {
            filters.add("reference", repository);
        }
        if self.tree && (self.quiet || self.digests || !self.format.is_empty()) {
            anyhow::bail!(
                "--tree has a form of its own: it goes with neither --quiet, --digests nor --format"
            );
        }
        let client = context.client().await?;
        let images = client.list_images(self.all, &filters).await?;
        if self.tree {
            return super::tree::print(&client, &images, self.no_trunc).await;
        }
        let now = ago::now();
        let rows: Vec<Row> = images.iter().flat_map(|image| rows(image, now, &self)).collect();
        if self.quiet && self.format.is_empty() {
            for image in &images {
                for _ in 0..image.repo_tags.len().max(1) {
                    printer::line(if self.no_trunc { &image.id } else { short_id(&image.id) })?;
                }
            }
            return Ok(0);
        }
        let mut shown = vec!["Repository", "Tag", "ID", "CreatedSince", "Size"];
        if self.digests {
            shown.insert(2, "Digest");
        }
        let format = match (self.format.as_str(), self.quiet, self.digests) {
            ("raw", true, _) => "image_id: {{.ID}}",
            ("raw", _, true) => &RAW.replace("image_id", "digest: {{.Digest}}\nimage_id"),
            ("raw", ..) => RAW,
            (format, ..) => format,
        };
        table::print(&Columns { headers: HEADERS, shown }, &rows, format)?;
        Ok(0)
    }
}

const NONE: &str = "<none>";

/// Repository, tag and digest of each row: as Docker has it, one for each name, with digests one for each of the
/// repository's; one for a repository of which digests alone are known; and one for an image without any name.
fn names(image: &ImageSummary, with_digests: bool) -> Vec<[String; 3]> {
    let tags = image.repo_tags.iter().filter(|name| *name != "<none>:<none>");
    let tags: Vec<_> = tags.filter_map(|name| name.rsplit_once(':')).collect();
    let digests: Vec<_> = image.repo_digests.iter().filter_map(|name| name.split_once('@')).collect();
    let bare = digests.iter().filter(|(repository, _)| tags.iter().all(|(other, _)| other != repository));
    let mut names: Vec<[String; 3]> = Vec::new();
    for (repository, tag) in tags.iter().copied().chain(bare.map(|(repository, _)| (*repository, NONE))) {
        if tag == NONE && names.iter().any(|[known, ..]| known == repository) {
            continue;
        }
        let of_it = digests.iter().filter(|(other, _)| with_digests && *other == repository);
        let mut shown: Vec<&str> = of_it.map(|(_, digest)| *digest).collect();
        if shown.is_empty() {
            shown.push(NONE);
        }
        names.extend(shown.into_iter().map(|digest| [repository, tag, digest].map(str::to_owned)));
    }
    if names.is_empty() {
        names.push([NONE; 3].map(str::to_owned));
    }
    names
}

fn rows(image: &ImageSummary, now: i64, flags: &ImagesArgs) -> Vec<Row> {
    let size = |size: i64| match u64::try_from(size) {
        Ok(size) => insula_base::format_decimal(size),
        Err(_) => "N/A".to_owned(),
    };
    let row = |[repository, tag, digest]: [String; 3]| Row {
        cells: vec![
            ("Repository", repository),
            ("Tag", tag),
            ("Digest", digest),
            ("ID", if flags.no_trunc { image.id.clone() } else { short_id(&image.id).to_owned() }),
            ("CreatedSince", if image.created > 0 { ago::ago(image.created, now) } else { "N/A".to_owned() }),
            ("Size", size(image.size)),
            ("CreatedAt", ago::local(image.created)),
            (
                "Containers",
                if image.containers < 0 { "N/A".to_owned() } else { image.containers.to_string() },
            ),
            ("SharedSize", size(image.shared_size)),
            (
                "UniqueSize",
                if image.shared_size < 0 { "N/A".to_owned() } else { size(image.size - image.shared_size) },
            ),
            ("VirtualSize", size(image.size)),
        ],
        labels: image.labels.clone(),
    };
    let with_digests = flags.digests || flags.format.contains(".Digest");
    names(image, with_digests).into_iter().map(row).collect()
}

/// Remove images
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula rmi nginx:old
  insula rmi -f 0123456789ab")]
pub(crate) struct RmiArgs {
    /// Remove the image although stopped containers are made of it, or it has several names
    #[arg(short, long)]
    force: bool,
    /// Keep parents that have no name
    #[arg(long)]
    no_prune: bool,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Run for RmiArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = context.client().await?;
        let mut code = 0;
        for image in &self.images {
            match client.remove_image(image, self.force, self.no_prune).await {
                Ok(items) => {
                    for item in items {
                        if !item.untagged.is_empty() {
                            printer::line(&format!("Untagged: {}", item.untagged))?;
                        }
                        if !item.deleted.is_empty() {
                            printer::line(&format!("Deleted: {}", item.deleted))?;
                        }
                    }
                }
                Err(error) => {
                    printer::error(&failure::describe_client(&error));
                    if !(self.force && error.status() == Some(404)) {
                        code = 1;
                    }
                }
            }
        }
        Ok(code)
    }
}

/// Give an image another name
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula tag web:latest web:v1")]
pub(crate) struct TagArgs {
    /// Name or id
    image: String,
    /// The name it gets: repository[:tag]
    target: String,
}

impl Run for TagArgs {
    async fn run(self, context: Context) -> Outcome {
        let (repository, tag) = match self.target.rsplit_once(':') {
            // A colon before the last slash belongs to a port.
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (self.target.as_str(), ""),
        };
        context.client().await?.tag_image(&self.image, repository, tag).await?;
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_have_rows_where_they_are_shown() {
        let image = ImageSummary {
            repo_tags: vec!["web:1".to_owned(), "web:2".to_owned()],
            repo_digests: ["web@a", "web@b", "far/web@a", "far/web@b"].map(str::to_owned).to_vec(),
            ..ImageSummary::default()
        };
        let shown = |with_digests| -> Vec<String> {
            names(&image, with_digests).iter().map(|name| name.join(" ")).collect()
        };
        assert_eq!(shown(false), ["web 1 <none>", "web 2 <none>", "far/web <none> <none>"]);
        let all = ["web 1 a", "web 1 b", "web 2 a", "web 2 b", "far/web <none> a", "far/web <none> b"];
        assert_eq!(shown(true), all);
        assert_eq!(names(&ImageSummary::default(), true), [[NONE; 3].map(str::to_owned)]);
    }

    #[test]
    fn a_row_for_each_name() {
        let flags = ImagesArgs {
            all: false,
            digests: false,
            filter: Vec::new(),
            format: String::new(),
            no_trunc: false,
            quiet: false,
            tree: false,
            repository: None,
        };
        let image = ImageSummary {
            id: format!("sha256:{}", "a".repeat(64)),
            repo_tags: vec!["web:1".to_owned(), "host:5000/web:2".to_owned()],
            size: 4_261_550,
            shared_size: -1,
            containers: -1,
            created: 1_700_000_000,
            ..ImageSummary::default()
        };
        let bare = ImageSummary { id: "sha256:b".to_owned(), ..ImageSummary::default() };
        let all: Vec<Row> =
            [image, bare].iter().flat_map(|image| rows(image, 1_700_086_400, &flags)).collect();
        let columns =
            Columns { headers: HEADERS, shown: vec!["Repository", "Tag", "ID", "CreatedSince", "Size"] };
        insta::assert_snapshot!(table::render(&columns, &all, "").unwrap());
    }
}
