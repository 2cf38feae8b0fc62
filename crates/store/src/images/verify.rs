//! Whether what is on the disk is still what its digests say: every document, every archive that is kept
//! compressed, and every layer, whose archive is made again by its recipe and hashed. And whether images have
//! the layers that their configurations name.
//!
//! A layer's owners, modes, times and attributes are in its recipe, not in its archive's contents: they are
//! not compared with those on the disk.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;

use insula_base::{ChainId, DiffId, Digest, chain};
use insula_spec::image::{DOCUMENT_MAX, ImageConfig};
use insula_spec::reference::Reference;
use sha2::{Digest as _, Sha256};

use super::commit::chain_ids;
use super::{Images, rows};
use crate::{Error, Result, content};

/// Bytes that are read at a time.
const PIECE: usize = 256 << 10;

/// What may be damaged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The configuration or the manifest of an image.
    Document(Digest),
    /// A blob of an artifact, as it came.
    Kept(Digest),
    /// The archive of a layer in the compressed form that it came in.
    Blob { digest: Digest, diff: DiffId, size: u64, media_type: String },
    /// The files of a layer at its place in a stack, or what makes its archive again.
    Layer { chain: ChainId, diff: DiffId },
    /// Which layers an image has by its rows, beside those that its configuration names.
    Image(Digest),
}

impl Part {
    /// `document`, `blob`, `layer` or `image`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Document(_) => "document",
            Self::Blob { .. } | Self::Kept(_) => "blob",
            Self::Layer { .. } => "layer",
            Self::Image(_) => "image",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Document(digest) | Self::Kept(digest) | Self::Image(digest) | Self::Blob { digest, .. } => {
                digest.fmt(f)
            }
            Self::Layer { chain, .. } => chain.fmt(f),
        }
    }
}

impl Images {
    /// Everything that can be verified.
    pub fn parts(&self) -> Result<Vec<Part>> {
        self.state.transaction(|tx| {
            let sql = tx.sql();
            let images = rows::images(sql)?;
            let documents = images.iter().map(|row| row.id.clone()).chain(rows::documents(sql)?);
            let mut parts: BTreeSet<Part> = documents.map(Part::Document).collect();
            let of_layers = images.into_iter().filter(|row| row.manifest.as_ref() != Some(&row.id));
            parts.extend(of_layers.map(|row| Part::Image(row.id)));
            parts.extend(rows::artifact_blobs(sql)?.into_iter().map(Part::Kept));
            parts.extend(rows::blobs(sql)?.into_iter().map(|row| Part::Blob {
                digest: row.digest,
                diff: row.diff,
                size: row.size,
                media_type: row.media_type,
            }));
            for chain in rows::all_layers(sql)? {
                let row = rows::layer(sql, &chain)?;
                parts.extend(row.map(|row| Part::Layer { chain: row.chain, diff: row.diff }));
            }
            Ok(parts.into_iter().collect())
        })
    }

    /// What is wrong with a part, if anything is. One that was removed since it was listed is not wrong.
    pub fn verify(&self, part: &Part) -> Result<Option<String>> {
        let _lease = match part {
            Part::Document(_) | Part::Kept(_) | Part::Image(_) => None,
            Part::Blob { diff, .. } | Part::Layer { diff, .. } => Some(self.lease_all(vec![diff.clone()])),
        };
        let wrong = match part {
            Part::Document(digest) => match self.content.read(digest, DOCUMENT_MAX as u64) {
                Ok(bytes) => differs(digest, &content::digest(&bytes)),
                Err(error) => Some(said(&error)),
            },
            Part::Kept(digest) | Part::Blob { digest, .. } => {
                match self.content.open_blob(digest).and_then(hash) {
                    Ok(found) => differs(digest, &found),
                    Err(error) => Some(said(&error)),
                }
            }
            Part::Layer { chain, diff } => match self.layers.wrong_digest(diff, chain)? {
                // What it has is what the kernel verifies: all of it is read now.
                None => match self.layers.replay(diff, chain).and_then(hash) {
                    Ok(found) => differs(&diff.0, &found),
                    Err(error) => Some(said(&error)),
                },
                wrong => wrong,
            },
            Part::Image(id) => self.wrong_layers(id)?,
        };
        Ok(if wrong.is_some() && self.is_wanted(part)? { wrong } else { None })
    }

