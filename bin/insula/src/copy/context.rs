//! A folder as the context of a build: a tar of what its `.dockerignore` leaves.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use insula_build::Ignore;

use super::pack::{append_file, at, begin};

/// What is sent.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) folder: PathBuf,
    pub(crate) ignore: Ignore,
    /// Sent whatever the patterns say: paths in the folder.
    pub(crate) always: Vec<String>,
    /// A Dockerfile from elsewhere: its name in the archive, and its content.
    pub(crate) extra: Option<(String, Vec<u8>)>,
}

/// Told of a file: its path, its name in the context, and what lstat(2) says.
type Visit<'a> = dyn FnMut(&Path, &str, &Metadata) -> io::Result<()> + 'a;

impl Context {
    /// Writes the archive; errors name the file.
    pub(crate) fn pack(&self, sink: &mut dyn Write) -> io::Result<()> {
        let mut builder = tar::Builder::new(sink);
        self.each(
            &mut |name| self.always.iter().any(|always| always == name),
            &mut |path, name, metadata| append(&mut builder, path, name, metadata),
        )?;
        self.append_extra(&mut builder)?;
        builder.finish()
    }

    /// The same of some names alone, and without what patterns leave out.
    pub(crate) fn pack_some(&self, sink: &mut dyn Write, names: &HashSet<String>) -> io::Result<()> {
        let mut builder = tar::Builder::new(sink);
        self.walk(&mut |path, name, metadata| match names.contains(name) {
            true => append(&mut builder, path, name, metadata),
            false => Ok(()),
        })?;
        builder.finish()
    }

    /// What is sent though patterns leave it out, or is from elsewhere.
    pub(crate) fn pack_beside(&self, sink: &mut dyn Write) -> io::Result<()> {
        let mut builder = tar::Builder::new(sink);
        for name in self.always.iter().filter(|name| self.ignore.ignores(name)) {
            let path = self.folder.join(name);
            match path.symlink_metadata() {
                Ok(metadata) => append(&mut builder, &path, name, &metadata)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(at(&path, error)),
            }
        }
        self.append_extra(&mut builder)?;
        builder.finish()
    }

    fn append_extra(&self, builder: &mut tar::Builder<&mut dyn Write>) -> io::Result<()> {
        let Some((name, content)) = &self.extra else { return Ok(()) };
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, &content[..])
    }

    /// Everything that patterns leave, folders before what is in them.
    pub(crate) fn walk(&self, visit: &mut Visit<'_>) -> io::Result<()> {
        self.each(&mut |_| false, visit)
    }

    fn each(&self, kept: &mut dyn FnMut(&str) -> bool, visit: &mut Visit<'_>) -> io::Result<()> {
        self.folder(&self.folder, "", kept, visit)
    }

    fn folder(
        &self,
        path: &Path,
        name: &str,
        kept: &mut dyn FnMut(&str) -> bool,
        visit: &mut Visit<'_>,
    ) -> io::Result<()> {
        let children = path.read_dir().and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut children = children.map_err(|error| at(path, error))?;
        children.sort_by_key(std::fs::DirEntry::file_name);
        for child in children {
            let below = match name {
                "" => child.file_name().to_string_lossy().into_owned(),
                name => format!("{name}/{}", child.file_name().to_string_lossy()),
            };
            self.entry(&child.path(), &below, kept, visit)?;
        }
        Ok(())
    }

    fn entry(
        &self,
        path: &Path,
        name: &str,
        kept: &mut dyn FnMut(&str) -> bool,
        visit: &mut Visit<'_>,
    ) -> io::Result<()> {
        let metadata = path.symlink_metadata().map_err(|error| at(path, error))?;
        let kind = metadata.file_type();
        let ignored = self.ignore.ignores(name) && !kept(name);
        let kept_below = self.always.iter().any(|always| always.starts_with(&format!("{name}/")));
        if ignored && !(kind.is_dir() && (kept_below || self.ignore.may_keep_below(name))) {
            return Ok(());
        }
        if kind.is_socket() {
            return Ok(());
        }
        visit(path, name, &metadata)?;
        if kind.is_dir() { self.folder(path, name, kept, visit) } else { Ok(()) }
    }
}

fn append(
    builder: &mut tar::Builder<&mut dyn Write>,
    path: &Path,
    name: &str,
    metadata: &Metadata,
) -> io::Result<()> {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target = path.read_link().map_err(|error| at(path, error))?;
        let mut header = begin(builder, metadata, false)?;
        header.set_size(0);
        return builder.append_link(&mut header, name, target);
    }
    if kind.is_file() {
        let file = File::open(path).map_err(|error| at(path, error))?;
        let mut header = begin(builder, metadata, false)?;
        return append_file(builder, &mut header, name, &file, metadata.len(), &mut Vec::new());
    }
    let mut header = begin(builder, metadata, false)?;
    header.set_size(0);
    builder.append_data(&mut header, name, io::empty())
}
