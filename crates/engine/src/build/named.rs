//! What came along with a build beside its context: folders and images by names of their own.

use std::io::Read;
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
}

/// Where files are taken of.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A stage, or an image.
    Stack(Box<Built>),
    /// A folder that came along, by its name.
    Folder(String),
}

/// Folders that came along, by their names.
#[derive(Debug)]
pub(super) struct Folders(Vec<(String, Scratch)>);

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
            folders.push((name.to_owned(), scratch));
        }
        Ok(Self(folders))
    }
}

impl IntoIterator for Folders {
    type Item = (String, Scratch);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Building {
    /// The files of a folder that came along.
    pub(super) fn folder(&self, name: &str) -> Result<Tree> {
        let found = self.folders.0.iter().find(|(known, _)| known == name);
        let (_, scratch) =
            found.ok_or_else(|| Error::Internal(format!("the build context {name} did not come along")))?;
        Tree::running(scratch.path(), 0)
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
            Some(NamedContext::Folder) => {
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
