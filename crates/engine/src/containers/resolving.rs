//! What a container finds in `/etc/resolv.conf`, `/etc/hosts` and `/etc/hostname`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use insula_models::HostConfig;
use insula_network::{Attachment, Endpoint, files};

use super::check;
use super::row::Row;
use crate::monitor::SandboxFolder;
use crate::{Engine, Error, Result};

impl Engine {
    /// Writes resolv.conf, hosts and hostname; returns the folder that has them.
    pub(super) fn write_names(
        &self,
        row: &Row,
        endpoint: &Endpoint,
        sandbox: &SandboxFolder,
    ) -> Result<PathBuf> {
        if let Some(reference) = row.host.network_mode.strip_prefix("container:") {
            let other = self.find(reference)?;
            return Ok(self.instance().sandbox(&other.id));
        }
        let dns = dns(row)?;
        let shares_host = row.host.network_mode == "host";
        let host_conf = files::host_resolv_conf();
        let resolv_conf = match endpoint.named() {
            true => files::resolv_conf_named(&host_conf, &dns),
            false => files::resolv_conf(&host_conf, &dns, shares_host),
        };
        // The container's root may write to them.
        let owner = self.ids_of(row).map_or(0, |ids| ids.first);
        for (name, text) in [
            ("resolv.conf", resolv_conf),
            ("hosts", self.hosts(row, endpoint)?),
            ("hostname", files::hostname(&row.config.hostname)),
        ] {
            sandbox.write(name, text.as_bytes(), owner)?;
        }
        Ok(sandbox.path().to_owned())
    }

    fn hosts(&self, row: &Row, endpoint: &Endpoint) -> Result<String> {
        let (host, config) = (&row.host, &row.config);
        let mut extra = Vec::new();
        for (name, address) in check::extra_hosts(&host.extra_hosts)? {
            extra.push((name, address.map_or_else(|| self.host_gateway(host, endpoint), Ok)?));
        }
        extra.extend(self.linked(row)?);
        if host.network_mode == "host"
            && let Ok(text) = fs::read("/etc/hosts")
        {
            return Ok(files::hosts_of_host(&String::from_utf8_lossy(&text), &extra));
        }
        let addresses: Vec<IpAddr> = endpoint.attachments.iter().flat_map(Attachment::addresses).collect();
        Ok(files::hosts(&addresses, &config.hostname, &config.domainname, &extra))
    }

    /// Where a container reaches its host (`--add-host NAME:host-gateway`). Who has no way to it has the name all
    /// the same, as with Docker.
    fn host_gateway(&self, host: &HostConfig, endpoint: &Endpoint) -> Result<IpAddr> {
        if host.network_mode == "host" {
            return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        if let Some(gateway) = endpoint.attachments.iter().find_map(|attachment| attachment.gateway) {
            return Ok(gateway);
        }
        let network = self.networks().get("bridge")?;
        let addressing = network.addressing().ok_or_else(|| {
            Error::InvalidArgument("add-host: host-gateway needs a bridge network".to_owned())
        })?;
        Ok(IpAddr::V4(addressing.gateway()))
    }
}

/// What the user says about names.
pub(super) fn dns(row: &Row) -> Result<files::Dns> {
    Ok(files::Dns {
        servers: check::dns(&row.host.dns)?,
        search: row.host.dns_search.clone(),
        options: row.host.dns_options.clone(),
    })
}
