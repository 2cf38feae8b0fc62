//! The engine: everything that the use cases share.

use insula_sys::failpoint::failpoint;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use insula_base::Instance;
use insula_host::cgroup::Layout;
use insula_host::firewall::Changes;
use insula_network::Networks;
use insula_spec::machine::Backend;
use insula_store::Store;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::watch;

use crate::containers::container::Registry;
use crate::containers::storage::StorageOptions;
use crate::events::Events;
use crate::exec::ExecIndex;
use crate::idmaps::IdMaps;
use crate::images::Images;
use crate::machines::Machines;
use crate::monitor::Spares;
use crate::policy::Policy;
use crate::tenants::Tenants;
use crate::volumes::Volumes;
use crate::{Error, Result, blocking};

/// How long the end waits for files to be removed.
const SETTLING: Duration = Duration::from_secs(10);
/// How often the state's log is moved into its database.
const CHECKPOINT: Duration = Duration::from_secs(10);

/// How long rules of the host are given to become complete.
const RULES_SETTLE: Duration = Duration::from_millis(100);

/// How many containers find their folders made.
const STAGED: usize = 2;

/// What an engine needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    pub instance: Instance,
    /// The program `insula-monitor`.
    pub monitor: PathBuf,
    /// The program `insula-agent`; one that is not there is missed by the first container that needs it.
    pub agent: PathBuf,
    /// The program `insula-vmm`; one that is not there is missed where hardware virtualization is used.
    pub vmm: PathBuf,
    /// What runs containers with a kernel of their own; found out without it.
    pub vm_backend: Option<Backend>,
    /// Machines that have booted are made templates of, for those to come.
    pub vm_templates: bool,
    /// Seconds in which the agent of such a container has to answer.
    pub vm_boot_timeout: u32,
    pub registries: insula_registry::Options,
    /// What containers may not ask for.
    pub policy: Policy,
    /// Pools of addresses, and where ports are published.
    pub network: insula_network::Options,
    /// Where host names are served.
    pub sites: crate::sites::Options,
    pub storage: StorageOptions,
}

/// All use cases. Clones are the same engine.
#[derive(Debug, Clone)]
pub struct Engine(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) store: Arc<Store>,
    pub(crate) networks: Arc<Networks>,
    pub(crate) names: crate::names::Names,
    pub(crate) sites: crate::sites::Sites,
    pub(crate) images: Images,
    pub(crate) volumes: Volumes,
    pub(crate) events: Arc<Events>,
    _run_lock: std::fs::File,
    pub(crate) containers: Registry,
    pub(crate) execs: ExecIndex,
    pub(crate) spares: Arc<Spares>,
    pub(crate) idmaps: IdMaps,
    /// Id of this boot of the host.
    pub(crate) boot: String,
    pub(crate) machines: Machines,
    pub(crate) tenants: Tenants,
    /// Folders that commands of builds keep.
    pub(crate) caches: crate::build::Caches,
    pub(crate) agents: crate::build::Agents,
    ending: watch::Sender<bool>,
    /// Read by whoever does something that the end of the daemon waits for.
    removals: Arc<tokio::sync::RwLock<()>>,
}

impl Engine {
    /// Opens the store ([`insula_base::Kind::Conflict`] if another daemon has it), finds again what
    /// runs, applies what ended, frees what was lost, and is then ready to serve.
    pub async fn open(config: Config) -> Result<Self> {
        let inner = blocking(move || Inner::open(config)).await?;
        failpoint("daemon.opened");
        let engine = Self(Arc::new(inner));
        engine.0.spares.reap()?;
        engine.reconcile().await?;
        engine.take_up_sites().await;
        engine.sweep_builds().await?;
        engine.0.refill();
        engine.tidy_up_regularly();
        engine.follow_rules()?;
        engine.follow_sites();
        Ok(engine)
    }

