//! The networks that a container is to be in: what was asked for, and changes while it runs.

use insula_sys::failpoint::failpoint;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::Arc;

use insula_models::{EndpointSettings, HostConfig, Labels, NetworkConnectRequest, NetworkDisconnectRequest};
use insula_network::{ConnectRequest, EndpointRequest, Error as NetworkError, Mode, Network, files};
use insula_proto::{Call, Rewire};
use insula_spec::plan::NetworkChange;

use super::container::Container;
use super::resolving::dns;
use super::row::Row;
use super::{check, ports};
use crate::events::EventType;
use crate::{Engine, Error, Result};

/// Networks of one container; more interfaces than anybody has a use for.
const MOST: usize = 64;

impl Engine {
    /// The endpoints of a new container, by the names of their networks; its own network is among them.
    pub(super) fn endpoints(
        &self,
        asked: BTreeMap<String, EndpointSettings>,
        host: &HostConfig,
    ) -> Result<BTreeMap<String, EndpointSettings>> {
        let Mode::Network(primary) = Mode::parse(&host.network_mode) else {
            // Clients repeat the mode here; there is nothing to be asked for.
            return match asked.into_iter().find(|(name, _)| *name != host.network_mode) {
                Some((name, _)) => Err(Error::InvalidArgument(format!(
                    "conflicting options: network {name:?} beside the network mode {}",
                    host.network_mode
                ))),
                None => Ok(BTreeMap::new()),
            };
        };
        let primary = self.networks().get(&primary)?;
        let mut endpoints = BTreeMap::new();
        for (reference, settings) in asked {
            let reference = if reference == "default" { "bridge".to_owned() } else { reference };
            let network = self.networks().get(&reference)?;
            check_settings(&network, &settings)?;
            if endpoints.insert(network.name.clone(), settings).is_some() {
                return Err(Error::InvalidArgument(format!(
                    "network {} is specified multiple times",
                    network.name
                )));
            }
        }
        endpoints.entry(primary.name.clone()).or_default();
        if endpoints.len() > MOST {
            return Err(Error::InvalidArgument(format!("a container is in {MOST} networks at most")));
        }
        for link in &host.links {
            let (name, _) = check::link(link)?;
            self.find(name)?;
        }
        Ok(endpoints)
    }

    /// What a container that starts asks the networks for.
    pub(super) fn endpoint_request(&self, row: &Row) -> Result<EndpointRequest> {
        let mode = if row.config.network_disabled { Mode::None } else { Mode::parse(&row.host.network_mode) };
        let mode = match mode {
            Mode::Container(reference) => Mode::Container(self.find(&reference)?.id.to_string()),
            mode => mode,
        };
        let (mut connections, mut requests) = (Vec::new(), Vec::new());
        if let Mode::Network(primary) = &mode {
            requests = ports::requests(&row.config, &row.host)?;
            let primary = self.networks().get(primary).map_or_else(|_| primary.clone(), |found| found.name);
            let endpoints = row.endpoints(&primary);
            // The primary network's interface is the first.
            let first = endpoints.iter().filter(|(name, _)| **name == primary);
            let others = endpoints.iter().filter(|(name, _)| **name != primary);
            for (name, settings) in first.chain(others) {
                connections.push(self.wish(row, name, settings, *name == primary)?);
            }
        }
        Ok(EndpointRequest {
            container: row.id.clone(),
            name: row.name.clone(),
            hostname: row.config.hostname.clone(),
            mode,
            connections,
            ports: requests,
            rate: rate(&row.host),
        })
    }

