//! `build`, `builder prune`.

mod agents;
mod answer;
mod attestations;
mod caches;
mod changes;
mod contexts;
mod output;
mod progress;
mod secrets;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::future::join_all;
use insula_build::dockerfile::{Dockerfile, LARGEST, lint};
use insula_build::{Base, Framed, Given, Plan};
use insula_client::{BuildOptions, Client, NamedContext, Upload};
use insula_models::AuthConfig;
use insula_spec::reference::Reference;
use tokio::sync::Notify;

use self::changes::Changes;
use self::contexts::Named;
use self::output::{Output, Receivers};
use self::progress::Progress;
use super::transfer;
use crate::arguments::Run;
use crate::context::Context;
use crate::copy::context::Context as BuildContext;
use crate::failure::Outcome;
use crate::options::limits;
use crate::printer::Sink;
use crate::run::resolve::security_option;
use crate::usage::bad_flag;
use crate::{filters, options, printer, registry};

/// Build an image from a Dockerfile
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula build -t app .
  insula build -f build/Dockerfile --target test --build-arg VERSION=2 .
  insula build --check .
  insula build --secret id=token,env=API_TOKEN .
  insula build --ssh default .
  insula build --cache-from type=local,src=cache --cache-to type=local,dest=cache,mode=max .
  insula build --build-context sources=../src --output type=local,dest=out .
  insula build -t app --sbom true --provenance mode=max .
  insula build -t app - < Dockerfile
  insula build https://example.org/app.git#main:folder")]
