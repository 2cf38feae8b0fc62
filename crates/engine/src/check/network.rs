//! Interfaces, bridges, rules of the firewall and addresses.

use insula_base::ContainerId;
use insula_host::firewall;
use insula_network::Deviation;

use super::{Finding, Report, lasting};
use crate::{Engine, Result, blocking};

pub(super) async fn inspect(engine: &Engine, report: &mut Report) -> Result<()> {
    report.go_on()?;
    let networks = engine.networks();
    report.looked_at_many("network", networks.list().len());
    report.looked_at_many("endpoint", networks.endpoints()?.len());
    let found = {
        let engine = engine.clone();
        lasting(move || Ok(engine.networks().deviations(&engine.known().live)?)).await?
    };
    for deviation in found {
        let networks = networks.clone();
        let finding = finding(engine, &deviation);
        let repair = blocking(move || Ok(networks.repair(&deviation)?.to_owned()));
        report.found(finding, repair).await?;
    }
    Ok(())
}

fn finding(engine: &Engine, deviation: &Deviation) -> Finding {
    let (kind, subject, problem, user) = match deviation {
        Deviation::Interface { name, bridge } => (
            "interface",
            name.clone(),
            format!("it is in the bridge {bridge}, and no container has it"),
            None,
        ),
        Deviation::NoInterface { name, container } => {
            ("interface", name.clone(), "it is gone".to_owned(), Some(container))
        }
        Deviation::Unplugged { name, bridge, container } => {
            ("interface", name.clone(), format!("it is not in the bridge {bridge}"), Some(container))
        }
        Deviation::Bridge { name } => ("bridge", name.clone(), "no network stands on it".to_owned(), None),
        Deviation::NoBridge { name, network } => {
            ("bridge", name.clone(), format!("it is gone: the network {network} stands on it"), None)
        }
        Deviation::Rules(deviation) => {
            let table = engine.instance().table();
            let (subject, problem) = match deviation {
                firewall::Deviation::NoTable(family) => {
                    (format!("{family} {table}"), "the table is not there".to_owned())
                }
                firewall::Deviation::Missing(element) => {
                    (format!("{table} {element}"), "the element is not there".to_owned())
                }
                firewall::Deviation::Foreign(element) => {
                    (format!("{table} {element}"), "the element is nobody's".to_owned())
                }
            };
            ("rule", subject, problem, None)
        }
        Deviation::Endpoint { container } => (
            "endpoint",
            container.short().to_owned(),
            "its container does not run".to_owned(),
            Some(container),
        ),
        Deviation::Address { pool, number, owner } => {
            ("address", format!("{pool} {number}"), format!("{owner} has it no more"), None)
        }
        Deviation::NoAddress { address, container } => (
            "address",
            address.to_string(),
            "another container could be given it".to_owned(),
            Some(container),
        ),
    };
    Finding { kind, subject, problem, used_by: user.map(|id| name(engine, id)).into_iter().collect() }
}

/// A container's name, or the beginning of its id when it has none any more.
pub(super) fn name(engine: &Engine, id: &ContainerId) -> String {
    let container = engine.0.containers.get(id);
    container.map_or_else(|| id.short().to_owned(), |container| container.row().name.clone())
}
