//! What a build is asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use insula_models::{HostConfig, Labels};
use insula_registry::Credentials;
use insula_spec::reference::Reference;

use super::portable::layout_name;
use super::{
    AgentsGiven, Attestations, CacheSource, CacheTarget, KeptContext, NamedContext, Output, reference,
};
use crate::{Error, Result};

/// Bytes that are not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// What is answered when somebody is asked.
pub type Answered<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Whoever builds, where it can be asked for what a step needs when it needs it.
pub trait BuildClient: fmt::Debug + Send + Sync {
    /// A secret by its id, if there is one.
    fn secret<'a>(&'a self, id: &'a str) -> Answered<'a, Option<Secret>>;
    /// For a registry, by its name.
    fn credentials<'a>(&'a self, registry: &'a str) -> Answered<'a, Credentials>;
}

/// `POST /build`.
#[derive(Debug, Clone, Default)]
pub struct BuildRequest {
    /// Its path in the context.
    pub dockerfile: String,
    /// The address of a context that nobody sends: a repository, an archive or a Dockerfile. Empty if one is sent.
    pub remote: String,
    /// `NAME` or `NAME:TAG`.
    pub tags: Vec<String>,
    /// Without a value it is as if it were not given.
    pub arguments: BTreeMap<String, Option<String>>,
    pub labels: Labels,
    /// A stage by name or number; the last one if it is empty.
    pub target: String,
    /// Do every step again.
    pub no_cache: bool,
    /// Stages by name or number whose steps are done again.
    pub no_cache_filter: Vec<String>,
    /// Ask registries for newer base images.
    pub pull: bool,
    /// Tell each step as it is, and no words about it.
    pub trace: bool,
    /// Tell the image's id only.
    pub quiet: bool,
    /// `linux/amd64`; the host's if it is empty.
    pub platform: String,
    /// Limits, networks and the wall of the commands.
    pub host: HostConfig,
    /// What commands may be given, by id.
    pub secrets: BTreeMap<String, Secret>,
    /// By the registry's name, as in `X-Registry-Config`.
    pub credentials: BTreeMap<String, Credentials>,
    /// Who is asked for what is in neither.
    pub client: Option<Arc<dyn BuildClient>>,
    /// What else came along, by the names that the Dockerfile has for it.
    pub contexts: BTreeMap<String, NamedContext>,
    pub output: Output,
    /// Agents that commands may ask.
    pub agents: AgentsGiven,
    /// Only what changed of the context comes.
    pub kept: Option<KeptContext>,
    /// Records of other builds.
    pub cache_from: Vec<CacheSource>,
    /// Where this one's go.
    pub cache_to: Vec<CacheTarget>,
    /// What is to be said about the image.
    pub attestations: Attestations,
}

impl BuildRequest {
    pub(super) fn references(&self) -> Result<Vec<Reference>> {
        self.tags.iter().filter(|tag| !tag.is_empty()).map(|tag| reference(tag)).collect()
    }

    /// What is said about an image has to have an image that it is found by.
    pub(super) fn check_attestations(&self) -> Result<()> {
        let why = match &self.output {
            _ if self.attestations.is_empty() => return Ok(()),
            Output::Files(_) | Output::Listing(_) => {
                "attestations go with an image: an output of files has none"
            }
            Output::Image if self.tags.iter().all(String::is_empty) => {
                "attestations are found by the image's name: one is needed (--tag)"
            }
            Output::Image | Output::Archive(_) => return Ok(()),
        };
        Err(Error::InvalidArgument(why.to_owned()))
    }

    /// The names of folders that came along, in the order in which they come.
    pub(super) fn folders(&self) -> Vec<String> {
        let comes =
            |context: &NamedContext| matches!(context, NamedContext::Folder | NamedContext::Layout(_));
        let folders = self.contexts.iter().filter(|(_, context)| comes(context));
        folders.map(|(name, _)| name.clone()).collect()
    }

    /// OCI layouts that came along, in the order in which they come: behind the folders.
    pub(super) fn layouts(&self) -> Vec<String> {
        let layouts = self.cache_from.iter().enumerate();
        let layouts = layouts.filter(|(_, source)| matches!(source, CacheSource::Layout(_)));
        layouts.map(|(number, _)| layout_name(number)).collect()
    }

    /// A secret that a command may be given.
    pub(super) async fn secret(&self, id: &str) -> Result<Option<Secret>> {
        match (self.secrets.get(id), &self.client) {
            (None, Some(client)) => client.secret(id).await,
            (found, _) => Ok(found.cloned()),
        }
    }

    /// Those for an image's registry.
    pub(super) async fn credentials(&self, image: &Reference) -> Result<Credentials> {
        let domain = image.domain();
        let names = [domain.to_owned(), format!("https://{domain}"), format!("https://index.{domain}/v1/")];
        let known = names.iter().find_map(|name| self.credentials.get(name));
        match (known, &self.client) {
            (None, Some(client)) => client.credentials(domain).await,
            (known, _) => Ok(known.cloned().unwrap_or_default()),
        }
    }
}
