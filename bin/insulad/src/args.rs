//! The command line.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser;
use insula_base::{Folders, Instance, env};
use insula_engine::{Backend, NetworkOptions, SiteOptions};

const MONITOR: &str = "insula-monitor";
const AGENT: &str = "insula-agent";
const VMM: &str = "insula-vmm";
const PROXY: &str = "insula-proxy";

/// The insula daemon: serves the Docker Engine API on a unix socket.
///
/// It may be stopped or killed at any moment: containers run on, and the next daemon finds them.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  insulad --root /srv/insula --run /run/insula2\n  \
                  insulad -H unix:///run/insula/insula.sock -H tcp://0.0.0.0:2376 \\\n          \
                  --tlscacert ca.pem --tlscert cert.pem --tlskey key.pem\n  \
                  insulad --forbid privileged,host-root,host-namespaces --check"
)]
pub(crate) struct Args {
    /// Configuration file; flags win over it [default: /etc/insula/insulad.toml; ~/.config/insula/insulad.toml of an
    /// ordinary user; if there]
    #[arg(long, env = env::CONFIG, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Only check the configuration
    #[arg(long)]
    pub(crate) check: bool,
    /// Descriptor that gets one byte once the API is served
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..))]
    pub(crate) ready_fd: Option<i32>,
    #[command(flatten)]
    pub(crate) options: Options,
}

