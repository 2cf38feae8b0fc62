//! The images of this engine as a registry has them, for `serve-images`: repositories and tags by names, and
//! manifests and blobs by digests.
//!
//! ```text
//! docker.io/library/web:1    web:1  (and library/web:1)
//! docker.io/team/app:1       team/app:1
//! quay.example/app:1         quay.example/app:1
//! 127.0.0.1:5000/app:1       app:1    a port cannot be in the name of a repository
//! ```

mod blob;
mod documents;
mod upload;

use std::collections::BTreeSet;

use insula_base::Digest;
use insula_spec::reference::Reference;

pub use self::blob::SharedBlob;
pub use self::documents::Referrers;
pub(crate) use self::upload::Uploads;
use crate::images::Images;
use crate::{Error, Result, blocking};

/// A manifest as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedManifest {
    pub bytes: Vec<u8>,
    pub digest: Digest,
    pub media_type: String,
    /// What it says something about, if it does.
    pub subject: Option<Digest>,
}

impl Images {
    /// The repositories there are, sorted.
    pub async fn repositories(&self) -> Result<Vec<String>> {
        let store = self.store.clone();
        blocking(move || {
            let names = store.images().names()?;
            Ok(names.iter().map(|(name, _)| repository(name)).collect::<BTreeSet<_>>().into_iter().collect())
        })
        .await
    }

    /// The tags of a repository, sorted.
    pub async fn repository_tags(&self, name: &str) -> Result<Vec<String>> {
        let (store, name) = (self.store.clone(), name.to_owned());
        blocking(move || {
            let found = named(&store.images().names()?, &name)?;
            let tags: BTreeSet<_> = found.iter().filter_map(|(name, _)| name.tag()).collect();
            Ok(tags.into_iter().map(str::to_owned).collect())
        })
        .await
    }

    /// The manifest of a tag or digest in a repository.
    pub async fn shared_manifest(&self, name: &str, reference: &str) -> Result<SharedManifest> {
        let (store, name, reference) = (self.store.clone(), name.to_owned(), reference.to_owned());
        blocking(move || {
            let images = store.images();
            let found = named(&images.names()?, &name)?;
            let unknown = || Error::NotFound(format!("manifest {reference} of {name} is not known"));
            let digest = reference.contains(':').then(|| reference.parse::<Digest>());
            let wanted = match digest {
                Some(digest) => Some(digest.map_err(insula_store::Error::from)?),
                None => None,
            };
            let bytes = match &wanted {
                Some(digest) => documents::by_digest(images, &found, digest)?,
                None => match found.iter().find(|(name, _)| name.tag() == Some(&reference)) {
                    Some((name, id)) => Some(documents::by_name(images, name, id)?),
                    None => None,
                },
            };
            documents::shared(bytes.ok_or_else(unknown)?)
        })
        .await
    }
}

/// What an image is called in the registry that this store is.
fn repository(name: &Reference) -> String {
    if name.domain().contains(':') { name.path().to_owned() } else { name.familiar_name() }
}

/// The names that are in a repository; where two mean the same tag, the one without a port first.
fn named(names: &[(Reference, Digest)], repository: &str) -> Result<Vec<(Reference, Digest)>> {
    let is_in = |name: &Reference| {
        self::repository(name) == repository
            || (name.domain() == insula_spec::reference::DEFAULT_DOMAIN && name.path() == repository)
    };
    let mut found: Vec<_> = names.iter().filter(|(name, _)| is_in(name)).cloned().collect();
    found.sort_by_key(|(name, _)| name.domain().contains(':'));
    if found.is_empty() {
        return Err(Error::NotFound(format!("repository {repository} is not known")));
    }
    Ok(found)
}

fn digest_of(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    Digest::from_sha256(&sha2::Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_a_registry() {
        let id = digest_of(b"");
        let other = digest_of(b"other");
        let names: Vec<_> = [
            ("127.0.0.1:5000/web:1", &other),
            ("web:1", &id),
            ("team/app:2", &id),
            ("quay.example/app:3", &id),
            ("127.0.0.1:5000/only/there:1", &other),
        ]
        .iter()
        .map(|(name, id)| (Reference::parse(name).unwrap(), (*id).clone()))
        .collect();
        let repositories: Vec<_> = names.iter().map(|(name, _)| repository(name)).collect();
        assert_eq!(repositories, ["web", "web", "team/app", "quay.example/app", "only/there"]);
        assert_eq!(named(&names, "web").unwrap()[0].1, id);
        assert_eq!(named(&names, "library/web").unwrap().len(), 1);
        assert!(named(&names, "nosuch").is_err());
    }
}
