//! What is said about an image: in-toto statements of how it was built and of what is in it.
//!
//! Everything here is documents; who has the files says what they are.

mod licence;
mod packages;
mod provenance;
mod spdx;

use serde::Serialize;
use serde_json::{Value, json};

pub use self::packages::{Distribution, Ecosystem, Package, PackageFile, package_file};
pub use self::provenance::{Detail, Material, Provenance};
pub use self::spdx::Bom;

/// in-toto attestation framework, "Statement", version 0.1, which is what everybody reads.
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v0.1";
/// `_` stands for an image without a name.
const UNNAMED: &str = "_";

/// The image that something is said about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Names, as Docker shows them: `app:1`.
    pub names: Vec<String>,
    /// `linux/amd64`.
    pub platform: String,
    /// SHA-256 of the manifest, in hexadecimal digits.
    pub sha256: String,
}

#[derive(Serialize)]
struct Statement<'a, T> {
    #[serde(rename = "_type")]
    kind: &'a str,
    #[serde(rename = "predicateType")]
    predicate_type: &'a str,
    subject: Vec<Value>,
    predicate: &'a T,
}

/// A statement as bytes.
#[must_use]
pub fn statement(predicate_type: &str, subject: &Subject, predicate: &impl Serialize) -> Vec<u8> {
    let named = |name: String| json!({"name": name, "digest": {"sha256": subject.sha256}});
    let mut subjects: Vec<Value> =
        subject.names.iter().map(|name| named(image_url(name, &subject.platform, None))).collect();
    if subjects.is_empty() {
        subjects.push(named(UNNAMED.to_owned()));
    }
    let statement = Statement { kind: STATEMENT_TYPE, predicate_type, subject: subjects, predicate };
    // Nothing of what is said can fail to be JSON.
    serde_json::to_vec(&statement).unwrap_or_default()
}

/// The package URL of an image: `pkg:docker/app@1?platform=linux%2Famd64`. A name that has a digest and no tag has no
/// version.
#[must_use]
pub fn image_url(name: &str, platform: &str, digest: Option<&str>) -> String {
    let (name, own) = match name.split_once('@') {
        Some((name, own)) => (name, Some(own)),
        None => (name, None),
    };
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, own.is_none().then_some("latest")),
    };
    let path: Vec<String> = path.split('/').map(encoded).collect();
    let mut url = format!("pkg:docker/{}", path.join("/"));
    url.extend(tag.map(|tag| format!("@{}", encoded(tag))));
    let mut sign = '?';
    for (key, value) in [("digest", digest.or(own).unwrap_or_default()), ("platform", platform)] {
        if !value.is_empty() {
            url.push_str(&format!("{sign}{key}={}", encoded(value)));
            sign = '&';
        }
    }
    url
}

/// Percent-encoded, as package URLs have their parts: a colon is never.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' | b':' => {
                out.push(char::from(byte))
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_package_urls() {
        let subject = Subject {
            names: vec!["host:5000/team/app:1".to_owned()],
            platform: "linux/amd64".to_owned(),
            sha256: "ab".repeat(32),
        };
        let read = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
        let document = read(statement("x", &subject, &json!({"a": 1})));
        assert_eq!(document["subject"][0]["name"], "pkg:docker/host:5000/team/app@1?platform=linux%2Famd64");
        assert_eq!(document["subject"][0]["digest"]["sha256"], "ab".repeat(32));
        assert_eq!(document["predicate"]["a"], 1);
        let unnamed = read(statement("x", &Subject { names: Vec::new(), ..subject }, &json!({})));
        assert_eq!(unnamed["subject"][0]["name"], "_");
        assert_eq!(image_url("alpine", "", Some("sha256:1")), "pkg:docker/alpine@latest?digest=sha256:1");
        let by_digest = image_url("host:5000/alpine@sha256:1", "linux/arm64", None);
        assert_eq!(by_digest, "pkg:docker/host:5000/alpine?digest=sha256:1&platform=linux%2Farm64");
        assert_eq!(image_url("alpine:3@sha256:1", "", None), "pkg:docker/alpine@3?digest=sha256:1");
    }
}
