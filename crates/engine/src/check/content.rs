//! Documents, archives and layers: is what is on the disk what its digest says, and has every image its layers.

use std::sync::Arc;

use insula_base::{DiffId, Digest};
use insula_spec::image::Descriptor;
use insula_spec::reference::Reference;
use insula_store::{IngestedLayer, Part};

use super::{Finding, Report, lasting};
use crate::images::Images;
use crate::{Engine, Error, Result, blocking};

pub(super) async fn inspect(engine: &Engine, report: &mut Report) -> Result<()> {
    let images = engine.images();
    let store = images.store().clone();
    let parts = blocking(move || Ok(store.images().parts()?)).await?;
    for part in parts {
        report.go_on()?;
        report.looked_at(part.kind());
        let (store, looked_at) = (images.store().clone(), part.clone());
        let wrong = blocking(move || {
            let images = store.images();
            match images.verify(&looked_at)? {
                Some(problem) => Ok(Some((problem, images.having(&looked_at)?))),
                None => Ok(None),
            }
        });
        let Some((problem, having)) = wrong.await? else { continue };
        let finding = Finding {
            kind: part.kind(),
            subject: part.to_string(),
            problem,
            used_by: having.iter().map(|(_, names)| shown(names)).collect(),
        };
        report.found(finding, repair(engine, &part, &having)).await?;
    }
    inspect_shared(engine, report).await
}

/// Files that are kept for several layers to share, though none has them.
async fn inspect_shared(engine: &Engine, report: &mut Report) -> Result<()> {
    let store = engine.images().store().clone();
    let look = {
        let store = store.clone();
        move || Ok(store.layers().unused_files()?)
    };
    let unused = lasting(look).await?;
    if unused.is_empty() {
        return Ok(());
    }
    let finding = Finding {
        kind: "shared files",
        subject: store.root().join("layers/files").to_string_lossy().into_owned(),
        problem: format!("{} files are kept that no layer has", unused.len()),
        used_by: Vec::new(),
    };
    let repair = blocking(move || Ok(format!("{} files removed", store.layers().sweep_files()?)));
    report.found(finding, repair).await
}

fn shown(names: &[Reference]) -> String {
    names.first().map_or_else(|| "<none>".to_owned(), Reference::familiar)
}

async fn repair(engine: &Engine, part: &Part, having: &[(Digest, Vec<Reference>)]) -> Result<String> {
    let images = engine.images();
    match part {
        Part::Document(digest) => {
            for (image, names) in having {
                if let Some(from) = images.fetch_document(image, digest, names).await? {
                    return Ok(format!("fetched from {from}"));
                }
            }
            Err(Error::NotFound("no registry is known to have it: load or pull its image again".to_owned()))
        }
        Part::Kept(_) => {
            Err(Error::NotFound("it is a part of an artifact: remove that, and pull it again".to_owned()))
        }
        Part::Blob { digest, diff, size, media_type } => {
            let blob = Descriptor {
                media_type: media_type.clone(),
                digest: digest.clone(),
                size: *size,
                annotations: Default::default(),
                platform: None,
            };
            let (layer, from) = images.fetch_layer(diff, Some(&blob)).await?;
            let (store, digest) = (images.store().clone(), digest.clone());
            blocking(move || Ok(store.images().restore_blob(&digest, &layer)?)).await?;
            Ok(format!("fetched from {from}"))
        }
        Part::Image(id) => {
            // A running container has those mounted that the image has now, and nothing would hold them any more.
            unused(engine, having)?;
            let (store, id) = (images.store().clone(), id.clone());
            match blocking(move || Ok(store.images().restore_image(&id)?)).await? {
                true => Ok("given the layers that its configuration names".to_owned()),
                false => Err(Error::NotFound(
                    "some of them are not here: remove the image, and load or pull it again".to_owned(),
                )),
            }
        }
        Part::Layer { chain, diff } => {
            unused(engine, having)?;
            let (store, place) = (images.store().clone(), (chain.clone(), diff.clone()));
            if blocking(move || Ok(store.images().restore_from_here(&place.0, &place.1)?)).await? {
                return Ok("unpacked again".to_owned());
            }
            let (layer, from) = images.fetch_layer(diff, None).await?;
            let (store, place) = (images.store().clone(), (chain.clone(), diff.clone()));
            blocking(move || Ok(store.images().restore_layer(&place.0, &place.1, &layer)?)).await?;
            Ok(format!("fetched from {from}"))
        }
    }
}

/// A running container has the files of a layer mounted: it would lose those that are replaced.
fn unused(engine: &Engine, having: &[(Digest, Vec<Reference>)]) -> Result<()> {
    for (image, _) in having {
        for user in engine.images().store().images().users(image)? {
            if engine.is_running(&user) {
                let user = user.get(..12).unwrap_or(&user).to_owned();
                return Err(Error::Conflict(format!("container {user} is running on it: stop it first")));
            }
        }
    }
    Ok(())
}

/// What was fetched, and from where.
pub(crate) type Fetched = (Arc<IngestedLayer>, String);

impl Images {
    /// A layer from a registry that is known to have it; as this very blob, where one is given.
    async fn fetch_layer(&self, diff: &DiffId, blob: Option<&Descriptor>) -> Result<Fetched> {
        let places = self.store().images().places(diff)?;
        let mut failure = Error::NotFound(
            "no registry is known to have it: remove its image, and load or pull it again".to_owned(),
        );
        for place in places {
            if blob.is_some_and(|blob| blob.digest != place.blob.digest) {
                continue;
            }
            let from = format!("{}/{}", place.registry, place.repository);
            match self.fetch_from(&from, &place.blob, diff).await {
                Ok(layer) => return Ok((layer, from)),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}
