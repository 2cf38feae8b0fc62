//! `--build-context`: folders and images under names of their own.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use insula_build::Ignore;
use insula_client::NamedContext;
use insula_spec::reference::Reference;

use crate::copy::context::Context;

/// What a name means, and the folder if it is one of this host.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) context: NamedContext,
    pub(super) folder: Option<Context>,
}

/// Whether a context is fetched by the daemon: a repository, an archive, a Dockerfile.
pub(super) fn is_remote(text: &str) -> bool {
    ["http://", "https://", "git://", "git@", "ssh://"].iter().any(|scheme| text.starts_with(scheme))
}

/// `NAME=FOLDER`, `NAME=docker-image://IMAGE` or `NAME=ADDRESS`.
pub(super) fn read(text: &str) -> anyhow::Result<Named> {
    let (name, value) = text
        .split_once('=')
        .filter(|(name, value)| !name.is_empty() && !value.is_empty())
        .with_context(|| format!("invalid context value: {text}, expected key=value"))?;
    let named = |context, folder| Named { name: name.to_ascii_lowercase(), context, folder };
    if let Some(image) = value.strip_prefix("docker-image://") {
        Reference::parse(image).with_context(|| format!("the build context {name}"))?;
        return Ok(named(NamedContext::Image(image.to_owned()), None));
    }
    if is_remote(value) {
        return Ok(named(NamedContext::Remote(value.to_owned()), None));
    }
    if value.starts_with("target:") {
        bail!(
            "the build context {name}={value}: target: is not supported in this version: a folder of this host, \
             docker-image://IMAGE, oci-layout://FOLDER or an address is expected"
        );
    }
    if let Some(layout) = value.strip_prefix("oci-layout://") {
        let (folder, wanted) = in_layout(layout);
        let folder = folder_of(name, folder)?;
        if !folder.join("index.json").is_file() {
            bail!("failed to get build context {name}: there is no index.json: an OCI layout is expected");
        }
        let context = Context { folder, ignore: Ignore::default(), always: Vec::new(), extra: None };
        return Ok(named(NamedContext::Layout(wanted.to_owned()), Some(context)));
    }
    let found = folder_of(name, value)?;
    let ignore = ignored(&found.join(".dockerignore"))?;
    let context = Context { folder: found, ignore, always: Vec::new(), extra: None };
    Ok(named(NamedContext::Folder, Some(context)))
}

/// The folder of a layout, and the tag or digest in it: `FOLDER[:TAG][@DIGEST]`.
fn in_layout(text: &str) -> (&str, &str) {
    let (place, digest) = text.split_once('@').map_or((text, None), |(place, digest)| (place, Some(digest)));
    let (folder, tag) = match place.rsplit_once(':') {
        Some((folder, tag)) if !tag.contains('/') => (folder, tag),
        _ => (place, ""),
    };
    (folder, digest.unwrap_or(tag))
}

fn folder_of(name: &str, value: &str) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(value);
    let found =
        path.canonicalize().with_context(|| format!("failed to get build context {name}: {value}"))?;
    if !found.is_dir() {
        bail!("failed to get build context {name}: {value} is not a folder");
    }
    Ok(found)
}

/// What a file of patterns leaves out; nothing if it is not there.
pub(super) fn ignored(patterns: &Path) -> anyhow::Result<Ignore> {
    match std::fs::read(patterns) {
        Ok(text) => Ignore::parse(&text).with_context(|| patterns.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Ignore::default()),
        Err(error) => Err(error).with_context(|| format!("read {}", patterns.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_folders_or_images() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let named = read(&format!("Src={path}")).unwrap();
        assert_eq!((named.name.as_str(), named.context), ("src", NamedContext::Folder));
        let named = read("base=docker-image://busybox:1").unwrap();
        assert_eq!(named.context, NamedContext::Image("busybox:1".to_owned()));
        let named = read("a=https://x/y.tar").unwrap();
        assert_eq!(named.context, NamedContext::Remote("https://x/y.tar".to_owned()));
        assert_eq!(in_layout("a/b:1"), ("a/b", "1"));
        assert_eq!(in_layout("/a:b/c"), ("/a:b/c", ""));
        assert_eq!(in_layout("a:1@sha256:0"), ("a", "sha256:0"));
        std::fs::write(folder.path().join("index.json"), "{}").unwrap();
        let named = read(&format!("a=oci-layout://{path}:1")).unwrap();
        assert_eq!(named.context, NamedContext::Layout("1".to_owned()));
        let absent = format!("a={path}/absent");
        for wrong in ["a", "=b", "a=", &absent, "a=target:x", "a=docker-image://", "a=/dev/null"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
