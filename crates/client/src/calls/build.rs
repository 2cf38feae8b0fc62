//! `/build`.

use std::collections::{BTreeMap, VecDeque};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
pub use insula_models::BuildContext as KeptContext;
use insula_models::{
    AuthConfig, BuildAttestations, BuildExtras, BuildPruneResponse, Labels, ProgressMessage, Ulimit,
};

use crate::body::{RequestBody, Upload};
use crate::connection::{Call, Client, json};
use crate::error::Result;
use crate::hijack::Hijacked;
use crate::query::{Filters, Query};
use crate::stream::{ByteStream, MAX_DOCUMENT};
use crate::{Demultiplexer, Error, Source, StdcopyError};

/// What a name means beside the context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    /// A folder: the archives of all of them are in front of the context, each framed, in the order of their names.
    Folder,
    /// An image by its name or id.
    Image(String),
    /// An image of an OCI layout, by its tag or digest; nothing is the only one. The layout's archive comes as a
    /// folder's does.
    Layout(String),
    /// A repository, an archive or a file, by its address: the daemon fetches it.
    Remote(String),
}

/// What is answered beside progress.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BuildOutput {
    /// Nothing: the image is among the daemon's.
    #[default]
    Image,
    /// An archive of the image, which is not among the daemon's.
    Archive,
    /// An archive of the last stage's files.
    Files,
}

impl BuildOutput {
    fn name(self) -> &'static str {
        match self {
            Self::Image => "",
            Self::Archive => "archive",
            Self::Files => "files",
        }
    }
}

/// How an image is built.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Its path in the context.
    pub dockerfile: String,
    /// The address of a context that the daemon fetches; empty if one is sent.
    pub remote: String,
    pub tags: Vec<String>,
    /// Without a value an argument is as if it were not given.
    pub arguments: BTreeMap<String, Option<String>>,
    pub labels: Labels,
    pub target: String,
    pub no_cache: bool,
    /// Stages, by name or number, that are not taken from the cache.
    pub no_cache_filter: Vec<String>,
    pub pull: bool,
    /// Only what changed of the context is sent.
    pub kept: Option<KeptContext>,
    /// Steps are told one by one, as [`insula_models::BuildStep`]s.
    pub trace: bool,
    pub quiet: bool,
    pub platform: String,
    pub network: String,
    pub extra_hosts: Vec<String>,
    /// Bytes.
    pub memory: i64,
    /// Bytes, with the memory; -1 is unlimited.
    pub memory_swap: i64,
    pub cpu_shares: i64,
    pub cpu_period: i64,
    pub cpu_quota: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    pub cgroup_parent: String,
    /// Images that may tell what made their layers.
    pub cache_from: Vec<String>,
    /// OCI layouts with caches, by what they are called: the archives of all are in front of the context and behind
    /// those of folders, each framed, in this order.
    pub cache_layouts: Vec<String>,
    /// `inline`, `registry:SCOPE:NAME`, `layout:SCOPE`; a scope is `result` or `all`.
    pub cache_to: Vec<String>,
    pub security_options: Vec<String>,
    pub squash: bool,
    pub ulimits: Vec<Ulimit>,
    /// Bytes.
    pub shm_size: i64,
    /// The wall of the commands.
    pub isolation: String,
    /// What commands may be given, by id.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// What names in the Dockerfile mean.
    pub contexts: BTreeMap<String, NamedContext>,
    pub output: BuildOutput,
    /// Agents that commands may ask, by id.
    pub agents: Vec<String>,
    /// What [`Client::build_agent`] names the build by: nobody else may know it.
    pub token: String,
    /// By the registries' names.
    pub credentials: BTreeMap<String, AuthConfig>,
    /// What is to be said about the image.
    pub attestations: Option<BuildAttestations>,
}

