//! Networks as the API shows them.

use insula_models::{Ipam, IpamConfig, Labels, Network, NetworkContainer};
use insula_network::Driver;
use jiff::Timestamp;

use crate::containers::ListRequest;
use crate::filters::{Filters, check_names, one_bool};
use crate::{Engine, Result};

impl Engine {
    /// The networks that pass the filters; their containers are shown by inspection alone.
    pub fn list_networks(&self, filters: &Filters) -> Result<Vec<Network>> {
        check_names(filters, &["dangling", "driver", "id", "label", "name", "scope", "type"])?;
        let any = |name: &str, holds: &dyn Fn(&str) -> bool| {
            filters
                .get(name)
                .is_none_or(|values| values.is_empty() || values.iter().any(|value| holds(value)))
        };
        let dangling = one_bool(filters, "dangling")?.unwrap_or(false);
        let mut networks: Vec<Network> = self.networks().list().iter().map(describe).collect();
        networks.retain(|network| {
            any("driver", &|driver| driver == network.driver)
                && any("id", &|id| network.id.starts_with(id))
                && any("name", &|part| network.name.contains(part))
                && any("scope", &|scope| scope == network.scope)
                && any("type", &|kind| kind == "builtin")
                // The predefined ones have no labels and never count as unused.
                && filters.get("label").is_none_or(Vec::is_empty)
                && !dangling
        });
        Ok(networks)
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
            for attachment in
                endpoint.attachments.iter().filter(|attachment| attachment.network == network.id)
            {
                let address = attachment.address.map(|address| format!("{address}/{}", attachment.prefix));
                answer.containers.insert(
                    id.clone(),
                    NetworkContainer {
                        name: names.get(&id).cloned().unwrap_or_default(),
                        endpoint_id: attachment.endpoint.clone(),
                        mac_address: attachment.mac.clone(),
                        ipv4_address: address.unwrap_or_default(),
                        ipv6_address: String::new(),
                    },
                );
            }
        }
        Ok(answer)
    }
}

fn describe(network: &insula_network::Network) -> Network {
    let mut answer = Network {
        name: network.name.clone(),
        id: network.id.to_string(),
        created: Timestamp::try_from(network.created).unwrap_or_default().to_string(),
        scope: "local".to_owned(),
        driver: network.driver.name().to_owned(),
        ipam: Ipam { driver: "default".to_owned(), ..Ipam::default() },
        ..Network::default()
    };
    if let Driver::Bridge(bridge) = &network.driver {
        answer.ipam.config = vec![IpamConfig {
            subnet: format!("{}/{}", bridge.subnet.address(), bridge.subnet.prefix()),
            gateway: bridge.subnet.gateway().to_string(),
            ..IpamConfig::default()
        }];
        let option = |name: &str, value: String| (format!("com.docker.network.{name}"), value);
        answer.options = Labels::from([
            option("bridge.name", bridge.link.clone()),
            option("bridge.enable_ip_masquerade", "true".to_owned()),
            option("bridge.enable_icc", "true".to_owned()),
            option("driver.mtu", bridge.mtu.to_string()),
        ]);
        if network.name == "bridge" {
            let (name, value) = option("bridge.default_bridge", "true".to_owned());
            answer.options.insert(name, value);
        }
    }
    answer
}
