//! An image archive, read once from front to back. What lists its layers may come last, so each
//! member that is a layer's archive is unpacked when it comes by, beside its place; documents are
//! kept in memory. What turns out not to be needed is dropped again.

use std::collections::{HashMap, HashSet};
use std::io::{BufReader, Read};

use insula_base::{DiffId, Digest, thread};
use insula_spec::image::{DOCUMENT_MAX, Descriptor, Index, Manifest};

use super::stage::{Rest, Staged, archive_compression, layer_compression, stage};
use super::{Images, IngestedBlob, LayerLease, Progress};
use crate::archive::{Archive, Entry, EntryKind};
use crate::stream::{Chunks, channel, pump};
use crate::{Error, Result, content};

/// Bytes of all documents of one archive together.
const DOCUMENTS_MAX: usize = 32 << 20;
/// Members of one archive. Docker's have four a layer.
const MEMBERS_MAX: usize = 1 << 16;
/// Links that are followed from one member to another.
const ALIASES_MAX: usize = 16;
/// Enough to tell a tar header, compressed ones and JSON apart.
const HEAD: usize = 512;
/// Blobs of artifacts that are larger are not kept in memory.
const SMALL: u64 = 64 << 10;
/// Where an OCI layout has its blobs.
const BLOBS: &str = "blobs/sha256/";
const BUFFER: usize = 256 << 10;

/// The content of an archive.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// JSON and other small members, by clean name.
    pub(super) documents: HashMap<String, Vec<u8>>,
    /// What unpacked, or why not: only a layer that an image needs may fail a load.
    pub(super) layers: HashMap<String, Result<Source>>,
    /// Blobs that were taken in as they are, `None` those that are here already, or why not: only one that an
    /// artifact needs may fail a load.
    pub(super) blobs: HashMap<String, Result<Option<IngestedBlob>>>,
    aliases: HashMap<String, String>,
    /// Hold the layers that are known, until the images are committed.
    leases: Vec<LayerLease>,
}

/// Where a layer can be had from.
#[derive(Debug)]
pub(super) enum Source {
    Staged(Staged),
    /// The store has this content already, plain or as this very blob, so the member was passed over.
    Known(DiffId),
}

impl Gathered {
    /// The name under which a member really is: archives share layers by links between members.
    pub(super) fn resolve<'a>(&'a self, name: &'a str) -> &'a str {
        let mut name = name;
        for _ in 0..ALIASES_MAX {
            match self.aliases.get(name) {
                Some(target) => name = target,
                None => break,
            }
        }
        name
    }

    /// A document by its clean name.
    pub(super) fn document(&self, name: &str) -> Option<&[u8]> {
        self.documents.get(self.resolve(name)).map(Vec::as_slice)
    }

    /// Whether the archive has the configuration and all layers of a manifest, whole or damaged.
    pub(super) fn has_all(&self, manifest: &Manifest) -> bool {
        let mut blobs = manifest.layers.iter().chain([&manifest.config]).map(|blob| member(&blob.digest));
        blobs.all(|name| {
            let name = self.resolve(&name);
            self.documents.contains_key(name)
                || self.layers.contains_key(name)
                || self.blobs.contains_key(name)
        })
    }

    /// A document by digest, verified.
    pub(super) fn blob(&self, digest: &Digest) -> Result<&[u8]> {
        let name = member(digest);
        let bytes = self.document(&name).ok_or_else(|| Error::Archive(format!("it lacks {name}")))?;
        let found = content::digest(bytes);
        if found == *digest {
            Ok(bytes)
        } else {
            Err(Error::Mismatch { what: name, expected: digest.clone(), found })
        }
    }
}

/// Reads an archive to its end.
pub(super) fn gather(
    input: impl Read + Send,
    images: &Images,
    progress: &mut dyn FnMut(Progress),
) -> Result<Gathered> {
    std::thread::scope(|scope| {
        let (sender, chunks) = channel();
        let reading = move || pump(BufReader::with_capacity(BUFFER, input), &sender, None);
        thread::scoped(scope, "read", reading).map_err(Error::Thread)?;
        let mut gathering = Gathering {
            images,
            progress,
            found: Gathered::default(),
            documents_size: 0,
            foreign: HashSet::new(),
            of_artifacts: HashSet::new(),
        };
        let mut archive = Archive::new(chunks);
        let mut members = 0;
        while let Some(entry) = archive.next_entry()? {
            members += 1;
            if members > MEMBERS_MAX {
                return Err(Error::Limit {
                    what: "the number of members".to_owned(),
                    limit: MEMBERS_MAX as u64,
                });
            }
            gathering.member(&entry, &mut archive)?;
        }
        archive.drain()?;
        Ok(gathering.found)
    })
}

struct Gathering<'a> {
    images: &'a Images,
    progress: &'a mut dyn FnMut(Progress),
    found: Gathered,
    documents_size: usize,
    /// Manifests that an index says are not for Linux: what they list is kept as artifacts are.
    foreign: HashSet<Digest>,
    /// What the manifests of artifacts list, as far as they have come.
    of_artifacts: HashSet<Digest>,
}

