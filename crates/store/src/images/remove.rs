//! Removal, by Docker's rules:
//!
//! - by one of several names, only the name goes;
//! - by its last name or by id, the image goes, and the layers that nothing else holds;
//! - by id while several repositories name it: only with force;
//! - while a container uses it: only with force, and not while that runs. The container keeps the
//!   layers until it is removed;
//! - who prunes removes what was seen to be of no use, if it is still as it was seen.

use std::collections::HashSet;
use std::path::PathBuf;

use insula_base::{ChainId, DiffId, Digest};
use insula_spec::reference::Reference;

use super::{Force, FoundBy, Image, Images, LayerLease, ManifestLease, Removal, builtin, find, rows};
use crate::layers::{Key, Keys};
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
    fn absorb(&mut self, other: Self) {
        self.removals.extend(other.removals);
        self.blobs.extend(other.blobs);
        self.chains.extend(other.chains);
        self.diffs.extend(other.diffs);
    }

    /// What is left of blobs when all rows are as they will be.
    fn settle(mut self, images: &Images, tx: &Transaction<'_>) -> Result<Self> {
        self.blobs.extend(rows::drop_artifact_blobs(tx.sql(), &|digest| images.kept.holds(digest))?);
        rows::drop_index_parts(tx.sql())?;
        let wanted = rows::contents(tx.sql())?;
        self.blobs.retain(|digest| !wanted.contains(digest));
        Ok(self)
    }

    fn add(&mut self, tx: &Transaction<'_>, layers: Vec<rows::LayerRow>) -> Result<()> {
        if layers.is_empty() {
            return Ok(());
        }
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
            let documents = rows::documents(tx.sql())?;
            let mut freed = match &by {
                FoundBy::Name(name) if self.going(tx, &names, name)?.len() < names.len() => {
                    untag(tx, &self.going(tx, &names, name)?)
                }
                FoundBy::Name(name) => {
                    check_name(name, &image.id, &users, force)?;
                    if users.iter().any(|user| running(user)) {
                        // As in Docker: the name goes, the image stays without one.
                        untag(tx, &names)
                    } else {
                        self.delete(tx, &image, &names)
                    }
                }
                FoundBy::Id => {
                    check_id(&image.id, &names, &users, force, running)?;
                    self.delete(tx, &image, &names)
                }
            }?;
            self.delete_parts(tx, &documents, &mut freed)?;
            freed.blobs.extend(documents);
            freed.settle(self, tx)
        })?;
        let removals = self.clean_up(freed);
        Ok(removals)
    }

    /// Removes an image that nothing needs and that is as it was seen: it has the same names, no container uses it, and
    /// it is no part of what is being brought. What an index lists that a tag of another image stands for loses its
    /// tags and stays.
    pub fn prune(&self, seen: &Image) -> Result<Vec<Removal>> {
        let _changes = self.changes();
        let freed = self.state.transaction(|tx| {
            let Some(image) = rows::image(tx.sql(), &seen.id)? else { return Ok(Freed::default()) };
            let names = rows::names_of(tx.sql(), &image.id)?;
            let manifests: Vec<_> =
                names.iter().filter_map(Reference::digest).chain(&image.manifest).collect();
            let needed = !rows::users(tx.sql(), &image.id)?.is_empty() || self.is_coming(&image, &names);
            if names != seen.references || needed {
                return Ok(Freed::default());
            }
            let mut listed = HashSet::new();
            let others = rows::documents_of_others(tx.sql(), &image.id)?;
            others.iter().for_each(|document| self.listed(document, &mut listed));
            let documents = rows::documents(tx.sql())?;
            let mut freed = if manifests.into_iter().any(|digest| listed.contains(digest)) {
                let tags: Vec<_> = names.into_iter().filter(|name| name.tag().is_some()).collect();
                untag(tx, &tags)?
            } else {
                self.delete(tx, &image, &names)?
            };
            self.delete_parts(tx, &documents, &mut freed)?;
            freed.blobs.extend(documents);
            freed.settle(self, tx)
        })?;
        Ok(self.clean_up(freed))
    }

    /// Keeps images and artifacts with these manifests from being pruned, and from going with the name of something
    /// else: they are brought one after the other, and the index that lists them gets its name when all are here.
    #[must_use]
    pub fn keep_manifests(&self, manifests: Vec<Digest>) -> ManifestLease {
        self.coming.take(manifests)
    }

    /// Whether an image is a part of what is being brought.
    pub(super) fn is_coming(&self, image: &rows::ImageRow, names: &[Reference]) -> bool {
        let mut manifests = names.iter().filter_map(Reference::digest).chain(&image.manifest);
        manifests.any(|digest| self.coming.holds(digest))
    }

    /// The names that go with one. An image that the index of another tag lists, or one that comes, stays by its
    /// digest.
    fn going(&self, tx: &Transaction<'_>, names: &[Reference], name: &Reference) -> Result<Vec<Reference>> {
        let mut going = with_it(names, name);
        if going.len() < names.len() {
            return Ok(going);
        }
        let mut kept = HashSet::new();
        let others = rows::tagged_documents(tx.sql(), Some(name))?;
        others.iter().for_each(|document| self.listed(document, &mut kept));
        let stays = |digest: &Digest| kept.contains(digest) || self.coming.holds(digest);
        going.retain(|other| other == name || !other.digest().is_some_and(stays));
        Ok(going)
    }

    /// With an index that no name stands for any more go those of its images that have no names but their digests'
    /// and the digests of indexes within it, unless another index lists them that has a tag or comes.
    fn delete_parts(&self, tx: &Transaction<'_>, before: &HashSet<Digest>, freed: &mut Freed) -> Result<()> {
        let now = rows::documents(tx.sql())?;
        let mut parts = HashSet::new();
        before.difference(&now).for_each(|gone| self.listed(gone, &mut parts));
        if parts.is_empty() {
            return Ok(());
        }
        let mut kept = HashSet::new();
        rows::tagged_documents(tx.sql(), None)?.iter().for_each(|document| self.listed(document, &mut kept));
        for part in parts.difference(&kept) {
            let Some(id) = rows::with_manifest(tx.sql(), part)? else { continue };
            let Some(image) = rows::image(tx.sql(), &id)? else { continue };
            let names = rows::names_of(tx.sql(), &id)?;
            let own = names.iter().all(|name| name.digest().is_some_and(|digest| parts.contains(digest)));
            if own && !self.is_coming(&image, &names) && rows::users(tx.sql(), &id)?.is_empty() {
                freed.absorb(self.delete(tx, &image, &names)?);
            }
        }
        Ok(())
    }

    /// Removes layers that nothing needs any more: what a lease held alone until a moment ago.
    pub(super) fn sweep(&self) -> Result<()> {
        let _changes = self.changes();
        let freed = self.state.transaction(|tx| {
            let mut freed = Freed::default();
            let orphans = rows::drop_orphans(tx.sql(), &|diff| self.leases.holds(diff))?;
            freed.add(tx, orphans)?;
            freed.settle(self, tx)
        })?;
        self.clean_up(freed);
        Ok(())
    }

    /// Holds layers that are known to be here.
    pub(super) fn lease_all(&self, diffs: Vec<DiffId>) -> LayerLease {
        let _changes = self.changes();
        self.leases.take(diffs)
    }

    fn delete(&self, tx: &Transaction<'_>, image: &rows::ImageRow, names: &[Reference]) -> Result<Freed> {
        let mut freed = untag(tx, names)?;
        rows::remove_image(tx.sql(), &image.id)?;
        let leased = |diff: &DiffId| self.leases.holds(diff);
        let mut layers = Vec::new();
        if rows::users(tx.sql(), &image.id)?.is_empty() {
            layers = rows::drop_layers(tx.sql(), &image.id, &leased)?;
        }
        freed.removals.push(Removal::Deleted(image.id.clone()));
        freed.removals.extend(layers.iter().map(|layer| Removal::Deleted(layer.chain.0.clone())));
        layers.extend(rows::drop_orphans(tx.sql(), &leased)?);
        freed.add(tx, layers)?;
        freed.blobs.push(image.id.clone());
        freed.blobs.extend(image.manifest.clone());
        Ok(freed)
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
                let layers = rows::drop_layers(tx.sql(), &id, &|diff| self.leases.holds(diff))?;
                freed.add(tx, layers)?;
            }
            freed.settle(self, tx)
        })?;
        self.clean_up(freed);
        Ok(())
    }

    /// The rows are gone. Files vanish at once by renames, before anyone else may bring the same ones;
    /// their blocks are freed by a thread. What a crash leaves of them is swept at the next open, which looks for
    /// shared files of nobody as long as there is a folder left.
    fn clean_up(&self, freed: Freed) -> Vec<Removal> {
        let Freed { removals, blobs, chains, diffs } = freed;
        let blobs = blobs.iter().map(|digest| self.content.set_aside(digest));
        let layers = chains.iter().map(|chain| self.layers.set_aside(chain));
        let mut dying = Vec::new();
        blobs.chain(layers).for_each(|moved| dying.extend(swept(moved).flatten()));
        let mut keys = Vec::new();
        for diff in &diffs {
            let recipe = swept(self.layers.set_recipe_aside(diff)).flatten();
            // Of recipes alone: what is in the folder of a layer was made by whoever made the image.
            keys.extend(recipe.iter().filter_map(|path| swept(Keys::read(path))).flatten());
            dying.extend(recipe);
        }
        if !dying.is_empty() {
            self.remove_later(dying, keys);
        }
        removals
    }

    fn remove_later(&self, dying: Vec<PathBuf>, keys: Vec<Key>) {
        let files = self.layers.files().clone();
        let work = move || {
            for path in dying.iter().filter(|path| path.is_dir()) {
                swept(crate::root::empty(path));
            }
            // Their files have one name less by now.
            swept(files.release(&keys));
            for path in &dying {
                swept(crate::root::remove_any(path));
            }
        };
        match std::thread::Builder::new().name("sweep".to_owned()).spawn(work) {
            Ok(thread) => {
                let mut threads = self.syncing();
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "removed images are swept at the next start"
                );
            }
        }
    }
}

/// What was done, unless it failed: the next open sees to that.
fn swept<T>(result: Result<T>) -> Option<T> {
    result
        .inspect_err(|error| {
            tracing::warn!(error = error as &dyn std::error::Error, "part of a removed image not swept");
        })
        .ok()
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
    let mut freed = Freed::default();
    for name in names {
        freed.blobs.extend(rows::document_of(tx.sql(), name)?);
        rows::remove_name(tx.sql(), name)?;
        freed.removals.push(Removal::Untagged(name.clone()));
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