/// What flags and the configuration file can say, by the same names.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args, serde::Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Options {
    /// Folder of images, containers, volumes and the database [default: /var/lib/insula; ~/.local/share/insula of an
    /// ordinary user]
    #[arg(long, env = env::ROOT, value_name = "FOLDER")]
    pub(crate) root: Option<PathBuf>,
    /// Folder of what lives no longer than the machine is up; on a tmpfs [default: /run/insula; insula in
    /// XDG_RUNTIME_DIR of an ordinary user]
    #[arg(long, env = env::RUN, value_name = "FOLDER")]
    pub(crate) run: Option<PathBuf>,
    /// Where to serve the API: unix://PATH, or tcp://ADDRESS:PORT with the three --tls options; may be
    /// given more than once [default: insula.sock in the run folder]
    #[arg(short = 'H', long = "host", env = env::HOST, value_name = "ADDRESS", value_delimiter = ',')]
    pub(crate) hosts: Vec<String>,
    /// Group that may use the unix socket [default: docker or insula, where there is one]
    #[arg(short = 'G', long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    /// What to log: a level (error, warn, info, debug, trace), or filters such as insula_engine=debug
    /// [default: info]
    #[arg(long, env = env::LOG, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// Program that watches over a container [default: insula-monitor beside this one]
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) monitor: Option<PathBuf>,
    /// First program of a container's own kernel [default: insula-agent beside this one]
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) agent: Option<PathBuf>,
    /// Our own machine, which runs such kernels on /dev/kvm [default: insula-vmm beside this one]
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) vmm: Option<PathBuf>,
    /// What runs containers with a kernel of their own [default: kvm where the hardware does it, else qemu]
    #[arg(long, value_name = "BACKEND")]
    pub(crate) vm_backend: Option<VmBackend>,
    /// Whether such containers start from machines that were booted before: on makes a template of each kind of
    /// machine when it is first needed, off uses those that there are [default: on]
    #[arg(long, value_name = "WHETHER")]
    pub(crate) vm_templates: Option<VmTemplates>,
    /// Seconds that such a kernel may take until its agent answers [default: 180]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) vm_boot_timeout: Option<u32>,
    /// Authorities of whose certificates clients over TCP must have one
    #[arg(long, value_name = "FILE")]
    pub(crate) tlscacert: Option<PathBuf>,
    /// Certificate of this daemon, for clients over TCP
    #[arg(long, value_name = "FILE")]
    pub(crate) tlscert: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE")]
    pub(crate) tlskey: Option<PathBuf>,
    /// Address and port to serve metrics for Prometheus on, to anyone and without TLS: http://ADDRESS:PORT/metrics
    /// [default: on the API's own sockets only]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics_addr: Option<SocketAddr>,
    /// Plugin that is asked about each request: a name in /run/docker/plugins, or the path of its socket;
    /// may be given more than once
    #[arg(long, alias = "authorization-plugin", value_name = "PLUGIN", value_delimiter = ',')]
    pub(crate) authorization: Vec<String>,
    /// What containers may not ask for: privileged, host-root, bind-mounts, host-namespaces, devices,
    /// capabilities, unconfined
    #[arg(long, value_name = "THING", value_delimiter = ',')]
    pub(crate) forbid: Vec<String>,
    /// Allow bind mounts below this folder only; may be given more than once
    #[arg(long, value_name = "FOLDER")]
    pub(crate) bind_below: Vec<PathBuf>,
    /// Mirror of a registry, tried before it (may be repeated): REGISTRY=URL, or URL for Docker Hub
    #[arg(long, value_name = "MIRROR")]
    pub(crate) registry_mirror: Vec<String>,
    /// Registry that may be spoken to without verified TLS (may be repeated): HOST[:PORT] or ADDRESS/BITS
    #[arg(long, value_name = "REGISTRY")]
    pub(crate) insecure_registry: Vec<String>,
    /// Folder with certificates of registries, a folder each (may be repeated)
    /// [default: /etc/insula/certs.d, /etc/docker/certs.d]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) registry_certs: Vec<PathBuf>,
    /// Layers that are downloaded at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) max_concurrent_downloads: Option<u8>,
    /// Layers that are uploaded at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) max_concurrent_uploads: Option<u8>,
    /// Where networks get their subnets from (may be repeated): base=10.0.0.0/16,size=24
    /// [default: private ranges]
    #[arg(long, value_name = "POOL")]
    pub(crate) default_address_pool: Vec<String>,
    /// MTU of networks that name none [default: 1500]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(68..65536))]
    pub(crate) mtu: Option<u32>,
    /// Address of the host on which ports are published that name none [default: all]
    #[arg(long, value_name = "IP")]
    pub(crate) ip: Option<Ipv4Addr>,
    /// Interface by which ports are reached that are published on all addresses (may be repeated)
    /// [default: all]
    #[arg(long, value_name = "INTERFACE")]
    pub(crate) publish_interface: Vec<String>,
    /// Where host names (run --publish-host) are served by HTTP: [IP:]PORT (may be repeated), or off
    /// [default: 80]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) publish_host_http: Vec<String>,
    /// Where host names are served with TLS: [IP:]PORT (may be repeated), or off [default: 443]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) publish_host_https: Vec<String>,
    /// Folder of their certificates: NAME.crt with NAME.key, or NAME/fullchain.pem with NAME/privkey.pem; changes
    /// are noticed [default: /etc/insula/host-certs]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) publish_host_certs: Option<PathBuf>,
    /// Program that serves them [default: insula-proxy beside this one]
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) proxy: Option<PathBuf>,
    /// Option of storage: size=10g, of writable layers for which none is asked (run --storage-opt) [default: no
    /// size]; share-files=false, to store files that are the same in several layers as often; verity=true, to have
    /// the kernel verify files of layers each time they are read from the disk (fs-verity)
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) storage_opt: Vec<String>,
}

/// For `--vm-backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum VmBackend {
    /// Hardware virtualization
    Kvm,
    /// Emulation
    Qemu,
}

/// Whether templates of machines are made unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum VmTemplates {
    /// With the first container of a kind
    On,
    /// Only when asked, by `insula warm`
    Off,
}

impl VmBackend {
    pub(crate) fn backend(self) -> Backend {
        match self {
            Self::Kvm => Backend::Kvm,
            Self::Qemu => Backend::Qemu,
        }
    }
}

