//! Which files the sources of a `COPY` are: paths below the root of a tree, with patterns.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use insula_build::{CopyOp, GitReference, Ignore};

use super::files::missing;
use crate::tree::{Last, Place, Tree};
use crate::{Error, Result};

/// Files that one pattern may be like.
const MATCHES_MAX: usize = 64 << 10;

/// One source.
#[derive(Debug)]
pub(super) struct Picked {
    pub(super) place: Place,
    /// Where below the destination it goes: with `--parents`, what its path says.
    pub(super) below: PathBuf,
    /// What it is called: a link's own name, though its file is copied.
    pub(super) name: OsString,
}

/// Everything that a source is, which has to be something.
pub(super) fn pick(op: &CopyOp, source: &str, tree: &Tree, ignore: &Ignore) -> Result<Vec<Picked>> {
    let mut picked = Vec::new();
    let (pivot, pattern) = pivoted(source, op.transfer.parents);
    for path in matches(tree, &clean(&pattern))? {
        let shown = path.to_string_lossy().into_owned();
        let place = tree.resolve(&path, Last::Follow).map_err(|error| not_there(error, &path))?;
        let nothing = place.entry.is_none() && place.dir().is_none();
        if nothing || (ignore.ignores(&shown) && !ignore.may_keep_below(&shown)) {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_owned();
        picked.push(Picked { below: below(op, &path, &pivot, place.dir().is_some()), place, name });
    }
    if picked.is_empty() {
        return Err(missing(Path::new(source)));
    }
    Ok(picked)
}

/// Whether `ADD` takes it from elsewhere.
pub(super) fn is_remote(source: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| source.starts_with(scheme)) || GitReference::is_one(source)
}

/// With `--parents`, what stands before `/./` is no part of the path that is kept.
fn pivoted(source: &str, parents: bool) -> (PathBuf, String) {
    match source.split_once("/./").filter(|_| parents) {
        Some((before, after)) => (clean(before), format!("{before}/{after}")),
        None => (PathBuf::from("/"), source.to_owned()),
    }
}

fn below(op: &CopyOp, path: &Path, pivot: &Path, folder: bool) -> PathBuf {
    if !op.transfer.parents {
        return PathBuf::new();
    }
    let kept = path.strip_prefix(pivot).or_else(|_| path.strip_prefix("/")).unwrap_or(path);
    match folder {
        true => kept.to_owned(),
        false => kept.parent().unwrap_or(Path::new("")).to_owned(),
    }
}

/// From the root; what leads above it stays there.
fn clean(path: &str) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                cleaned.pop();
            }
            name => cleaned.push(name),
        }
    }
    cleaned
}

/// The paths that are like a pattern, sorted; one without signs of a pattern is itself.
fn matches(tree: &Tree, pattern: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.components().skip(1) {
        let name = part.as_os_str().to_string_lossy().into_owned();
        if !name.contains(['*', '?', '[', '\\']) {
            found.iter_mut().for_each(|path| path.push(&name));
            continue;
        }
        let mut next = Vec::new();
        for path in &found {
            let Ok(place) = tree.resolve(path, Last::Follow) else { continue };
            let Some(dir) = place.dir() else { continue };
            for child in dir.names().map_err(|e| Error::io("read the folder", path, e))? {
                let like = insula_build::ignore::name_is_like(&name, &child.to_string_lossy());
                let like = like.ok_or_else(|| {
                    Error::InvalidArgument(format!("{}: syntax error in pattern", pattern.display()))
                })?;
                if like {
                    next.push(path.join(child));
                }
            }
            if next.len() > MATCHES_MAX {
                return Err(Error::InvalidArgument(format!(
                    "{} is like more than {MATCHES_MAX} files",
                    pattern.display()
                )));
            }
        }
        found = next;
    }
    Ok(found)
}

fn not_there(error: Error, path: &Path) -> Error {
    match &error {
        Error::Io { source, .. }
            if matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            missing(path)
        }
        _ => error,
    }
}
