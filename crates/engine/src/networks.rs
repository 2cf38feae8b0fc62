//! Networks as the API makes and shows them.

use insula_models::{
    EndpointSettings, Ipam, IpamConfig, Labels, Network, NetworkContainer, NetworkCreateRequest,
    NetworkCreateResponse, NetworksPruneResponse,
};
use insula_network::{Attachment, Driver, Endpoint, NetworkRequest, SubnetRequest};
use jiff::Timestamp;

use crate::containers::ListRequest;
use crate::events::EventType;
use crate::filters::{Filters, check_names, has_label, one_bool, parse_moment};
use crate::{Engine, Error, Result, blocking};

impl Engine {
    /// The networks that pass the filters; their containers are shown by inspection alone.
    pub fn list_networks(&self, filters: &Filters) -> Result<Vec<Network>> {
        check_names(filters, &["dangling", "driver", "id", "label", "name", "scope", "type"])?;
        let any = |name: &str, holds: &dyn Fn(&str) -> bool| {
            filters
                .get(name)
                .is_none_or(|values| values.is_empty() || values.iter().any(|value| holds(value)))
        };
        if let Some(kind) = filters.get("type").into_iter().flatten().find(|kind| !is_type(kind)) {
            return Err(Error::InvalidArgument(format!("invalid filter: 'type'='{kind}'")));
        }
        let dangling = one_bool(filters, "dangling")?;
        let endpoints = match dangling {
            Some(_) => self.networks().endpoints()?,
            None => Vec::new(),
        };
        let labels = filters.get("label").map_or(&[][..], Vec::as_slice);
        let mut found = self.networks().list();
        found.retain(|network| {
            let unused = !network.predefined()
                && !endpoints.iter().any(|endpoint| endpoint.attachment(&network.id).is_some());
            any("driver", &|driver| driver == network.driver.name())
                && any("id", &|id| network.id.as_str().starts_with(id))
                && any("name", &|part| network.name.contains(part) || anchored(part, &network.name))
                && any("scope", &|scope| scope == "local")
                && any("type", &|kind| (kind == "builtin") == network.predefined())
                && labels.iter().all(|label| has_label(&network.labels, label))
                && dangling.is_none_or(|wanted| wanted == unused)
        });
        Ok(found.iter().map(describe).collect())
    }

    /// One network by name, id or beginning of an id, with the containers that are in it.
    pub async fn inspect_network(&self, reference: &str) -> Result<Network> {
        let network = self.networks().get(reference)?;
        let mut answer = describe(&network);
        let names: Labels = self
            .list_containers(ListRequest { all: true, ..ListRequest::default() })
            .await?
            .into_iter()
            .filter_map(|container| {
                Some((container.id, container.names.first()?.trim_start_matches('/').to_owned()))
            })
            .collect();
        for endpoint in self.networks().endpoints()? {
            let id = endpoint.container.to_string();
            if let Some(attachment) = endpoint.attachment(&network.id) {
                let name = names.get(&id).cloned().unwrap_or_default();
                answer.containers.insert(id, container(attachment, name));
            }
        }
        Ok(answer)
    }

    /// Makes a network.
    pub async fn create_network(&self, request: NetworkCreateRequest) -> Result<NetworkCreateResponse> {
        let request = wanted(request)?;
        let engine = self.clone();
        // It starts a program.
        let network = blocking(move || Ok(engine.networks().create(&request)?)).await?;
        self.publish_network(&network, "create", &[]);
        Ok(NetworkCreateResponse { id: network.id.to_string(), warning: String::new() })
    }

    /// Removes a network that no running container is in.
    pub async fn remove_network(&self, reference: &str) -> Result<()> {
        let (engine, reference) = (self.clone(), reference.to_owned());
        let network = blocking(move || Ok(engine.networks().remove(&reference)?)).await?;
        self.publish_network(&network, "destroy", &[]);
        Ok(())
    }

    /// Removes the networks that users made and no running container is in.
    pub async fn prune_networks(&self, filters: &Filters) -> Result<NetworksPruneResponse> {
        check_names(filters, &["until", "label", "label!"])?;
        let values = |name: &str| filters.get(name).map_or(&[][..], Vec::as_slice);
        let mut answer = NetworksPruneResponse::default();
        for network in self.networks().list().into_iter().filter(|network| !network.predefined()) {
            let mut chosen = values("label").iter().all(|label| has_label(&network.labels, label))
                && !values("label!").iter().any(|label| has_label(&network.labels, label));
            for until in values("until") {
                let created = Timestamp::try_from(network.created).unwrap_or_default();
                chosen &= created < parse_moment(until)?;
            }
            if !chosen {
                continue;
            }
            match self.remove_network(network.id.as_str()).await {
                Ok(()) => answer.networks_deleted.push(network.name),
                Err(Error::Network(
                    insula_network::Error::InUse { .. } | insula_network::Error::NetworkNotFound { .. },
                )) => {}
                Err(error) => return Err(error),
            }
        }
        self.events().pruned(EventType::Network, 0);
        Ok(answer)
    }
}

fn is_type(text: &str) -> bool {
    matches!(text, "builtin" | "custom")
}

/// `^name$`, as clients look for exactly one.
fn anchored(pattern: &str, name: &str) -> bool {
    pattern.strip_prefix('^').and_then(|rest| rest.strip_suffix('$')) == Some(name)
}