impl BuildOptions {
    fn query(&self) -> Query {
        let text = |value: serde_json::Result<String>| value.unwrap_or_default();
        let number = |value: i64| if value == 0 { String::new() } else { value.to_string() };
        let mut query = Query::new()
            .with("dockerfile", &self.dockerfile)
            .with_text("remote", &self.remote)
            .with_text("target", &self.target)
            .with_text("platform", &self.platform)
            .with_text("networkmode", &self.network)
            .with_text("memory", &number(self.memory))
            .with_text("memswap", &number(self.memory_swap))
            .with_text("cpushares", &number(self.cpu_shares))
            .with_text("cpuperiod", &number(self.cpu_period))
            .with_text("cpuquota", &number(self.cpu_quota))
            .with_text("cpusetcpus", &self.cpuset_cpus)
            .with_text("cpusetmems", &self.cpuset_mems)
            .with_text("cgroupparent", &self.cgroup_parent)
            .with_flag("squash", self.squash)
            .with_text("shmsize", &number(self.shm_size))
            .with_text("isolation", &self.isolation)
            .with_flag("nocache", self.no_cache)
            .with_flag("pull", self.pull)
            .with_flag("q", self.quiet);
        for tag in &self.tags {
            query = query.with("t", tag);
        }
        for stage in &self.no_cache_filter {
            query = query.with("nocachefilter", stage);
        }
        for host in &self.extra_hosts {
            query = query.with("extrahosts", host);
        }
        for option in &self.security_options {
            query = query.with("securityopt", option);
        }
        if !self.cache_from.is_empty() {
            query = query.with("cachefrom", &text(serde_json::to_string(&self.cache_from)));
        }
        if !self.ulimits.is_empty() {
            query = query.with("ulimits", &text(serde_json::to_string(&self.ulimits)));
        }
        if !self.arguments.is_empty() {
            query = query.with("buildargs", &text(serde_json::to_string(&self.arguments)));
        }
        if !self.labels.is_empty() {
            query = query.with("labels", &text(serde_json::to_string(&self.labels)));
        }
        query
    }

    /// An archive of the cache is answered too.
    fn answers_cache(&self) -> bool {
        self.cache_to.iter().any(|target| target.starts_with("layout:"))
    }

    /// What is in front of the context, with its length: nothing if Docker's own request says it all.
    fn extras(&self) -> Result<Option<Vec<u8>>> {
        let images = self.output == BuildOutput::Image;
        let caches = self.cache_layouts.len() + self.cache_to.len();
        if self.secrets.is_empty()
            && self.contexts.is_empty()
            && self.agents.is_empty()
            && images
            && caches == 0
            && !self.trace
            && self.kept.is_none()
            && self.attestations.is_none()
        {
            return Ok(None);
        }
        let secrets = self.secrets.iter().map(|(id, bytes)| (id.clone(), STANDARD.encode(bytes)));
        let contexts = self.contexts.iter().map(|(name, context)| match context {
            NamedContext::Folder => (name.clone(), "folder".to_owned()),
            NamedContext::Image(image) => (name.clone(), format!("image:{image}")),
            NamedContext::Layout(wanted) => (name.clone(), format!("layout:{wanted}")),
            NamedContext::Remote(address) => (name.clone(), format!("remote:{address}")),
        });
        let extras = BuildExtras {
            secrets: secrets.collect(),
            contexts: contexts.collect(),
            agents: self.agents.clone(),
            token: self.token.clone(),
            output: self.output.name().to_owned(),
            cache_from: self.cache_layouts.clone(),
            cache_to: self.cache_to.clone(),
            trace: self.trace,
            kept: self.kept.clone(),
            attestations: self.attestations.clone(),
        };
        let RequestBody::Bytes(Some(document)) = json(&extras)? else {
            return Ok(None);
        };
        let length = u32::try_from(document.len()).unwrap_or(u32::MAX).to_be_bytes();
        Ok(Some([&length[..], &document].concat()))
    }
}

/// A part of what a build answers.
#[derive(Debug)]
pub enum BuildPart {
    Progress(Box<ProgressMessage>),
    Output(Bytes),
    /// Of the archive of the cache.
    Cache(Bytes),
}

/// Takes apart what is answered beside progress where it is two archives: chunks with their lengths in front, and an
/// empty one at the end of each.
#[derive(Debug, Default)]
struct Archives {
    length: Vec<u8>,
    left: usize,
    ended: bool,
}

impl Archives {
    fn take(&mut self, mut bytes: Bytes, ready: &mut VecDeque<BuildPart>) {
        while !bytes.is_empty() {
            if self.left == 0 {
                let wanted = (4 - self.length.len()).min(bytes.len());
                self.length.extend_from_slice(&bytes.split_to(wanted));
                let Ok(length) = <[u8; 4]>::try_from(self.length.as_slice()) else { continue };
                self.length.clear();
                self.left = u32::from_be_bytes(length) as usize;
                self.ended |= self.left == 0;
                continue;
            }
            let piece = bytes.split_to(self.left.min(bytes.len()));
            self.left -= piece.len();
            ready.push_back(if self.ended { BuildPart::Cache(piece) } else { BuildPart::Output(piece) });
        }
    }
}

/// What a build answers, as it comes.
#[derive(Debug)]
pub struct BuildAnswer {
    bytes: ByteStream,
    /// Progress and output come in one stream.
    frames: Option<Demultiplexer>,
    /// Output and an archive of the cache come in one stream.
    archives: Option<Archives>,
    /// A line of progress that is not complete.
    line: Vec<u8>,
    ready: VecDeque<BuildPart>,
}

impl BuildAnswer {
    fn new(bytes: ByteStream, options: &BuildOptions) -> Self {
        let cache = options.answers_cache();
        let both = cache || options.output != BuildOutput::Image;
        Self {
            bytes,
            frames: both.then(Demultiplexer::new),
            archives: cache.then(Archives::default),
            line: Vec::new(),
            ready: VecDeque::new(),
        }
    }