pub(crate) struct BuildArgs {
    /// Name of the image: repository[:tag]
    #[arg(short, long, value_name = "NAME")]
    tag: Vec<String>,
    /// The Dockerfile [default: PATH/Dockerfile]; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<String>,
    /// Set an argument (ARG) of the Dockerfile; without a value, from the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// Stage to build [default: the last one]
    #[arg(long, value_name = "STAGE", default_value = "", hide_default_value = true)]
    target: String,
    /// Do every step again
    #[arg(long)]
    no_cache: bool,
    /// Do every step of a stage again
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    no_cache_filter: Vec<String>,
    /// Ask registries for newer base images
    #[arg(long)]
    pull: bool,
    /// Print the image's id only
    #[arg(short, long)]
    quiet: bool,
    /// Set a label of the image: NAME=VALUE
    #[arg(long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// Write the image's id to a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Write the image's id and names to a file, as JSON
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,
    /// How progress is shown: auto, plain, tty, rawjson, quiet
    #[arg(long, value_name = "KIND", default_value = "auto",
        value_parser = ["auto", "plain", "tty", "rawjson", "quiet"])]
    progress: String,
    /// What the Dockerfile calls by a name: NAME=FOLDER, NAME=docker-image://IMAGE,
    /// NAME=oci-layout://FOLDER[:TAG], NAME=ADDRESS
    #[arg(long, value_name = "NAME=VALUE")]
    build_context: Vec<String>,
    /// What becomes of it: type=image|registry|oci|docker|tar|local[,dest=PATH], a folder, - [default: an image]
    #[arg(short, long, value_name = "OUTPUT", conflicts_with_all = ["push", "load"])]
    output: Option<String>,
    /// Push the image under its names: --output type=registry
    #[arg(long, conflicts_with = "load")]
    push: bool,
    /// Keep the image among the daemon's, as is done anyway: --output type=docker
    #[arg(long)]
    load: bool,
    /// Network of the commands
    #[arg(long, value_name = "NETWORK", default_value = "", hide_default_value = true)]
    network: String,
    /// Add a name to the commands' hosts file: NAME:ADDRESS
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// Platform of the image: os/architecture
    #[arg(long, value_name = "PLATFORM", default_value = "", hide_default_value = true)]
    platform: String,
    /// Memory of each command
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// Memory and swap together; -1 is unlimited
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    memory_swap: Option<String>,
    /// Weight of the commands' CPU time
    #[arg(short = 'c', long, value_name = "WEIGHT", default_value_t = 0, hide_default_value = true)]
    cpu_shares: i64,
    /// Microseconds that the quota is for
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, hide_default_value = true)]
    cpu_period: i64,
    /// Microseconds of CPU time in each period
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, hide_default_value = true)]
    cpu_quota: i64,
    /// CPUs of the commands: 0-2,4
    #[arg(long, value_name = "CPUS", default_value = "", hide_default_value = true)]
    cpuset_cpus: String,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES")]
    shm_size: Option<String>,
    /// The wall of the commands: process (the host's kernel), vm (a kernel of its own)
    #[arg(long, value_name = "WALL", default_value = "", hide_default_value = true)]
    isolation: String,
    /// A file or variable that commands may be given: id=ID[,src=FILE|,env=NAME]
    #[arg(long, value_name = "SECRET")]
    secret: Vec<String>,
    /// An agent that commands may ask: default (that of SSH_AUTH_SOCK), ID=SOCKET
    #[arg(long, value_name = "AGENT")]
    ssh: Vec<String>,
    /// What other builds made: IMAGE, type=registry,ref=IMAGE, type=local,src=FOLDER
    #[arg(long, value_name = "CACHE")]
    cache_from: Vec<String>,
    /// Who may have what this one makes: type=inline, type=registry,ref=IMAGE, type=local,dest=FOLDER[,mode=max]
    #[arg(long, value_name = "CACHE")]
    cache_to: Vec<String>,
    /// What is said about the image: type=provenance[,mode=min|max][,builder-id=ID], type=sbom
    #[arg(long, value_name = "ATTESTATION")]
    attest: Vec<String>,
    /// Say how the image was built: true, mode=max, false [default: false]
    #[arg(long, value_name = "HOW")]
    provenance: Option<String>,
    /// List what is in the image: true, false [default: false]
    #[arg(long, value_name = "BOOL")]
    sbom: Option<String>,
    /// Control group that the commands' are made in
    #[arg(long, value_name = "GROUP", default_value = "", hide_default_value = true)]
    cgroup_parent: String,
    /// Send the folder compressed
    #[arg(long)]
    compress: bool,
    /// Memory nodes of the commands: 0-2,4
    #[arg(long, value_name = "NODES", default_value = "", hide_default_value = true)]
    cpuset_mems: String,
    /// Images are not verified by content trust, which there is not: =false is refused
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_default_value = true, action = clap::ArgAction::Set)]
    disable_content_trust: bool,
    /// Remove the commands' containers also when they fail, as is done anyway
    #[arg(long)]
    force_rm: bool,
    /// Remove the commands' containers, as is done anyway: =false is refused
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_default_value = true, action = clap::ArgAction::Set)]
    rm: bool,
    /// Security option of the commands: seccomp=FILE, seccomp=unconfined
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// One layer for all steps
    #[arg(long)]
    squash: bool,
    /// Resource limit of the commands: NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT")]
    ulimit: Vec<String>,
    /// Say what is probably not meant, and build nothing
    #[arg(long)]
    check: bool,
    /// Folder that is sent, - for an archive or a Dockerfile on standard input, or the address of a repository, an
    /// archive or a Dockerfile
    path: String,
}

