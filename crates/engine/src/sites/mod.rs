//! Host names that lead to containers: which name leads where, and the proxy that serves them.
//!
//! ```text
//! rows, health, pauses ──> table ──> proxy (a program of its own, started by the first container that needs it)
//! folder of certificates ──^
//! ```
//!
//! The proxy serves what it was told last, whether there is a daemon or not. It ends when no container has a host
//! name any more, and with the daemon if no container runs.

mod certificates;
mod proxy;
mod table;
mod wish;

pub(crate) use self::wish::{SiteRow, wished};

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use insula_spec::sites::{Certificate, Served, Table};
use tokio::sync::Mutex;

use self::certificates::Folder;
use self::proxy::Proxy;
use crate::containers::row::Row;
use crate::events::EventFilter;
use crate::{Engine, Result, blocking};

/// How often the proxy and the folder of certificates are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// How long requests that are under way keep a container from being told to end, at most.
const DRAIN: Duration = Duration::from_secs(30);

/// Where host names are served.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program `insula-proxy`; one that is not there is missed by the first container that needs it.
    pub proxy: PathBuf,
    /// Addresses for HTTP.
    pub http: Vec<SocketAddr>,
    /// Addresses for TLS.
    pub https: Vec<SocketAddr>,
    /// Folder of certificates; it need not be there.
    pub certificates: PathBuf,
}

/// The proxy of one engine.
#[derive(Debug)]
pub(crate) struct Sites {
    options: Options,
    /// Its folder below the run-time root.
    folder: PathBuf,
    /// Locked while the proxy is told something, so that the last word is the last table.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    proxy: Option<Proxy>,
    /// A container has been started that needs one.
    wanted: bool,
    /// What it serves.
    told: Option<(Vec<Served>, Arc<Vec<Certificate>>)>,
    certificates: Folder,
    /// What was wrong when it was told last.
    failure: Option<String>,
    /// What it said then about what it serves.
    warnings: Vec<String>,
}

impl Sites {
    pub(crate) fn new(options: Options, run: &Path) -> Self {
        Self { options, folder: run.join("proxy"), state: Mutex::default() }
    }

    /// Has a proxy from now on: a former daemon's, or a new one.
    async fn ensure(&self, state: &mut State) -> Result<()> {
        state.wanted = true;
        if let Some(proxy) = &mut state.proxy {
            if proxy.hello().await.is_ok() {
                return Ok(());
            }
            tracing::warn!("the proxy has ended: another one is started");
            state.forget().await;
        }
        state.proxy = Some(match Proxy::adopt(&self.folder, &self.options).await {
            Some(proxy) => proxy,
            None => Proxy::start(&self.folder, &self.options).await?,
        });
        Ok(())
    }

    /// Tells it what is to be served, if it is something else than before.
    async fn tell(&self, state: &mut State, sites: Vec<Served>) -> Result<()> {
        let (folder, path) = (state.certificates.clone(), self.options.certificates.clone());
        state.certificates = blocking(move || Ok(folder.read_again(&path))).await?;
        let certificates = state.certificates.certificates.clone();
        let same = |told: &(Vec<Served>, Arc<Vec<Certificate>>)| {
            told.0 == sites && Arc::ptr_eq(&told.1, &certificates)
        };
        let Some(proxy) = &mut state.proxy else { return Ok(()) };
        if state.told.as_ref().is_some_and(same) {
            return Ok(());
        }
        let table = Table { sites: sites.clone(), certificates: certificates.to_vec() };
        let warnings = proxy.serve(table).await?;
        for warning in warnings.iter().filter(|warning| !state.warnings.contains(warning)) {
            tracing::warn!(warning, "host names");
        }
        state.warnings = warnings;
        state.told = Some((sites, certificates));
        Ok(())
    }

    /// Has no proxy from now on.
    async fn end(&self, state: &mut State) {
        let adopted = match state.proxy.take() {
            Some(proxy) => Some(proxy),
            None => Proxy::find(&self.folder).await,
        };
        if let Some(proxy) = adopted {
            proxy.end().await;
        }
        state.wanted = false;
        state.forget().await;
    }
}

impl State {
    /// The proxy is gone, by itself or as it was told.
    async fn forget(&mut self) {
        self.told = None;
        if let Some(proxy) = self.proxy.take() {
            proxy.reap().await;
        }
    }
}