impl Options {
    /// These, and from `other` what they leave open.
    pub(crate) fn or(self, other: Self) -> Self {
        let list = |own: Vec<String>, other| if own.is_empty() { other } else { own };
        let paths = |own: Vec<PathBuf>, other| if own.is_empty() { other } else { own };
        Self {
            root: self.root.or(other.root),
            run: self.run.or(other.run),
            hosts: list(self.hosts, other.hosts),
            group: self.group.or(other.group),
            log: self.log.or(other.log),
            monitor: self.monitor.or(other.monitor),
            agent: self.agent.or(other.agent),
            vmm: self.vmm.or(other.vmm),
            vm_backend: self.vm_backend.or(other.vm_backend),
            vm_templates: self.vm_templates.or(other.vm_templates),
            vm_boot_timeout: self.vm_boot_timeout.or(other.vm_boot_timeout),
            tlscacert: self.tlscacert.or(other.tlscacert),
            tlscert: self.tlscert.or(other.tlscert),
            tlskey: self.tlskey.or(other.tlskey),
            metrics_addr: self.metrics_addr.or(other.metrics_addr),
            authorization: list(self.authorization, other.authorization),
            forbid: list(self.forbid, other.forbid),
            bind_below: paths(self.bind_below, other.bind_below),
            registry_mirror: list(self.registry_mirror, other.registry_mirror),
            insecure_registry: list(self.insecure_registry, other.insecure_registry),
            registry_certs: paths(self.registry_certs, other.registry_certs),
            max_concurrent_downloads: self.max_concurrent_downloads.or(other.max_concurrent_downloads),
            max_concurrent_uploads: self.max_concurrent_uploads.or(other.max_concurrent_uploads),
            default_address_pool: list(self.default_address_pool, other.default_address_pool),
            mtu: self.mtu.or(other.mtu),
            ip: self.ip.or(other.ip),
            publish_interface: list(self.publish_interface, other.publish_interface),
            publish_host_http: list(self.publish_host_http, other.publish_host_http),
            publish_host_https: list(self.publish_host_https, other.publish_host_https),
            publish_host_certs: self.publish_host_certs.or(other.publish_host_certs),
            storage_opt: list(self.storage_opt, other.storage_opt),
            proxy: self.proxy.or(other.proxy),
        }
    }

    /// The folders, absolute.
    pub(crate) fn instance(&self) -> anyhow::Result<Instance> {
        let usual = |of: fn(Folders) -> PathBuf| {
            let folders = usual_folders().with_context(|| {
                format!("{} is not set: say with --root and --run where folders are to be", env::HOME)
            });
            folders.map(of)
        };
        let root = self.root.clone().map_or_else(|| usual(|folders| folders.root), Ok)?;
        let run = self.run.clone().map_or_else(|| usual(|folders| folders.run), Ok)?;
        Ok(Instance::new(std::path::absolute(root)?, std::path::absolute(run)?))
    }

    /// How registries are reached.
    pub(crate) fn registries(&self) -> Result<insula_registry::Options, insula_registry::OptionError> {
        let mut options = insula_registry::Options::default();
        for mirror in &self.registry_mirror {
            options.add_mirror(mirror)?;
        }
        for registry in &self.insecure_registry {
            options.insecure.push(registry.parse()?);
        }
        if !self.registry_certs.is_empty() {
            options.certificates.clone_from(&self.registry_certs);
        }
        options.downloads = self.max_concurrent_downloads.map_or(options.downloads, usize::from).max(1);
        options.uploads = self.max_concurrent_uploads.map_or(options.uploads, usize::from).max(1);
        Ok(options)
    }

