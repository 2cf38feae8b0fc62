//! `network create ls inspect rm prune connect disconnect`.

use anyhow::Context as _;
use clap::Args;
use insula_models::{
    ConfigReference, EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, Network, NetworkConnectRequest,
    NetworkCreateRequest, NetworkDisconnectRequest,
};

use super::each;
use super::inspect::{self, Kind, Request};
use super::prune::confirmed;
use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::format::table::{self, Columns, Row};
use crate::format::{labels, short_id};
use crate::options::{self, networks};
use crate::{filters, printer};

/// List networks
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula network ls
  insula network ls -q -f driver=bridge")]
pub(crate) struct ListNetworksArgs {
    /// Only: driver=bridge, name=web, label=tier=db, …
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Go template, 'table' and a template, 'json' or 'raw'
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Do not cut ids
    #[arg(long)]
    no_trunc: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
}

const HEADERS: &[(&str, &str)] = &[
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
];

impl Run for ListNetworksArgs {
    async fn run(self, context: Context) -> Outcome {
        let mut networks = context.client().await?.list_networks(&filters::parse(&self.filter)?).await?;
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        let id =
            |network: &Network| if self.no_trunc { &network.id } else { short_id(&network.id) }.to_owned();
        if self.quiet && self.format.is_empty() {
            for network in &networks {
                printer::line(&id(network))?;
            }
            return Ok(0);
        }
        let row = |network: &Network| Row {
            cells: vec![
                ("ID", id(network)),
                ("Name", network.name.clone()),
                ("Driver", network.driver.clone()),
                ("Scope", network.scope.clone()),
                ("IPv6", network.enable_ipv6.to_string()),
                ("Internal", network.internal.to_string()),
                ("Labels", labels(&network.labels)),
                ("CreatedAt", network.created.clone()),
            ],
            labels: network.labels.clone(),
        };
        let rows: Vec<Row> = networks.iter().map(row).collect();
        let columns = Columns { headers: HEADERS, shown: vec!["ID", "Name", "Driver", "Scope"] };
        let format = match (self.format.as_str(), self.quiet) {
            ("raw", true) => "network_id: {{.ID}}",
            ("raw", false) => {
                "network_id: {{.ID}}\nname: {{.Name}}\ndriver: {{.Driver}}\nscope: {{.Scope}}\n"
            }
            (format, _) => format,
        };
        table::print(&columns, &rows, format)?;
        Ok(0)
    }
}

/// Show everything about networks
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula network inspect bridge")]
pub(crate) struct InspectNetworkArgs {
    /// Go template, or 'json'
    #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// The services of a swarm as well, of which there are none
    #[arg(short, long)]
    verbose: bool,
    /// Names or ids
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

impl Run for InspectNetworkArgs {
    async fn run(self, context: Context) -> Outcome {
        let request =
            Request { kinds: &[Kind::Network], size: false, format: self.format, names: self.names };
        inspect::inspect(&context, &request).await
    }
}

/// Make a network
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula network create blue
  insula network create --subnet 10.9.0.0/16 --gateway 10.9.0.254 --ip-range 10.9.4.0/24 blue
  insula network create --ipv6 --subnet fd00:9::/64 --internal blue")]
pub(crate) struct CreateNetworkArgs {
    /// Plain containers may join, which they always may here
    #[arg(long)]
    attachable: bool,
    /// An address that no container is to get: NAME=ADDRESS
    #[arg(long, value_name = "NAME=ADDRESS")]
    aux_address: Vec<String>,
    /// Network whose settings this one has
    #[arg(long, value_name = "NETWORK")]
    config_from: Option<String>,
    /// Settings for other networks, and no network
    #[arg(long)]
    config_only: bool,
    /// Driver of the network
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge")]
    driver: String,
    /// The host's address, one for each subnet
    #[arg(long, value_name = "IP")]
    gateway: Vec<String>,
    /// The network of a swarm's published ports
    #[arg(long)]
    ingress: bool,
    /// Nothing goes in or out
    #[arg(long)]
    internal: bool,
    /// Part of the subnet that addresses are given from, one for each subnet
    #[arg(long, value_name = "SUBNET")]
    ip_range: Vec<String>,
    /// Driver that gives addresses
    #[arg(long, value_name = "DRIVER", default_value = "default")]
    ipam_driver: String,
    /// Option of the driver that gives addresses: NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE")]
    ipam_opt: Vec<String>,
    /// IPv6 beside IPv4
    #[arg(long)]
    ipv6: bool,
    /// Set a label: NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Option of the driver: NAME=VALUE
    #[arg(short, long, value_name = "NAME=VALUE")]
    opt: Vec<String>,
    /// How far it reaches: local
    #[arg(long, value_name = "SCOPE", default_value = "", hide_default_value = true)]
    scope: String,
    /// Subnet, one for each family of addresses
    #[arg(long, value_name = "SUBNET")]
    subnet: Vec<String>,
    /// Name
    name: String,
}

impl Run for CreateNetworkArgs {
    async fn run(self, context: Context) -> Outcome {
        let request = NetworkCreateRequest {
            ipam: Some(Ipam {
                driver: self.ipam_driver.clone(),
                options: options::strict_pairs("ipam-opt", &self.ipam_opt)?,
                config: self.ranges()?,
            }),
            name: self.name,
            check_duplicate: true,
            driver: self.driver,
            enable_ipv4: None,
            enable_ipv6: Some(self.ipv6),
            internal: self.internal,
            attachable: self.attachable,
            ingress: self.ingress,
            config_only: self.config_only,
            config_from: self.config_from.map(|network| ConfigReference { network }),
            scope: self.scope,
            options: options::strict_pairs("opt", &self.opt)?,
            labels: options::pairs(&self.label),
        };
        let made = context.client().await?.create_network(&request).await?;
        if !made.warning.is_empty() {
            printer::warning(&made.warning);
        }
        printer::line(&made.id)?;
        Ok(0)
    }
}

impl CreateNetworkArgs {
    /// Each subnet with the parts that lie in it.
    fn ranges(&self) -> anyhow::Result<Vec<IpamConfig>> {
        let mut ranges: Vec<IpamConfig> = self
            .subnet
            .iter()
            .map(|subnet| IpamConfig { subnet: subnet.clone(), ..IpamConfig::default() })
            .collect();
        for range in &self.ip_range {
            place(&mut ranges, "ip-range", range)?.ip_range.clone_from(range);
        }
        for gateway in &self.gateway {
            place(&mut ranges, "gateway", gateway)?.gateway.clone_from(gateway);
        }
        for (name, address) in options::strict_pairs("aux-address", &self.aux_address)? {
            place(&mut ranges, "aux-address", &address)?.auxiliary_addresses.insert(name, address);
        }
        Ok(ranges)
    }
}

/// The subnet of the family of an address. Whether the address lies in it is the engine's to say.
fn place<'a>(ranges: &'a mut [IpamConfig], flag: &str, address: &str) -> anyhow::Result<&'a mut IpamConfig> {
    let v6 = address.contains(':');
    let mut found = ranges.iter_mut().filter(|range| range.subnet.contains(':') == v6);
    found.next().with_context(|| format!("--{flag} {address} needs a --subnet of its family"))
}

