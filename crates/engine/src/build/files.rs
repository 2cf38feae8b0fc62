//! `COPY` and `ADD`: from a tree to the archive of a layer, without a container.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use insula_base::Digest;
use insula_build::{CopyOp, Ignore};
use rustix::fs::FileType;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::sources::{Picked, pick};
use crate::tree::{Dir, Entry, Last, Place, Tree};
use crate::{Error, Result};

/// Deeper trees are not walked: each level holds descriptors.
const DEPTH_MAX: usize = 512;
/// Entries of one copy.
const ENTRIES_MAX: usize = 4 << 20;
/// What fits into a header; longer names go into an extension of their own.
const NAME_MAX: usize = 100;
const BUFFER: usize = 128 << 10;
const CAPABILITY: &str = "security.capability";

/// Whose the copies are, and who may do what with them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Attributes {
    /// User and group; those of the source without it.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<u32>,
}

/// One entry of the layer.
#[derive(Debug)]
struct Planned {
    /// Without a slash in front.
    to: Vec<u8>,
    /// In the source's tree.
    from: PathBuf,
    content: Content,
    mode: u32,
    owner: (u32, u32),
    /// Seconds.
    modified: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Content {
    Folder,
    File,
    Text(Vec<u8>),
    Link(Vec<u8>),
}

/// Everything that is to be copied, in the order of the archive.
#[derive(Debug)]
pub(super) struct Copying<'a> {
    source: &'a Tree,
    entries: Vec<Planned>,
}

impl<'a> Copying<'a> {
    /// Looks at the sources and at what is at the destination.
    pub(super) fn plan(
        op: &CopyOp,
        source: &'a Tree,
        target: &Tree,
        ignore: &Ignore,
        attributes: Attributes,
        now: u64,
    ) -> Result<Self> {
        let picked = pick(op, source, ignore)?;
        let mut copying = Self { source, entries: Vec::new() };
        let several = picked.len() + op.transfer.sources.heredocs.len() > 1;
        let there = resolved(target, &op.destination)?;
        let folder = op.destination.ends_with('/') || there.folder || several;
        if several && !op.destination.ends_with('/') && op.transfer.sources.paths.len() > 1 {
            return Err(Error::InvalidArgument(
                "when copying more than one source file, the destination must be a directory and end with a /"
                    .to_owned(),
            ));
        }
        let owner = attributes.owner.unwrap_or((0, 0));
        copying.parents(target, &there.path, folder, owner, now)?;
        for one in &picked {
            copying.add(one, &there.path, folder, target, ignore, attributes, (owner, now))?;
        }
        for heredoc in &op.transfer.sources.heredocs {
            let to = if folder { there.path.join(&heredoc.name) } else { there.path.clone() };
            copying.entries.push(Planned {
                to: relative(&to),
                from: PathBuf::new(),
                content: Content::Text(heredoc.content.clone().into_bytes()),
                mode: attributes.mode.unwrap_or(0o644),
                owner,
                modified: now,
            });
        }
        Ok(copying)
    }