impl Run for BuildArgs {
    async fn run(self, context: Context) -> Outcome {
        options::content_trust(self.disable_content_trust)?;
        if !self.rm {
            return Err(bad_flag("--rm", "false", "the containers of commands are not kept in this version"));
        }
        let source = self.source()?;
        if self.check {
            return check(&source);
        }
        let output = self.output()?;
        let named = self.build_context.iter().map(|text| contexts::read(text));
        let named = named.collect::<anyhow::Result<Vec<_>>>()?;
        let tags = self.tags(&output)?;
        let agents = self.ssh.iter().map(|text| agents::read(text)).collect::<anyhow::Result<Vec<_>>>()?;
        let (from, to) = (caches::from(&self.cache_from)?, caches::to(&self.cache_to)?);
        let mut options = self.options(&source, &named, &output, &tags)?;
        options.cache_from.clone_from(&from.images);
        options.cache_layouts = from.layouts.iter().map(|(name, _)| name.clone()).collect();
        options.cache_to.clone_from(&to.told);
        options.attestations =
            attestations::read(&self.attest, self.provenance.as_deref(), self.sbom.as_deref())?;
        add_credentials(from.images.iter().chain(&to.names), &mut options.credentials)?;
        if !agents.is_empty() {
            options.agents = agents.iter().map(|agent| agent.id.clone()).collect();
            options.token = insula_base::random_hex(32);
        }
        let receivers = Receivers { output: output.open()?, cache: output::folder(to.folder.as_deref())? };
        let sink = if output.takes_standard_output() { Sink::Stderr } else { Sink::Stdout };
        let mut progress = Progress::new(&self.progress, options.quiet, sink)?;
        options.trace = progress.is_traced();
        let client = context.client().await?;
        let layouts: Vec<_> = from.layouts.into_iter().map(|(_, folder)| folder).collect();
        let mut answer = match self.changes(&client, &source).await? {
            None => client.build_image(upload(source, named, layouts, self.compress), &options).await?,
            Some(changes) => {
                let whole = options.clone();
                options.kept = Some(changes.kept.clone());
                let sent = upload(Source::Changes(changes), named.clone(), layouts.clone(), false);
                match client.build_image(sent, &options).await {
                    // Another build of the same folder came in between.
                    Err(insula_client::Error::Daemon { status: 409, .. }) => {
                        client.build_image(upload(source, named, layouts, false), &whole).await?
                    }
                    answer => answer?,
                }
            }
        };
        let begun = Notify::new();
        let serving = async {
            begun.notified().await;
            join_all(agents.iter().map(|agent| agent.serve(&client, &options.token))).await;
            // It is the build that ends.
            std::future::pending().await
        };
        let shown = tokio::select! {
            shown = answer::show(&mut answer, receivers, &mut progress, &begun) => shown,
            never = serving => never,
        };
        progress.end(shown.as_ref().ok().map(String::as_str))?;
        let id = shown?;
        if let Some(file) = self.iidfile.as_ref().filter(|_| !id.is_empty()) {
            std::fs::write(file, &id).with_context(|| format!("write {}", file.display()))?;
        }
        if let Some(file) = &self.metadata_file {
            std::fs::write(file, metadata(&id, &tags)?)
                .with_context(|| format!("write {}", file.display()))?;
        }
        if matches!(output, Output::Image { push: true, .. }) {
            for tag in &tags {
                transfer::push(&client, tag, options.quiet).await?;
            }
        }
        Ok(0)
    }
}

/// What is sent: folders of their own names, caches, and the context.
fn upload(source: Source, mut named: Vec<Named>, layouts: Vec<BuildContext>, compress: bool) -> Upload {
    if named.is_empty()
        && layouts.is_empty()
        && let Source::Archive(head) = source
    {
        return Upload::read(std::io::Cursor::new(head).chain(std::io::stdin()));
    }
    if layouts.is_empty()
        && matches!(source, Source::Remote(_))
        && named.iter().all(|named| named.folder.is_none())
    {
        return Upload::empty();
    }
    // The order in which the daemon expects them.
    named.sort_by(|one, other| one.name.cmp(&other.name));
    Upload::write(move |sink| {
        for folder in named.into_iter().filter_map(|named| named.folder).chain(layouts) {
            let mut framed = Framed::new(&mut *sink);
            folder.pack(&mut framed)?;
            framed.finish()?;
        }
        match source {
            Source::Folder { context, .. } if compress => {
                let mut gzip = GzEncoder::new(sink, Compression::default());
                context.pack(&mut gzip)?;
                gzip.finish().map(drop)
            }
            Source::Folder { context, .. } => context.pack(sink),
            Source::Changes(changes) => changes.pack(sink),
            Source::Archive(head) => {
                let mut rest = std::io::Cursor::new(head).chain(std::io::stdin());
                std::io::copy(&mut rest, sink).map(drop)
            }
            Source::Dockerfile(text) => alone(&text, sink),
            Source::Remote(_) => Ok(()),
        }
    })
}

