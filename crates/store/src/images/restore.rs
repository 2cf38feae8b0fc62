//! Damaged parts put right: layers are unpacked anew, from their archive as it came if that is here and whole,
//! or from one that the caller has fetched; documents and archives are replaced.
//!
//! The new folder takes the old one's place in one step (`RENAME_EXCHANGE`, rename(2)). Whoever has the old one
//! mounted keeps its files open, so nobody may when it is removed: the caller sees to that.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use insula_base::{ChainId, DiffId, Digest};
use insula_spec::image::DOCUMENT_MAX;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::commit::chain_ids;
use super::ingest::IngestedLayer;
use super::stage::{Rest, Staged, layer_compression, stage};
use super::verify::hash;
use super::{Images, rows};
use crate::root::discard;
use crate::{Error, Result, content};

const PIECE: usize = 256 << 10;
const HEAD: usize = 512;

impl Images {
    /// Makes the layer anew of its archive that is kept, or of a whole copy at another place of a stack; false
    /// if there is neither.
    pub fn restore_from_here(&self, chain: &ChainId, diff: &DiffId) -> Result<bool> {
        let _lease = self.lease_all(vec![diff.clone()]);
        let blobs = self.state.transaction(|tx| rows::blobs(tx.sql()))?;
        for blob in blobs.iter().filter(|blob| blob.diff == *diff) {
            let whole = self.content.open_blob(&blob.digest).and_then(hash);
            if whole.is_ok_and(|found| found == blob.digest) {
                let staged = self.stage_file(self.content.open_blob(&blob.digest)?)?;
                return self.replace(chain, diff, staged).map(|()| true);
            }
        }
        let twins = self.state.transaction(|tx| {
            let chains = rows::all_layers(tx.sql())?;
            chains.iter().map(|chain| rows::layer(tx.sql(), chain)).collect::<Result<Vec<_>>>()
        })?;
        for twin in twins.into_iter().flatten().filter(|row| row.diff == *diff && row.chain != *chain) {
            let whole = self.layers.replay(diff, &twin.chain).and_then(hash);
            if whole.is_ok_and(|found| found == diff.0) {
                // Its archive is unpacked, not its files shared: they may be those that are damaged here too.
                let staged = self.stage_file(self.layers.replay(diff, &twin.chain)?)?;
                return self.replace(chain, diff, staged).map(|()| true);
            }
        }
        Ok(false)
    }

    /// Makes the layer anew of one that was fetched.
    pub fn restore_layer(&self, chain: &ChainId, diff: &DiffId, layer: &IngestedLayer) -> Result<()> {
        let staged = layer.take().ok_or(Error::Defect("a layer that was fetched is used twice"))?;
        self.replace(chain, diff, staged)
    }

    /// Puts a layer's archive, of a layer that was fetched as it came, into its place.
    pub fn restore_blob(&self, digest: &Digest, layer: &IngestedLayer) -> Result<()> {
        let staged = layer.take().ok_or(Error::Defect("a layer that was fetched is used twice"))?;
        let found = staged.blob;
        let compressed = staged.compressed.filter(|_| found == *digest);
        let blob = compressed.ok_or_else(|| Error::NoContent(digest.clone()))?.blob;
        let _changes = self.changes();
        self.content.remove(digest)?;
        self.content.complete(blob, digest)?;
        self.flush()
    }

    /// Gives an image the layers that its configuration names; false if one of them, or the image, is not here.
    pub fn restore_image(&self, id: &Digest) -> Result<bool> {
        let _changes = self.changes();
        let Some(diffs) = self.declared(id) else { return Ok(false) };
        let chains = chain_ids(&diffs);
        self.state.transaction(|tx| {
            if rows::image(tx.sql(), id)?.is_none() {
                return Ok(false);
            }
            let mut size = 0u64;
            for chain in &chains {
                match rows::layer(tx.sql(), chain)?.filter(|_| self.layers.contains(chain)) {
                    Some(row) => size = size.saturating_add(row.size),
                    None => return Ok(false),
                }
            }
            rows::hold_layers(tx.sql(), id, &chains)?;
            rows::set_size(tx.sql(), id, size)?;
            Ok(true)
        })
    }

    /// Puts a document into its place.
    pub fn restore_document(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        let found = content::digest(bytes);
        if found != *digest || bytes.len() > DOCUMENT_MAX {
            return Err(Error::Mismatch { what: "the document".to_owned(), expected: digest.clone(), found });
        }
        let _changes = self.changes();
        self.content.write(bytes)?;
        self.flush()
    }

    fn stage_file(&self, mut archive: impl Read) -> Result<Staged> {
        let mut head = vec![0; HEAD];
        let count = fill(&mut archive, &mut head)?;
        head.truncate(count);
        let compression = layer_compression(&head).ok_or(Error::Defect("a verified archive is none"))?;
        let mut head = Some(Bytes::from(head));
        let mut next = || {
            if let Some(head) = head.take() {
                return Ok(Some(head));
            }
            let mut piece = vec![0; PIECE];
            let count = fill(&mut archive, &mut piece)?;
            piece.truncate(count);
            Ok((count > 0).then(|| Bytes::from(piece)))
        };
        stage(&self.layers, &self.content, compression, Rest::Left, &mut next)
    }

    fn replace(&self, chain: &ChainId, diff: &DiffId, mut staged: Staged) -> Result<()> {
        if staged.diff != *diff {
            let (expected, found) = (diff.0.clone(), staged.diff.0.clone());
            return Err(Error::Mismatch { what: "the layer".to_owned(), expected, found });
        }
        let _changes = self.changes();
        if self.state.transaction(|tx| rows::layer(tx.sql(), chain))?.is_none() {
            return Ok(());
        }
        let lower = self.below(chain)?;
        self.layers.adopt(&staged.pending, &staged.unpacked.implied, &lower)?;
        exchange(staged.pending.path(), &self.layers.path(chain))?;
        if let Some(recipe) = staged.recipe.take() {
            exchange(recipe.path(), &self.layers.recipes().path(diff))?;
        }
        self.flush()
        // The damaged files go with what was staged.
    }

    /// The folders of the layers below, lowest first.
    fn below(&self, chain: &ChainId) -> Result<Vec<PathBuf>> {
        let stack = self.state.transaction(|tx| rows::stack_below(tx.sql(), chain))?;
        Ok(stack.iter().map(|chain| self.layers.path(chain)).collect())
    }

    /// Waits until everything that was written so far is on the disk.
    pub fn flush(&self) -> Result<()> {
        let folder = File::open(&self.root).map_err(|e| Error::io("open", &self.root, e))?;
        rustix::fs::syncfs(&folder).map_err(|e| Error::io("syncfs", &self.root, e))
    }
}

/// Makes `new` appear at `place`; what was there is at `new` then.
fn exchange(new: &Path, place: &Path) -> Result<()> {
    match renameat_with(CWD, new, CWD, place, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(Errno::NOENT) => fs::rename(new, place).map_err(|e| Error::io("rename", place, e)),
        // File systems that cannot (rename(2)): there is a moment without the layer.
        Err(Errno::INVAL | Errno::NOSYS) => {
            let aside = new.parent().unwrap_or(new);
            discard(place, aside)?;
            fs::rename(new, place).map_err(|e| Error::io("rename", place, e))
        }
        Err(error) => Err(Error::io("renameat2", place, error)),
    }
}

fn fill(input: &mut impl Read, into: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match input.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Input(error)),
        }
    }
    Ok(filled)
}
