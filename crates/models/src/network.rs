//! Networks and what a container has of them.

use std::collections::BTreeMap;

use crate::host_config::PortMap;
use crate::lenient::{document, is_zero, null_if_empty};
use crate::{Labels, Set};

document! {
    /// Endpoints that a new container is to have.
    NetworkingConfig {
        endpoints_config: BTreeMap<String, EndpointSettings>,
    }
}

document! {
    /// The network of a container: the flat fields are those of the default bridge.
    NetworkSettings {
        bridge: String,
        #[serde(rename = "SandboxID")]
        sandbox_id: String,
        sandbox_key: String,
        ports: PortMap,
        hairpin_mode: bool,
        #[serde(rename = "LinkLocalIPv6Address")]
        link_local_ipv6_address: String,
        #[serde(rename = "LinkLocalIPv6PrefixLen")]
        link_local_ipv6_prefix_len: i64,
        #[serde(rename = "SecondaryIPAddresses", serialize_with = "null_if_empty")]
        secondary_ip_addresses: Vec<SecondaryAddress>,
        #[serde(rename = "SecondaryIPv6Addresses", serialize_with = "null_if_empty")]
        secondary_ipv6_addresses: Vec<SecondaryAddress>,
        #[serde(rename = "EndpointID")]
        endpoint_id: String,
        gateway: String,
        #[serde(rename = "GlobalIPv6Address")]
        global_ipv6_address: String,
        #[serde(rename = "GlobalIPv6PrefixLen")]
        global_ipv6_prefix_len: i64,
        #[serde(rename = "IPAddress")]
        ip_address: String,
        #[serde(rename = "IPPrefixLen")]
        ip_prefix_len: i64,
        #[serde(rename = "IPv6Gateway")]
        ipv6_gateway: String,
        mac_address: String,
        networks: BTreeMap<String, EndpointSettings>,
        /// insula's addition: names that the host's ports 80 and 443 lead here by, as `NAME:PORT/PROTOCOL`.
        #[serde(skip_serializing_if = "is_zero")]
        host_names: Vec<String>,
    }
}

document! {
    /// An address beside the first.
    SecondaryAddress {
        addr: String,
        prefix_len: i64,
    }
}

document! {
    /// A container's place in one network.
    EndpointSettings {
        #[serde(rename = "IPAMConfig")]
        ipam_config: Option<EndpointIpamConfig>,
        #[serde(serialize_with = "null_if_empty")]
        links: Vec<String>,
        #[serde(serialize_with = "null_if_empty")]
        aliases: Vec<String>,
        mac_address: String,
        #[serde(serialize_with = "null_if_empty")]
        driver_opts: Labels,
        #[serde(rename = "NetworkID")]
        network_id: String,
        #[serde(rename = "EndpointID")]
        endpoint_id: String,
        gateway: String,
        #[serde(rename = "IPAddress")]
        ip_address: String,
        #[serde(rename = "IPPrefixLen")]
        ip_prefix_len: i64,
        #[serde(rename = "IPv6Gateway")]
        ipv6_gateway: String,
        #[serde(rename = "GlobalIPv6Address")]
        global_ipv6_address: String,
        #[serde(rename = "GlobalIPv6PrefixLen")]
        global_ipv6_prefix_len: i64,
        gw_priority: i64,
        #[serde(rename = "DNSNames", serialize_with = "null_if_empty")]
        dns_names: Vec<String>,
    }
}

document! {
    /// Addresses asked for by the user.
    EndpointIpamConfig {
        #[serde(rename = "IPv4Address", skip_serializing_if = "is_zero")]
        ipv4_address: String,
        #[serde(rename = "IPv6Address", skip_serializing_if = "is_zero")]
        ipv6_address: String,
        #[serde(rename = "LinkLocalIPs", skip_serializing_if = "is_zero")]
        link_local_ips: Vec<String>,
    }
}

document! {
    /// Answer of `GET /networks/{id}` and one line of `GET /networks`.
    Network {
        name: String,
        id: String,
        created: String,
        scope: String,
        driver: String,
        /// Always, here.
        #[serde(rename = "EnableIPv4")]
        enable_ipv4: bool,
        #[serde(rename = "EnableIPv6")]
        enable_ipv6: bool,
        #[serde(rename = "IPAM")]
        ipam: Ipam,
        internal: bool,
        attachable: bool,
        ingress: bool,
        config_from: ConfigReference,
        config_only: bool,
        containers: BTreeMap<String, NetworkContainer>,
        options: Labels,
        labels: Labels,
    }
}

document! {
    /// Address management of a network.
    Ipam {
        driver: String,
        #[serde(serialize_with = "null_if_empty")]
        options: Labels,
        config: Vec<IpamConfig>,
    }
}

document! {
    /// One address range.
    IpamConfig {
        #[serde(skip_serializing_if = "is_zero")]
        subnet: String,
        #[serde(rename = "IPRange", skip_serializing_if = "is_zero")]
        ip_range: String,
        #[serde(skip_serializing_if = "is_zero")]
        gateway: String,
        #[serde(rename = "AuxiliaryAddresses", skip_serializing_if = "is_zero")]
        auxiliary_addresses: Labels,
    }
}

document! {
    /// A network that lends its configuration.
    ConfigReference {
        network: String,
    }
}

document! {
    /// A container as its network shows it.
    NetworkContainer {
        name: String,
        #[serde(rename = "EndpointID")]
        endpoint_id: String,
        mac_address: String,
        #[serde(rename = "IPv4Address")]
        ipv4_address: String,
        #[serde(rename = "IPv6Address")]
        ipv6_address: String,
    }
}

document! {
    /// Body of `POST /networks/create`.
    NetworkCreateRequest {
        name: String,
        check_duplicate: bool,
        driver: String,
        scope: String,
        #[serde(rename = "EnableIPv4", skip_serializing_if = "is_zero")]
        enable_ipv4: Option<bool>,
        #[serde(rename = "EnableIPv6")]
        enable_ipv6: Option<bool>,
        #[serde(rename = "IPAM")]
        ipam: Option<Ipam>,
        internal: bool,
        attachable: bool,
        ingress: bool,
        config_only: bool,
        config_from: Option<ConfigReference>,
        options: Labels,
        labels: Labels,
    }
}

document! {
    /// Answer of `POST /networks/create`.
    NetworkCreateResponse {
        id: String,
        warning: String,
    }
}

document! {
    /// Body of `POST /networks/{id}/connect`.
    NetworkConnectRequest {
        container: String,
        endpoint_config: Option<EndpointSettings>,
    }
}

document! {
    /// Body of `POST /networks/{id}/disconnect`.
    NetworkDisconnectRequest {
        container: String,
        force: bool,
    }
}

document! {
    /// Answer of `POST /networks/prune`.
    NetworksPruneResponse {
        #[serde(serialize_with = "null_if_empty")]
        networks_deleted: Vec<String>,
    }
}

/// Ports that an image or a container names without publishing them.
pub type ExposedPorts = Set;