/// Packs a Dockerfile alone.
fn alone(text: &[u8], sink: &mut dyn Write) -> std::io::Result<()> {
    let mut builder = tar::Builder::new(sink);
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o600);
    header.set_size(text.len() as u64);
    builder.append_data(&mut header, "Dockerfile", text)?;
    builder.finish()
}

/// What a build has made, in the words of BuildKit's metadata files.
fn metadata(id: &str, tags: &[String]) -> anyhow::Result<String> {
    let names = tags.iter().map(|tag| Ok(Reference::parse(tag)?.to_string()));
    let names = names.collect::<anyhow::Result<Vec<_>>>()?;
    let mut fields = serde_json::Map::new();
    fields.insert("containerimage.config.digest".to_owned(), id.into());
    if id.is_empty() {
        fields.clear();
    }
    if !names.is_empty() {
        fields.insert("image.name".to_owned(), names.join(",").into());
    }
    Ok(serde_json::to_string_pretty(&fields)? + "\n")
}

/// Where the context comes from.
enum Source {
    Folder {
        context: BuildContext,
        dockerfile: String,
        text: Vec<u8>,
    },
    /// What the daemon does not have of a folder.
    Changes(Changes),
    /// Standard input, of which a beginning was read.
    Archive(Vec<u8>),
    /// A Dockerfile that needs no files.
    Dockerfile(Vec<u8>),
    /// What the daemon fetches from an address.
    Remote(String),
}

impl BuildArgs {
    fn source(&self) -> anyhow::Result<Source> {
        if self.path == "-" {
            return self.standard_input();
        }
        let folder = PathBuf::from(&self.path);
        let short = self.path.starts_with("github.com/") && !folder.exists();
        if contexts::is_remote(&self.path) || short {
            if self.file.as_deref() == Some("-") {
                bail!("a Dockerfile on standard input does not go with a context that is fetched");
            }
            return Ok(Source::Remote(self.path.clone()));
        }
        let found = folder
            .canonicalize()
            .with_context(|| format!("unable to prepare context: path {:?}", self.path))?;
        if !found.is_dir() {
            bail!("unable to prepare context: {} is not a folder", self.path);
        }
        let (dockerfile, text, inside) = self.dockerfile(&found)?;
        let own = found.join(format!("{dockerfile}.dockerignore"));
        let patterns = if inside && own.is_file() { own } else { found.join(".dockerignore") };
        let ignore = contexts::ignored(&patterns)?;
        let always =
            vec![dockerfile.clone(), format!("{dockerfile}.dockerignore"), ".dockerignore".to_owned()];
        let extra = (!inside).then(|| (dockerfile.clone(), text.clone()));
        Ok(Source::Folder {
            context: BuildContext { folder: found, ignore, always, extra },
            dockerfile,
            text,
        })
    }

    /// The Dockerfile's name in the archive, what is in it, and whether it is a file of the folder.
    fn dockerfile(&self, folder: &Path) -> anyhow::Result<(String, Vec<u8>, bool)> {
        let outside = || format!(".dockerfile.{}", insula_base::random_hex(8));
        let path = match self.file.as_deref() {
            Some("-") => {
                let mut text = Vec::new();
                std::io::stdin()
                    .take(LARGEST as u64 + 1)
                    .read_to_end(&mut text)
                    .context("read standard input")?;
                return Ok((outside(), text, false));
            }
            Some(file) => PathBuf::from(file),
            None => folder.join("Dockerfile"),
        };
        let text = std::fs::read(&path)
            .with_context(|| format!("unable to evaluate the Dockerfile's path: {}", path.display()))?;
        let found = path.canonicalize().with_context(|| path.display().to_string())?;
        match found.strip_prefix(folder).ok().and_then(Path::to_str) {
            Some(name) => Ok((name.to_owned(), text, true)),
            None => Ok((outside(), text, false)),
        }
    }

