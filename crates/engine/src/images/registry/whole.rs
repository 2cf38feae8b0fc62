//! The whole of an index: every image and artifact that it lists, and the indexes within it.

use std::collections::HashMap;

use insula_base::Digest;
use insula_registry::{Credentials, DocumentKind, Repository, Wanted};
use insula_spec::image::{Descriptor, Index};
use insula_spec::reference::Reference;
use insula_store::ManifestLease;

use super::lines::Lines;
use super::pull::{Pulled, document, resolve};
use crate::images::Images;
use crate::{Error, Result, blocking};

/// Indexes within indexes.
const DEPTH_MAX: usize = 4;
/// Bytes of all indexes within one.
const WITHIN_MAX: usize = 32 << 20;

/// Where an index comes from.
struct Origin<'a> {
    reference: &'a Reference,
    credentials: &'a Credentials,
    sources: &'a [Repository],
    lines: &'a Lines,
}

/// What came of it so far.
#[derive(Default)]
struct Whole {
    newer: bool,
    /// Indexes, each after those that it lists.
    within: Vec<Vec<u8>>,
    size: usize,
    /// Nothing names the parts before all of them are here.
    kept: Vec<ManifestLease>,
    /// What each of them means on this host.
    meant: HashMap<Digest, Option<Digest>>,
}

impl Images {
    /// Pulls everything that an index lists, each by its digest; the name is the one that this host runs, or else
    /// the first.
    pub(super) async fn pull_whole(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        lines: &Lines,
    ) -> Result<Pulled> {
        let sources = self.registries.sources(reference, credentials)?;
        let (top, sources) = document(reference, sources).await?;
        if top.kind == DocumentKind::Manifest {
            return Box::pin(self.pull_one(reference, &Wanted::host(), credentials, lines)).await;
        }
        let index = Index::parse(&top.bytes).map_err(insula_store::Error::from)?;
        let from = Origin { reference, credentials, sources: &sources, lines };
        let mut whole = Whole::default();
        let meant = Box::pin(self.pull_listed(&index, &from, 0, &mut whole)).await?;
        let meant =
            meant.ok_or_else(|| Error::InvalidArgument(format!("{} is empty", reference.familiar())))?;
        let by_digest = by_digest(reference, &top.digest)?;
        let tagged = reference.digest().is_none().then(|| reference.clone());
        let (store, digest, newer) = (self.store.clone(), top.digest.clone(), whole.newer);
        let names: Vec<Reference> = tagged.into_iter().chain([by_digest]).collect();
        blocking(move || {
            Ok(store.images().name_document(&names, &top.bytes, &whole.within, &meant, &whole.kept)?)
        })
        .await?;
        Ok(Pulled { digest, newer })
    }

    /// Pulls what an index lists; returns what it means here.
    async fn pull_listed(
        &self,
        index: &Index,
        from: &Origin<'_>,
        depth: usize,
        whole: &mut Whole,
    ) -> Result<Option<Digest>> {
        let mut found: Vec<(&Digest, Digest)> = Vec::new();
        for entry in &index.manifests {
            if entry.is_index() {
                let meant = Box::pin(self.pull_within(entry, from, depth + 1, whole)).await?;
                found.extend(meant.map(|id| (&entry.digest, id)));
                continue;
            }
            let name = by_digest(from.reference, &entry.digest)?;
            whole.kept.push(self.store.images().keep_manifests(vec![entry.digest.clone()]));
            whole.newer |= Box::pin(self.pull_entry(&name, entry, from)).await?.newer;
            let (store, digest) = (self.store.clone(), entry.digest.clone());
            let id = blocking(move || Ok(store.images().with_manifest(&digest)?)).await?;
            found.extend(id.map(|id| (&entry.digest, id)));
        }
        let chosen = Wanted::host().choose(&index.manifests);
        let chosen = chosen.and_then(|chosen| found.iter().find(|(digest, _)| **digest == chosen.digest));
        Ok(chosen.or(found.first()).map(|(_, id)| id.clone()))
    }

    /// Pulls an index within another one.
    async fn pull_within(
        &self,
        entry: &Descriptor,
        from: &Origin<'_>,
        depth: usize,
        whole: &mut Whole,
    ) -> Result<Option<Digest>> {
        if let Some(meant) = whole.meant.get(&entry.digest) {
            return Ok(meant.clone());
        }
        let name = by_digest(from.reference, &entry.digest)?;
        let refused = |why: &str| Error::InvalidArgument(format!("{}: {why}", name.familiar()));
        if depth > DEPTH_MAX {
            return Err(refused("its indexes are nested too deep"));
        }
        let (inner, _) = document(&name, from.sources.to_vec()).await?;
        whole.size += inner.bytes.len();
        if whole.size > WITHIN_MAX {
            return Err(refused("the indexes around it have more than 32 MiB together"));
        }
        if inner.kind != DocumentKind::Index {
            return Err(refused("it is said to be an index and is none"));
        }
        let index = Index::parse(&inner.bytes).map_err(insula_store::Error::from)?;
        let meant = Box::pin(self.pull_listed(&index, from, depth, whole)).await?;
        whole.within.push(inner.bytes);
        whole.meant.insert(entry.digest.clone(), meant.clone());
        Ok(meant)
    }

    /// What this host could not even unpack is kept as it is.
    async fn pull_entry(&self, name: &Reference, entry: &Descriptor, from: &Origin<'_>) -> Result<Pulled> {
        let host = Wanted::host();
        let foreign = entry.platform.as_ref().is_some_and(|platform| platform.os != "linux");
        if !foreign {
            return Box::pin(self.pull_one(name, &host, from.credentials, from.lines)).await;
        }
        let (resolved, sources) = resolve(name, from.sources.to_vec(), &host).await?;
        Box::pin(self.pull_artifact(name, &resolved, &sources, from.lines)).await
    }
}

pub(super) fn by_digest(reference: &Reference, digest: &Digest) -> Result<Reference> {
    let name = format!("{}@{digest}", reference.name());
    Ok(Reference::parse(&name).map_err(insula_store::Error::from)?)
}