impl Engine {
    /// Before anything of a container is made: a port that somebody else has, or a program that is missing, is said now.
    pub(crate) async fn open_sites(&self, row: &Row) -> Result<()> {
        if row.sites.is_empty() {
            return Ok(());
        }
        let sites = &self.0.sites;
        sites.ensure(&mut *sites.state.lock().await).await
    }

    /// Tells the proxy of a container that has just started, before anybody hears of it.
    pub(crate) async fn announce_sites(&self, row: &Row) {
        if !row.sites.is_empty() {
            self.tell_sites().await;
        }
    }

    /// Before a container, which counts as one that leaves, is told to end: nobody is led to it any more, and
    /// requests that it has are answered, for which it has no longer than it has to end.
    pub(crate) async fn leave_sites(&self, row: &Row, patience: Option<Duration>) {
        let within = patience.map_or(DRAIN, |patience| patience.min(DRAIN));
        if row.sites.is_empty() || within.is_zero() {
            return;
        }
        self.tell_sites().await;
        // By a connection of its own: others are not to wait for this.
        let Some(mut proxy) = Proxy::find(&self.0.sites.folder).await else { return };
        let drained = match self.site_targets(row) {
            Ok(targets) => proxy.drain(targets, within).await,
            Err(error) => Err(error),
        };
        match drained {
            Ok(0) => {}
            Ok(left) => {
                tracing::info!(container = %row.id, left, "requests are cut off by the container's end")
            }
            Err(error) => tracing::warn!(error = insula_base::chain(&error), "wait for requests"),
        }
    }

    /// Tells the proxy how things are now, and the log if that fails. It ends where no container has a host name.
    async fn tell_sites(&self) {
        let sites = &self.0.sites;
        let mut state = sites.state.lock().await;
        if !state.wanted || self.0.ending() {
            return;
        }
        let told = match self.site_table() {
            Ok(Some(table)) => match sites.ensure(&mut state).await {
                Ok(()) => sites.tell(&mut state, table).await,
                Err(error) => Err(error),
            },
            Ok(None) => {
                tracing::info!("no container has a host name: the proxy ends");
                sites.end(&mut state).await;
                Ok(())
            }
            Err(error) => Err(error),
        };
        let failure = told.err().map(|error| insula_base::chain(&error).to_string());
        if let Some(error) = failure.as_ref().filter(|_| failure != state.failure) {
            tracing::error!(error, "host names are not served as they should be");
        }
        state.failure = failure;
    }

    /// After the daemon's start: finds the proxy of a former daemon again, starts one that is missed, ends one that
    /// nobody needs.
    pub(crate) async fn take_up_sites(&self) {
        let live = self.0.containers.all().into_iter().map(|container| container.row());
        let needed = live.into_iter().any(|row| row.phase.live() && !row.sites.is_empty());
        let sites = &self.0.sites;
        let mut state = sites.state.lock().await;
        if needed {
            state.wanted = true;
        } else {
            sites.end(&mut state).await;
        }
        drop(state);
        self.tell_sites().await;
    }

    /// Follows what happens to containers, and to the folder of certificates, as long as there is an engine.
    pub(crate) fn follow_sites(&self) {
        let (inner, events) = (Arc::downgrade(&self.0), self.events().clone());
        tokio::spawn(async move {
            let mut stream = events.subscribe(EventFilter::default(), None, None);
            let mut ticks = tokio::time::interval(LOOK);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                let relevant = tokio::select! {
                    event = stream.next() => match event {
                        Some(event) => {
                            event.r#type == "network"
                                || event.actor.attributes.contains_key(insula_spec::sites::LABEL)
                        }
                        None => {
                            // Some were missed.
                            stream = events.subscribe(EventFilter::default(), None, None);
                            true
                        }
                    },
                    _ = ticks.tick() => true,
                };
                let Some(engine) = inner.upgrade().map(Engine) else { return };
                if relevant {
                    engine.tell_sites().await;
                }
            }
        });
    }

    /// At the daemon's end, if no container runs.
    pub(crate) async fn retire_sites(&self) {
        let sites = &self.0.sites;
        sites.end(&mut *sites.state.lock().await).await;
    }
}
