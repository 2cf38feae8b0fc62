//! What every command needs: where the daemon is, and a connection to it.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use insula_base::{Folders, Instance, env};
use insula_client::{Address, Client, Error};

use crate::{daemon, printer};

/// Flags in front of the command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Globals {
    /// Daemon to talk to: unix://PATH [default: insula.sock in the run folder]
    #[arg(short = 'H', long, env = env::HOST, hide_env_values = true, value_name = "ADDRESS")]
    pub(crate) host: Option<String>,
    /// Folder of images, containers and volumes, for a daemon that is started on the way
    /// [default: /var/lib/insula; ~/.local/share/insula of an ordinary user]
    #[arg(long, env = env::ROOT, hide_env_values = true, value_name = "FOLDER", id = "globals_root")]
    pub(crate) root: Option<PathBuf>,
    /// Folder of the daemon's socket and of what lives no longer than the machine is up
    /// [default: /run/insula; insula in XDG_RUNTIME_DIR of an ordinary user]
    #[arg(long, env = env::RUN, hide_env_values = true, value_name = "FOLDER", id = "globals_run")]
    pub(crate) run: Option<PathBuf>,
    /// Say what is done; a daemon that is started on the way logs everything
    #[arg(short = 'D', long, id = "globals_debug")]
    pub(crate) debug: bool,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    globals: Globals,
}

impl Context {
    pub(crate) fn new(globals: Globals) -> Self {
        Self { globals }
    }

    /// The folders of the daemon, absolute.
    pub(crate) fn instance(&self) -> anyhow::Result<Instance> {
        let uid = rustix::process::geteuid().as_raw();
        let usual = || {
            Folders::usual(uid, |name| std::env::var_os(name)).with_context(|| {
                format!("{} is not set: say with --root and --run where folders are to be", env::HOME)
            })
        };
        let root = self.globals.root.clone().map_or_else(|| usual().map(|usual| usual.root), Ok)?;
        let run = self.globals.run.clone().map_or_else(|| usual().map(|usual| usual.run), Ok)?;
        Ok(Instance::new(std::path::absolute(root)?, std::path::absolute(run)?))
    }

    /// The host's daemon, for an ordinary user who has none and may use that.
    fn of_the_host(&self, own: &Path) -> Option<PathBuf> {
        let ordinary = !rustix::process::geteuid().is_root();
        let named = self.globals.root.is_some() || self.globals.run.is_some();
        let socket = Path::new(env::DEFAULT_RUN).join("insula.sock");
        let usable = || rustix::fs::access(&socket, rustix::fs::Access::WRITE_OK).is_ok();
        (ordinary && !named && !own.exists() && usable()).then_some(socket)
    }

    /// Whether `--debug` was given.
    pub(crate) fn debug(&self) -> bool {
        self.globals.debug
    }

    /// Where the daemon is, and whether somebody named it.
    pub(crate) fn address(&self) -> anyhow::Result<(Address, bool)> {
        match self.globals.host.as_deref() {
            Some(host) if !host.is_empty() => Ok((host.parse()?, true)),
            _ => {
                let own = self.instance()?.socket();
                Ok((Address::Unix(self.of_the_host(&own).unwrap_or(own)), false))
            }
        }
    }

    /// A connection. When nobody answers at the place where a daemon is by default, one is started.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        let (address, named) = self.address()?;
        if self.debug() {
            printer::notice(&format!("connect to {address}"));
        }
        match Client::connect(address.clone()).await {
            Err(Error::Connect { source, .. }) if !named && nobody_listens(&source) => {
                let instance = self.instance()?;
                let debug = self.debug();
                tokio::task::spawn_blocking(move || daemon::start(&instance, debug)).await??;
                Ok(Client::connect(address).await?)
            }
            other => Ok(other?),
        }
    }

    /// A connection to a daemon that runs already.
    pub(crate) async fn running_client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(self.address()?.0).await?)
    }
}

fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