/// Remove networks
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula network rm blue")]
pub(crate) struct RemoveNetworksArgs {
    /// A network that does not exist is no failure
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

impl Run for RemoveNetworksArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = &context.client().await?;
        let force = self.force;
        each(&self.networks, async |name| match client.remove_network(&name).await {
            Err(error) if force && error.status() == Some(404) => Ok(()),
            result => Ok(result?),
        })
        .await
    }
}

/// Remove networks that no container is in
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula network prune -f --filter until=24h")]
pub(crate) struct PruneNetworksArgs {
    /// Only: until=24h, label=tier=db, label!=keep
    #[arg(long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

impl Run for PruneNetworksArgs {
    async fn run(self, context: Context) -> Outcome {
        if !self.force
            && !confirmed("This will remove all custom networks not used by at least one container.")?
        {
            return Ok(1);
        }
        let pruned = context.client().await?.prune_networks(&filters::parse(&self.filter)?).await?;
        if !pruned.networks_deleted.is_empty() {
            printer::line("Deleted Networks:")?;
            for name in &pruned.networks_deleted {
                printer::line(name)?;
            }
            printer::line("")?;
        }
        Ok(0)
    }
}

/// Put a container into a network
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula network connect blue web
  insula network connect --alias db --ip 10.9.0.5 blue postgres")]
pub(crate) struct ConnectArgs {
    /// Another name of the container in the network
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// Option of the driver for this container: NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE")]
    driver_opt: Vec<String>,
    /// The network with the highest has the default route
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, default_value_t = 0)]
    gw_priority: i64,
    /// IPv4 address
    #[arg(long, value_name = "IP")]
    ip: Option<String>,
    /// IPv6 address
    #[arg(long, value_name = "IP")]
    ip6: Option<String>,
    /// A name for another container, in this one: CONTAINER[:ALIAS]
    #[arg(long, value_name = "CONTAINER")]
    link: Vec<String>,
    /// Link-local address
    #[arg(long, value_name = "IP")]
    link_local_ip: Vec<String>,
    /// Network
    network: String,
    /// Container
    container: String,
}

impl Run for ConnectArgs {
    async fn run(self, context: Context) -> Outcome {
        let address = |flag, value: &Option<String>| {
            value.as_deref().map_or(Ok(String::new()), |value| networks::checked(flag, value))
        };
        let request = NetworkConnectRequest {
            container: self.container,
            endpoint_config: Some(EndpointSettings {
                ipam_config: Some(EndpointIpamConfig {
                    ipv4_address: address("ip", &self.ip)?,
                    ipv6_address: address("ip6", &self.ip6)?,
                    link_local_ips: self.link_local_ip,
                }),
                links: self.link,
                aliases: self.alias,
                driver_opts: options::strict_pairs("driver-opt", &self.driver_opt)?,
                gw_priority: self.gw_priority,
                ..EndpointSettings::default()
            }),
        };
        context.client().await?.connect_network(&self.network, &request).await?;
        Ok(0)
    }
}

/// Take a container out of a network
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula network disconnect blue web")]
pub(crate) struct DisconnectArgs {
    /// Also when the container is in no state to be asked
    #[arg(short, long)]
    force: bool,
    /// Network
    network: String,
    /// Container
    container: String,
}

impl Run for DisconnectArgs {
    async fn run(self, context: Context) -> Outcome {
        let request = NetworkDisconnectRequest { container: self.container, force: self.force };
        context.client().await?.disconnect_network(&self.network, &request).await?;
        Ok(0)
    }
}
