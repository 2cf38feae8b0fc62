//! What of a file this host has already.

use insula_models::{NetworkCreateRequest, Workload, WorkloadConflict};
use insula_store::Collection;

use super::Changes;
use crate::containers::ports;
use crate::{Engine, Result, blocking};

impl Engine {
    /// What would be in the way of the workload, after the changes; nothing is made.
    pub async fn workload_conflicts(
        &self,
        mut workload: Workload,
        changes: Changes,
    ) -> Result<Vec<WorkloadConflict>> {
        let engine = self.clone();
        blocking(move || {
            changes.apply(&mut workload)?;
            engine.conflicts(&workload, &changes)
        })
        .await
    }

    pub(super) fn conflicts(&self, workload: &Workload, changes: &Changes) -> Result<Vec<WorkloadConflict>> {
        let mut found = Vec::new();
        let mut add = |kind: &str, name: &str, reason: String| {
            found.push(WorkloadConflict { kind: kind.to_owned(), name: name.to_owned(), reason });
        };
        let records = self.store().state().records(Collection::Containers);
        for container in &workload.containers {
            if let Some(have) = records.by_name(&container.name)? {
                let id = have.id.get(..12).unwrap_or(&have.id);
                add("container", &container.name, format!("the name belongs to container {id}"));
            }
        }
        for volume in &workload.volumes {
            if self.volumes().inspect(&volume.name).is_ok() {
                add("volume", &volume.name, "there is a volume of this name".to_owned());
            }
        }
        for network in &workload.networks {
            // Who says which network is to be used means it as it is.
            let said = changes.networks.values().any(|name| *name == network.name);
            if !said && let Some(reason) = self.other_network(network) {
                add("network", &network.name, reason);
            }
        }
        for container in &workload.containers {
            for request in ports::requests(&container.config, &container.host_config)? {
                let Some(range) = request.host_ports.clone() else { continue };
                if let Err(error) = self.networks().try_ports(std::slice::from_ref(&request)) {
                    let port = match (range.start(), range.end()) {
                        (first, last) if first == last => format!("{first}/{}", request.proto),
                        (first, last) => format!("{first}-{last}/{}", request.proto),
                    };
                    add("port", &port, insula_base::chain(&error));
                }
            }
        }
        Ok(found)
    }

    /// How a network of this name differs from what is wanted; nothing if it is the same or there is none.
    fn other_network(&self, wanted: &NetworkCreateRequest) -> Option<String> {
        let here = self.networks().list().into_iter().find(|network| network.name == wanted.name)?;
        let here = crate::networks::describe(&here);
        let driver = if wanted.driver.is_empty() { "bridge" } else { &wanted.driver };
        let differs = match wanted {
            _ if here.driver != driver => "driver",
            _ if here.internal != wanted.internal => "reach",
            _ if here.enable_ipv6 != wanted.enable_ipv6.unwrap_or_default() => "use of IPv6",
            _ if wanted.ipam.as_ref().is_some_and(|ipam| ipam.config != here.ipam.config) => "subnet",
            _ => return None,
        };
        Some(format!("there is a network of this name with another {differs}"))
    }
}
