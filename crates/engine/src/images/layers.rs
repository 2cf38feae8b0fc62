//! What is in which layer of an image, and how two images differ.

use std::collections::BTreeMap;

use insula_models::{ChangeItem, ImageLayer};
use insula_store::Difference;

use crate::images::{Images, describe};
use crate::{Result, blocking};

impl Images {
    /// The layers of an image, lowest first, with what is wasted in each.
    pub async fn layers_of(&self, name: &str) -> Result<Vec<ImageLayer>> {
        let (this, name) = (self.clone(), name.to_owned());
        blocking(move || {
            let images = this.store.images();
            let image = this.resolve(&name)?;
            let wasted = images.wasted(&image)?;
            let mut others: BTreeMap<_, Vec<String>> = BTreeMap::new();
            for other in images.list()?.into_iter().filter(|other| other.id != image.id) {
                let name = other.references.first();
                let name = name.map_or_else(|| other.id.short().to_owned(), |name| name.familiar());
                for layer in &other.layers {
                    others.entry(layer.chain_id.clone()).or_default().push(name.clone());
                }
            }
            let mut steps = describe::steps(&image).into_iter();
            let layers = image.layers.iter().zip(wasted);
            Ok(layers
                .map(|(layer, wasted)| ImageLayer {
                    diff_id: layer.diff_id.to_string(),
                    created_by: steps.next().unwrap_or_default(),
                    size: layer.size,
                    wasted,
                    shared_by: others.remove(&layer.chain_id).unwrap_or_default(),
                })
                .collect())
        })
        .await
    }

    /// What `to` has otherwise than `from`.
    pub async fn compare(&self, from: &str, to: &str) -> Result<Vec<ChangeItem>> {
        let (this, from, to) = (self.clone(), from.to_owned(), to.to_owned());
        blocking(move || {
            let found = this.store.images().compare(&this.resolve(&from)?, &this.resolve(&to)?)?;
            let item = |(path, difference): (std::path::PathBuf, Difference)| ChangeItem {
                path: path.to_string_lossy().into_owned(),
                kind: match difference {
                    Difference::Changed => 0,
                    Difference::Added => 1,
                    Difference::Removed => 2,
                },
            };
            Ok(found.into_iter().map(item).collect())
        })
        .await
    }
}