    /// How the layers that an image has differ from those that its configuration names.
    fn wrong_layers(&self, id: &Digest) -> Result<Option<String>> {
        let rows = self.state.transaction(|tx| rows::layers_of(tx.sql(), id))?;
        // A configuration that is damaged is a finding of its own.
        let Some(diffs) = self.declared(id) else { return Ok(None) };
        if rows.len() != diffs.len() {
            return Ok(Some(format!(
                "it has {} layers, its configuration names {}",
                rows.len(),
                diffs.len()
            )));
        }
        let declared = chain_ids(&diffs).into_iter().zip(&diffs);
        let wrong = rows.iter().zip(declared).enumerate().find_map(|(at, (row, (chain, diff)))| {
            let differs = row.diff != *diff || row.chain != chain;
            differs.then(|| format!("its layer {} is {}, its configuration names {diff}", at + 1, row.diff))
        });
        Ok(wrong)
    }

    /// The layers that the configuration of an image names, if that is whole.
    pub(super) fn declared(&self, id: &Digest) -> Option<Vec<DiffId>> {
        let bytes = self.document(id).ok()?;
        ImageConfig::parse(&bytes).ok().map(|config| config.rootfs.diff_ids)
    }

    /// Images that have the part, each with its names. Their documents are not read: they may be what is
    /// damaged.
    pub fn having(&self, part: &Part) -> Result<Vec<(Digest, Vec<Reference>)>> {
        self.state.transaction(|tx| {
            let sql = tx.sql();
            let mut having = Vec::new();
            for row in rows::images(sql)? {
                let layers = rows::layers_of(sql, &row.id)?;
                let mut names = rows::names_of(sql, &row.id)?;
                let has = match part {
                    Part::Image(id) => row.id == *id,
                    Part::Document(digest) if row.id == *digest || row.manifest.as_ref() == Some(digest) => {
                        true
                    }
                    Part::Document(digest) => {
                        let mut standing = Vec::new();
                        for name in names {
                            let document = rows::document_of(sql, &name)?;
                            standing.extend((document.as_ref() == Some(digest)).then_some(name));
                        }
                        names = standing;
                        !names.is_empty()
                    }
                    Part::Kept(digest) => rows::has_artifact_blob(sql, &row.id, digest)?,
                    Part::Blob { diff, .. } => layers.iter().any(|layer| layer.diff == *diff),
                    Part::Layer { chain, .. } => layers.iter().any(|layer| layer.chain == *chain),
                };
                if has {
                    having.push((row.id, names));
                }
            }
            Ok(having)
        })
    }

    fn is_wanted(&self, part: &Part) -> Result<bool> {
        self.state.transaction(|tx| {
            let sql = tx.sql();
            Ok(match part {
                Part::Document(digest) | Part::Kept(digest) => rows::contents(sql)?.contains(digest),
                Part::Blob { digest, .. } => rows::blob(sql, digest)?.is_some(),
                Part::Layer { chain, .. } => rows::layer(sql, chain)?.is_some(),
                Part::Image(id) => rows::image(sql, id)?.is_some(),
            })
        })
    }
}

fn differs(expected: &Digest, found: &Digest) -> Option<String> {
    (expected != found).then(|| format!("its content has the digest {found}"))
}

fn said(error: &Error) -> String {
    match error {
        Error::NoContent(_) => "it is missing".to_owned(),
        Error::NoRecipe(_) => "what makes its archive again is missing".to_owned(),
        Error::Input(source) => chain(source),
        error => chain(error),
    }
}

/// The digest of all that there is to read.
pub(super) fn hash(mut input: impl Read) -> Result<Digest> {
    let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE]);
    loop {
        match input.read(&mut piece) {
            Ok(0) => return Ok(Digest::from_sha256(&hash.finalize().into())),
            Ok(count) => hash.update(&piece[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Input(error)),
        }
    }
}
