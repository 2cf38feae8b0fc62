//! What a stage begins with: nothing, an earlier stage, or an image that is here or pulled.

use std::sync::Arc;

use insula_build::Base;
use insula_registry::Wanted;
use insula_spec::image::{ImageConfig, RootFs};
use insula_spec::reference::Reference;
use insula_store::{Image, ImageKind, LayerLease};

use super::stage::Built;
use super::{Building, report::Report};
use crate::images::PullRequest;
use crate::{Error, Result, blocking};

/// The host's, as image configurations call it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Building {
    pub(super) async fn base(
        self: &Arc<Self>,
        base: &Base,
        needed: &super::stage::Needed,
        platform: &str,
    ) -> Result<Built> {
        match base {
            Base::Scratch => {
                let mut parts = platform.split('/').skip(1);
                let config = ImageConfig {
                    architecture: parts.next().unwrap_or(architecture()).to_owned(),
                    variant: parts.next().map(str::to_owned),
                    os: "linux".to_owned(),
                    rootfs: RootFs::default(),
                    ..ImageConfig::default()
                };
                Ok(Built::given(Vec::new(), config, Vec::new()))
            }
            Base::Stage(number) => {
                let built = needed.get(number);
                let built: &Arc<Built> =
                    built.ok_or_else(|| Error::Internal("a stage was not built before".to_owned()))?;
                Ok(Built::clone(built))
            }
            Base::Context(name) => self.base_of_context(name, needed, platform).await,
            Base::Image(name) => {
                let (image, lease) = self.image(name, platform).await?;
                let config = ImageConfig {
                    comment: None,
                    docker_version: String::new(),
                    build_cache: None,
                    ..image.config
                };
                Ok(Built::given(image.layers, config, vec![Arc::new(lease)]))
            }
        }
    }

    /// An image that stays while the lease is held.
    pub(super) async fn image(&self, name: &str, platform: &str) -> Result<(Image, LayerLease)> {
        let wanted = Wanted::parse(platform).map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let fits = |image: &Image| {
            let config = &image.config;
            platform.is_empty() || wanted.accepts(&config.os, &config.architecture, config.variant.as_deref())
        };
        let here = self.engine.images().resolve(name).ok().filter(|image| fits(image));
        let image = match here {
            Some(image) if !self.request.pull || Reference::parse(name).is_err() => image,
            _ => self.pulled(name, platform, &self.report).await?,
        };
        if image.kind != ImageKind::Stored {
            if let ImageKind::Artifact { kind } = &image.kind {
                return Err(Error::InvalidArgument(format!(
                    "{name} is an artifact of type {kind:?}, not an image"
                )));
            }
            return Err(Error::Unsupported(format!(
                "{name} is this host's own file system, on which no image can be built"
            )));
        }
        let (store, leased) = (self.engine.store().clone(), image.clone());
        let lease = blocking(move || Ok(store.images().lease_image(&leased)?.layers)).await?;
        self.sources.add_image(name, &image);
        Ok((image, lease))
    }

    async fn pulled(&self, name: &str, platform: &str, report: &Report) -> Result<Image> {
        let reference = Reference::parse(name).map_err(insula_store::Error::from)?;
        let tag = reference.digest().map(ToString::to_string).or(reference.tag().map(str::to_owned));
        let request = PullRequest {
            name: reference.familiar_name(),
            tag: tag.unwrap_or_else(|| "latest".to_owned()),
            platform: platform.to_owned(),
            credentials: self.request.credentials(&reference).await?,
        };
        self.engine.images().pull(request, report.sender()).await?;
        self.engine.images().resolve(name)
    }
}
