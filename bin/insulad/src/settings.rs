//! From flags and the configuration file to what the daemon is started with: everything is checked
//! here, before anything is touched.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use insula_api::{Authorization, Group, TlsFiles};
use insula_base::Instance;
use insula_engine::StorageOptions;
use insula_engine::policy::{Forbidden, Policy};

use crate::args::{Args, Options};

/// sockaddr_un(7) has room for 108 bytes with the closing zero, seven of which a temporary name takes.
const LONGEST_SOCKET: usize = 100;

/// What the daemon is started with.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) instance: Instance,
    pub(crate) monitor: PathBuf,
    pub(crate) agent: PathBuf,
    pub(crate) vmm: PathBuf,
    pub(crate) vm_backend: Option<insula_engine::Backend>,
    pub(crate) vm_templates: bool,
    pub(crate) vm_boot_timeout: u32,
    pub(crate) log: String,
    pub(crate) sockets: Vec<PathBuf>,
    pub(crate) group: Group,
    /// Addresses to serve TLS on.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) authorization: Authorization,
    pub(crate) policy: Policy,
    pub(crate) registries: insula_registry::Options,
    pub(crate) network: insula_engine::NetworkOptions,
    pub(crate) sites: insula_engine::SiteOptions,
    pub(crate) storage: StorageOptions,
}

impl Settings {
    /// Of the command line and the file that it names.
    pub(crate) fn of(args: &Args) -> Result<Self> {
        let options = args.options.clone().or(read(args.config.as_deref())?);
        let instance = options.instance().context("the working directory")?;
        let (sockets, addresses) = hosts(&options, &instance)?;
        let tls = tls(&options)?;
        if !addresses.is_empty() && tls.is_none() {
            bail!(
                "TCP is served with TLS to clients with a certificate only, since this API gives the host \
                 away: set tlscacert, tlscert and tlskey"
            );
        }
        if let Some(files) = &tls {
            // Read again when they are used; what is wrong with them is said now.
            insula_api::tls_acceptor(files)?;
        }
        if !rustix::process::geteuid().is_root() {
            check_ordinary(&options, &addresses)?;
        }
        let group = options.group.as_deref().map_or(Ok(Group::Usual), Group::named)?;
        if let Some(plugin) = options.authorization.iter().find(|plugin| !is_plugin(plugin)) {
            bail!("authorization {plugin:?}: a name, or the absolute path of a socket is expected");
        }
        Ok(Self {
            monitor: options.monitor().context("find insula-monitor")?,
            agent: options.agent().context("find insula-agent")?,
            vmm: options.vmm().context("find insula-vmm")?,
            vm_backend: options.vm_backend.map(crate::args::VmBackend::backend),
            vm_templates: options.vm_templates != Some(crate::args::VmTemplates::Off),
            vm_boot_timeout: options.vm_boot_timeout.unwrap_or(insula_engine::USUAL_PATIENCE),
            log: options.log.clone().unwrap_or_else(|| "info".to_owned()),
            policy: policy(&options)?,
            registries: options.registries().context("registries")?,
            network: options.network()?,
            sites: options.sites()?,
            storage: storage(&options)?,
            authorization: Authorization::new(&options.authorization),
            sockets,
            group,
            addresses,
            tls,
            metrics: options.metrics_addr,
            instance,
        })
    }
}

/// The options of the file; none of one that was not asked for and is not there.
fn read(given: Option<&Path>) -> Result<Options> {
    let usual = crate::args::usual_folders().map(|folders| folders.config);
    let Some(path) = given.or(usual.as_deref()) else { return Ok(Options::default()) };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if given.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Options::default());
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    toml::from_str(&text).with_context(|| format!("the configuration {}", path.display()))
}

fn hosts(options: &Options, instance: &Instance) -> Result<(Vec<PathBuf>, Vec<SocketAddr>)> {
    if options.hosts.is_empty() {
        return Ok((vec![instance.socket()], Vec::new()));
    }
    let (mut sockets, mut addresses) = (Vec::new(), Vec::new());
    for host in &options.hosts {
        match host.split_once("://") {
            Some(("unix", "")) => bail!("host {host}: the path of the socket is missing"),
            Some(("unix", path)) if path.len() > LONGEST_SOCKET => {
                bail!("host {host}: the path has {} bytes, at most {LONGEST_SOCKET} fit", path.len())
            }
            Some(("unix", path)) => sockets.push(std::path::absolute(path)?),
            Some(("tcp", address)) => {
                addresses.push(address.parse().with_context(|| {
                    format!("host {host}: an address and a port are expected, as in tcp://0.0.0.0:2376")
                })?);
            }
            _ => bail!("host {host}: unix://PATH or tcp://ADDRESS:PORT is expected"),
        }
    }
    Ok((sockets, addresses))
}

fn tls(options: &Options) -> Result<Option<TlsFiles>> {
    match (&options.tlscacert, &options.tlscert, &options.tlskey) {
        (None, None, None) => Ok(None),
        (Some(authorities), Some(chain), Some(key)) => {
            Ok(Some(TlsFiles { authorities: authorities.clone(), chain: chain.clone(), key: key.clone() }))
        }
        _ => bail!("tlscacert, tlscert and tlskey are given all together or not at all"),
    }
}

