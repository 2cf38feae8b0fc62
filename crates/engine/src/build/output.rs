//! What a build is for: an image of the engine's, or an archive for whoever asked.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use insula_base::Digest;
use insula_spec::reference::Reference;
use insula_store::Composed;
use insula_sys::failpoint::failpoint;

use super::Building;
use super::stage::Built;
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
}

impl Building {
    pub(super) async fn put_out(&self, built: Arc<Built>, tags: Vec<Reference>) -> Result<()> {
        let config = built.finished(&self.request.labels, self.epoch)?;
        let composed = Composed { config, references: tags.clone() };
        let store = self.engine.store().clone();
        match &self.request.output {
            Output::Image => {
                let id = blocking(move || Ok(store.images().compose(&built.layers, composed)?)).await?;
                failpoint("build.made");
                self.report.built(&id).await;
                for tag in &tags {
                    self.engine.images().publish("tag", &id, &tag.familiar());
                    self.report.line(format!("Successfully tagged {}\n", tag.familiar())).await;
                }
            }
            Output::Archive(sender) => {
                self.report.putting_out().await;
                let id: Digest = written(sender.clone(), move |out| {
                    Ok(store.images().save_composed(&built.layers, composed, out)?)
                })
                .await?;
                self.report.built(&id).await;
            }
            Output::Files(sender) => {
                self.report.putting_out().await;
                written(sender.clone(), move |out| {
                    let tree = built.tree()?;
                    pack_root(&tree, &tree.resolve(Path::new("/"), Last::Follow)?, out)
                })
                .await?;
            }
        }
        Ok(())
    }
}

/// Has `write` make an archive on a thread that may block.
async fn written<T: Send + 'static>(
    sender: ArchiveSender,
    write: impl FnOnce(&mut ChunkWriter) -> Result<T> + Send + 'static,
) -> Result<T> {
    transfer(move || {
        let mut out = ChunkWriter::new(sender);
        let made = write(&mut out)?;
        out.flush().map_err(|error| Error::io("send", Path::new("the output of the build"), error))?;
        Ok(made)
    })
    .await
}