/// From Docker's document; what is not served is named.
pub(crate) fn wanted(request: NetworkCreateRequest) -> Result<NetworkRequest> {
    let unsupported = [
        ("Ingress", request.ingress),
        ("ConfigOnly", request.config_only),
        ("ConfigFrom", request.config_from.is_some_and(|from| !from.network.is_empty())),
    ];
    if let Some((field, _)) = unsupported.iter().find(|(_, asked)| *asked) {
        return Err(Error::Unsupported(format!(
            "{field} of networks belongs to swarm mode, which there is not"
        )));
    }
    if request.enable_ipv4 == Some(false) {
        return Err(Error::Unsupported("networks without IPv4 are not available in this version".to_owned()));
    }
    if !matches!(request.scope.as_str(), "" | "local") {
        return Err(Error::Unsupported(format!("the network scope {:?}: local is served", request.scope)));
    }
    let ipam = request.ipam.unwrap_or_default();
    if !matches!(ipam.driver.as_str(), "" | "default") {
        return Err(Error::NotFound(format!("ipam driver {:?}: plugin not found", ipam.driver)));
    }
    if let Some(name) = ipam.options.keys().next() {
        return Err(Error::InvalidArgument(format!("the default ipam driver has no option {name}")));
    }
    let subnet = |config: IpamConfig| SubnetRequest {
        subnet: config.subnet,
        range: config.ip_range,
        gateway: config.gateway,
        auxiliary: config.auxiliary_addresses,
    };
    Ok(NetworkRequest {
        name: request.name,
        driver: request.driver,
        subnets: ipam.config.into_iter().map(subnet).collect(),
        ipv6: request.enable_ipv6.unwrap_or_default(),
        internal: request.internal,
        attachable: request.attachable,
        options: request.options,
        labels: request.labels,
    })
}

fn container(attachment: &Attachment, name: String) -> NetworkContainer {
    let with = |address: Option<String>, prefix: u8| {
        address.map(|address| format!("{address}/{prefix}")).unwrap_or_default()
    };
    NetworkContainer {
        name,
        endpoint_id: attachment.endpoint.clone(),
        mac_address: attachment.mac.clone(),
        ipv4_address: with(attachment.address.map(|address| address.to_string()), attachment.prefix),
        ipv6_address: with(attachment.address6.map(|address| address.to_string()), attachment.prefix6),
    }
}

/// What a container was given in each of its networks, over what it asked for.
pub(crate) fn endpoint_settings(
    endpoint: &Endpoint,
    attachment: &Attachment,
    asked: EndpointSettings,
) -> EndpointSettings {
    let text = |address: Option<String>| address.unwrap_or_default();
    EndpointSettings {
        mac_address: attachment.mac.clone(),
        network_id: attachment.network.to_string(),
        endpoint_id: attachment.endpoint.clone(),
        gateway: text(attachment.gateway.map(|gateway| gateway.to_string())),
        ip_address: text(attachment.address.map(|address| address.to_string())),
        ip_prefix_len: attachment.prefix.into(),
        ipv6_gateway: text(attachment.gateway6.map(|gateway| gateway.to_string())),
        global_ipv6_address: text(attachment.address6.map(|address| address.to_string())),
        global_ipv6_prefix_len: attachment.prefix6.into(),
        dns_names: dns_names(endpoint, attachment),
        ..asked
    }
}

/// The names that others in the network know the container by; the default bridge has none.
fn dns_names(endpoint: &Endpoint, attachment: &Attachment) -> Vec<String> {
    if attachment.address.is_none() || attachment.network_name == "bridge" {
        return Vec::new();
    }
    let mut names: Vec<String> = Vec::new();
    let short = endpoint.container.short().to_owned();
    let all = [endpoint.name.clone()].into_iter().chain(attachment.aliases.iter().cloned());
    for name in all.chain([short, endpoint.hostname.clone()]) {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

pub(crate) fn describe(network: &insula_network::Network) -> Network {
    let mut answer = Network {
        name: network.name.clone(),
        id: network.id.to_string(),
        created: Timestamp::try_from(network.created).unwrap_or_default().to_string(),
        scope: "local".to_owned(),
        driver: network.driver.name().to_owned(),
        enable_ipv4: true,
        ipam: Ipam { driver: "default".to_owned(), ..Ipam::default() },
        internal: network.internal,
        attachable: network.attachable,
        options: network.options.clone(),
        labels: network.labels.clone(),
        ..Network::default()
    };
    let Some(addressing) = network.addressing() else { return answer };
    let auxiliary = |v4: bool| -> Labels {
        let of = addressing.auxiliary.iter().filter(|(_, address)| address.is_ipv4() == v4);
        of.map(|(name, address)| (name.clone(), address.to_string())).collect()
    };
    answer.ipam.config.push(IpamConfig {
        subnet: addressing.subnet.to_string(),
        ip_range: addressing.range.map(|range| range.to_string()).unwrap_or_default(),
        gateway: addressing.gateway().to_string(),
        auxiliary_addresses: auxiliary(true),
    });
    if let Some(v6) = &addressing.v6 {
        answer.enable_ipv6 = true;
        answer.ipam.config.push(IpamConfig {
            subnet: v6.subnet.to_string(),
            ip_range: v6.range.map(|range| range.to_string()).unwrap_or_default(),
            gateway: v6.gateway.to_string(),
            auxiliary_addresses: auxiliary(false),
        });
    }
    if let (Driver::Bridge(bridge), true) = (&network.driver, network.predefined()) {
        let host_binding = bridge.host_binding.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
        let option = |name: &str, value: String| (format!("com.docker.network.{name}"), value);
        answer.options.extend([
            option("bridge.name", bridge.link.clone()),
            option("bridge.default_bridge", "true".to_owned()),
            option("bridge.enable_ip_masquerade", "true".to_owned()),
            option("bridge.enable_icc", "true".to_owned()),
            option("bridge.host_binding_ipv4", host_binding.to_string()),
            option("driver.mtu", addressing.mtu.to_string()),
        ]);
    }
    answer
}
