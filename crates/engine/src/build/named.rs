//! What came along with a build beside its context: folders and images by names of their own.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use insula_build::dockerfile::{CopySources, Transfer};
use insula_build::{Base, CopyOp, Part};
use insula_spec::image::History;
use insula_store::{Scratch, Store};

use super::stage::{Built, Needed, copied};
use super::{Building, take_in};
use crate::tree::Tree;
use crate::{Error, Result, blocking};

/// What `--build-context` says that a name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    /// A folder, which comes in front of the context.
    Folder,
    /// An image by its name or id.
    Image(String),
    /// An image of an OCI layout by its tag or digest, or the only one; the layout comes as a folder does.
    Layout(String),
    /// A repository, an archive or a file, by its address.
    Remote(String),
}

/// Where files are taken of.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A stage, or an image.
    Stack(Box<Built>),
    /// A folder that came along or was fetched, by its name.
    Folder(String),
}

/// Folders that came along or were fetched.
#[derive(Debug)]
pub(super) struct Folders(Vec<Folder>);

#[derive(Debug)]
struct Folder {
    name: String,
    scratch: Scratch,
    /// The files, in what is there as long as the build.
    files: PathBuf,
}

impl Folders {
    /// Unpacks them. Blocks.
    pub(super) fn take_in<'a>(
        source: &mut (impl Read + Send),
        names: impl Iterator<Item = &'a str>,
        store: &Store,
    ) -> Result<Self> {
        let mut folders = Vec::new();
        for name in names {
            let scratch = store.images().scratch()?;
            let mut part = Part::new(source);
            take_in(&mut part, scratch.path())?;
            part.finish().map_err(|error| {
                Error::InvalidArgument(format!("reading the build context {name}: {error}"))
            })?;
            let files = scratch.path().to_owned();
            folders.push(Folder { name: name.to_owned(), scratch, files });
        }
        Ok(Self(folders))
    }

    /// One that was fetched.
    pub(super) fn add(&mut self, name: &str, (scratch, files): (Scratch, PathBuf)) {
        self.0.push(Folder { name: name.to_owned(), scratch, files });
    }

    /// The folders themselves, by their names.
    pub(super) fn into_scratches(self) -> impl Iterator<Item = (String, Scratch)> {
        self.0.into_iter().map(|folder| (folder.name, folder.scratch))
    }
}

impl Building {
    /// The files of a folder that came along or was fetched.
    pub(super) fn folder(&self, name: &str) -> Result<Tree> {
        let found = self.folders.0.iter().find(|folder| folder.name == name);
        let folder =
            found.ok_or_else(|| Error::Internal(format!("the build context {name} did not come along")))?;
        Tree::running(&folder.files, 0)
    }

    /// A stage that begins with what came along: an image, or a folder's files.
    pub(super) async fn base_of_context(
        self: &Arc<Self>,
        name: &str,
        needed: &Needed,
        platform: &str,
    ) -> Result<Built> {
        match self.request.contexts.get(name) {
            Some(NamedContext::Image(image)) => {
                Box::pin(self.base(&Base::Image(image.clone()), needed, platform)).await
            }
            Some(NamedContext::Layout(wanted)) => Box::pin(self.layout(name, wanted, platform)).await,
            Some(NamedContext::Folder | NamedContext::Remote(_)) => {
                let mut built = Box::pin(self.base(&Base::Scratch, needed, platform)).await?;
                let sources = CopySources { paths: vec!["/".to_owned()], ..CopySources::default() };
                let transfer = Transfer { sources, ..Transfer::default() };
                let op = CopyOp { add: false, transfer, destination: "/".to_owned() };
                let (this, from, below) = (self.clone(), Source::Folder(name.to_owned()), built.clone());
                let made = blocking(move || copied(&this, &op, Some(&from), &below)).await?;
                let empty_layer = made.layers.is_empty();
                let created = Some(made.created);
                built.config.created.clone_from(&created);
                built.layers = made.layers;
                built.leases.push(Arc::new(made.lease));
                let created_by = format!("FROM {name}");
                built.config.history.push(History { created, created_by, empty_layer, ..History::default() });
                Ok(built)
            }
            None => Err(Error::Internal(format!("there is no build context {name}"))),
        }
    }
}