    fn wish(
        &self,
        row: &Row,
        network: &str,
        settings: &EndpointSettings,
        primary: bool,
    ) -> Result<ConnectRequest> {
        let ipam = settings.ipam_config.clone().unwrap_or_default();
        let own = Some(&row.config.mac_address).filter(|_| primary);
        let mac = own.into_iter().chain([&settings.mac_address]).find(|text| !text.is_empty()).cloned();
        let links = row.host.links.iter().filter(|_| primary).chain(&settings.links);
        let links = links.map(|link| {
            let (name, alias) = check::link(link)?;
            // By id, so that it survives a new name.
            let id = self.find(name).map_or_else(|_| name.to_owned(), |found| found.id.to_string());
            Ok((id, alias.to_owned()))
        });
        Ok(ConnectRequest {
            network: network.to_owned(),
            address: ipam.ipv4_address.parse().ok(),
            address6: ipam.ipv6_address.parse().ok(),
            mac,
            aliases: settings.aliases.clone(),
            links: links.collect::<Result<_>>()?,
            priority: settings.gw_priority,
        })
    }

    /// Puts a container into a network, at once if it runs.
    pub async fn connect_network(&self, reference: &str, request: NetworkConnectRequest) -> Result<()> {
        let network = self.networks().get(reference)?;
        let container = self.find(&request.container)?;
        let settings = request.endpoint_config.unwrap_or_default();
        check_settings(&network, &settings)?;
        let _turn = container.turn.lock().await;
        let row = container.row();
        check_connectable(&row, &network)?;
        if row.endpoints.contains_key(&network.name) {
            let (container, network) = (row.name.clone(), network.name);
            return Err(NetworkError::AlreadyConnected { container, network }.into());
        }
        if row.endpoints.len() >= MOST {
            return Err(Error::InvalidArgument(format!("a container is in {MOST} networks at most")));
        }
        if row.running() {
            let wish = self.wish(&row, &network.name, &settings, false)?;
            let (_, change) = self.networks().connect(&container.id, &wish)?;
            failpoint("connect.given");
            let lines = self.host_lines(&row, &change);
            match self.rewire(&container, &change).await {
                // It may be in the middle of it, and have the address: that is its own until it answers.
                Err(error @ Error::Silent(_)) => return Err(error),
                Err(error) => {
                    self.networks().disconnect(&container.id, &network.id)?;
                    return Err(error);
                }
                Ok(()) => {}
            }
            self.sandbox(&row).change_lines("hosts", &lines, &[])?;
            self.lead_to_names(&container, &row)?;
            failpoint("connect.wired");
        }
        let row = container.change(self.store(), |row| {
            row.complete_endpoints();
            row.endpoints.insert(network.name.clone(), settings);
        })?;
        if row.running() {
            self.publish_network(&network, "connect", &[("container", row.id.as_str())]);
        }
        Ok(())
    }

    /// A container that comes into its first network with names asks the daemon from now on.
    fn lead_to_names(&self, container: &Arc<Container>, row: &Row) -> Result<()> {
        let first = container.state().names.is_none();
        if first && self.networks().names().has_names(&row.id) {
            let (host, dns) = (files::host_resolv_conf(), dns(row)?);
            let before = files::resolv_conf(&host, &dns, false);
            let after = files::resolv_conf_named(&host, &dns);
            self.sandbox(row).replace_text("resolv.conf", &before, &after)?;
            self.serve_names(container);
        }
        Ok(())
    }

    /// Takes a container out of a network, at once if it runs.
    pub async fn disconnect_network(&self, reference: &str, request: NetworkDisconnectRequest) -> Result<()> {
        let network = self.networks().get(reference)?;
        let container = self.find(&request.container)?;
        let _turn = container.turn.lock().await;
        let row = container.row();
        if !matches!(Mode::parse(&row.host.network_mode), Mode::Network(_)) {
            return Err(
                NetworkError::NotConnected { container: row.name.clone(), network: network.name }.into()
            );
        }
        if row.running() {
            self.depart(&container, &row, &network).await?;
        } else if !row.endpoints(&row.host.network_mode).contains_key(&network.name) {
            return Err(
                NetworkError::NotConnected { container: row.name.clone(), network: network.name }.into()
            );
        }
        let row = container.change(self.store(), |row| {
            row.complete_endpoints();
            row.endpoints.remove(&network.name);
        })?;
        if row.running() {
            self.publish_network(&network, "disconnect", &[("container", row.id.as_str())]);
        }
        Ok(())
    }

