//! Manifests and indexes: fetched, verified, and the one for a platform found.

use http::Method;
use http::header::{ACCEPT, CONTENT_TYPE};
use insula_base::Digest;
use insula_spec::image::{DOCUMENT_MAX, Descriptor, Index, Manifest, media};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::printable;
use crate::http::Ask;
use crate::platform::Wanted;
use crate::repository::{digest, verify};
use crate::retry::retried;
use crate::{Error, Repository, Result};

/// Indexes within indexes.
const DEPTH_MAX: usize = 4;
const DIGEST_HEADER: &str = "docker-content-digest";
/// Of the distribution specification 1.1.
const SUBJECT_HEADER: &str = "oci-subject";
const SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// What a document is, by its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    Manifest,
    Index,
}

/// A manifest or an index, as its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub kind: DocumentKind,
    pub media_type: String,
    pub digest: Digest,
    pub bytes: Vec<u8>,
}

/// What a name stands for on a platform.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What the name itself stands for: an index, or the manifest.
    pub top: Document,
    /// The image's manifest, or an artifact's.
    pub document: Document,
    pub manifest: Manifest,
}

/// A document that a registry has now.
#[derive(Debug)]
pub struct Stored {
    pub digest: Digest,
    /// Why it is not found by what it refers to.
    pub unlisted: Option<Error>,
}

/// What tells manifests and indexes apart, and images from other things.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    manifests: Option<IgnoredAny>,
    #[serde(default)]
    config: Option<IgnoredAny>,
    #[serde(default)]
    layers: Option<IgnoredAny>,
}

impl Document {
    /// Reads what a registry sent as this media type. A document that can be read as two things is
    /// refused: two readers would not agree on what it is (CVE-2021-41190).
    pub fn parse(bytes: Vec<u8>, content_type: &str, what: &str) -> Result<Self> {
        let wrong = |why: String| Error::Protocol { doing: format!("read {what}"), why };
        let outline: Outline =
            serde_json::from_slice(&bytes).map_err(|error| wrong(printable(&error.to_string())))?;
        // serde takes a list for an object.
        if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Err(wrong("it is not an object".to_owned()));
        }
        let declared = content_type.split(';').next().unwrap_or_default().trim();
        let known = |text: &str| kind(text).is_some();
        let media_type = match &outline.media_type {
            Some(inner) if known(declared) && inner != declared => {
                return Err(wrong(format!("it was sent as {declared} and says it is {}", printable(inner))));
            }
            Some(inner) => inner.clone(),
            None if known(declared) => declared.to_owned(),
            None if outline.manifests.is_some() => media::INDEX.to_owned(),
            None => media::MANIFEST.to_owned(),
        };
        if SCHEMA_1.contains(&media_type.as_str()) || SCHEMA_1.contains(&declared) {
            return Err(Error::Unsupported(format!(
                "{what} is in Docker's format of before 2016 (schema 1): push it again with a newer client"
            )));
        }
        let Some(kind) = kind(&media_type) else {
            return Err(Error::NotAnImage {
                name: what.to_owned(),
                why: format!("it is {}", printable(&media_type)),
            });
        };
        let (has_entries, has_content) =
            (outline.manifests.is_some(), outline.config.is_some() || outline.layers.is_some());
        match kind {
            DocumentKind::Index if has_content => Err(wrong("it is an index with layers".to_owned())),
            DocumentKind::Manifest if has_entries => Err(wrong("it is a manifest with manifests".to_owned())),
            _ => Ok(Self { kind, media_type, digest: digest(&bytes), bytes }),
        }
    }

    /// The manifest of an image; artifacts of other kinds are named.
    pub fn image(&self, name: &str) -> Result<Manifest> {
        let manifest = Manifest::parse(&self.bytes)?;
        let config = manifest.config.media_type.as_str();
        if matches!(config, media::CONFIG | media::DOCKER_CONFIG | "") {
            return Ok(manifest);
        }
        let outline: Option<Outline> = serde_json::from_slice(&self.bytes).ok();
        let kind = outline.and_then(|outline| outline.artifact_type);
        let kind = kind.filter(|kind| !kind.is_empty()).unwrap_or_else(|| config.to_owned());
        Err(Error::NotAnImage {
            name: name.to_owned(),
            why: format!("it is an artifact of type {}", printable(&kind)),
        })
    }
}

fn kind(media_type: &str) -> Option<DocumentKind> {
    match media_type {
        media::MANIFEST | media::DOCKER_MANIFEST => Some(DocumentKind::Manifest),
        media::INDEX | media::DOCKER_LIST => Some(DocumentKind::Index),
        _ => None,
    }
}

