//! All registries, as one daemon is configured for them.

use std::sync::Arc;

use insula_spec::reference::{DEFAULT_DOMAIN, Reference};
use url::Url;

use crate::http::Http;
use crate::options::Options;
use crate::repository::{Endpoint, Role};
use crate::{Credentials, Error, Repository, Result};

/// Docker Hub's registry.
const HUB: &str = "registry-1.docker.io";

/// The way to every registry. Clones share connections.
#[derive(Debug, Clone)]
pub struct Registries {
    pub(crate) http: Arc<Http>,
}

impl Registries {
    /// Configured so.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { http: Arc::new(Http::new(options)) }
    }

    /// The same, but with whoever answers for one registry, TLS or not, as if it were configured as insecure.
    pub fn trusting(&self, domain: &str) -> Result<Self> {
        let mut options = self.options().clone();
        let insecure = domain.parse().map_err(|error| Error::Invalid(format!("{domain:?}: {error}")))?;
        options.insecure.push(insecure);
        Ok(Self::new(options))
    }

    /// How they are configured.
    #[must_use]
    pub fn options(&self) -> &Options {
        self.http.options()
    }

    /// Where a repository can be pulled from, in the order to try: mirrors, then the registry. Mirrors
    /// get no credentials: those that were given are the registry's.
    pub fn sources(&self, reference: &Reference, credentials: &Credentials) -> Result<Vec<Repository>> {
        let mirrors = self.options().mirrors.get(reference.domain()).into_iter().flatten();
        let mut sources: Vec<Repository> = mirrors
            .map(|mirror| {
                let endpoint = Endpoint::new(vec![mirror.url.clone()], Role::Mirror);
                Repository::new(&self.http, endpoint, reference, Credentials::Anonymous, &["pull"])
            })
            .collect();
        sources.push(self.origin(reference, credentials, &["pull"])?);
        Ok(sources)
    }

    /// Where a repository is pushed to.
    pub fn target(&self, reference: &Reference, credentials: &Credentials) -> Result<Repository> {
        self.origin(reference, credentials, &["pull", "push"])
    }

    fn origin(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        actions: &[&str],
    ) -> Result<Repository> {
        let endpoint = self.endpoint(reference.domain())?;
        Ok(Repository::new(&self.http, endpoint, reference, credentials.clone(), actions))
    }

    /// The addresses of a registry by its name, the better ones first.
    pub(crate) fn endpoint(&self, domain: &str) -> Result<Endpoint> {
        let host = if domain == DEFAULT_DOMAIN { HUB } else { domain };
        let address = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/"))
                .map_err(|error| Error::Invalid(format!("the registry {domain:?}: {error}")))
        };
        let mut addresses = vec![address("https")?];
        if self.options().is_insecure(domain) {
            addresses.push(address("http")?);
        }
        Ok(Endpoint::new(addresses, Role::Origin))
    }
}
