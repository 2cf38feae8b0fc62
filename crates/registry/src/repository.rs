//! One repository at one place: the registry or a mirror of it.

use std::sync::Arc;

use http::Method;
use http::header::ACCEPT;
use insula_base::Digest;
use insula_spec::image::Descriptor;
use insula_spec::reference::Reference;
use reqwest::Response;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;
use url::Url;

use crate::auth::{Session, same_origin};
use crate::error::is_certificate;
use crate::http::{Ask, Http, authority, failed};
use crate::options::Limits;
use crate::retry::retried;
use crate::{Credentials, Error, Result};

/// Tags of a repository that are read.
const TAGS_MAX: usize = 10_000;
/// Bytes of one page of them.
const PAGE_MAX: u64 = 4 << 20;

/// Whether a place is the registry itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Mirror,
    Origin,
}

/// The address of a registry, once it is known which of several serves.
#[derive(Debug)]
pub(crate) struct Endpoint {
    addresses: Vec<Url>,
    role: Role,
    chosen: OnceCell<Url>,
}

impl Endpoint {
    pub(crate) fn new(addresses: Vec<Url>, role: Role) -> Self {
        Self { addresses, role, chosen: OnceCell::new() }
    }

    /// The first address where anybody answers. Only where no verified TLS is asked for are there
    /// several.
    pub(crate) async fn base(&self, http: &Http) -> Result<&Url> {
        self.chosen.get_or_try_init(|| retried(&http.options().limits, || self.choose(http))).await
    }