impl Gathering<'_> {
    fn member(&mut self, entry: &Entry, archive: &mut Archive<Chunks>) -> Result<()> {
        let name = clean(&entry.path)?;
        match entry.kind {
            EntryKind::SymbolicLink => {
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                let target = [folder.as_bytes(), &entry.link].join(&b'/');
                self.found.aliases.insert(name, clean(&target)?);
                Ok(())
            }
            EntryKind::HardLink => {
                self.found.aliases.insert(name, clean(&entry.link)?);
                Ok(())
            }
            EntryKind::File if entry.sparse.is_none() => self.file(name, archive),
            // Folders carry nothing, and no writer of images makes anything else.
            _ => Ok(()),
        }
    }

    fn file(&mut self, name: String, archive: &mut Archive<Chunks>) -> Result<()> {
        let size = archive.left();
        let digest = blob_digest(&name);
        let head = archive.peek(HEAD)?;
        let compression = match &digest {
            Some(_) => layer_compression(head),
            None => archive_compression(head),
        };
        let of_artifact = digest.as_ref().is_some_and(|digest| self.of_artifacts.contains(digest));
        let as_it_is = match compression {
            Some(_) => of_artifact,
            None => size > DOCUMENT_MAX as u64 || (of_artifact && size > SMALL),
        };
        if let Some(digest) = digest.filter(|_| as_it_is) {
            return self.blob(name, digest, archive);
        }
        if let Some(compression) = compression {
            if let Some(lease) = self.known(&name)?
                && let Some(diff) = lease.layers().first().cloned()
            {
                self.found.leases.push(lease);
                (self.progress)(Progress::LayerExists { id: short(&name) });
                self.found.layers.insert(name, Ok(Source::Known(diff)));
                return Ok(());
            }
            let id = short(&name);
            let mut bytes = 0;
            let mut next = || {
                let chunk = archive.chunk()?;
                if let Some(chunk) = &chunk {
                    bytes += chunk.len() as u64;
                    (self.progress)(Progress::Layer { id: id.clone(), bytes, total: Some(size) });
                }
                Ok(chunk)
            };
            let staged = stage(&self.images.layers, &self.images.content, compression, Rest::Read, &mut next);
            if let Err(error @ (Error::Io { .. } | Error::Input(_))) = staged {
                return Err(error);
            }
            self.found.layers.insert(name, staged.map(Source::Staged));
            return Ok(());
        }
        if size <= DOCUMENT_MAX as u64 { self.document(name, archive) } else { Ok(()) }
    }

    fn document(&mut self, name: String, archive: &mut Archive<Chunks>) -> Result<()> {
        let mut bytes = Vec::new();
        while let Some(chunk) = archive.chunk()? {
            bytes.extend_from_slice(&chunk);
        }
        self.documents_size += bytes.len();
        if self.documents_size > DOCUMENTS_MAX {
            return Err(Error::Limit {
                what: "the size of the documents".to_owned(),
                limit: DOCUMENTS_MAX as u64,
            });
        }
        if let Some(digest) = blob_digest(&name) {
            self.learn(&digest, &bytes);
        }
        self.found.documents.insert(name, bytes);
        Ok(())
    }

    /// What a document says of blobs that are still to come.
    fn learn(&mut self, digest: &Digest, bytes: &[u8]) {
        if let Ok(index) = Index::parse(bytes)
            && !index.manifests.is_empty()
        {
            let foreign = |entry: &Descriptor| is_foreign(entry).then(|| entry.digest.clone());
            self.foreign.extend(index.manifests.iter().filter_map(foreign));
        } else if let Ok(manifest) = Manifest::parse(bytes)
            && (!manifest.is_image() || self.foreign.contains(digest))
        {
            self.of_artifacts.extend(manifest.layers.into_iter().map(|blob| blob.digest));
        }
    }

    /// A blob as it is.
    fn blob(&mut self, name: String, digest: Digest, archive: &mut Archive<Chunks>) -> Result<()> {
        if self.images.content.contains(&digest) {
            self.found.blobs.insert(name, Ok(None));
            return Ok(());
        }
        let taken = self.images.ingest_named(digest, archive.left(), &mut || archive.chunk());
        if let Err(error @ (Error::Io { .. } | Error::Input(_))) = taken {
            return Err(error);
        }
        self.found.blobs.insert(name, taken.map(Some));
        Ok(())
    }

    /// A layer in an OCI layout is named by its digest; what the store has under it was verified when
    /// it came, so the member need not be looked at.
    fn known(&self, name: &str) -> Result<Option<LayerLease>> {
        let Some(digest) = blob_digest(name) else { return Ok(None) };
        let Some(diff) = self.images.known_layer(&digest)? else { return Ok(None) };
        self.images.lease_layers(&[diff]).map(Some)
    }
}

/// The member that is a blob of an OCI layout.
pub(super) fn member(digest: &Digest) -> String {
    format!("{BLOBS}{}", digest.hex())
}

fn blob_digest(name: &str) -> Option<Digest> {
    format!("sha256:{}", name.strip_prefix(BLOBS)?).parse().ok()
}

/// Whether it is said to be for another system than Linux.
pub(super) fn is_foreign(entry: &Descriptor) -> bool {
    entry.platform.as_ref().is_some_and(|platform| platform.os != "linux")
}

/// What people see of a layer: the beginning of the digest or id in its name.
fn short(name: &str) -> String {
    let digits =
        name.split('/').find(|part| part.len() >= 64).or_else(|| name.rsplit('/').next()).unwrap_or(name);
    digits.chars().take(12).collect()
}

/// A member's name without `.`, `..` and empty parts. Names are keys here and never paths.
pub(super) fn clean(name: &[u8]) -> Result<String> {
    let name =
        std::str::from_utf8(name).map_err(|_| Error::Archive("a member's name is not UTF-8".to_owned()))?;
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}
