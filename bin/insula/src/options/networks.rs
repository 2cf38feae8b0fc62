//! `--network NAME` and `--network name=NAME,alias=…`, with the flags that say more about the first one.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};
use insula_models::{EndpointIpamConfig, EndpointSettings};

/// The flags `--ip`, `--ip6`, `--network-alias`, `--link-local-ip`, which are about one network.
#[derive(Debug, Default)]
pub(crate) struct Single<'a> {
    pub(crate) address: Option<&'a str>,
    pub(crate) address6: Option<&'a str>,
    pub(crate) aliases: &'a [String],
    pub(crate) link_local: &'a [String],
}

/// What `--network` flags ask for: the network mode and the endpoints.
pub(crate) fn networks(
    flags: &[String],
    single: &Single<'_>,
) -> anyhow::Result<(String, BTreeMap<String, EndpointSettings>)> {
    let mut parsed = flags.iter().map(|flag| network(flag)).collect::<anyhow::Result<Vec<_>>>()?;
    if parsed.is_empty() {
        parsed.push(("default".to_owned(), EndpointSettings::default()));
    }
    let mode = parsed[0].0.clone();
    single.apply(&mut parsed[0].1)?;
    let mut names = BTreeSet::new();
    if let Some((name, _)) = parsed.iter().find(|(name, _)| !names.insert(name)) {
        bail!("network {name:?} is specified multiple times");
    }
    if parsed.len() > 1
        && let Some((name, _)) = parsed.iter().find(|(name, _)| !is_network(name))
    {
        bail!(
            "conflicting options: cannot attach both user-defined and non-user-defined network-modes: {name}"
        );
    }
    let mut endpoints = BTreeMap::new();
    for (name, settings) in parsed {
        if !is_network(&name) {
            if settings != EndpointSettings::default() {
                bail!("conflicting options: addresses and aliases need a network, which {name} is not");
            }
        } else {
            endpoints.insert(name, settings);
        }
    }
    Ok((mode, endpoints))
}

/// Whether the name stands for a network rather than for another mode.
fn is_network(name: &str) -> bool {
    !matches!(name, "none" | "host") && !name.starts_with("container:")
}

impl Single<'_> {
    fn apply(&self, settings: &mut EndpointSettings) -> anyhow::Result<()> {
        let conflict = |flag| {
            anyhow::anyhow!(
                "conflicting options: cannot specify both --{flag} and per-network settings of it"
            )
        };
        let ipam = settings.ipam_config.get_or_insert_default();
        for (flag, value, slot) in
            [("ip", self.address, &mut ipam.ipv4_address), ("ip6", self.address6, &mut ipam.ipv6_address)]
        {
            if let Some(value) = value {
                if !slot.is_empty() {
                    return Err(conflict(flag));
                }
                *slot = checked(flag, value)?;
            }
        }
        if !self.link_local.is_empty() {
            ipam.link_local_ips = self.link_local.to_vec();
        }
        if !self.aliases.is_empty() {
            if !settings.aliases.is_empty() {
                return Err(conflict("network-alias"));
            }
            settings.aliases = self.aliases.to_vec();
        }
        if settings.ipam_config == Some(EndpointIpamConfig::default()) {
            settings.ipam_config = None;
        }
        Ok(())
    }
}

/// An address of the right family.
pub(crate) fn checked(flag: &str, value: &str) -> anyhow::Result<String> {
    let address: std::net::IpAddr =
        value.parse().with_context(|| format!("invalid address {value:?} of --{flag}"))?;
    if address.is_ipv6() != (flag == "ip6") {
        bail!("invalid address {value:?} of --{flag}: the other family is meant");
    }
    Ok(address.to_string())
}

fn network(text: &str) -> anyhow::Result<(String, EndpointSettings)> {
    let mut settings = EndpointSettings::default();
    if !text.contains('=') || text.starts_with("container:") {
        return Ok((text.to_owned(), settings));
    }
    let mut name = None;
    for field in text.split(',') {
        let (key, value) = field.split_once('=').with_context(|| {
            format!("invalid field {field:?} of --network {text}: NAME=VALUE is expected")
        })?;
        match key {
            "name" => name = Some(value.to_owned()),
            "alias" => settings.aliases.push(value.to_owned()),
            "ip" => settings.ipam_config.get_or_insert_default().ipv4_address = checked("ip", value)?,
            "ip6" => settings.ipam_config.get_or_insert_default().ipv6_address = checked("ip6", value)?,
            "mac-address" => value.clone_into(&mut settings.mac_address),
            "link-local-ip" => {
                settings.ipam_config.get_or_insert_default().link_local_ips.push(value.to_owned());
            }
            "driver-opt" => {
                let (option, value) = value
                    .split_once('=')
                    .with_context(|| format!("invalid driver-opt {value:?}: NAME=VALUE is expected"))?;
                settings.driver_opts.insert(option.to_owned(), value.to_owned());
            }
            "gw-priority" => {
                settings.gw_priority =
                    value.parse().with_context(|| format!("invalid gw-priority ({value})"))?;
            }
            _ => bail!("invalid field key {key} of --network {text}"),
        }
    }
    Ok((name.with_context(|| format!("--network {text}: name= is missing"))?, settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> anyhow::Result<(String, BTreeMap<String, EndpointSettings>)> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        networks(&flags, &Single::default())
    }

    #[test]
    fn both_forms_are_read() {
        assert_eq!(parse(&[]).unwrap().0, "default");
        let (mode, endpoints) =
            parse(&["blue", "name=red,alias=db,alias=sql,ip=10.0.0.5,mac-address=02:00:00:00:00:01"])
                .unwrap();
        assert_eq!((mode.as_str(), endpoints.len()), ("blue", 2));
        let red = &endpoints["red"];
        assert_eq!((red.aliases.len(), red.mac_address.as_str()), (2, "02:00:00:00:00:01"));
        assert_eq!(red.ipam_config.as_ref().unwrap().ipv4_address, "10.0.0.5");
        assert!(parse(&["host"]).unwrap().1.is_empty());
        assert_eq!(parse(&["container:web"]).unwrap().0, "container:web");
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            &["name="][..0],
            &["blue", "blue"],
            &["blue", "host"],
            &["alias=x"],
            &["name=blue,ip=x"],
            &["name=blue,ip=fd00::1"],
            &["name=blue,what=1"],
            &["name=host,alias=x"],
        ] {
            assert_eq!(parse(bad).is_ok(), bad.is_empty(), "{bad:?}");
        }
        // Docker's word, whatever it is the name of.
        let twice = parse(&["none", "none"]).unwrap_err().to_string();
        assert_eq!(twice, "network \"none\" is specified multiple times");
        let aliases = ["x".to_owned()];
        let single = Single { aliases: &aliases, ..Single::default() };
        assert!(networks(&["name=blue,alias=y".to_owned()], &single).is_err());
        assert!(networks(&["host".to_owned()], &single).is_err());
        assert_eq!(networks(&["blue".to_owned()], &single).unwrap().1["blue"].aliases, ["x"]);
    }
}