    /// Folders above the destination, and the destination itself if it is one, that are not there.
    fn parents(
        &mut self,
        target: &Tree,
        path: &Path,
        folder: bool,
        owner: (u32, u32),
        now: u64,
    ) -> Result<()> {
        let last = if folder { Some(path) } else { path.parent() };
        let mut missing = Vec::new();
        for above in last.into_iter().flat_map(Path::ancestors).filter(|above| *above != Path::new("/")) {
            let there = resolved(target, &above.to_string_lossy())?;
            if there.file {
                return Err(Error::InvalidArgument(format!("{} is not a folder", above.display())));
            }
            if there.folder {
                break;
            }
            missing.push(above.to_owned());
        }
        self.entries.extend(missing.into_iter().rev().map(|path| Planned {
            to: relative(&path),
            from: PathBuf::new(),
            content: Content::Folder,
            mode: 0o755,
            owner,
            modified: now,
        }));
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one source and where it goes")]
    fn add(
        &mut self,
        one: &Picked,
        base: &Path,
        folder: bool,
        target: &Tree,
        ignore: &Ignore,
        attributes: Attributes,
        (owner, now): ((u32, u32), u64),
    ) -> Result<()> {
        let place = &one.place;
        match place.dir() {
            Some(dir) => {
                let to = joined(base, &one.below);
                self.parents(target, &to, true, owner, now)?;
                self.folder(dir, &place.path, &to, target, ignore, attributes, 0)
            }
            None => {
                let entry = place.entry.as_ref().ok_or_else(|| missing(&place.path))?;
                let name: OsString = if folder { place.name.clone() } else { OsString::new() };
                let to = joined(base, &one.below);
                if !one.below.as_os_str().is_empty() {
                    self.parents(target, &to, true, owner, now)?;
                }
                let to = if name.is_empty() { to } else { to.join(name) };
                self.leaf(place.parent(), &place.name, entry, &place.path, &to, target, attributes)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a folder and where it goes")]
    fn folder(
        &mut self,
        dir: &Dir,
        from: &Path,
        to: &Path,
        target: &Tree,
        ignore: &Ignore,
        attributes: Attributes,
        depth: usize,
    ) -> Result<()> {
        let fail = |error| Error::io("read the folder", from, error);
        if depth > DEPTH_MAX || self.entries.len() > ENTRIES_MAX {
            return Err(fail(rustix::io::Errno::NAMETOOLONG));
        }
        for name in dir.names().map_err(fail)? {
            let Some(entry) = self.source.look(dir, from, &name).map_err(fail)? else { continue };
            let (below, inner) = (from.join(&name), to.join(&name));
            let relative_path = below.to_string_lossy();
            let ignored = ignore.ignores(&relative_path);
            if ignored && !(entry.dir.is_some() && ignore.may_keep_below(&relative_path)) {
                continue;
            }
            match &entry.dir {
                Some(inside) => {
                    if !ignored {
                        self.entries.push(planned(
                            &entry,
                            below.clone(),
                            &inner,
                            Content::Folder,
                            attributes,
                        ));
                    }
                    self.folder(inside, &below, &inner, target, ignore, attributes, depth + 1)?;
                }
                None => self.leaf(Some(dir), &name, &entry, &below, &inner, target, attributes)?,
            }
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "a file and where it goes")]
    fn leaf(
        &mut self,
        parent: Option<&Dir>,
        name: &std::ffi::OsStr,
        entry: &Entry,
        from: &Path,
        to: &Path,
        target: &Tree,
        attributes: Attributes,
    ) -> Result<()> {
        let content = match entry.kind() {
            FileType::RegularFile => Content::File,
            FileType::Symlink => {
                let parent = parent.ok_or_else(|| missing(from))?;
                let link = parent.read_link(name, entry).map_err(|e| Error::io("readlink", from, e))?;
                Content::Link(link.as_bytes().to_vec())
            }
            FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
                return Err(Error::Unsupported(format!(
                    "{}: devices, FIFOs and sockets cannot be copied",
                    from.display()
                )));
            }
            _ => return Err(missing(from)),
        };
        if resolved(target, &to.to_string_lossy()).is_ok_and(|there| there.folder) {
            return Err(Error::InvalidArgument(format!(
                "cannot copy the file {} over the folder {}",
                from.display(),
                to.display()
            )));
        }
        self.entries.push(planned(entry, from.to_owned(), to, content, attributes));
        Ok(())
    }

    /// Names, attributes and contents, but no times: what is the same makes the same layer of what is below.
    pub(super) fn digest(&self) -> Result<Digest> {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        let mut reader = Reader::new(self.source);
        for entry in &self.entries {
            field(&entry.to);
            field(&entry.mode.to_be_bytes());
            field(&entry.owner.0.to_be_bytes());
            field(&entry.owner.1.to_be_bytes());
            match &entry.content {
                Content::Folder => field(b"folder"),
                Content::Link(target) => {
                    field(b"link");
                    field(target);
                }
                Content::Text(text) => {
                    field(b"file");
                    field(&[0; 0]);
                    field(&Sha256::digest(text));
                }
                Content::File => {
                    field(b"file");
                    let (file, _, capability) = reader.open(&entry.from)?;
                    field(&capability);
                    field(&hashed(file).map_err(|e| Error::io("read", &entry.from, e))?);
                }
            }
        }
        Ok(Digest::from_sha256(&hash.finalize().into()))
    }

    /// Writes the archive; returns the number of its entries.
    pub(super) fn write(&self, out: &mut dyn Write) -> Result<u64> {
        let mut tar = Builder::new(out);
        let mut reader = Reader::new(self.source);
        for entry in &self.entries {
            let fail = |error: io::Error| Error::io("write the layer of", &entry.from, error);
            let mut header = Header::new_ustar();
            header.set_mode(entry.mode);
            header.set_uid(entry.owner.0.into());
            header.set_gid(entry.owner.1.into());
            header.set_mtime(entry.modified);
            header.set_size(0);
            match &entry.content {
                Content::Folder => {
                    header.set_entry_type(EntryType::Directory);
                    let name = [&entry.to[..], b"/"].concat();
                    append(&mut tar, header, &name, b"", &[], io::empty()).map_err(fail)?;
                }
                Content::Link(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    append(&mut tar, header, &entry.to, target, &[], io::empty()).map_err(fail)?;
                }
                Content::Text(text) => {
                    header.set_size(text.len() as u64);
                    append(&mut tar, header, &entry.to, b"", &[], &text[..]).map_err(fail)?;
                }
                Content::File => {
                    let (file, size, capability) = reader.open(&entry.from)?;
                    header.set_size(size);
                    let content = file.chain(io::repeat(0)).take(size);
                    append(&mut tar, header, &entry.to, b"", &capability, content).map_err(fail)?;
                }
            }
        }
        tar.finish().map_err(|error| Error::io("write the layer of", Path::new("/"), error))?;
        Ok(self.entries.len() as u64)
    }
}

fn planned(entry: &Entry, from: PathBuf, to: &Path, content: Content, attributes: Attributes) -> Planned {
    let stat = &entry.stat;
    let link = matches!(content, Content::Link(_));
    Planned {
        to: relative(to),
        from,
        mode: attributes.mode.filter(|_| !link).unwrap_or(stat.st_mode & 0o7777),
        owner: attributes.owner.unwrap_or((stat.st_uid, stat.st_gid)),
        modified: u64::try_from(stat.st_mtime).unwrap_or(0),
        content,
    }
}

/// Opens files by path; most are in the folder of the one before.
struct Reader<'a> {
    tree: &'a Tree,
    folder: Option<(PathBuf, Place)>,
}

impl<'a> Reader<'a> {
    fn new(tree: &'a Tree) -> Self {
        Self { tree, folder: None }
    }

    /// The file, its size and its capabilities.
    fn open(&mut self, path: &Path) -> Result<(File, u64, Vec<u8>)> {
        let (above, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
        if self.folder.as_ref().is_none_or(|(known, _)| known != above) {
            self.folder = Some((above.to_owned(), self.tree.resolve(above, Last::Keep)?));
        }
        let fail = |error| Error::io("open", path, error);
        let dir = self.folder.as_ref().and_then(|(_, place)| place.dir()).ok_or_else(|| missing(path))?;
        let entry = self.tree.look(dir, above, name).map_err(fail)?.ok_or_else(|| missing(path))?;
        let file = dir.open(name, &entry).map_err(fail)?;
        let stat = rustix::fs::fstat(&file).map_err(fail)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(missing(path));
        }
        let mut capability = [0u8; 64];
        let length = rustix::fs::fgetxattr(&file, CAPABILITY, &mut capability[..]).unwrap_or(0);
        Ok((file.into(), u64::try_from(stat.st_size).unwrap_or(0), capability[..length].to_vec()))
    }
}

fn append(
    tar: &mut Builder<&mut dyn Write>,
    mut header: Header,
    name: &[u8],
    link: &[u8],
    capability: &[u8],
    content: impl Read,
) -> io::Result<()> {
    let mut extensions: Vec<(&str, &[u8])> = Vec::new();
    if !capability.is_empty() {
        extensions.push(("SCHILY.xattr.security.capability", capability));
    }
    extensions
        .extend([("linkpath", link), ("path", name)].into_iter().filter(|(_, text)| text.len() > NAME_MAX));
    if !extensions.is_empty() {
        tar.append_pax_extensions(extensions)?;
    }
    let fields = header.as_old_mut();
    for (field, text) in [(&mut fields.name, name), (&mut fields.linkname, link)] {
        let length = text.len().min(NAME_MAX);
        field[..length].copy_from_slice(&text[..length]);
    }
    header.set_cksum();
    tar.append(&header, content)
}

fn hashed(mut file: File) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// Where a path leads, as far as there is something.
pub(super) struct There {
    /// Free of links as far as it exists.
    pub(super) path: PathBuf,
    pub(super) folder: bool,
    /// Something else than a folder.
    file: bool,
}

/// Follows the links of what exists; the rest is to be made.
pub(super) fn resolved(tree: &Tree, path: &str) -> Result<There> {
    let path = Path::new("/").join(path.trim_start_matches('/'));
    for above in path.ancestors() {
        match tree.resolve(above, Last::Follow) {
            Ok(place) if place.dir().is_some() => {
                let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
                let folder = rest.as_os_str().is_empty();
                let path = if folder { place.path } else { place.path.join(rest) };
                return Ok(There { path, folder, file: false });
            }
            Ok(place) if place.entry.is_some() => {
                if above == path {
                    return Ok(There { path: place.path, folder: false, file: true });
                }
                return Err(Error::InvalidArgument(format!("{} is not a folder", above.display())));
            }
            Ok(_) => {}
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(There { folder: false, file: false, path })
}

/// A path joined with nothing would end with a slash.
fn joined(base: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { base.to_owned() } else { base.join(below) }
}

fn relative(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes();
    bytes.strip_prefix(b"/").unwrap_or(bytes).to_vec()
}

pub(super) fn missing(path: &Path) -> Error {
    Error::NotFound(format!("{} does not exist in the build context", path.display()))
}

/// `ADD` unpacks archives; those that this version cannot are not copied as if they were files.
pub(super) fn refuse_archives(op: &CopyOp, source: &Tree) -> Result<()> {
    if op.transfer.unpack == Some(false) {
        return Ok(());
    }
    for one in pick(op, source, &Ignore::default())? {
        let (Some(dir), Some(entry)) = (one.place.parent(), &one.place.entry) else { continue };
        if entry.kind() != FileType::RegularFile {
            continue;
        }
        let fail = |error| Error::io("read", &one.place.path, error);
        let file = File::from(dir.open(&one.place.name, entry).map_err(|e| fail(e.into()))?);
        let mut head = Vec::new();
        file.take(512).read_to_end(&mut head).map_err(fail)?;
        if is_archive(&head) {
            return Err(Error::Unsupported(format!(
                "ADD {}: unpacking archives is not available in this version: unpack it in a RUN, or say --unpack=false",
                one.place.path.display()
            )));
        }
    }
    Ok(())
}

/// Compressed with something that tars are, or a tar.
fn is_archive(head: &[u8]) -> bool {
    let compressed: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"];
    compressed.iter().any(|magic| head.starts_with(magic)) || head.get(257..262) == Some(b"ustar")
}