    async fn choose(&self, http: &Http) -> Result<Url> {
        let mut failure = Error::Invalid("a registry without an address".to_owned());
        for address in &self.addresses {
            if self.addresses.len() == 1 {
                return Ok(address.clone());
            }
            let doing = format!("ask {} for its version", authority(address));
            match http.send(Ask::new(Method::GET, join(address, "v2/")?, &doing)).await {
                Ok(_) => return Ok(address.clone()),
                // One that is not who it should be is not spoken to without TLS either.
                Err(Error::Connection { source, doing }) if is_certificate(&source) => {
                    return Err(Error::Connection { source, doing });
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// For messages.
    pub(crate) fn host(&self) -> String {
        let known = self.chosen.get().or_else(|| self.addresses.first());
        known.map(authority).unwrap_or_default()
    }
}

/// A repository (`library/busybox`) of a registry or of a mirror. Clones share its authorization.
#[derive(Debug, Clone)]
pub struct Repository(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    session: Session,
    path: String,
    /// As people write it.
    name: String,
}

#[derive(Deserialize)]
struct TagList {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

impl Repository {
    pub(crate) fn new(
        http: &Arc<Http>,
        endpoint: Endpoint,
        reference: &Reference,
        credentials: Credentials,
        actions: &[&str],
    ) -> Self {
        let scope = format!("repository:{}:{}", reference.path(), actions.join(","));
        let session = Session::new(http.clone(), credentials, vec![scope]);
        let (path, name) = (reference.path().to_owned(), reference.familiar_name());
        Self(Arc::new(Inner { endpoint, session, path, name }))
    }

    /// The same with the right to read other repositories of the registry too, for mounting.
    #[must_use]
    pub fn reading(self, others: &[String]) -> Self {
        match Arc::try_unwrap(self.0) {
            Ok(mut inner) => {
                let more = others.iter().map(|other| format!("repository:{other}:pull"));
                inner.session = inner.session.with_scopes(more);
                Self(Arc::new(inner))
            }
            // Already in use as it is: mounts will be refused, and blobs uploaded.
            Err(shared) => Self(shared),
        }
    }

    /// `HOST[:PORT]`.
    #[must_use]
    pub fn host(&self) -> String {
        self.0.endpoint.host()
    }

    /// Whether this is a mirror.
    #[must_use]
    pub fn is_mirror(&self) -> bool {
        self.0.endpoint.role == Role::Mirror
    }

    /// As people write it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub(crate) fn path(&self) -> &str {
        &self.0.path
    }

    pub(crate) fn session(&self) -> &Session {
        &self.0.session
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.0.session.http().options().limits
    }

    /// An address below the repository.
    pub(crate) async fn url(&self, rest: &str) -> Result<Url> {
        let base = self.0.endpoint.base(self.0.session.http()).await?;
        join(base, &format!("v2/{}/{rest}", self.0.path))
    }

    /// Sends a request with authorization if it goes to the registry, and without if an upload was
    /// sent elsewhere.
    pub(crate) async fn send(&self, ask: Ask) -> Result<Response> {
        let base = self.0.endpoint.base(self.0.session.http()).await?;
        match (same_origin(base, &ask.url), ask.url.scheme()) {
            (true, _) => self.0.session.send(ask).await,
            (false, scheme) if scheme == "https" || scheme == base.scheme() => {
                self.0.session.http().send(ask).await
            }
            _ => Err(Error::Redirect {
                doing: format!("push to {}", self.name()),
                why: "from https to http".to_owned(),
            }),
        }
    }

    /// The error that an answer stands for.
    pub(crate) async fn failed(&self, what: &str, doing: &str, response: Response) -> Error {
        failed(self.0.session.http().options(), what, doing, response).await
    }

    /// A small blob, whole and verified.
    pub async fn document(&self, descriptor: &Descriptor, what: &str) -> Result<Vec<u8>> {
        let what = format!("the {what} {} of {}", descriptor.digest, self.name());
        let doing = format!("get {what}");
        let limit = insula_spec::image::DOCUMENT_MAX as u64;
        if descriptor.size > limit {
            return Err(Error::TooLong { what, limit });
        }
        let url = self.url(&format!("blobs/{}", descriptor.digest)).await?;
        let bytes = retried(self.limits(), || async {
            let response = self.send(Ask::new(Method::GET, url.clone(), &doing)).await?;
            if !response.status().is_success() {
                return Err(self.failed(&what, &doing, response).await);
            }
            let bytes = self.session().http().body(response, &what, descriptor.size).await?;
            if (bytes.len() as u64) < descriptor.size {
                return Err(Error::Cut {
                    what: what.clone(),
                    got: bytes.len() as u64,
                    size: descriptor.size,
                });
            }
            Ok(bytes)
        })
        .await?;
        verify(&what, &bytes, &descriptor.digest)?;
        Ok(bytes)
    }

    /// Whether the repository has a blob.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let what = format!("the blob {digest} of {}", self.name());
        let doing = format!("look for {what}");
        let url = self.url(&format!("blobs/{digest}")).await?;
        retried(self.limits(), || async {
            let response = self.send(Ask::new(Method::HEAD, url.clone(), &doing)).await?;
            match response.status().as_u16() {
                200..=299 => Ok(true),
                404 => Ok(false),
                _ => Err(self.failed(&what, &doing, response).await),
            }
        })
        .await
    }

    /// Every tag.
    pub async fn tags(&self) -> Result<Vec<String>> {
        let what = format!("the tags of {}", self.name());
        let doing = format!("list {what}");
        let mut next = Some(self.url("tags/list?n=1000").await?);
        let mut tags = Vec::new();
        while let Some(url) = next.take() {
            let (page, link) = retried(self.limits(), || async {
                let ask = Ask::new(Method::GET, url.clone(), &doing).header(ACCEPT, "application/json");
                let response = self.send(ask).await?;
                if !response.status().is_success() {
                    return Err(self.failed(&what, &doing, response).await);
                }
                let link = next_page(&url, &response);
                let bytes = self.session().http().body(response, &what, PAGE_MAX).await?;
                let list: TagList = serde_json::from_slice(&bytes)
                    .map_err(|error| Error::protocol(&doing, crate::error::printable(&error.to_string())))?;
                Ok((list.tags.unwrap_or_default(), link))
            })
            .await?;
            tags.extend(page);
            if tags.len() > TAGS_MAX {
                return Err(Error::TooLong { what, limit: TAGS_MAX as u64 });
            }
            // A page that leads to itself would never end.
            next = link.filter(|link| *link != url);
        }
        Ok(tags)
    }
}

/// RFC 8288, as the distribution specification has it: `</v2/…?last=x>; rel="next"`.
fn next_page(url: &Url, response: &Response) -> Option<Url> {
    let link = response.headers().get(http::header::LINK)?.to_str().ok()?;
    let (target, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
    let next = url.join(target).ok()?;
    (rest.contains("next") && same_origin(url, &next)).then_some(next)
}

pub(crate) fn verify(what: &str, bytes: &[u8], expected: &Digest) -> Result<()> {
    let found = digest(bytes);
    if found == *expected {
        return Ok(());
    }
    Err(Error::Mismatch { what: what.to_owned(), expected: expected.clone(), found })
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

pub(crate) fn join(base: &Url, rest: &str) -> Result<Url> {
    base.join(rest).map_err(|error| Error::Invalid(format!("the address {base} and {rest:?}: {error}")))
}
