//! A local file or folder as a tar stream.

use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// What is packed and what it is called in the archive.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// Name of the top entry; empty packs the content of a folder without the folder.
    pub(crate) name: PathBuf,
    /// Pack what a symbolic link at `path` points to.
    pub(crate) follow: bool,
    /// Keep owners; otherwise everything belongs to root.
    pub(crate) keep_owner: bool,
}

/// Writes the archive; errors name the file.
pub(crate) fn pack(source: &Source, sink: &mut dyn Write) -> io::Result<()> {
    let mut builder = tar::Builder::new(sink);
    let metadata = if source.follow { source.path.metadata() } else { source.path.symlink_metadata() };
    let metadata = metadata.map_err(|error| at(&source.path, error))?;
    entry(&mut builder, source, &source.path, &source.name, &metadata)?;
    builder.finish()
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn entry(
    builder: &mut tar::Builder<&mut dyn Write>,
    source: &Source,
    path: &Path,
    name: &Path,
    metadata: &Metadata,
) -> io::Result<()> {
    let kind = metadata.file_type();
    if kind.is_socket() {
        return Ok(());
    }
    let mut header = tar::Header::new_gnu();
    header.set_metadata(metadata);
    if !source.keep_owner {
        header.set_uid(0);
        header.set_gid(0);
    }
    if kind.is_dir() {
        if !name.as_os_str().is_empty() {
            header.set_size(0);
            builder.append_data(&mut header, name, io::empty())?;
        }
        let mut children: Vec<_> =
            path.read_dir().and_then(Iterator::collect::<io::Result<_>>).map_err(|error| at(path, error))?;
        children.sort_by_key(std::fs::DirEntry::file_name);
        for child in children {
            let child_path = child.path();
            let metadata = child_path.symlink_metadata().map_err(|error| at(&child_path, error))?;
            entry(builder, source, &child_path, &name.join(child.file_name()), &metadata)?;
        }
        return Ok(());
    }
    if kind.is_symlink() {
        let target = path.read_link().map_err(|error| at(path, error))?;
        header.set_size(0);
        return builder.append_link(&mut header, name, target);
    }
    if kind.is_file() {
        let file = File::open(path).map_err(|error| at(path, error))?;
        // A file that grows or shrinks meanwhile keeps the size that the header promises.
        let content = file.chain(io::repeat(0)).take(metadata.len());
        header.set_size(metadata.len());
        return builder.append_data(&mut header, name, content);
    }
    header.set_size(0);
    builder.append_data(&mut header, name, io::empty())
}
