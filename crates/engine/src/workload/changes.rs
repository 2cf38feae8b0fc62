//! What becomes otherwise than it is in the file, since this host has it already.

use std::collections::BTreeMap;

use insula_models::{HostConfig, Workload};

use super::joined;
use crate::{Error, Result};

/// New names and ports, by the old.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    pub containers: BTreeMap<String, String>,
    pub volumes: BTreeMap<String, String>,
    /// A network that is here already is used as it is.
    pub networks: BTreeMap<String, String>,
    /// `8080` or `8080/udp`, and the host's port instead.
    pub ports: BTreeMap<String, String>,
}

impl Changes {
    /// `OLD=NEW`, many of a kind.
    pub fn parse(texts: &[String]) -> Result<BTreeMap<String, String>> {
        texts
            .iter()
            .map(|text| match text.split_once('=') {
                Some((old, new)) if !old.is_empty() && !new.is_empty() => {
                    Ok((old.to_owned(), new.to_owned()))
                }
                _ => Err(Error::InvalidArgument(format!("{text:?}: OLD=NEW is expected"))),
            })
            .collect()
    }

    /// The workload as it is to be here. What is changed has to be there.
    pub(super) fn apply(&self, workload: &mut Workload) -> Result<()> {
        self.check(workload)?;
        for container in &mut workload.containers {
            self.rename_in(&mut container.host_config);
            replace(&self.containers, &mut container.name);
            for mount in &mut container.mounts {
                replace(&self.volumes, &mut mount.volume);
            }
            let networks = std::mem::take(&mut container.networks);
            container.networks = networks
                .into_iter()
                .map(|(mut name, settings)| {
                    replace(&self.networks, &mut name);
                    (name, settings)
                })
                .collect();
            for (port, bindings) in &mut container.host_config.port_bindings {
                let proto = port.split_once('/').map_or("tcp", |(_, proto)| proto);
                for binding in bindings.iter_mut().flatten() {
                    let exact = self.ports.get(&format!("{}/{proto}", binding.host_port));
                    if let Some(new) = exact.or_else(|| self.ports.get(&binding.host_port)) {
                        new.clone_into(&mut binding.host_port);
                    }
                }
            }
        }
        workload.volumes.iter_mut().for_each(|volume| replace(&self.volumes, &mut volume.name));
        workload.networks.iter_mut().for_each(|network| replace(&self.networks, &mut network.name));
        Ok(())
    }

    fn rename_in(&self, host: &mut HostConfig) {
        for mode in [&mut host.network_mode, &mut host.pid_mode, &mut host.ipc_mode] {
            match joined(mode).and_then(|name| self.containers.get(name)) {
                Some(new) => *mode = format!("container:{new}"),
                None => replace(&self.networks, mode),
            }
        }
        for link in &mut host.links {
            if let Some((name, rest)) = link.split_once(':')
                && let Some(new) = self.containers.get(name)
            {
                *link = format!("{new}:{rest}");
            }
        }
        for bind in &mut host.binds {
            if let Some((source, rest)) = bind.split_once(':')
                && let Some(new) = self.volumes.get(source)
            {
                *bind = format!("{new}:{rest}");
            }
        }
        for mount in host.mounts.iter_mut().filter(|mount| mount.r#type == "volume") {
            replace(&self.volumes, &mut mount.source);
        }
    }

    fn check(&self, workload: &Workload) -> Result<()> {
        let missing = |kind: &str, name: &str| {
            Err(Error::InvalidArgument(format!("the bundle has no {kind} {name} that could be changed")))
        };
        for name in self.containers.keys() {
            if !workload.containers.iter().any(|container| container.name == *name) {
                return missing("container", name);
            }
        }
        for name in self.volumes.keys() {
            if !workload.volumes.iter().any(|volume| volume.name == *name) {
                return missing("volume", name);
            }
        }
        for name in self.networks.keys() {
            if !workload.networks.iter().any(|network| network.name == *name) {
                return missing("network", name);
            }
        }
        let bound = |wanted: &str| {
            let (port, proto) = wanted.split_once('/').map_or((wanted, None), |(port, p)| (port, Some(p)));
            workload.containers.iter().flat_map(|container| &container.host_config.port_bindings).any(
                |(inside, bindings)| {
                    proto.is_none_or(|proto| inside.split_once('/').map_or("tcp", |(_, p)| p) == proto)
                        && bindings.iter().flatten().any(|binding| binding.host_port == port)
                },
            )
        };
        match self.ports.keys().find(|port| !bound(port)) {
            Some(port) => missing("published port", port),
            None => Ok(()),
        }
    }
}

