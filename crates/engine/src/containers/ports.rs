//! Published ports: Docker's maps to requests of the network.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use insula_models::{ContainerConfig, HostConfig, PortBinding};
use insula_network::{Error as NetworkError, MOST_PORTS, PortRequest, Proto};

use crate::{Error, Result};

// What clients are told is what is true.
const _: () = assert!(insula_models::MOST_PUBLISHED == MOST_PORTS);

/// What is to be published: the bindings, and with `--publish-all` every port that is exposed.
pub(crate) fn requests(config: &ContainerConfig, host: &HostConfig) -> Result<Vec<PortRequest>> {
    let asked =
        host.port_bindings.values().map(|bindings| bindings.as_ref().map_or(1, |list| list.len().max(1)));
    check_count(asked.sum())?;
    let mut requests = Vec::new();
    for (port, bindings) in &host.port_bindings {
        let (container_port, proto) = port_of(port)?;
        let automatic = [PortBinding::default()];
        let bindings = match bindings {
            Some(bindings) if !bindings.is_empty() => bindings.as_slice(),
            _ => &automatic[..],
        };
        for binding in bindings {
            let request = PortRequest {
                container_port,
                proto,
                host_ip: address(&binding.host_ip)?,
                host_ports: range(&binding.host_port)?,
            };
            request.validate()?;
            requests.push(request);
        }
    }
    for port in config.exposed_ports.keys() {
        for (container_port, proto) in exposed(port)? {
            let bound = |r: &PortRequest| r.container_port == container_port && r.proto == proto;
            if host.publish_all_ports && !requests.iter().any(bound) {
                requests.push(PortRequest { container_port, proto, host_ip: None, host_ports: None });
                check_count(requests.len())?;
            }
        }
    }
    Ok(requests)
}

/// Before anything is made, or compared with each other.
fn check_count(count: usize) -> Result<()> {
    match count > MOST_PORTS {
        true => Err(NetworkError::TooManyPorts { count, most: MOST_PORTS }.into()),
        false => Ok(()),
    }
}

/// `80/tcp`, `80`.
pub(super) fn port_of(text: &str) -> Result<(u16, Proto)> {
    let wrong = || Error::InvalidArgument(format!("invalid port specification: {text:?}"));
    let (port, proto) = text.split_once('/').unwrap_or((text, "tcp"));
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    Ok((port, proto.parse()?))
}

/// `80/tcp`, `8000-8010/udp`.
fn exposed(text: &str) -> Result<Vec<(u16, Proto)>> {
    let (ports, proto) = text.split_once('/').unwrap_or((text, "tcp"));
    match ports.split_once('-') {
        None => Ok(vec![port_of(text)?]),
        Some((first, last)) => {
            let (first, proto) = port_of(&format!("{first}/{proto}"))?;
            let (last, _) = port_of(&format!("{last}/{proto}"))?;
            Ok((first..=last).map(|port| (port, proto)).collect())
        }
    }
}

fn address(text: &str) -> Result<Option<IpAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|_| Error::InvalidArgument(format!("invalid IP address {text:?} of a port")))
}

/// A number or a range; empty is any.
fn range(text: &str) -> Result<Option<RangeInclusive<u16>>> {
    let wrong = || Error::InvalidArgument(format!("invalid port specification: {text:?}"));
    if text.is_empty() {
        return Ok(None);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Ok(Some(first.parse().map_err(|_| wrong())?..=last.parse().map_err(|_| wrong())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use insula_models::Empty;

    fn bound(port: &str, ip: &str, host: &str) -> Result<Vec<PortRequest>> {
        let binding = PortBinding { host_ip: ip.into(), host_port: host.into() };
        let host = HostConfig {
            port_bindings: [(port.to_owned(), Some(vec![binding]))].into(),
            ..HostConfig::default()
        };
        requests(&ContainerConfig::default(), &host)
    }

    #[test]
    fn bindings_become_requests() {
        let request = bound("53/udp", "127.0.0.1", "5300-5310").unwrap().remove(0);
        assert_eq!((request.container_port, request.proto), (53, Proto::Udp));
        assert_eq!(request.host_ports, Some(5300..=5310));
        assert_eq!(bound("80", "", "").unwrap()[0].host_ports, None);
        for (port, ip, host) in
            [("x/tcp", "", ""), ("80/icmp", "", ""), ("0/tcp", "", ""), ("80", "x", ""), ("80", "", "9-x")]
        {
            assert!(bound(port, ip, host).is_err(), "{port} {ip} {host}");
        }
    }

    #[test]
    fn there_is_a_limit_to_ports() {
        let ports = (1..=5000).map(|port| (format!("{port}/tcp"), None)).collect();
        let host = HostConfig { port_bindings: ports, ..HostConfig::default() };
        let error = requests(&ContainerConfig::default(), &host).unwrap_err().to_string();
        assert!(error.starts_with("5000 published ports are more than the 4096"), "{error}");
        let config = ContainerConfig {
            exposed_ports: [("1-65535".to_owned(), Empty {})].into(),
            ..ContainerConfig::default()
        };
        let host = HostConfig { publish_all_ports: true, ..HostConfig::default() };
        assert!(requests(&config, &host).is_err());
    }

    #[test]
    fn publish_all_takes_what_is_exposed() {
        let config = ContainerConfig {
            exposed_ports: [("80/tcp".to_owned(), Empty {}), ("90-92".to_owned(), Empty {})].into(),
            ..ContainerConfig::default()
        };
        let host = HostConfig {
            publish_all_ports: true,
            port_bindings: [("80/tcp".to_owned(), None)].into(),
            ..HostConfig::default()
        };
        let ports: Vec<_> = requests(&config, &host).unwrap().iter().map(|r| r.container_port).collect();
        assert_eq!(ports, [80, 90, 91, 92]);
    }
}
