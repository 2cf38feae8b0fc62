//! What is asked of registries besides images: logins, search, what a name stands for there.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use insula_models::{
    AuthConfig, AuthResponse, DescriptorSummary, DistributionInspect, PlatformSummary, RemoteManifest,
    SearchResult,
};
use insula_registry::{Credentials, Document, DocumentKind, Repository, Search};
use insula_spec::image::{ImageConfig, Index, Platform};
use insula_spec::reference::Reference;

use crate::filters::{Filters, check_names, one_bool};
use crate::images::Images;
use crate::{Error, Result};

/// Manifests of one index that are shown.
const SHOWN_MAX: usize = 128;

impl Images {
    /// Tries credentials at the registry that they name.
    pub async fn login(&self, auth: &AuthConfig) -> Result<AuthResponse> {
        let document = serde_json::to_vec(auth).map_err(|error| Error::Internal(error.to_string()))?;
        let credentials = Credentials::from_json(&document).map_err(Error::InvalidArgument)?;
        let login = self.registries.login(&auth.serveraddress, &credentials).await?;
        Ok(AuthResponse {
            status: "Login Succeeded".to_owned(),
            identity_token: login.identity_token.unwrap_or_default(),
        })
    }

    /// Repositories of a registry that match a term. Filters: `is-official`, `is-automated`, `stars`.
    pub async fn search(
        &self,
        term: &str,
        limit: u32,
        filters: &Filters,
        credentials: &Credentials,
    ) -> Result<Vec<SearchResult>> {
        check_names(filters, &["is-automated", "is-official", "stars"])?;
        let official = one_bool(filters, "is-official")?;
        let automated = one_bool(filters, "is-automated")?;
        let mut stars = 0i64;
        for text in filters.get("stars").into_iter().flatten() {
            let least = text.parse::<u32>();
            let least =
                least.map_err(|_| Error::InvalidArgument(format!("invalid filter 'stars={text}'")))?;
            stars = stars.max(least.into());
        }
        let search = Search { term: term.to_owned(), limit };
        let found = self.registries.search(&search, credentials).await?;
        let passes = found.into_iter().filter(|one| {
            official.is_none_or(|wanted| wanted == one.is_official)
                && automated.is_none_or(|wanted| wanted == one.is_automated)
                && one.star_count >= stars
        });
        Ok(passes
            .map(|one| SearchResult {
                description: one.description.unwrap_or_default(),
                is_official: one.is_official,
                is_automated: one.is_automated,
                name: one.name,
                star_count: one.star_count,
            })
            .collect())
    }

    /// What a name stands for at its registry, and for which platforms.
    pub async fn distribution(&self, name: &str, credentials: &Credentials) -> Result<DistributionInspect> {
        let (source, reference) = self.origin(name, credentials)?;
        let top = source.manifest(reference.tag(), reference.digest()).await?;
        let platforms = match top.kind {
            DocumentKind::Index => {
                let index = Index::parse(&top.bytes).map_err(insula_store::Error::from)?;
                index.manifests.into_iter().filter_map(|entry| entry.platform).map(|p| platform(&p)).collect()
            }
            DocumentKind::Manifest => match top.image(name) {
                Ok(manifest) => {
                    let config = source.document(&manifest.config, "configuration").await?;
                    let config = ImageConfig::parse(&config).map_err(insula_store::Error::from)?;
                    vec![PlatformSummary {
                        architecture: config.architecture,
                        os: config.os,
                        variant: config.variant.unwrap_or_default(),
                    }]
                }
                // An artifact runs nowhere.
                Err(_) => Vec::new(),
            },
        };
        Ok(DistributionInspect { descriptor: descriptor(&top, None), platforms })
    }

    /// The document that a name stands for at its registry; with `detail` the manifests of an index
    /// in its place. `insecure`: whoever answers for the registry is believed, TLS or not.
    pub async fn remote_manifests(
        &self,
        name: &str,
        detail: bool,
        insecure: bool,
        credentials: &Credentials,
    ) -> Result<Vec<RemoteManifest>> {
        let reference = Reference::parse(name).map_err(insula_store::Error::from)?;
        let trusting = insecure.then(|| self.registries.trusting(reference.domain())).transpose()?;
        let registries = trusting.as_ref().unwrap_or(&self.registries);
        let source = registries.target(&reference, credentials)?;
        let top = source.manifest(reference.tag(), reference.digest()).await?;
        if !detail || top.kind == DocumentKind::Manifest {
            return Ok(vec![shown(&reference, &top, None)]);
        }
        let index = Index::parse(&top.bytes).map_err(insula_store::Error::from)?;
        let mut documents = Vec::new();
        for entry in index.manifests.iter().take(SHOWN_MAX) {
            let document = source.manifest(None, Some(&entry.digest)).await?;
            documents.push(shown(&reference, &document, entry.platform.as_ref()));
        }
        Ok(documents)
    }

    /// The registry itself, which knows what its mirrors may not know yet.
    fn origin(&self, name: &str, credentials: &Credentials) -> Result<(Repository, Reference)> {
        let reference = Reference::parse(name).map_err(insula_store::Error::from)?;
        let source = self.registries.sources(&reference, credentials)?.pop();
        Ok((source.ok_or_else(|| Error::Internal("no source".to_owned()))?, reference))
    }
}

fn platform(platform: &Platform) -> PlatformSummary {
    PlatformSummary {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone().unwrap_or_default(),
    }
}

fn descriptor(document: &Document, of: Option<&Platform>) -> DescriptorSummary {
    DescriptorSummary {
        media_type: document.media_type.clone(),
        digest: document.digest.to_string(),
        size: i64::try_from(document.bytes.len()).unwrap_or(i64::MAX),
        platform: of.map(platform),
    }
}

fn shown(reference: &Reference, document: &Document, of: Option<&Platform>) -> RemoteManifest {
    RemoteManifest {
        reference: format!("{}@{}", reference.name(), document.digest),
        descriptor: descriptor(document, of),
        raw: STANDARD.encode(&document.bytes),
    }
}