fn replace(changes: &BTreeMap<String, String>, name: &mut String) {
    if let Some(new) = changes.get(name) {
        new.clone_into(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use insula_models::{
        EndpointSettings, NetworkCreateRequest, PortBinding, WorkloadContainer, WorkloadMount, WorkloadVolume,
    };

    fn workload() -> Workload {
        let host_config = HostConfig {
            network_mode: "back".to_owned(),
            binds: vec!["data:/var/data:ro".to_owned(), "/data:/host".to_owned()],
            port_bindings: [(
                "80/tcp".to_owned(),
                Some(vec![PortBinding { host_ip: String::new(), host_port: "8080".to_owned() }]),
            )]
            .into(),
            ..HostConfig::default()
        };
        let side = HostConfig { network_mode: "container:web".to_owned(), ..HostConfig::default() };
        Workload {
            version: 1,
            containers: vec![
                WorkloadContainer {
                    name: "web".to_owned(),
                    host_config,
                    networks: [("back".to_owned(), EndpointSettings::default())].into(),
                    mounts: vec![WorkloadMount { volume: "data".to_owned(), ..WorkloadMount::default() }],
                    ..WorkloadContainer::default()
                },
                WorkloadContainer {
                    name: "side".to_owned(),
                    host_config: side,
                    ..WorkloadContainer::default()
                },
            ],
            networks: vec![NetworkCreateRequest { name: "back".to_owned(), ..Default::default() }],
            volumes: vec![WorkloadVolume { name: "data".to_owned(), ..WorkloadVolume::default() }],
            ..Workload::default()
        }
    }

    fn one(text: &str) -> BTreeMap<String, String> {
        Changes::parse(&[text.to_owned()]).unwrap()
    }

    #[test]
    fn everything_follows_a_new_name() {
        let changes = Changes {
            containers: one("web=shop"),
            volumes: one("data=stock"),
            networks: one("back=inner"),
            ports: one("8080/tcp=9090"),
        };
        let mut workload = workload();
        changes.apply(&mut workload).unwrap();
        let [shop, side] = workload.containers.as_slice() else { panic!("two containers") };
        assert_eq!((shop.name.as_str(), side.host_config.network_mode.as_str()), ("shop", "container:shop"));
        assert_eq!(shop.host_config.binds, ["stock:/var/data:ro", "/data:/host"]);
        assert_eq!((shop.mounts[0].volume.as_str(), workload.volumes[0].name.as_str()), ("stock", "stock"));
        assert_eq!((shop.host_config.network_mode.as_str(), shop.networks.len()), ("inner", 1));
        assert!(shop.networks.contains_key("inner") && workload.networks[0].name == "inner");
        let bound = shop.host_config.port_bindings["80/tcp"].as_ref().unwrap();
        assert_eq!(bound[0].host_port, "9090");
    }

    #[test]
    fn what_is_not_there_cannot_be_changed() {
        for changes in [
            Changes { containers: one("x=y"), ..Changes::default() },
            Changes { volumes: one("x=y"), ..Changes::default() },
            Changes { networks: one("x=y"), ..Changes::default() },
            Changes { ports: one("8080/udp=1"), ..Changes::default() },
        ] {
            changes.apply(&mut workload()).unwrap_err();
        }
        for text in ["", "=", "a=", "=b", "a"] {
            Changes::parse(&[text.to_owned()]).unwrap_err();
        }
    }
}
