//! What a container is to be called: checked when it is made.

use insula_models::{ContainerConfig, HostConfig, Labels};
use insula_network::Mode;
use insula_spec::sites::{HostName, LABEL, Site, Speech};
use serde::{Deserialize, Serialize};

use crate::{Engine, Error, Result};

/// A host name of a container, in its row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SiteRow {
    pub(crate) name: HostName,
    pub(crate) speech: Speech,
    /// The container's.
    pub(crate) port: u16,
}

/// The port of plain HTTP, and the one of TLS.
const HTTP: u16 = 80;
const HTTPS: u16 = 443;

/// The sites of a user's own labels: an image cannot take names.
pub(crate) fn wished(labels: &Labels) -> Result<Vec<Site>> {
    let text = labels.get(LABEL).map_or("", String::as_str);
    Site::list(text).map_err(|error| Error::InvalidArgument(error.to_string()))
}

impl Engine {
    /// Completes sites by what the container exposes, and refuses what cannot be served.
    pub(crate) fn site_rows(
        &self,
        sites: Vec<Site>,
        config: &ContainerConfig,
        host: &HostConfig,
    ) -> Result<Vec<SiteRow>> {
        if sites.is_empty() {
            return Ok(Vec::new());
        }
        match Mode::parse(&host.network_mode) {
            Mode::None => {
                return Err(Error::InvalidArgument(
                    "conflicting options: a host name and the network mode none".to_owned(),
                ));
            }
            Mode::Container(other) => {
                return Err(Error::InvalidArgument(format!(
                    "conflicting options: a host name and the network of another container: give it to {other}"
                )));
            }
            Mode::Host | Mode::Network(_) => {}
        }
        let rows = sites.into_iter().map(|site| {
            let port = match site.port {
                Some(port) => port,
                None => only_port(&site, config)?,
            };
            Ok(SiteRow { name: site.name, speech: site.speech, port })
        });
        let rows: Vec<SiteRow> = rows.collect::<Result<_>>()?;
        self.check_speech(&rows)?;
        Ok(rows)
    }

    /// All containers of a name speak the same.
    fn check_speech(&self, rows: &[SiteRow]) -> Result<()> {
        for other in self.0.containers.all() {
            let other = other.row();
            let differs = |row: &&SiteRow| {
                other.sites.iter().any(|known| known.name == row.name && known.speech != row.speech)
            };
            if let Some(row) = rows.iter().find(differs) {
                return Err(Error::Conflict(format!(
                    "the host name {} is served by container {} with another protocol",
                    row.name, other.name
                )));
            }
        }
        Ok(())
    }
}

/// The usual port if it is exposed or nothing is, else the only one that is.
fn only_port(site: &Site, config: &ContainerConfig) -> Result<u16> {
    let usual = if site.speech == Speech::Tls { HTTPS } else { HTTP };
    let tcp = |port: &str| {
        let (port, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        (protocol == "tcp").then(|| port.parse::<u16>().ok()).flatten()
    };
    let mut exposed: Vec<u16> = config.exposed_ports.keys().filter_map(|port| tcp(port)).collect();
    exposed.sort_unstable();
    exposed.dedup();
    match exposed.as_slice() {
        [] => Ok(usual),
        ports if ports.contains(&usual) => Ok(usual),
        [port] => Ok(*port),
        ports => Err(Error::InvalidArgument(format!(
            "the container exposes the ports {}: say which of them {} is, as in {}:{}",
            ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", "),
            site.name,
            site.name,
            ports[0]
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use insula_models::Empty;

    fn port(site: &str, exposed: &[&str]) -> Result<u16> {
        let exposed_ports = exposed.iter().map(|port| ((*port).to_owned(), Empty {})).collect();
        let config = ContainerConfig { exposed_ports, ..ContainerConfig::default() };
        only_port(&site.parse().unwrap(), &config)
    }

    #[test]
    fn the_port_follows_from_what_is_exposed() {
        assert_eq!(port("a", &[]).unwrap(), 80);
        assert_eq!(port("a/tls", &[]).unwrap(), 443);
        assert_eq!(port("a", &["8080/tcp", "53/udp"]).unwrap(), 8080);
        assert_eq!(port("a", &["443/tcp", "80/tcp"]).unwrap(), 80);
        let error = port("a.org", &["8080/tcp", "3000"]).unwrap_err().to_string();
        assert!(error.ends_with("3000, 8080: say which of them a.org is, as in a.org:3000"), "{error}");
    }

    #[test]
    fn labels_are_checked() {
        let labels = |text: &str| [(LABEL.to_owned(), text.to_owned())].into();
        assert_eq!(wished(&labels("a.org:81,b.org")).unwrap().len(), 2);
        assert!(wished(&Labels::default()).unwrap().is_empty());
        assert!(matches!(wished(&labels("a b")), Err(Error::InvalidArgument(_))));
    }
}
