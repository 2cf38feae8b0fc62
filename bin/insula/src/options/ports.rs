//! `-p [[IP:][HOST_PORT]:]PORT[/PROTOCOL]`, all ports may be ranges; `--expose PORT[/PROTOCOL]`.

use anyhow::{Context as _, bail};
use insula_models::{Empty, MOST_PUBLISHED, PortBinding, PortMap, Set};

/// Adds what one `-p` publishes to the maps.
pub(crate) fn publish(text: &str, exposed: &mut Set, bindings: &mut PortMap) -> anyhow::Result<()> {
    let (ip, host, container) = split(text)?;
    let (container, protocol) = protocol(container)?;
    let ports =
        range(container).with_context(|| format!("invalid containerPort: {container:?} in {text:?}"))?;
    let hosts = match host {
        "" => None,
        host => Some(range(host).with_context(|| format!("invalid hostPort: {host:?} in {text:?}"))?),
    };
    let count = ports.1 - ports.0;
    if let Some((first, last)) = hosts
        && last - first != count
        && count != 0
    {
        bail!("invalid ranges specified for container and host Ports: {container} and {host}");
    }
    for (index, port) in (ports.0..=ports.1).enumerate() {
        let key = format!("{port}/{protocol}");
        let host_port = match hosts {
            None => String::new(),
            // One port of the container, any free one of the host's range.
            Some((first, last)) if count == 0 && last != first => format!("{first}-{last}"),
            Some((first, _)) => (usize::from(first) + index).to_string(),
        };
        exposed.insert(key.clone(), Empty {});
        let binding = PortBinding { host_ip: ip.clone(), host_port };
        let list = bindings.entry(key).or_default().get_or_insert_default();
        if !list.contains(&binding) {
            list.push(binding);
        }
    }
    Ok(())
}

/// Fails for more ports than a container may publish.
pub(crate) fn check_count(bindings: &PortMap) -> anyhow::Result<()> {
    let count: usize = bindings.values().flatten().map(Vec::len).sum();
    if count > MOST_PUBLISHED {
        bail!(
            "{count} published ports are more than the {MOST_PUBLISHED} of one container: name fewer, or use --network host"
        );
    }
    Ok(())
}

/// Adds what one `--expose` names.
pub(crate) fn expose(text: &str, exposed: &mut Set) -> anyhow::Result<()> {
    if text.contains(':') {
        bail!("invalid port format for --expose: {text}");
    }
    let (ports, protocol) = protocol(text)?;
    let (first, last) = range(ports).with_context(|| format!("invalid range format for --expose: {text}"))?;
    exposed.extend((first..=last).map(|port| (format!("{port}/{protocol}"), Empty {})));
    Ok(())
}

/// Address, host's part and container's part.
fn split(text: &str) -> anyhow::Result<(String, &str, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (ip, ports) = rest.split_once("]:").with_context(|| format!("invalid publish: {text:?}"))?;
        ip.parse::<std::net::Ipv6Addr>().with_context(|| format!("invalid IP address: {ip}"))?;
        let (host, container) = ports.split_once(':').unwrap_or(("", ports));
        return Ok((ip.to_owned(), host, container));
    }
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        [container] => Ok((String::new(), "", container)),
        [host, container] => Ok((String::new(), host, container)),
        [ip, host, container] => {
            if !ip.is_empty() {
                ip.parse::<std::net::IpAddr>().with_context(|| format!("invalid IP address: {ip}"))?;
            }
            Ok((ip.to_owned(), host, container))
        }
        _ => bail!("invalid publish: {text:?}: [[IP:]HOST_PORT:]PORT[/PROTOCOL] is expected"),
    }
}

fn protocol(text: &str) -> anyhow::Result<(&str, String)> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        bail!("invalid proto: {protocol} in {text:?}: tcp, udp or sctp is expected");
    }
    if ports.is_empty() {
        bail!("no port specified: {text:?}");
    }
    Ok((ports, protocol))
}

/// First and last.
fn range(text: &str) -> anyhow::Result<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => bail!("{text:?} is not a port from 1 to 65535"),
    };
    let (first, last) = (number(first)?, number(last)?);
    if last < first {
        bail!("the range {text} ends before it begins");
    }
    Ok((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish_all(texts: &[&str]) -> anyhow::Result<Vec<String>> {
        let (mut exposed, mut bindings) = (Set::new(), PortMap::new());
        for text in texts {
            publish(text, &mut exposed, &mut bindings)?;
        }
        assert!(bindings.keys().all(|key| exposed.contains_key(key)));
        Ok(bindings
            .iter()
            .flat_map(|(key, list)| {
                list.iter().flatten().map(move |b| format!("{}:{}->{key}", b.host_ip, b.host_port))
            })
            .collect())
    }

    #[test]
    fn every_form() {
        let cases: [(&str, &[&str]); 9] = [
            ("80", &[":->80/tcp"]),
            ("8080:80", &[":8080->80/tcp"]),
            ("127.0.0.1:8080:80/udp", &["127.0.0.1:8080->80/udp"]),
            ("127.0.0.1::80", &["127.0.0.1:->80/tcp"]),
            ("[::1]:8080:80", &["::1:8080->80/tcp"]),
            ("8080-8081:80-81", &[":8080->80/tcp", ":8081->81/tcp"]),
            ("8000-9000:80", &[":8000-9000->80/tcp"]),
            ("53:53/UDP", &[":53->53/udp"]),
            ("80-81", &[":->80/tcp", ":->81/tcp"]),
        ];
        for (text, expected) in cases {
            assert_eq!(publish_all(&[text]).unwrap(), expected, "{text}");
        }
        assert_eq!(publish_all(&["80:80", "81:80", "80:80"]).unwrap(), [":80->80/tcp", ":81->80/tcp"]);
    }

    #[test]
    fn nonsense_is_named() {
        for bad in [
            "",
            "x",
            "0",
            "70000",
            "80:",
            "1-2:1-3",
            "81-80",
            "300.1.1.1:1:1",
            "1:2:3:4",
            "80/icmp",
            ":::80",
            "[::1]80",
        ] {
            let error = format!("{:#}", publish_all(&[bad]).expect_err(bad));
            assert!(!error.is_empty(), "{bad}");
        }
        let mut exposed = Set::new();
        expose("53/udp", &mut exposed).unwrap();
        expose("80-81", &mut exposed).unwrap();
        assert_eq!(exposed.keys().collect::<Vec<_>>(), ["53/udp", "80/tcp", "81/tcp"]);
        assert!(expose("1:2", &mut exposed).is_err());
    }
}
