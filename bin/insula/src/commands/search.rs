//! `search`, `manifest inspect`.

use anyhow::bail;
use clap::Args;
use insula_models::{RemoteManifest, SearchResult};
use insula_spec::reference::Reference;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::format::json;
use crate::format::table::{self, Columns, Row};
use crate::registry::{HUB, config::Config, credentials, server};
use crate::{filters, printer};

/// Characters of a description in the table.
const SHORT: usize = 45;

/// Search a registry for images
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula search nginx
  insula search --filter is-official=true --limit 5 debian
  insula search registry.example/app")]
pub(crate) struct SearchArgs {
    /// Only: is-official=true, stars=100
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Go template, 'table' and a template, or 'json'
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Results at most
    #[arg(long, value_name = "N")]
    limit: Option<i64>,
    /// Do not cut descriptions
    #[arg(long)]
    no_trunc: bool,
    /// TERM, or HOST[:PORT]/TERM
    term: String,
}

const HEADERS: &[(&str, &str)] = &[
    ("Name", "NAME"),
    ("Description", "DESCRIPTION"),
    ("StarCount", "STARS"),
    ("IsOfficial", "OFFICIAL"),
    ("IsAutomated", "AUTOMATED"),
];

impl Run for SearchArgs {
    async fn run(self, context: Context) -> Outcome {
        let filters = filters::parse(&self.filter)?;
        let domain = self.term.split_once('/').map(|(first, _)| first).filter(|first| is_registry(first));
        let auth = Config::load()?.credentials(domain.map_or(HUB, server))?;
        let client = context.client().await?;
        let found = client.search_images(&self.term, self.limit, &filters, &auth).await?;
        let rows: Vec<Row> = found.iter().map(|one| row(one, self.no_trunc)).collect();
        let shown = vec!["Name", "Description", "StarCount", "IsOfficial"];
        table::print(&Columns { headers: HEADERS, shown }, &rows, &self.format)?;
        Ok(0)
    }
}

fn is_registry(word: &str) -> bool {
    word.contains(['.', ':']) || word == "localhost"
}

fn row(one: &SearchResult, whole: bool) -> Row {
    let ok = |set: bool| if set { "[OK]".to_owned() } else { String::new() };
    let description = one.description.replace(['\n', '\r'], " ");
    let cut = !whole && description.chars().count() > SHORT;
    let description = if cut {
        format!("{}…", description.chars().take(SHORT - 1).collect::<String>())
    } else {
        description
    };
    Row {
        cells: vec![
            ("Name", one.name.clone()),
            ("Description", description),
            ("StarCount", one.star_count.to_string()),
            ("IsOfficial", ok(one.is_official)),
            ("IsAutomated", ok(one.is_automated)),
        ],
        labels: Default::default(),
    }
}

/// Show the manifest, or the list of manifests, that a name stands for at its registry
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula manifest inspect debian:bookworm
  insula manifest inspect -v registry.example:5000/team/app:1.2
  insula manifest inspect --insecure registry.lan:5000/app:1")]
pub(crate) struct InspectManifestArgs {
    /// Of a list its manifests, with descriptors and content
    #[arg(short, long)]
    verbose: bool,
    /// Believe whoever answers for the registry, with a certificate that nobody vouches for or without TLS
    #[arg(long)]
    insecure: bool,
    /// NAME[:TAG] or NAME@DIGEST
    image: String,
}

impl Run for InspectManifestArgs {
    async fn run(self, context: Context) -> Outcome {
        let name = Reference::parse(&self.image)?;
        let auth = credentials(&self.image)?;
        let client = context.client().await?;
        let documents = client.remote_manifests(&name.familiar(), self.verbose, self.insecure, &auth).await?;
        if !self.verbose {
            let Some(first) = documents.first() else { bail!("no such manifest: {}", self.image) };
            printer::line(&json::indent_with(&first.text()?, "\t"))?;
            return Ok(0);
        }
        let detailed = documents.iter().map(detail).collect::<anyhow::Result<Vec<_>>>()?;
        // Docker shows one manifest alone, and those of a list as one.
        let text = match detailed.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(",")),
        };
        printer::line(&json::indent_with(&text, "\t"))?;
        Ok(0)
    }
}

/// In Docker's order of fields, which a map does not keep.
fn detail(document: &RemoteManifest) -> anyhow::Result<String> {
    let kind = if document.descriptor.media_type.starts_with("application/vnd.docker.") {
        "SchemaV2Manifest"
    } else {
        "OCIManifest"
    };
    Ok(format!(
        "{{\"Ref\":{},\"Descriptor\":{},\"Raw\":{},\"{kind}\":{}}}",
        serde_json::to_string(&document.reference)?,
        serde_json::to_string(&document.descriptor)?,
        serde_json::to_string(&document.raw)?,
        document.text()?,
    ))
}
