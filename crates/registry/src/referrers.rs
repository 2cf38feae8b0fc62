//! What refers to a manifest, at registries that do not keep account of it themselves: an index under a tag that is
//! made of the manifest's digest (distribution specification 1.1, "Referrers Tag Schema").

use insula_base::Digest;
use insula_spec::image::{Manifest, media};
use serde_json::{Value, json};

use crate::{DocumentKind, Error, Repository, Result};

/// Referrers of one manifest.
const ENTRIES_MAX: usize = 1000;

impl Repository {
    /// Notes what a manifest that was just pushed refers to. Of several who do so at once the last one wins, as the
    /// specification has it.
    pub(crate) async fn note_referrer(&self, manifest: &Manifest, bytes: &[u8]) -> Result<()> {
        let Some(subject) = &manifest.subject else { return Ok(()) };
        let tag = subject.digest.as_str().replace(':', "-");
        let occupied = |why| Error::protocol(&format!("list what refers to {}", subject.digest), why);
        let known = match self.manifest(Some(&tag), None).await {
            Ok(document) if document.kind == DocumentKind::Index => document.bytes,
            // Somebody's own, which stays what it is.
            Ok(_) => return Err(occupied(format!("the tag {tag} is no index"))),
            Err(Error::NotFound { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        match with_entry(&known, manifest, bytes).map_err(occupied)? {
            Some(index) => self.put(&tag, media::INDEX, &index).await.map(drop),
            None => Ok(()),
        }
    }
}

/// The index with one more entry; `None` if it has it, or why it gets none. What others wrote stays as it is.
fn with_entry(known: &[u8], manifest: &Manifest, bytes: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let digest: Digest = crate::repository::digest(bytes);
    let mut index: Value = serde_json::from_slice(known)
        .unwrap_or_else(|_| json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": []}));
    let entries = index.get_mut("manifests").and_then(Value::as_array_mut);
    let entries = entries.ok_or_else(|| "what lists it has no manifests".to_owned())?;
    if entries.iter().any(|entry| entry["digest"] == digest.as_str()) {
        return Ok(None);
    }
    if entries.len() >= ENTRIES_MAX {
        return Err(format!("it has {ENTRIES_MAX} referrers already"));
    }
    let media_type = manifest.media_type.as_deref().unwrap_or(media::MANIFEST);
    let mut entry = json!({"mediaType": media_type, "digest": digest.as_str(), "size": bytes.len()});
    entry["artifactType"] = manifest.kind().into();
    if !manifest.annotations.is_empty() {
        entry["annotations"] = json!(manifest.annotations);
    }
    entries.push(entry);
    Ok(Some(index.to_string().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_added_once() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let descriptor = json!({"mediaType": "x/config", "digest": digest, "size": 2});
        let text = json!({"schemaVersion": 2, "config": descriptor, "layers": [], "subject": descriptor,
            "artifactType": "x/kind", "annotations": {"a": "b"}});
        let bytes = text.to_string().into_bytes();
        let manifest = Manifest::parse(&bytes).unwrap();
        let first = with_entry(b"", &manifest, &bytes).unwrap().unwrap();
        let read: Value = serde_json::from_slice(&first).unwrap();
        assert_eq!(read["manifests"][0]["artifactType"], "x/kind");
        assert_eq!(read["manifests"][0]["annotations"], json!({"a": "b"}));
        assert_eq!(with_entry(&first, &manifest, &bytes), Ok(None));
        let other = json!({"schemaVersion": 2, "manifests": [{"digest": "sha256:1", "mine": 1}]}).to_string();
        let both: Value =
            serde_json::from_slice(&with_entry(other.as_bytes(), &manifest, &bytes).unwrap().unwrap())
                .unwrap();
        assert_eq!(
            (&both["manifests"][0]["mine"], both["manifests"].as_array().unwrap().len()),
            (&json!(1), 2)
        );
        assert!(with_entry(b"[]", &manifest, &bytes).is_err());
        let full = json!({"manifests": vec![json!({"digest": "sha256:1"}); ENTRIES_MAX]}).to_string();
        assert!(with_entry(full.as_bytes(), &manifest, &bytes).unwrap_err().contains("1000 referrers"));
    }
}