    /// What networks are made of.
    pub(crate) fn network(&self) -> anyhow::Result<NetworkOptions> {
        let mut options = NetworkOptions {
            publish: self.ip.filter(|address| !address.is_unspecified()),
            exposed: self.publish_interface.clone(),
            ..NetworkOptions::default()
        };
        if let Some(name) = options.exposed.iter().find(|name| !is_interface(name)) {
            anyhow::bail!("publish-interface {name:?} is not the name of an interface");
        }
        options.mtu = self.mtu.unwrap_or(options.mtu);
        if !self.default_address_pool.is_empty() {
            let pools = self.default_address_pool.iter().map(|text| text.parse());
            options.pools = pools.collect::<Result<_, _>>().context("default-address-pool")?;
        }
        Ok(options)
    }

    /// Where host names are served.
    pub(crate) fn sites(&self) -> anyhow::Result<SiteOptions> {
        let proxy = sister(self.proxy.as_deref(), PROXY).context("find insula-proxy")?;
        let (http, https) = (&self.publish_host_http, &self.publish_host_https);
        crate::sites::options(proxy, http, https, self.publish_host_certs.clone())
    }

    /// The monitor, absolute.
    pub(crate) fn monitor(&self) -> std::io::Result<PathBuf> {
        if let Some(monitor) = &self.monitor {
            return std::path::absolute(monitor);
        }
        let own = std::env::current_exe()?;
        let found = beside(&own, MONITOR).find(|path| path.is_file());
        found.ok_or_else(|| {
            std::io::Error::new(
                std::io::ErrorKind::NotFound,
                format!(
                    "{MONITOR} is not beside {}; give it with --monitor, or its folder in {}",
                    own.display(),
                    env::LIBEXEC
                ),
            )
        })
    }

    /// The agent, absolute, whether it is there or not: few containers need it.
    pub(crate) fn agent(&self) -> std::io::Result<PathBuf> {
        sister(self.agent.as_deref(), AGENT)
    }

    /// Our own machine, absolute, whether it is there or not.
    pub(crate) fn vmm(&self) -> std::io::Result<PathBuf> {
        sister(self.vmm.as_deref(), VMM)
    }
}

/// Those of whoever runs it.
pub(crate) fn usual_folders() -> Option<Folders> {
    Folders::usual(rustix::process::geteuid().as_raw(), |name| std::env::var_os(name))
}

/// What the kernel takes, and nothing that a rule could be made of.
fn is_interface(name: &str) -> bool {
    let sign = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'@');
    (1..=15).contains(&name.len()) && name.bytes().all(sign)
}

/// The program that was named, or the sister with this name, whether it is there or not.
fn sister(named: Option<&Path>, name: &str) -> std::io::Result<PathBuf> {
    if let Some(named) = named {
        return std::path::absolute(named);
    }
    let own = std::env::current_exe()?;
    Ok(beside(&own, name).find(|path| path.is_file()).unwrap_or_else(|| own.with_file_name(name)))
}

/// Where a sister program may be.
fn beside(own: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    let folders = [std::env::var_os(env::LIBEXEC).map(PathBuf::from), own.parent().map(PathBuf::from)];
    folders.into_iter().flatten().map(move |folder| folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_configured() {
        let line = ["insulad", "--default-address-pool", "base=10.7.0.0/16,size=24", "--mtu", "1400", "--ip"];
        let parse = |more: &[&str]| {
            Args::try_parse_from([&line[..], more].concat()).map(|args| args.options.network())
        };
        let options = parse(&["127.0.0.1", "--publish-interface", "eth0"]).unwrap().unwrap();
        assert_eq!(
            (options.mtu, options.publish, options.pools.len()),
            (1400, Some([127, 0, 0, 1].into()), 1)
        );
        assert_eq!(options.exposed, ["eth0"]);
        assert_eq!(parse(&["0.0.0.0"]).unwrap().unwrap().publish, None);
        assert!(parse(&["127.0.0.1", "--publish-interface", "a b"]).unwrap().is_err());
        assert!(parse(&["127.0.0.1", "--default-address-pool", "nonsense"]).unwrap().is_err());
        assert!(parse(&["x"]).is_err());
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