    /// An archive, or a Dockerfile that needs no files.
    fn standard_input(&self) -> anyhow::Result<Source> {
        let mut head = Vec::new();
        std::io::stdin().take(512).read_to_end(&mut head).context("read standard input")?;
        let archive = head.get(257..262) == Some(b"ustar") || head.starts_with(&[0x1f, 0x8b]);
        if archive {
            return Ok(Source::Archive(head));
        }
        std::io::stdin().take(LARGEST as u64).read_to_end(&mut head).context("read standard input")?;
        Ok(Source::Dockerfile(head))
    }

    /// What is to be sent of a folder; `None` where all of it is.
    async fn changes(&self, client: &Client, source: &Source) -> anyhow::Result<Option<Changes>> {
        match source {
            // Connections for agents come before the context is looked at.
            Source::Folder { context, .. } if !self.compress && self.ssh.is_empty() => {
                Changes::look(client, context).await
            }
            _ => Ok(None),
        }
    }

    fn output(&self) -> anyhow::Result<Output> {
        match &self.output {
            Some(text) => output::read(text),
            None => Ok(Output::Image { names: Vec::new(), push: self.push }),
        }
    }

    /// The image's names; one that is pushed has to have some.
    fn tags(&self, output: &Output) -> anyhow::Result<Vec<String>> {
        let mut tags = self.tag.clone();
        if let Output::Image { names, push } = output {
            tags.extend(names.iter().cloned());
            if *push && tags.is_empty() {
                bail!("tag is needed when pushing to registry");
            }
        }
        Ok(tags)
    }

    fn options(
        &self,
        source: &Source,
        named: &[Named],
        output: &Output,
        tags: &[String],
    ) -> anyhow::Result<BuildOptions> {
        let bytes = |text: &Option<String>| -> anyhow::Result<i64> {
            match text.as_deref() {
                None => Ok(0),
                Some("-1") => Ok(-1),
                Some(text) => Ok(i64::try_from(insula_base::parse_bytes(text)?)?),
            }
        };
        let mut options = BuildOptions {
            dockerfile: self.file.clone().unwrap_or_else(|| "Dockerfile".to_owned()),
            remote: match source {
                Source::Remote(address) => address.clone(),
                _ => String::new(),
            },
            tags: tags.to_vec(),
            arguments: arguments(&self.build_arg),
            labels: self.label.iter().map(|label| pair(label)).collect(),
            target: self.target.clone(),
            no_cache: self.no_cache,
            no_cache_filter: self.no_cache_filter.clone(),
            pull: self.pull,
            kept: None,
            trace: false,
            quiet: self.quiet || self.progress == "quiet",
            platform: self.platform.clone(),
            network: self.network.clone(),
            extra_hosts: self.add_host.clone(),
            memory: bytes(&self.memory)?,
            memory_swap: bytes(&self.memory_swap)?,
            cpu_shares: self.cpu_shares,
            cpu_period: self.cpu_period,
            cpu_quota: self.cpu_quota,
            cpuset_cpus: self.cpuset_cpus.clone(),
            cpuset_mems: self.cpuset_mems.clone(),
            cgroup_parent: self.cgroup_parent.clone(),
            cache_from: Vec::new(),
            cache_layouts: Vec::new(),
            cache_to: Vec::new(),
            security_options: self
                .security_opt
                .iter()
                .map(|text| security_option(text))
                .collect::<anyhow::Result<_>>()?,
            squash: self.squash,
            ulimits: self.ulimit.iter().map(|text| limits::ulimit(text)).collect::<anyhow::Result<_>>()?,
            shm_size: bytes(&self.shm_size)?,
            isolation: self.isolation.clone(),
            secrets: self.secret.iter().map(|text| secrets::read(text)).collect::<anyhow::Result<_>>()?,
            credentials: BTreeMap::new(),
            contexts: named.iter().map(|named| (named.name.clone(), named.context.clone())).collect(),
            output: output.asked(),
            agents: Vec::new(),
            token: String::new(),
            attestations: None,
        };
        if options.contexts.len() < named.len() {
            bail!("two build contexts have the same name");
        }
        options.credentials = match source {
            Source::Folder { dockerfile, text, .. } => {
                options.dockerfile.clone_from(dockerfile);
                credentials(text, &options)?
            }
            Source::Dockerfile(text) => credentials(text, &options)?,
            // Which registries its Dockerfile names only the daemon will know.
            Source::Archive(_) | Source::Remote(_) => registry::all_credentials()?,
            Source::Changes(_) => BTreeMap::new(),
        };
        Ok(options)
    }
}

