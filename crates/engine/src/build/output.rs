//! What a build is for: an image of the engine's, or an archive for whoever asked.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use insula_base::Digest;
use insula_build::Framed;
use insula_spec::reference::Reference;
use insula_store::Composed;
use insula_sys::failpoint::failpoint;

use super::listing::{Listing, ListingSender};
use super::stage::Built;
use super::{Building, CacheScope};
use crate::archive::{ArchiveSender, ChunkWriter, pack_root};
use crate::tree::Last;
use crate::{Error, Result, blocking, transfer};

/// Where the result goes.
#[derive(Debug, Clone, Default)]
pub enum Output {
    /// Into the engine's images.
    #[default]
    Image,
    /// An archive of the image, which is not among the engine's.
    Archive(ArchiveSender),
    /// An archive of the last stage's files.
    Files(ArchiveSender),
    /// The last stage's files, for as long as whoever asked has a use for them.
    Listing(ListingSender),
}

impl Output {
    /// Whoever asked gets it.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        !matches!(self, Self::Image)
    }
}

impl Building {
    pub(super) async fn put_out(self: &Arc<Self>, built: Arc<Built>, tags: Vec<Reference>) -> Result<()> {
        let mut config = built.finished(&self.request.labels, self.epoch)?;
        self.inline(&built, &mut config)?;
        let composed = Composed { config, references: tags.clone() };
        let attested = self.attested(&built, &composed).await?;
        let store = self.engine.store().clone();
        let cache = self.cache_archive();
        let whole = built.clone();
        match &self.request.output {
            Output::Image => {
                let id = blocking(move || {
                    let images = store.images();
                    Ok(match attested {
                        Some(attested) => images.compose_attested(attested)?,
                        None => images.compose(&built.layers, composed)?,
                    })
                })
                .await?;
                failpoint("build.made");
                self.report.built(&id).await;
                for tag in &tags {
                    self.engine.images().publish("tag", &id, &tag.familiar());
                    self.report.line(format!("Successfully tagged {}\n", tag.familiar())).await;
                }
            }
            Output::Archive(sender) => {
                self.report.putting_out().await;
                let id: Digest = written(sender.clone(), cache.is_some(), move |out| {
                    let images = store.images();
                    Ok(match attested {
                        Some(attested) => images.save_attested(&built.layers, attested, out)?,
                        None => images.save_composed(&built.layers, composed, out)?,
                    })
                })
                .await?;
                self.report.built(&id).await;
            }
            Output::Files(sender) => {
                self.report.putting_out().await;
                written(sender.clone(), cache.is_some(), move |out| {
                    let tree = built.tree()?;
                    pack_root(&tree, &tree.resolve(Path::new("/"), Last::Follow)?, out)
                })
                .await?;
            }
            Output::Listing(sender) => {
                let listing = transfer(move || Listing::of(built)).await?;
                // Who went away ends the build elsewhere.
                let _ = sender.send(listing).await;
                sender.closed().await;
            }
        }
        self.put_out_cache(whole, cache).await
    }

    /// What later builds begin with, behind all else.
    async fn put_out_cache(
        self: &Arc<Self>,
        built: Arc<Built>,
        archive: Option<(ArchiveSender, CacheScope)>,
    ) -> Result<()> {
        if let Some((sender, scope)) = archive {
            if !self.request.output.is_answered() {
                // Nothing is in front of it.
                self.report.putting_out().await;
                written(sender.clone(), true, |_| Ok(())).await?;
            }
            let (this, of_cache) = (self.clone(), built.clone());
            let write =
                move |out: &mut dyn Write| this.write_cache(this.engine.store(), &of_cache, scope, out);
            written(sender, true, write).await?;
        }
        self.push_caches(&built).await
    }
}

/// Has `write` make an archive on a thread that may block; framed, another one may follow.
async fn written<T: Send + 'static>(
    sender: ArchiveSender,
    framed: bool,
    write: impl FnOnce(&mut dyn Write) -> Result<T> + Send + 'static,
) -> Result<T> {
    transfer(move || {
        let mut out = ChunkWriter::new(sender);
        let fail = |error| Error::io("send", Path::new("the output of the build"), error);
        let made = match framed {
            true => {
                let mut part = Framed::new(&mut out);
                let made = write(&mut part)?;
                part.finish().map_err(fail)?;
                made
            }
            false => write(&mut out)?,
        };
        out.flush().map_err(fail)?;
        Ok(made)
    })
    .await
}