    /// Has the firewall follow what others change of the host's rules.
    fn follow_rules(&self) -> Result<()> {
        let fail = |call| move |error| Error::io(call, Path::new("a netfilter socket"), error);
        let changes = Changes::listen().map_err(insula_network::Error::from)?;
        // Whatever the socket's family: what is wanted of it is when it is readable.
        let watched = changes.as_fd().try_clone_to_owned().map_err(fail("dup"))?;
        rustix::io::ioctl_fionbio(&watched, true).map_err(|error| fail("ioctl FIONBIO")(error.into()))?;
        let watched = UnixDatagram::from_std(watched.into()).map_err(fail("register"))?;
        let inner = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            while watched.readable().await.is_ok() {
                // Rules come many at a time.
                tokio::time::sleep(RULES_SETTLE).await;
                let mut foreign = false;
                let emptied = watched.try_io(Interest::READABLE, || {
                    foreign = changes.take();
                    Err::<(), _>(std::io::ErrorKind::WouldBlock.into())
                });
                debug_assert!(emptied.is_err(), "it is read until it would block");
                if !foreign {
                    continue;
                }
                let Some(networks) = inner.upgrade().map(|inner| inner.networks.clone()) else { return };
                if let Err(error) = blocking(move || Ok(networks.follow_rules()?)).await {
                    tracing::warn!(error = %insula_base::chain(&error), "the host's filter was not followed");
                }
            }
        });
        Ok(())
    }

    /// Moves the state's log into its database away from everyone's way, as long as there is an engine.
    fn tidy_up_regularly(&self) {
        let inner = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(CHECKPOINT);
            loop {
                ticks.tick().await;
                let Some(inner) = inner.upgrade() else { return };
                let tidied = blocking(move || {
                    inner.machines.rest();
                    Ok(inner.store.state().checkpoint()?)
                });
                if let Err(error) = tidied.await {
                    tracing::warn!(error = %insula_base::chain(&error), "the state's log was not moved");
                }
            }
        });
    }

    /// The daemon is about to end: containers run on, nothing is started any more, and who waits is told.
    pub fn end(&self) {
        self.0.ending.send_replace(true);
        self.0.spares.close();
        for container in self.0.containers.all() {
            container.tell(|progress| progress.ending = true);
        }
    }

    /// Resolves when the daemon is about to end, for who follows what has no end of its own.
    pub fn until_end(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut ending = self.0.ending.subscribe();
        async move {
            // An engine that is gone has ended too.
            let _ = ending.wait_for(|ending| *ending).await;
        }
    }

    /// Waits until ends are put down, and the files of what was removed gone, for a while: what stays then is swept at the
    /// next start.
    pub async fn settle(&self) {
        if tokio::time::timeout(SETTLING, self.0.removals.write()).await.is_err() {
            tracing::warn!("what ended or was removed is left for the next start");
        }
    }

    /// Takes back what the host has for all containers together, bridges, rules and the group above theirs, if
    /// none runs; whether that is so. For the very end: the next start makes it anew.
    pub async fn retire(&self) -> bool {
        self.detach_disks().await;
        if self.0.containers.all().iter().any(|container| container.row().phase.live()) {
            return false;
        }
        self.retire_sites().await;
        let this = self.clone();
        let retired = blocking(move || {
            this.0.spares.end();
            this.networks().retire()?;
            crate::containers::leftovers::remove_parent(&this.instance().cgroup())
        });
        if let Err(error) = retired.await {
            tracing::warn!(error = %insula_base::chain(&error), "something of the engine's is left on the host");
        }
        true
    }

    /// Kept over what [`Self::settle`] is to wait for.
    pub(crate) async fn turn_before_the_end(&self) -> tokio::sync::OwnedRwLockReadGuard<()> {
        self.0.removals.clone().read_owned().await
    }

    /// Does in the background what removes files.
    pub(crate) async fn remove_behind(&self, removal: impl Future<Output = Result<()>> + Send + 'static) {
        let turn = self.turn_before_the_end().await;
        tokio::spawn(async move {
            if let Err(error) = removal.await {
                tracing::warn!(error = %insula_base::chain(&error), "files of a removed container are left");
            }
            drop(turn);
        });
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
        let run_lock = insula_store::take_run(config.instance.run(), config.instance.root())?;
        store.layers().share_files(config.storage.share_files);
        if config.storage.verity {
            store.layers().verify_files()?;
        }
        let events = Arc::new(Events::open(store.root())?);
        let networks = Networks::open(&config.instance, store.clone(), config.network.clone())?;
        let run = config.instance.run().join("sandboxes");
        std::fs::create_dir_all(&run)
            .and_then(|()| std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o700)))
            .map_err(|e| Error::io("mkdir", &run, e))?;
        // No container could be started without.
        Layout::probe()?;
        let idmaps = IdMaps::probe(&config.monitor, store.root())?;
        Ok(Self {
            containers: Registry::default(),
            execs: ExecIndex::default(),
            spares: Arc::new(Spares::new(config.monitor.clone(), config.instance.cgroup())),
            idmaps,
            tenants: Tenants::new(store.clone(), &config.instance, config.monitor.clone()),
            boot: boot_id()?,
            caches: crate::build::Caches::default(),
            agents: crate::build::Agents::default(),
            machines: {
                let machines = Machines::new(store.root(), &config);
                machines.tidy_up()?;
                machines
            },
            ending: watch::Sender::new(false),
            removals: Arc::default(),
            images: Images::new(
                store.clone(),
                events.clone(),
                insula_registry::Registries::new(config.registries.clone()),
            ),
            volumes: Volumes::open(store.clone(), events.clone())?,
            networks: Arc::new(networks),
            names: crate::names::Names::default(),
            sites: crate::sites::Sites::new(config.sites.clone(), config.instance.run()),
            config,
            store,
            events,
            _run_lock: run_lock,
        })
    }

    /// Starts monitors and makes folders for those containers that are to come, in a moment: the one that has just
    /// started has better use for the CPU.
    pub(crate) fn refill(&self) {
        let Some(pause) = self.spares.wanted() else { return };
        let (spares, store) = (self.spares.clone(), Arc::downgrade(&self.store));
        let turns = self.removals.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            // The end of the daemon waits for who has begun, and for nobody else: a store that is still in use then is
            // not closed in order.
            let _turn = turns.read_owned().await;
            let Some(store) = store.upgrade().filter(|_| !spares.are_over()) else { return };
            let refilled = blocking(move || {
                spares.refill()?;
                Ok(store.stage_container_dirs(STAGED)?)
            });
            if let Err(error) = refilled.await {
                tracing::warn!(error = insula_base::chain(&error), "make ready for the next containers");
            }
        });
    }

    pub(crate) fn ending(&self) -> bool {
        *self.ending.borrow()
    }
}

fn boot_id() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(PATH).map_err(|e| Error::io("read", PATH.as_ref(), e))?;
    Ok(text.trim().to_owned())
}