/// `NAME=VALUE`, or `NAME` from the environment if it is there.
fn arguments(given: &[String]) -> BTreeMap<String, Option<String>> {
    let value = |text: &String| match text.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (text.clone(), std::env::var(text).ok()),
    };
    given.iter().map(value).collect()
}

fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

/// Those of the registries that the Dockerfile names, and of no others.
fn credentials(text: &[u8], options: &BuildOptions) -> anyhow::Result<BTreeMap<String, AuthConfig>> {
    let file = Dockerfile::parse(text)?;
    let given = Given {
        arguments: options.arguments.clone(),
        target: Some(options.target.clone()),
        contexts: options.contexts.keys().cloned().collect(),
        ..Given::default()
    };
    let mut found = BTreeMap::new();
    let bases = Plan::new(&file, &given)?.stages.into_iter().filter_map(|stage| match stage.base {
        Base::Image(name) => Some(name),
        _ => None,
    });
    let named = options.contexts.values().filter_map(|context| match context {
        NamedContext::Image(name) => Some(name.clone()),
        NamedContext::Folder | NamedContext::Layout(_) | NamedContext::Remote(_) => None,
    });
    let names: Vec<String> = bases.chain(named).collect();
    add_credentials(names.iter(), &mut found)?;
    Ok(found)
}

fn add_credentials<'a>(
    names: impl Iterator<Item = &'a String>,
    found: &mut BTreeMap<String, AuthConfig>,
) -> anyhow::Result<()> {
    for name in names {
        let Ok(reference) = Reference::parse(name) else { continue };
        let auth = registry::credentials(name)?;
        if auth != AuthConfig::default() {
            found.insert(reference.domain().to_owned(), auth);
        }
    }
    Ok(())
}

fn check(source: &Source) -> Outcome {
    let Source::Folder { dockerfile, text, .. } = source else {
        bail!("--check needs a folder");
    };
    let file = Dockerfile::parse(text)?;
    Plan::new(&file, &Given::default())?;
    let warnings = lint(&file);
    for warning in &warnings {
        printer::line(&format!(
            "WARNING: {}\n{}\n{dockerfile}:{}\n",
            warning.rule, warning.message, warning.line
        ))?;
    }
    match warnings.len() {
        0 => printer::line("Check complete, no warnings found.")?,
        1 => printer::line("Check complete, 1 warning has been found!")?,
        count => printer::line(&format!("Check complete, {count} warnings have been found!"))?,
    }
    Ok(u8::from(!warnings.is_empty()))
}

/// Remove what builds keep for the next one
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula builder prune -f
  insula builder prune -f --keep-storage 2g")]
pub(crate) struct PruneBuilderArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Remove all of it, as is done anyway
    #[arg(short, long)]
    all: bool,
    /// Only: until=24h, id=ID, type=regular
    #[arg(long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Bytes that may stay
    #[arg(long, value_name = "BYTES")]
    keep_storage: Option<String>,
}

impl Run for PruneBuilderArgs {
    async fn run(self, context: Context) -> Outcome {
        let keep = self.keep_storage.as_deref().map(insula_base::parse_bytes).transpose()?.unwrap_or(0);
        let filters = filters::parse(&self.filter)?;
        if !self.force && !super::prune::confirmed("This will remove what builds keep for the next one.")? {
            return Ok(0);
        }
        let done = context.client().await?.prune_builds(keep, &filters).await?;
        if !done.caches_deleted.is_empty() {
            printer::line("Deleted build cache objects:")?;
        }
        for id in &done.caches_deleted {
            printer::line(id)?;
        }
        printer::line(&format!(
            "\nTotal reclaimed space: {}",
            insula_base::format_decimal(done.space_reclaimed)
        ))?;
        Ok(0)
    }
}
