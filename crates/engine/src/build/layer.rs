//! The layer of a `COPY`: what it is found by, and its archive.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use insula_base::Digest;
use insula_store::layers::attributes;
use rustix::fs::FileType;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::files::{Content, Copying, Planned, missing};
use crate::tree::{Last, Place, Tree};
use crate::{Error, Result};

/// What fits into a header; longer names go into an extension of their own.
const NAME_MAX: usize = 100;
const BUFFER: usize = 128 << 10;

type Attribute = (String, Vec<u8>);

impl Copying<'_> {
    /// Names, attributes and contents, but no times: what is the same makes the same layer of what is below.
    pub(super) fn digest(&self) -> Result<Digest> {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        let mut readers = Readers::new(&self.trees);
        for entry in &self.entries {
            field(&entry.to);
            field(&entry.mode.to_be_bytes());
            field(&entry.owner.0.to_be_bytes());
            field(&entry.owner.1.to_be_bytes());
            match &entry.content {
                Content::Folder => {
                    field(b"folder");
                    readers.folder(entry)?.iter().for_each(|(name, value)| {
                        field(name.as_bytes());
                        field(value);
                    });
                }
                Content::Link(target) => {
                    field(b"link");
                    field(target);
                }
                Content::Hard(first) => {
                    field(b"hard");
                    field(first);
                }
                Content::Node { kind, major, minor } => {
                    field(b"node");
                    field(&[kind.as_byte()]);
                    field(&major.to_be_bytes());
                    field(&minor.to_be_bytes());
                }
                Content::Text(text) => {
                    field(b"file");
                    field(&Sha256::digest(text));
                }
                Content::File => {
                    field(b"file");
                    let (file, _, attributes) = readers.open(entry)?;
                    for (name, value) in &attributes {
                        field(name.as_bytes());
                        field(value);
                    }
                    field(&hashed(file).map_err(|e| Error::io("read", &entry.from, e))?);
                }
            }
        }
        Ok(Digest::from_sha256(&hash.finalize().into()))
    }

    /// Writes the archive; returns the number of its entries.
    pub(super) fn write(&self, out: &mut dyn Write) -> Result<u64> {
        let mut tar = Builder::new(out);
        let mut readers = Readers::new(&self.trees);
        for entry in &self.entries {
            write(&mut tar, entry, &mut readers)?;
        }
        tar.finish().map_err(|error| Error::io("write the layer of", Path::new("/"), error))?;
        Ok(self.entries.len() as u64)
    }
}

fn write(tar: &mut Builder<&mut dyn Write>, entry: &Planned, readers: &mut Readers<'_>) -> Result<()> {
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
            let attributes = readers.folder(entry)?;
            append(tar, header, &name, b"", &attributes, io::empty()).map_err(fail)
        }
        Content::Link(target) => {
            header.set_entry_type(EntryType::Symlink);
            append(tar, header, &entry.to, target, &[], io::empty()).map_err(fail)
        }
        Content::Hard(first) => {
            header.set_entry_type(EntryType::Link);
            append(tar, header, &entry.to, first, &[], io::empty()).map_err(fail)
        }
        Content::Node { kind, major, minor } => {
            header.set_entry_type(*kind);
            header.set_device_major(*major).map_err(fail)?;
            header.set_device_minor(*minor).map_err(fail)?;
            append(tar, header, &entry.to, b"", &[], io::empty()).map_err(fail)
        }
        Content::Text(text) => {
            header.set_size(text.len() as u64);
            append(tar, header, &entry.to, b"", &[], &text[..]).map_err(fail)
        }
        Content::File => {
            let (file, size, attributes) = readers.open(entry)?;
            header.set_size(size);
            // A file that shrinks is filled up with zeros, one that grows is cut: the header is out.
            let content = file.chain(io::repeat(0)).take(size);
            append(tar, header, &entry.to, b"", &attributes, content).map_err(fail)
        }
    }
}

/// Opens what is in trees by path; most is in the folder of the one before.
struct Readers<'a> {
    trees: &'a [&'a Tree],
    above: Option<(usize, PathBuf, Place)>,
}

impl<'a> Readers<'a> {
    fn new(trees: &'a [&'a Tree]) -> Self {
        Self { trees, above: None }
    }

    fn tree(&self, entry: &Planned) -> Result<&'a Tree> {
        let tree = self.trees.get(entry.tree).copied();
        tree.ok_or_else(|| Error::Internal("a copy has no tree".to_owned()))
    }

    /// Extended attributes of a folder; one that is made for the copy has none.
    fn folder(&self, entry: &Planned) -> Result<Vec<Attribute>> {
        if entry.from.as_os_str().is_empty() {
            return Ok(Vec::new());
        }
        let place = self.tree(entry)?.resolve(&entry.from, Last::Keep)?;
        match place.dir().and_then(|dir| dir.topmost()) {
            Some(folder) => Ok(attributes(folder, &entry.to)?),
            None => Err(missing(&entry.from)),
        }
    }

    /// The file, its size and its extended attributes.
    fn open(&mut self, entry: &Planned) -> Result<(File, u64, Vec<Attribute>)> {
        let (tree, path) = (self.tree(entry)?, &entry.from);
        let (above, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
        if self.above.as_ref().is_none_or(|(number, known, _)| *number != entry.tree || known != above) {
            self.above = Some((entry.tree, above.to_owned(), tree.resolve(above, Last::Keep)?));
        }
        let fail = |error| Error::io("open", path, error);
        let dir = self.above.as_ref().and_then(|(_, _, place)| place.dir()).ok_or_else(|| missing(path))?;
        let found = tree.look(dir, above, name).map_err(fail)?.ok_or_else(|| missing(path))?;
        let file = dir.open(name, &found).map_err(fail)?;
        let stat = rustix::fs::fstat(&file).map_err(fail)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(missing(path));
        }
        let attributes = attributes(file.as_fd(), &entry.to)?;
        Ok((file.into(), u64::try_from(stat.st_size).unwrap_or(0), attributes))
    }
}

fn append(
    tar: &mut Builder<&mut dyn Write>,
    mut header: Header,
    name: &[u8],
    link: &[u8],
    attributes: &[Attribute],
    content: impl Read,
) -> io::Result<()> {
    let mut extensions: Vec<(String, &[u8])> =
        attributes.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice())).collect();
    for (key, text) in [("linkpath", link), ("path", name)] {
        if text.len() > NAME_MAX {
            extensions.push((key.to_owned(), text));
        }
    }
    if !extensions.is_empty() {
        tar.append_pax_extensions(extensions.iter().map(|(key, value)| (key.as_str(), *value)))?;
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
