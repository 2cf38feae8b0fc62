//! A folder as the context of a build: a tar of what its `.dockerignore` leaves.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use insula_build::Ignore;

use super::pack::{append_file, at};

/// What is sent.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) folder: PathBuf,
    pub(crate) ignore: Ignore,
    /// Sent whatever the patterns say: paths in the folder.
    pub(crate) always: Vec<String>,
    /// A Dockerfile from elsewhere: its name in the archive, and its content.
    pub(crate) extra: Option<(String, Vec<u8>)>,
}

impl Context {
    /// Writes the archive; errors name the file.
    pub(crate) fn pack(&self, sink: &mut dyn Write) -> io::Result<()> {
        let mut builder = tar::Builder::new(sink);
        self.folder(&mut builder, &self.folder, "")?;
        if let Some((name, content)) = &self.extra {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o600);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, &content[..])?;
        }
        builder.finish()
    }

    fn folder(&self, builder: &mut tar::Builder<&mut dyn Write>, path: &Path, name: &str) -> io::Result<()> {
        let children = path.read_dir().and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut children = children.map_err(|error| at(path, error))?;
        children.sort_by_key(std::fs::DirEntry::file_name);
        for child in children {
            let below = match name {
                "" => child.file_name().to_string_lossy().into_owned(),
                name => format!("{name}/{}", child.file_name().to_string_lossy()),
            };
            self.entry(builder, &child.path(), &below)?;
        }
        Ok(())
    }

    fn entry(&self, builder: &mut tar::Builder<&mut dyn Write>, path: &Path, name: &str) -> io::Result<()> {
        let metadata = path.symlink_metadata().map_err(|error| at(path, error))?;
        let kind = metadata.file_type();
        let ignored = self.ignore.ignores(name) && !self.always.iter().any(|always| always == name);
        let kept_below = self.always.iter().any(|always| always.starts_with(&format!("{name}/")));
        if ignored && !(kind.is_dir() && (kept_below || self.ignore.may_keep_below(name))) {
            return Ok(());
        }
        if kind.is_socket() {
            return Ok(());
        }
        let mut header = tar::Header::new_gnu();
        header.set_metadata(&metadata);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        if kind.is_dir() {
            builder.append_data(&mut header, name, io::empty())?;
            return self.folder(builder, path, name);
        }
        if kind.is_symlink() {
            let target = path.read_link().map_err(|error| at(path, error))?;
            return builder.append_link(&mut header, name, target);
        }
        if kind.is_file() {
            let file = File::open(path).map_err(|error| at(path, error))?;
            return append_file(builder, &mut header, name, &file, metadata.len(), &mut Vec::new());
        }
        builder.append_data(&mut header, name, io::empty())
    }
}
