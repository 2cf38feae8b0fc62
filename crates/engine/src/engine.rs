//! The engine: everything that the use cases share.

use std::path::PathBuf;
use std::sync::Arc;

use insula_base::Instance;
use insula_network::Networks;
use insula_store::Store;

use crate::events::Events;
use crate::images::Images;
use crate::volumes::Volumes;
use crate::{Error, Result, blocking};

/// What an engine needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    pub instance: Instance,
    /// The program `insula-monitor`.
    pub monitor: PathBuf,
}

/// All use cases. Clones are the same engine.
#[derive(Debug, Clone)]
pub struct Engine(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) store: Arc<Store>,
    pub(crate) networks: Arc<Networks>,
    pub(crate) images: Images,
    pub(crate) volumes: Volumes,
    pub(crate) events: Arc<Events>,
}

impl Engine {
    /// Opens the store ([`insula_base::Kind::Conflict`] if another daemon has it), finds again what
    /// runs, applies what ended, frees what was lost, and is then ready to serve.
    pub async fn open(config: Config) -> Result<Self> {
        let inner = blocking(move || Inner::open(config)).await?;
        Ok(Self(Arc::new(inner)))
    }

    /// Folders and names.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.0.config.instance
    }

    /// What is on disk.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    #[must_use]
    pub fn networks(&self) -> &Arc<Networks> {
        &self.0.networks
    }

    #[must_use]
    pub fn images(&self) -> &Images {
        &self.0.images
    }

    #[must_use]
    pub fn volumes(&self) -> &Volumes {
        &self.0.volumes
    }

    #[must_use]
    pub fn events(&self) -> &Arc<Events> {
        &self.0.events
    }
}

impl Inner {
    fn open(config: Config) -> Result<Self> {
        let store = Arc::new(Store::open(config.instance.root())?);
        let events = Arc::new(Events::default());
        let networks = Networks::open(&config.instance, store.clone(), insula_network::Options::default())?;
        Ok(Self {
            images: Images::new(store.clone(), events.clone()),
            volumes: Volumes::open(store.clone(), events.clone())?,
            networks: Arc::new(networks),
            config,
            store,
            events,
        })
    }
}

pub(crate) fn not_yet<T>(what: &str) -> Result<T> {
    Err(Error::Unsupported(format!("{what} is not available in this version")))
}