    /// Takes a container, of whose monitor was not heard for a while, out of networks into which it was to come
    /// meanwhile.
    pub(crate) fn leave_unfinished_soon(&self, container: &Arc<Container>) {
        let (engine, container) = (self.clone(), container.clone());
        tokio::spawn(async move {
            // Who has it may be about to put it into one.
            let _turn = container.turn.lock().await;
            if let Err(error) = engine.leave_unfinished(&container).await {
                let error = insula_base::chain(&error);
                tracing::warn!(container = container.id.short(), error, "leave a network");
            }
        });
    }

    async fn leave_unfinished(&self, container: &Arc<Container>) -> Result<()> {
        let row = container.row();
        let Some(endpoint) = self.networks().endpoint(&row.id)?.filter(|_| row.running()) else {
            return Ok(());
        };
        let Mode::Network(primary) = Mode::parse(&row.host.network_mode) else { return Ok(()) };
        let known = row.endpoints(&self.networks().get(&primary)?.name);
        for attachment in &endpoint.attachments {
            if !known.contains_key(&attachment.network_name) {
                self.depart(container, &row, &self.networks().get(attachment.network.as_str())?).await?;
            }
        }
        Ok(())
    }

    /// Takes a running container's interface, and then its address.
    async fn depart(&self, container: &Arc<Container>, row: &Row, network: &Network) -> Result<()> {
        let change = match self.networks().departure(&container.id, &network.id) {
            // A daemon that was killed in between has done so.
            Err(NetworkError::NotConnected { .. }) if row.endpoints.contains_key(&network.name) => {
                return Ok(());
            }
            departure => departure?,
        };
        let before = self.networks().endpoint(&container.id)?;
        let gone = before.and_then(|endpoint| endpoint.attachment(&network.id).cloned());
        self.rewire(container, &change).await?;
        failpoint("disconnect.unplugged");
        self.networks().disconnect(&container.id, &network.id)?;
        failpoint("disconnect.freed");
        let gone: Vec<_> = gone.and_then(|gone| gone.interface).into_iter().collect();
        let lines = self.host_lines(row, &NetworkChange { plug: gone, ..NetworkChange::default() });
        self.sandbox(row).change_lines("hosts", &[], &lines)
    }

