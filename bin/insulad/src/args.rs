//! The command line.

use std::path::{Path, PathBuf};

use clap::Parser;
use insula_base::{Instance, env};

const MONITOR: &str = "insula-monitor";
const AGENT: &str = "insula-agent";

/// The insula daemon: serves the Docker Engine API on a unix socket.
///
/// It may be stopped or killed at any moment: containers run on, and the next daemon finds them.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  insulad --root /srv/insula --run /run/insula2 --host unix:///run/insula2/insula.sock"
)]
pub(crate) struct Args {
    /// Folder of images, containers, volumes and the database
    #[arg(long, env = env::ROOT, value_name = "FOLDER", default_value = env::DEFAULT_ROOT)]
    root: PathBuf,
    /// Folder of what lives no longer than the machine is up; on a tmpfs
    #[arg(long, env = env::RUN, value_name = "FOLDER", default_value = env::DEFAULT_RUN)]
    run: PathBuf,
    /// Where to serve the API: unix://PATH [default: insula.sock in the run folder]
    #[arg(short = 'H', long, env = env::HOST, value_name = "ADDRESS", value_parser = unix_socket)]
    host: Option<PathBuf>,
    /// Descriptor that gets one byte once the API is served
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..))]
    pub(crate) ready_fd: Option<i32>,
    /// What to log: a level (error, warn, info, debug, trace), or filters such as insula_engine=debug
    #[arg(long, env = env::LOG, value_name = "FILTER", default_value = "info")]
    pub(crate) log: String,
    /// Mirror of a registry, tried before it (may be repeated): REGISTRY=URL, or URL for Docker Hub
    #[arg(long, value_name = "MIRROR")]
    registry_mirror: Vec<String>,
    /// Registry that may be spoken to without verified TLS (may be repeated): HOST[:PORT] or ADDRESS/BITS
    #[arg(long, value_name = "REGISTRY")]
    insecure_registry: Vec<insula_registry::Insecure>,
    /// Folder with certificates of registries, a folder each (may be repeated)
    /// [default: /etc/insula/certs.d, /etc/docker/certs.d]
    #[arg(long, value_name = "FOLDER")]
    registry_certs: Vec<PathBuf>,
    /// Layers that are downloaded at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    max_concurrent_downloads: Option<u8>,
    /// Layers that are uploaded at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    max_concurrent_uploads: Option<u8>,
    /// Program that watches over a container [default: insula-monitor beside this one]
    #[arg(long, value_name = "PROGRAM")]
    monitor: Option<PathBuf>,
    /// First program of a container's own kernel [default: insula-agent beside this one]
    #[arg(long, value_name = "PROGRAM")]
    agent: Option<PathBuf>,
}

impl Args {
    /// The folders, absolute.
    pub(crate) fn instance(&self) -> std::io::Result<Instance> {
        Ok(Instance::new(std::path::absolute(&self.root)?, std::path::absolute(&self.run)?))
    }

    /// How registries are reached.
    pub(crate) fn registries(&self) -> Result<insula_registry::Options, insula_registry::OptionError> {
        let mut options = insula_registry::Options::default();
        for mirror in &self.registry_mirror {
            options.add_mirror(mirror)?;
        }
        options.insecure.extend(self.insecure_registry.iter().cloned());
        if !self.registry_certs.is_empty() {
            options.certificates.clone_from(&self.registry_certs);
        }
        options.downloads = self.max_concurrent_downloads.map_or(options.downloads, usize::from);
        options.uploads = self.max_concurrent_uploads.map_or(options.uploads, usize::from);
        Ok(options)
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
        if let Some(agent) = &self.agent {
            return std::path::absolute(agent);
        }
        let own = std::env::current_exe()?;
        Ok(beside(&own, AGENT).find(|path| path.is_file()).unwrap_or_else(|| own.with_file_name(AGENT)))
    }

    /// Where the API is served.
    pub(crate) fn socket(&self, instance: &Instance) -> std::io::Result<PathBuf> {
        self.host.as_ref().map_or_else(|| Ok(instance.socket()), std::path::absolute)
    }
}

/// Where a sister program may be.
fn beside(own: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    let folders = [std::env::var_os(env::LIBEXEC).map(PathBuf::from), own.parent().map(PathBuf::from)];
    folders.into_iter().flatten().map(move |folder| folder.join(name))
}

fn unix_socket(text: &str) -> Result<PathBuf, String> {
    let path = text
        .strip_prefix("unix://")
        .ok_or("only unix://PATH is served: TCP without TLS gives the host away")?;
    // sockaddr_un(7) has room for 108 bytes with the closing zero, seven of which a temporary name takes.
    match path.len() {
        0 => Err("the path of the socket is missing".to_owned()),
        1..=100 => Ok(path.into()),
        length => Err(format!("the path of the socket has {length} bytes, at most 100 fit")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn the_socket_follows_the_run_folder() {
        let args = Args::try_parse_from(["insulad", "--root", "/a", "--run", "/b"]).unwrap();
        assert_eq!(args.socket(&args.instance().unwrap()).unwrap(), Path::new("/b/insula.sock"));
        let args = Args::try_parse_from(["insulad", "--run", "/b", "-H", "unix:///c/d.sock"]).unwrap();
        assert_eq!(args.socket(&args.instance().unwrap()).unwrap(), Path::new("/c/d.sock"));
    }

    #[test]
    fn other_addresses_are_refused() {
        for address in
            ["tcp://0.0.0.0:2375", "/run/x.sock", "unix://", &format!("unix:///{}", "a".repeat(101))]
        {
            assert!(Args::try_parse_from(["insulad", "-H", address]).is_err(), "{address}");
        }
    }
}
