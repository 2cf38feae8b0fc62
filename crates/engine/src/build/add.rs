//! What `ADD` does beside copying: archives are unpacked and what is elsewhere is fetched, into a scratch folder
//! first, so that the layer is found by what was in them.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufReader, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use insula_base::Digest;
use insula_build::attest::Material;
use insula_build::{CopyOp, GitReference, Ignore, Mode};
use insula_store::Scratch;
use insula_store::layers::{Limits, Whiteouts, unpack};
use jiff::fmt::rfc2822::DateTimeParser;
use rustix::fs::{FileType, Timespec, Timestamps, futimens};
use sha2::{Digest as _, Sha256};

use super::files::{Attributes, Copying, Item, Times};
use super::sources::{Picked, is_remote, pick};
use super::{attest, git};
use crate::archive::decompressed;
use crate::images::Images;
use crate::tree::{Last, Tree, clean};
use crate::{Error, Result, blocking};

const BUFFER: usize = 128 << 10;
/// Bytes of a tar's header, and of its first entry.
const HEADER: usize = 512;
/// Of a download that nothing is said about.
const PRIVATE: u32 = 0o600;

/// What an `ADD` has beside the context.
#[derive(Debug)]
pub(super) struct Added {
    scratch: Scratch,
    fetched: Vec<Fetched>,
}

/// One source that is elsewhere.
#[derive(Debug)]
struct Fetched {
    /// Which of the sources.
    number: usize,
    folder: PathBuf,
    /// What it is called there.
    name: String,
    kind: FetchedKind,
    material: Material,
}

/// A file that was downloaded.
#[derive(Debug)]
pub(super) struct Downloaded {
    pub(super) name: String,
    pub(super) digest: Digest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FetchedKind {
    Download,
    Repository,
}

/// Fetches what is elsewhere.
pub(super) async fn fetch(images: &Images, scratch: Scratch, op: &CopyOp) -> Result<Added> {
    let mut fetched = Vec::new();
    for (number, source) in op.transfer.sources.paths.iter().enumerate().filter(|(_, path)| is_remote(path)) {
        let folder = scratch.path().join(format!("fetched-{number}"));
        let checksum = op.transfer.checksum.as_deref();
        fetched.push(match GitReference::is_one(source) {
            true => {
                let keep = op.transfer.keep_git_dir;
                let found = git::fetch(source, &folder, git::Wanted { checksum, keep }).await?;
                let folder = folder.join(git::FILES);
                let material = attest::fetched(source, "gitCommit", &found.commit);
                let name = found.reference.folder;
                Fetched { number, folder, name, kind: FetchedKind::Repository, material }
            }
            false => {
                let Downloaded { name, digest } = download(images, source, &folder, checksum, None).await?;
                let material = attest::downloaded(source, &digest);
                Fetched { number, folder, name, kind: FetchedKind::Download, material }
            }
        });
    }
    if op.transfer.keep_git_dir && fetched.iter().all(|fetched| fetched.kind != FetchedKind::Repository) {
        return Err(Error::InvalidArgument("--keep-git-dir is for sources that are repositories".to_owned()));
    }
    if fetched.is_empty() && op.transfer.checksum.is_some() {
        return Err(Error::InvalidArgument("--checksum is for sources that are downloaded".to_owned()));
    }
    Ok(Added { scratch, fetched })
}

/// Puts a file into a folder of its own; its name is `otherwise` if the address does not say it.
pub(super) async fn download(
    images: &Images,
    source: &str,
    folder: &Path,
    checksum: Option<&str>,
    otherwise: Option<&str>,
) -> Result<Downloaded> {
    let wanted = checksum.map(str::parse::<Digest>).transpose().map_err(|error| {
        Error::InvalidArgument(format!("--checksum={}: {error}", checksum.unwrap_or_default()))
    })?;
    let mut fetch = images.registries().fetch(source).await?;
    let name = fetch.name.clone().or(otherwise.map(str::to_owned)).ok_or_else(|| {
        Error::InvalidArgument(format!("ADD {source}: the address does not say what the file is called"))
    })?;
    std::fs::DirBuilder::new().mode(0o700).create(folder).map_err(|e| Error::io("mkdir", folder, e))?;
    let path = folder.join(&name);
    let mut file = File::create_new(&path).map_err(|e| Error::io("create", &path, e))?;
    let mut hash = Sha256::new();
    while let Some(chunk) = fetch.next().await? {
        hash.update(&chunk);
        let at = path.clone();
        file = blocking(move || {
            file.write_all(&chunk).map_err(|e| Error::io("write", &at, e))?;
            Ok(file)
        })
        .await?;
    }
    let found = Digest::from_sha256(&hash.finalize().into());
    if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
        return Err(Error::InvalidArgument(format!(
            "digest mismatch for {source}: {found} was downloaded, {wanted} is expected"
        )));
    }
    let modified =
        fetch.modified.as_deref().and_then(|text| DateTimeParser::new().parse_timestamp(text).ok());
    let time = Timespec { tv_sec: modified.map_or(0, |time| time.as_second()), tv_nsec: 0 };
    futimens(&file, &Timestamps { last_access: time, last_modification: time })
        .map_err(|e| Error::io("utimensat", &path, e))?;
    Ok(Downloaded { name, digest: found })
}

