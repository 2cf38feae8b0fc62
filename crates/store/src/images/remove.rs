//! Removal, by Docker's rules:
//!
//! - by one of several names, only the name goes;
//! - by its last name or by id, the image goes, and the layers that nothing else holds;
//! - by id while several repositories name it: only with force;
//! - while a container uses it: only with force, and not while that runs. The container keeps the
//!   layers until it is removed.

use insula_base::{ChainId, DiffId, Digest};
use insula_spec::reference::Reference;

use super::{Force, FoundBy, Images, Removal, builtin, find, rows};
use crate::{Error, Result, Transaction};

/// What a removal leaves to be removed from the disk.
#[derive(Default)]
struct Freed {
    removals: Vec<Removal>,
    blobs: Vec<Digest>,
    chains: Vec<ChainId>,
    /// Contents that no layer has any more.
    diffs: Vec<DiffId>,
}

impl Freed {
    /// Lets go of the layers of an image that is gone and unused, and of what is kept for them.
    fn add_layers(&mut self, tx: &Transaction<'_>, id: &Digest) -> Result<()> {
        let layers = rows::drop_layers(tx.sql(), id)?;
        let left = rows::all_diffs(tx.sql())?;
        self.blobs.extend(rows::drop_blobs(tx.sql())?);
        self.diffs.extend(layers.iter().map(|row| row.diff.clone()).filter(|diff| !left.contains(diff)));
        self.chains.extend(layers.into_iter().map(|row| row.chain));
        Ok(())
    }
}

impl Images {
    /// Removes a name, and with its last name the image, and the layers that nothing else uses.
    /// `running` says whether the owner of a use runs: then not even force helps.
    pub fn remove(&self, text: &str, force: Force, running: &dyn Fn(&str) -> bool) -> Result<Vec<Removal>> {
        if builtin::resolve(text, &self.root).is_some() {
            return Err(Error::Builtin(text.to_owned()));
        }
        let _changes = self.changes();
        let freed = self.state.transaction(|tx| {
            let (image, by) = find(tx, text)?;
            let names = rows::names_of(tx.sql(), &image.id)?;
            let users = rows::users(tx.sql(), &image.id)?;
            match &by {
                FoundBy::Name(name) if with_it(&names, name).len() < names.len() => {
                    untag(tx, &with_it(&names, name))
                }
                FoundBy::Name(name) => {
                    check_name(name, &image.id, &users, force)?;
                    if users.iter().any(|user| running(user)) {
                        // As in Docker: the name goes, the image stays without one.
                        return untag(tx, &names);
                    }
                    delete(tx, &image, &names)
                }
                FoundBy::Id => {
                    check_id(&image.id, &names, &users, force, running)?;
                    delete(tx, &image, &names)
                }
            }
        })?;
        self.clean_up(&freed);
        Ok(freed.removals)
    }

    /// Ends the use in one commit with what `forget` takes away of the owner, and removes the layers that only
    /// it still held; that there is no use is no error.
    pub fn release_image(
        &self,
        owner: &str,
        forget: impl FnOnce(&Transaction<'_>) -> Result<()>,
    ) -> Result<()> {
        let _changes = self.changes();
        let freed = self.state.transaction(|tx| {
            forget(tx)?;
            let mut freed = Freed::default();
            let Some(id) = rows::remove_use(tx.sql(), owner)? else { return Ok(freed) };
            let held = rows::image(tx.sql(), &id)?.is_some() || !rows::users(tx.sql(), &id)?.is_empty();
            if !held {
                freed.add_layers(tx, &id)?;
            }
            Ok::<_, Error>(freed)
        })?;
        self.clean_up(&freed);
        Ok(())
    }

    /// The rows are gone, so what cannot be removed now is swept at the next open.
    fn clean_up(&self, freed: &Freed) {
        let blobs = freed.blobs.iter().map(|digest| self.content.remove(digest));
        let layers = freed.chains.iter().map(|chain| self.layers.remove(chain));
        let recipes = freed.diffs.iter().map(|diff| self.layers.remove_recipe(diff));
        for result in blobs.chain(layers).chain(recipes) {
            if let Err(error) = result {
                tracing::warn!(error = &error as &dyn std::error::Error, "part of a removed image not swept");
            }
        }
    }
}

/// The names that go with one: with the last tag of a repository also the digests that the image was
/// pulled or pushed by there.
fn with_it(names: &[Reference], name: &Reference) -> Vec<Reference> {
    let of_it = |other: &&Reference| other.name() == name.name() && *other != name;
    let last = name.tag().is_some() && !names.iter().filter(of_it).any(|other| other.tag().is_some());
    let digests = names.iter().filter(of_it).filter(|_| last).cloned();
    std::iter::once(name.clone()).chain(digests).collect()
}

fn untag(tx: &Transaction<'_>, names: &[Reference]) -> Result<Freed> {
    for name in names {
        rows::remove_name(tx.sql(), name)?;
    }
    let removals = names.iter().cloned().map(Removal::Untagged).collect();
    Ok(Freed { removals, ..Freed::default() })
}

fn delete(tx: &Transaction<'_>, image: &rows::ImageRow, names: &[Reference]) -> Result<Freed> {
    let mut freed = untag(tx, names)?;
    rows::remove_image(tx.sql(), &image.id)?;
    if rows::users(tx.sql(), &image.id)?.is_empty() {
        freed.add_layers(tx, &image.id)?;
    }
    freed.removals.push(Removal::Deleted(image.id.clone()));
    freed.removals.extend(freed.chains.iter().map(|chain| Removal::Deleted(chain.0.clone())));
    freed.blobs.push(image.id.clone());
    if let Some(manifest) = &image.manifest
        && !rows::images(tx.sql())?.iter().any(|other| other.manifest.as_ref() == Some(manifest))
    {
        freed.blobs.push(manifest.clone());
    }
    Ok(freed)
}

fn check_name(name: &Reference, id: &Digest, users: &[String], force: Force) -> Result<()> {
    match users.first() {
        Some(user) if force == Force::No => Err(Error::ImageInUse {
            what: format!("remove repository reference {:?}", name.familiar()),
            force: "must force",
            why: format!("container {} is using its referenced image {}", short(user), id.short()),
        }),
        _ => Ok(()),
    }
}

fn check_id(
    id: &Digest,
    names: &[Reference],
    users: &[String],
    force: Force,
    running: &dyn Fn(&str) -> bool,
) -> Result<()> {
    let conflict = |force, why| Err(Error::ImageInUse { what: format!("delete {}", id.short()), force, why });
    if let Some(user) = users.iter().find(|user| running(user)) {
        return conflict(
            "cannot be forced",
            format!("image is being used by running container {}", short(user)),
        );
    }
    if force == Force::Yes {
        return Ok(());
    }
    let repository = names.first().map(Reference::name);
    if names.iter().any(|name| Some(name.name()) != repository) {
        return conflict("must be forced", "image is referenced in multiple repositories".to_owned());
    }
    match users.first() {
        Some(user) => {
            conflict("must be forced", format!("image is being used by stopped container {}", short(user)))
        }
        None => Ok(()),
    }
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