    /// Has the container's wall change its interfaces.
    async fn rewire(&self, container: &Arc<Container>, change: &NetworkChange) -> Result<()> {
        let change = serde_json::to_vec(change)
            .map_err(|error| Error::Internal(format!("write a change of interfaces: {error}")))?;
        match container.task()?.call(Call::Rewire(Rewire { change }), &[]).await {
            // It ended meanwhile, and everything with it.
            Err(Error::Wall { kind: insula_base::Kind::Unavailable, .. }) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Has a container that runs send and receive at another rate.
    pub(super) async fn change_rate(
        &self,
        container: &Arc<Container>,
        before: &Row,
        after: &HostConfig,
    ) -> Result<()> {
        let Some(change) = self.networks().set_rate(&container.id, rate(after))? else { return Ok(()) };
        if let Err(error) = self.rewire(container, &change).await {
            self.networks().set_rate(&container.id, rate(&before.host))?;
            return Err(error);
        }
        Ok(())
    }

    /// Lines of the hosts file for interfaces that come or go.
    fn host_lines(&self, row: &Row, change: &NetworkChange) -> Vec<String> {
        let addresses = change.plug.iter().flat_map(|plan| &plan.addresses);
        let plain = addresses.filter_map(|text| text.split('/').next());
        plain.map(|address| format!("{address}\t{}", row.config.hostname)).collect()
    }

    /// An event for each network that a container is in.
    pub(super) fn publish_connections(&self, row: &Row, action: &str) -> Result<()> {
        let Some(endpoint) = self.networks().endpoint(&row.id)? else { return Ok(()) };
        for attachment in &endpoint.attachments {
            if let Ok(network) = self.networks().get(attachment.network.as_str()) {
                self.publish_network(&network, action, &[("container", row.id.as_str())]);
            }
        }
        Ok(())
    }

    /// Lines of the hosts file for links over the default bridge, where no name server answers.
    pub(super) fn linked(&self, row: &Row) -> Result<Vec<(String, IpAddr)>> {
        let mut lines = Vec::new();
        for link in &row.host.links {
            let (name, alias) = check::link(link)?;
            let other = self.find(name)?.row();
            if !other.running() {
                return Err(Error::Conflict(format!(
                    "Cannot link to a non running container: /{} AS /{}/{alias}",
                    other.name, row.name
                )));
            }
            let address = self.networks().endpoint(&other.id)?.and_then(|endpoint| {
                let mut attachments = endpoint.attachments.into_iter();
                attachments.find(|attachment| attachment.network_name == "bridge")?.address
            });
            if let (Some(address), "bridge") = (address, row.host.network_mode.as_str()) {
                lines.push((format!("{alias} {} {}", other.id.short(), other.name), IpAddr::V4(address)));
            }
        }
        Ok(lines)
    }

    /// An event of a network.
    pub(crate) fn publish_network(&self, network: &Network, action: &str, more: &[(&str, &str)]) {
        let own = [("name", network.name.as_str()), ("type", network.driver.name())];
        let attributes: Labels =
            own.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.events().publish(EventType::Network, action, network.id.as_str(), attributes);
    }
}

/// What its interfaces send and receive at most; bits a second.
fn rate(host: &HostConfig) -> Option<NonZeroU64> {
    u64::try_from(host.network_rate).ok().and_then(NonZeroU64::new)
}

fn check_connectable(row: &Row, network: &Network) -> Result<()> {
    let denied = |text: &str| Err(Error::Denied(text.to_owned()));
    match Mode::parse(&row.host.network_mode) {
        Mode::Host => denied("container cannot be connected to host network and another network"),
        Mode::Container(_) => denied(
            "container sharing network namespace with another container or host cannot be connected to any \
             other network",
        ),
        Mode::None => denied(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode",
        ),
        Mode::Network(_) if network.addressing().is_none() => {
            denied(&format!("container cannot be connected to network {} beside others", network.name))
        }
        Mode::Network(_) => Ok(()),
    }
}

/// What can be known to be wrong before anything is made.
fn check_settings(network: &Network, settings: &EndpointSettings) -> Result<()> {
    let invalid = |text: String| Err(Error::InvalidArgument(text));
    let ipam = settings.ipam_config.clone().unwrap_or_default();
    if !settings.driver_opts.is_empty() {
        return Err(Error::Unsupported(format!(
            "DriverOpts of network {:?} is not available in this version",
            network.name
        )));
    }
    if !ipam.link_local_ips.is_empty() {
        return Err(Error::Unsupported(format!(
            "LinkLocalIPs of network {:?} is not available in this version",
            network.name
        )));
    }
    if !ipam.ipv4_address.is_empty() && ipam.ipv4_address.parse::<std::net::Ipv4Addr>().is_err() {
        return invalid(format!("invalid IPv4 address: {}", ipam.ipv4_address));
    }
    if !ipam.ipv6_address.is_empty() && ipam.ipv6_address.parse::<std::net::Ipv6Addr>().is_err() {
        return invalid(format!("invalid IPv6 address: {}", ipam.ipv6_address));
    }
    if network.predefined() && !settings.aliases.is_empty() {
        return invalid("network-scoped aliases are only supported for user-defined networks".to_owned());
    }
    let sign = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    for alias in &settings.aliases {
        if !(1..=253).contains(&alias.len()) || !alias.bytes().all(sign) {
            return invalid(format!("invalid network alias {alias:?}"));
        }
    }
    settings.links.iter().try_for_each(|text| check::link(text).map(drop))
}