impl Added {
    /// What came from elsewhere.
    pub(super) fn materials(&self) -> impl Iterator<Item = Material> {
        self.fetched.iter().map(|fetched| fetched.material.clone())
    }
}

/// One source, and in which tree it is: the context, or one of the scratch folder's.
struct Source {
    tree: Option<usize>,
    picked: Picked,
    attributes: Attributes,
    unpacked: bool,
}

/// Everything that an `ADD` adds, handed to `write` while the trees are there.
pub(super) fn with<T>(
    op: &CopyOp,
    added: &Added,
    (context, target): (&Tree, &Tree),
    ignore: &Ignore,
    (attributes, times): (&Attributes, Times),
    write: impl FnOnce(&Copying<'_>) -> Result<T>,
) -> Result<T> {
    let mut trees = Vec::new();
    let mut sources = Vec::new();
    for (number, path) in op.transfer.sources.paths.iter().enumerate() {
        if let Some(fetched) = added.fetched.iter().find(|fetched| fetched.number == number) {
            let tree = Tree::running(&fetched.folder, 0)?;
            let place = tree.resolve(&clean(&fetched.name), Last::Keep)?;
            if place.entry.is_none() && place.dir().is_none() {
                return Err(Error::NotFound(format!("ADD {path}: there is no folder {}", fetched.name)));
            }
            let name = place.name.clone();
            let picked = Picked { place, below: PathBuf::new(), name };
            if fetched.kind == FetchedKind::Repository {
                trees.push(tree);
                let tree = Some(trees.len() - 1);
                sources.push(Source { tree, picked, attributes: attributes.clone(), unpacked: false });
                continue;
            }
            let mode = attributes.mode.clone().unwrap_or(Mode::Octal(PRIVATE));
            let attributes = Attributes { mode: Some(mode), ..attributes.clone() };
            let unpacks = op.transfer.unpack == Some(true);
            trees.push(tree);
            let source = Source { tree: Some(trees.len() - 1), picked, attributes, unpacked: false };
            sources.push(opened(source, unpacks, added, &mut trees)?);
            continue;
        }
        for picked in pick(op, path, context, ignore)? {
            let source = Source { tree: None, picked, attributes: attributes.clone(), unpacked: false };
            sources.push(opened(source, op.transfer.unpack != Some(false), added, &mut trees)?);
        }
    }
    let everything = Ignore::default();
    let items: Vec<Item<'_>> = sources
        .into_iter()
        .map(|source| Item {
            tree: source.tree.map_or(context, |number| &trees[number]),
            ignore: if source.tree.is_none() { ignore } else { &everything },
            picked: source.picked,
            attributes: source.attributes,
            unpacked: source.unpacked,
        })
        .collect();
    write(&Copying::of(op, &items, target, attributes.clone(), times)?)
}

/// An archive becomes what is in it, with the owners and modes that it says.
fn opened(source: Source, unpacks: bool, added: &Added, trees: &mut Vec<Tree>) -> Result<Source> {
    let place = &source.picked.place;
    let (Some(dir), Some(entry)) = (place.parent(), &place.entry) else { return Ok(source) };
    if !unpacks || entry.kind() != FileType::RegularFile {
        return Ok(source);
    }
    let fail = |error| Error::io("read", &place.path, error);
    let mut file = File::from(dir.open(&place.name, entry).map_err(|e| fail(e.into()))?);
    if !is_archive(&file)? {
        return Ok(source);
    }
    file.rewind().map_err(fail)?;
    let folder = added.scratch.path().join(format!("unpacked-{}", trees.len()));
    std::fs::DirBuilder::new().mode(0o755).create(&folder).map_err(|e| Error::io("mkdir", &folder, e))?;
    let root = File::open(&folder).map_err(|e| Error::io("open", &folder, e))?;
    let archive = decompressed(BufReader::with_capacity(BUFFER, file))?;
    unpack(archive, root.as_fd(), &Limits::default(), Whiteouts::Ordinary)?;
    let tree = Tree::running(&folder, 0)?;
    let place = tree.resolve(Path::new("/"), Last::Keep)?;
    trees.push(tree);
    Ok(Source {
        tree: Some(trees.len() - 1),
        picked: Picked { place, below: source.picked.below, name: OsString::new() },
        attributes: Attributes::default(),
        unpacked: true,
    })
}

/// Whether it is a tar, plain or compressed: what is compressed may be something else.
pub(super) fn is_archive(file: &File) -> Result<bool> {
    let mut source = BufReader::new(file);
    let mut head = Vec::new();
    let read = match decompressed(&mut source) {
        Ok(plain) => plain.take(HEADER as u64).read_to_end(&mut head),
        // What cannot be looked into cannot be known to be none.
        Err(error) => return Err(error),
    };
    if read.is_err() || head.len() < HEADER || head.iter().all(|byte| *byte == 0) {
        return Ok(false);
    }
    // The sum of all bytes, its own field as if it were blank.
    let sum: u32 = head
        .iter()
        .enumerate()
        .map(|(at, byte)| u32::from(if (148..156).contains(&at) { b' ' } else { *byte }))
        .sum();
    let field = String::from_utf8_lossy(&head[148..156]);
    let said = u32::from_str_radix(field.trim_matches([' ', '\0']), 8);
    Ok(said.is_ok_and(|said| said == sum))
}