impl Repository {
    /// The document that a tag or a digest names.
    pub async fn manifest(&self, tag: Option<&str>, expected: Option<&Digest>) -> Result<Document> {
        // Of both the digest counts.
        let suffix = match (expected, tag) {
            (Some(digest), _) => digest.as_str().to_owned(),
            (None, tag) => tag.unwrap_or(insula_spec::reference::DEFAULT_TAG).to_owned(),
        };
        let sign = if expected.is_some() { '@' } else { ':' };
        let what = format!("manifest for {}{sign}{suffix}", self.name());
        let doing = format!("get the {what} from {}", self.host());
        let url = self.url(&format!("manifests/{suffix}")).await?;
        retried(self.limits(), || async {
            let mut ask = Ask::new(Method::GET, url.clone(), &doing);
            for accepted in [media::INDEX, media::MANIFEST, media::DOCKER_LIST, media::DOCKER_MANIFEST] {
                ask = ask.header(ACCEPT, accepted);
            }
            let response = self.send(ask).await?;
            if !response.status().is_success() {
                return Err(self.failed(&what, &doing, response).await);
            }
            let header = |name: &str| {
                response.headers().get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned)
            };
            let content_type = header(CONTENT_TYPE.as_str()).unwrap_or_default();
            let said: Option<Digest> = header(DIGEST_HEADER).and_then(|text| text.parse().ok());
            let length = response.content_length();
            let bytes = self.session().http().body(response, &what, DOCUMENT_MAX as u64).await?;
            if let Some(size) = length.filter(|size| *size > bytes.len() as u64) {
                return Err(Error::Cut { what: what.clone(), got: bytes.len() as u64, size });
            }
            for digest in [expected, said.as_ref()].into_iter().flatten() {
                verify(&what, &bytes, digest)?;
            }
            Document::parse(bytes, &content_type, &what)
        })
        .await
    }

    /// What a tag or a digest stands for on a platform: an image, or an artifact of another kind.
    pub async fn resolve(
        &self,
        tag: Option<&str>,
        digest: Option<&Digest>,
        wanted: &Wanted,
    ) -> Result<Resolved> {
        let top = self.manifest(tag, digest).await?;
        let name = match (tag, digest) {
            (_, Some(digest)) => format!("{}@{digest}", self.name()),
            (tag, None) => format!("{}:{}", self.name(), tag.unwrap_or(insula_spec::reference::DEFAULT_TAG)),
        };
        let mut document = top.clone();
        for _ in 0..DEPTH_MAX {
            if document.kind == DocumentKind::Manifest {
                let manifest = Manifest::parse(&document.bytes)?;
                return Ok(Resolved { top, document, manifest });
            }
            let index = Index::parse(&document.bytes)?;
            let entry = wanted.choose(&index.manifests).ok_or_else(|| Error::NoPlatform {
                name: name.clone(),
                wanted: wanted.to_string(),
                has: platforms(&index.manifests),
            })?;
            document = self.manifest(None, Some(&entry.digest)).await?;
        }
        Err(Error::Protocol {
            doing: format!("read {name}"),
            why: "its indexes are nested too deep".to_owned(),
        })
    }

    /// Stores a manifest or an index under a tag or its digest, so that it is found by what it refers to. That it
    /// cannot be found so is no reason to say that it is not stored.
    pub async fn put_manifest(&self, name: &str, media_type: &str, bytes: &[u8]) -> Result<Stored> {
        let noted = self.put(name, media_type, bytes).await?;
        let mut unlisted = None;
        if !noted && let Ok(manifest) = Manifest::parse(bytes) {
            unlisted = Box::pin(self.note_referrer(&manifest, bytes)).await.err();
        }
        Ok(Stored { digest: digest(bytes), unlisted })
    }

    /// Stores a document; whether the registry says that it noted what the document refers to.
    pub(crate) async fn put(&self, name: &str, media_type: &str, bytes: &[u8]) -> Result<bool> {
        let what = format!("manifest {name} of {}", self.name());
        let doing = format!("push the {what}");
        let url = self.url(&format!("manifests/{name}")).await?;
        retried(self.limits(), || async {
            let ask = Ask::new(Method::PUT, url.clone(), &doing).header(CONTENT_TYPE, media_type);
            let response = self.send(ask.body(bytes.to_vec())).await?;
            if !response.status().is_success() {
                return Err(self.failed(&what, &doing, response).await);
            }
            Ok(response.headers().contains_key(SUBJECT_HEADER))
        })
        .await
    }
}

fn platforms(entries: &[Descriptor]) -> String {
    const SHOWN: usize = 16;
    let known = entries.iter().filter_map(|entry| entry.platform.as_ref());
    let names: Vec<String> = known
        .filter(|platform| platform.os != "unknown")
        .take(SHOWN)
        .map(|platform| match &platform.variant {
            Some(variant) => format!("{}/{}/{variant}", platform.os, platform.architecture),
            None => format!("{}/{}", platform.os, platform.architecture),
        })
        .collect();
    if names.is_empty() { "none".to_owned() } else { printable(&names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, content_type: &str) -> Result<Document> {
        Document::parse(text.as_bytes().to_vec(), content_type, "x")
    }

    #[test]
    fn a_document_is_one_thing_only() {
        assert_eq!(parsed("{}", media::MANIFEST).unwrap().kind, DocumentKind::Manifest);
        assert_eq!(parsed(r#"{"manifests":[]}"#, "text/plain").unwrap().kind, DocumentKind::Index);
        assert_eq!(
            parsed("{}", &format!("{}; charset=utf-8", media::INDEX)).unwrap().kind,
            DocumentKind::Index
        );
        for (text, content_type) in [
            (r#"{"manifests":[],"layers":[]}"#, media::INDEX),
            (r#"{"manifests":[],"config":{}}"#, media::MANIFEST),
            (r#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#, media::MANIFEST),
            ("[]", media::MANIFEST),
            ("", media::MANIFEST),
        ] {
            assert!(parsed(text, content_type).is_err(), "{text}");
        }
        let old = parsed("{}", SCHEMA_1[1]).unwrap_err();
        assert!(matches!(old, Error::Unsupported(_)), "{old}");
    }

    #[test]
    fn artifacts_are_named() {
        let digest = format!("sha256:{}", "1".repeat(64));
        let text = format!(
            r#"{{"schemaVersion":2,"artifactType":"application/x.sbom","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{digest}","size":2}},"layers":[]}}"#
        );
        let error = parsed(&text, media::MANIFEST).unwrap().image("a/b:1").unwrap_err();
        assert_eq!(error.to_string(), "a/b:1 is not an image: it is an artifact of type application/x.sbom");
    }
}