    /// The next part; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<BuildPart>> {
        loop {
            if let Some(part) = self.ready.pop_front() {
                return Ok(Some(part));
            }
            let Some(piece) = self.bytes.next().await? else {
                // The last line may have no end.
                self.complete()?;
                return Ok(self.ready.pop_front());
            };
            let Some(mut frames) = self.frames.take() else {
                self.progress(&piece)?;
                continue;
            };
            let mut parts = Vec::new();
            let fed = frames.feed(&piece, |source, payload| {
                parts.push((source, Bytes::copy_from_slice(payload)));
                Ok::<_, StdcopyError>(())
            });
            self.frames = Some(frames);
            for (source, payload) in parts {
                match source {
                    Source::Stdout => match &mut self.archives {
                        Some(archives) => archives.take(payload, &mut self.ready),
                        None => self.ready.push_back(BuildPart::Output(payload)),
                    },
                    Source::Stderr => self.progress(&payload)?,
                }
            }
            fed.map_err(|error| self.wrong(error.to_string()))?;
        }
    }

    /// Takes lines of progress apart, however they are cut.
    fn progress(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.len() > MAX_DOCUMENT {
                return Err(self.wrong("a document is too large".to_owned()));
            }
            if piece.ends_with(b"\n") {
                self.complete()?;
            }
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<()> {
        let line = std::mem::take(&mut self.line);
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let message = insula_models::from_json(&line).map_err(|error| self.wrong(error.to_string()))?;
        self.ready.push_back(BuildPart::Progress(Box::new(message)));
        Ok(())
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Answer { call: self.bytes.call().to_owned(), reason }
    }
}

impl Client {
    /// `POST /build`: the context is a tar; `POST /insula/build` with what Docker's has no place for.
    pub async fn build_image(&self, context: Upload, options: &BuildOptions) -> Result<BuildAnswer> {
        let query = options.query();
        let (path, context) = match options.extras()? {
            None => ("/build", context),
            Some(head) => ("/insula/build", context.after(head)),
        };
        let call = Call::post(format!("{path}{}", query.as_str())).tar();
        let call = call.with_registries(&options.credentials);
        let (bytes, _) = self.stream(call, RequestBody::Upload(context)).await?;
        Ok(BuildAnswer::new(bytes, options))
    }

    /// `GET /insula/build/context`: the index of a context that the daemon keeps, which is empty where it keeps none;
    /// `None` if it is the one that is known.
    pub async fn context_index(&self, id: &str, known: &str) -> Result<Option<Bytes>> {
        let query = Query::new().with("id", id).with("index", known);
        let call = Call::get(format!("/insula/build/context{}", query.as_str()));
        match self.whole(&call, RequestBody::Empty).await {
            // An index says something.
            Ok(index) => Ok((!index.is_empty()).then_some(index)),
            Err(Error::Daemon { status: 404, .. }) => Ok(Some(Bytes::new())),
            Err(error) => Err(error),
        }
    }

    /// `POST /insula/build/agent`: a connection on which a command of the build will ask an agent.
    pub async fn build_agent(&self, token: &str, id: &str) -> Result<Hijacked> {
        let query = Query::new().with("id", id);
        let call = Call::post(format!("/insula/build/agent{}", query.as_str()));
        self.hijack(call.with_build(token), RequestBody::Empty).await
    }

    /// `POST /build/prune`: `keep` bytes may stay.
    pub async fn prune_builds(&self, keep: u64, filters: &Filters) -> Result<BuildPruneResponse> {
        let query = Query::new().with("keep-storage", &keep.to_string()).with_filters(filters);
        self.document(Call::post(format!("/build/prune{}", query.as_str())), RequestBody::Empty).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_told_apart_however_they_are_cut() {
        let bytes = b"\0\0\0\x02ab\0\0\0\x01c\0\0\0\0\0\0\0\x03xyz\0\0\0\0";
        for size in 1..=bytes.len() {
            let (mut archives, mut ready) = (Archives::default(), VecDeque::new());
            bytes.chunks(size).for_each(|piece| archives.take(Bytes::from_static(piece), &mut ready));
            let (mut output, mut cache) = (Vec::new(), Vec::new());
            for part in ready {
                match part {
                    BuildPart::Output(bytes) => output.extend_from_slice(&bytes),
                    BuildPart::Cache(bytes) => cache.extend_from_slice(&bytes),
                    BuildPart::Progress(_) => unreachable!("it is no progress"),
                }
            }
            assert_eq!((&output[..], &cache[..]), (&b"abc"[..], &b"xyz"[..]), "pieces of {size}");
        }
    }
}