/// What the daemon of an ordinary user cannot serve: its network is not the host's.
fn check_ordinary(options: &Options, addresses: &[SocketAddr]) -> Result<()> {
    if let Some(address) = addresses.first().or(options.metrics_addr.as_ref()) {
        bail!(
            "{address}: the daemon of an ordinary user serves unix sockets alone (metrics too, at /metrics)"
        );
    }
    if let Some(group) = &options.group {
        bail!("group {group}: the socket of an ordinary user's daemon is that user's alone");
    }
    Ok(())
}

/// The size by the name that `run` has for it, or Docker's daemon.
fn storage(options: &Options) -> Result<StorageOptions> {
    let mut storage = StorageOptions::default();
    for text in &options.storage_opt {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        match name {
            "size" | "overlay2.size" => {
                insula_engine::parse_storage_size(value).with_context(|| format!("storage-opt {text:?}"))?;
                storage.size = Some(value.to_owned());
            }
            "share-files" => storage.share_files = either(text, value)?,
            "verity" => storage.verity = either(text, value)?,
            _ => bail!(
                "storage-opt {text:?}: size=BYTES (size=10g), share-files=false or verity=true is expected"
            ),
        }
    }
    Ok(storage)
}

fn either(text: &str, value: &str) -> Result<bool> {
    value.parse().with_context(|| format!("storage-opt {text:?}: true or false is expected"))
}

fn is_plugin(text: &str) -> bool {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    path.starts_with('/') || (!path.is_empty() && !path.contains('/') && !path.starts_with('.'))
}

fn policy(options: &Options) -> Result<Policy> {
    let forbidden: Vec<Forbidden> =
        options.forbid.iter().map(|text| text.parse()).collect::<Result<_, _>>().context("forbid")?;
    let mut bind_below = Vec::new();
    for folder in &options.bind_below {
        if !folder.is_absolute() {
            bail!("bind-below {}: an absolute path is expected", folder.display());
        }
        let real = folder.canonicalize().with_context(|| format!("bind-below {}", folder.display()))?;
        bind_below.push(real);
    }
    Ok(Policy { forbidden, bind_below })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn settings(arguments: &[&str], file: &str) -> Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("insulad.toml");
        std::fs::write(&path, file).unwrap();
        let own = ["insulad", "--monitor", "/bin/true", "--config", path.to_str().unwrap()];
        Settings::of(&Args::try_parse_from(own.iter().chain(arguments)).unwrap())
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = "root = \"/a\"\nrun = \"/b\"\nforbid = [\"privileged\"]\nlog = \"debug\"";
        let settings = settings(&["--root", "/c"], file).unwrap();
        assert_eq!(settings.instance.root(), Path::new("/c"));
        assert_eq!(settings.sockets, [Path::new("/b/insula.sock")]);
        assert_eq!(settings.policy.forbidden, [Forbidden::Privileged]);
        assert_eq!(settings.log, "debug");
        let settings =
            self::settings(&["--storage-opt", "overlay2.size=2g"], "storage-opt = [\"size=1g\"]").unwrap();
        assert_eq!(settings.storage.size.as_deref(), Some("2g"));
        assert!(settings.storage.share_files && !settings.storage.verity);
        assert!(self::settings(&["--storage-opt", "verity=true"], "").unwrap().storage.verity);
        assert!(!self::settings(&["--storage-opt", "share-files=false"], "").unwrap().storage.share_files);
    }

    #[test]
    fn hosts_are_sockets_and_addresses() {
        let found = settings(&["-H", "unix:///c/d.sock", "-H", "unix:///e.sock"], "").unwrap();
        assert_eq!(found.sockets, [Path::new("/c/d.sock"), Path::new("/e.sock")]);
        for (bad, why) in [
            ("tcp://0.0.0.0:2375", "certificate only"),
            ("tcp://nowhere", "an address and a port"),
            ("/run/x.sock", "is expected"),
            ("unix://", "is missing"),
            (&format!("unix:///{}", "a".repeat(101)), "at most 100"),
        ] {
            let error = format!("{:#}", settings(&["-H", bad], "").unwrap_err());
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (file, why) in [
            ("rot = 1", "unknown field `rot`"),
            ("root = 1", "expected path string"),
            ("forbid = [\"fun\"]", "cannot be forbidden"),
            ("bind-below = [\"srv\"]", "an absolute path"),
            ("tlscert = \"/x\"", "all together"),
            ("metrics-addr = \"9323\"", "metrics-addr"),
            ("tlscert = \"/x\"\ntlskey = \"/x\"\ntlscacert = \"/x\"", "\"/x\""),
            ("group = \"no such group\"", "is not in /etc/group"),
            ("authorization = [\"../x\"]", "the absolute path"),
            ("storage-opt = [\"size=1k\"]", "too small"),
            ("storage-opt = [\"dm.basesize=1g\"]", "size=BYTES"),
            ("storage-opt = [\"share-files=perhaps\"]", "true or false"),
        ] {
            let error = format!("{:#}", settings(&[], file).unwrap_err());
            assert!(error.contains(why), "{file}: {error}");
        }
        let missing = Args::try_parse_from(["insulad", "--config", "/no/such.toml"]).unwrap();
        assert!(format!("{:#}", Settings::of(&missing).unwrap_err()).contains("read /no/such.toml"));
    }
}
