//! The arrows between the crates: a crate depends only on crates above it, the daemon reaches no
//! code that makes containers, and tokio stays in the daemon and the CLI.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::Package;

/// From the ground up. A crate may use those before it.
const ORDER: &[&str] = &[
    "insula-base",
    "insula-sys",
    "insula-spec",
    "insula-proto",
    "insula-host",
    "insula-store",
    "insula-registry",
    "insula-network",
    "insula-proxy-core",
    "insula-container",
    "insula-sandbox",
    "insula-monitor-core",
    "insula-agent-core",
    "insula-vmm-core",
    "insula-runtime-core",
    "insula-shim-core",
    "insula-build",
    "insula-models",
    "insula-engine",
    "insula-api",
    "insula-client",
    "insula-console",
];

/// Programs, tests and chores: above every crate, used by none.
const TOP: &[&str] = &[
    "insula",
    "insulad",
    "insula-monitor",
    "insula-proxy",
    "insula-runtime",
    "insula-vmm",
    "insula-agent",
    "containerd-shim-insula-v2",
    "insula-tests",
    "insula-bench",
    "insula-fuzz",
    "xtask",
];

/// Code that forks, clones or runs virtual machines must not get into the asynchronous daemon.
const WALLS: &[&str] = &[
    "insula-container",
    "insula-sandbox",
    "insula-monitor-core",
    "insula-agent-core",
    "insula-vmm-core",
    "insula-runtime-core",
    "insula-shim-core",
];
const WITHOUT_WALLS: &[&str] = &["insulad", "insula", "insula-proxy"];

/// The registry's client among them: downloads and uploads of many layers wait on the network side by
/// side, and only the daemon does that. The proxy is a program of its own that does nothing but wait on the
/// network.
const WITH_TOKIO: &[&str] = &[
    "insula-registry",
    "insula-proxy-core",
    "insula-engine",
    "insula-api",
    "insula-client",
    "insula-console",
    "insula",
    "insulad",
    "insula-proxy",
];

/// Everything that is wrong, one sentence each.
pub(crate) fn check(packages: &[Package]) -> Vec<String> {
    let mut faults = Vec::new();
    for package in packages {
        faults.extend(order_faults(package));
        faults.extend(tokio_faults(package));
    }
    for program in WITHOUT_WALLS {
        faults.extend(wall_faults(packages, program));
    }
    faults
}

fn order_faults(package: &Package) -> Vec<String> {
    let name = package.name.as_str();
    let mine = ORDER.iter().position(|known| *known == name);
    if mine.is_none() && !TOP.contains(&name) {
        return vec![format!("{name} has no place in the order: add it to xtask/src/layering.rs")];
    }
    let arrows = package.dependencies.iter().chain(&package.dev_dependencies).map(String::as_str);
    arrows
        .filter(|target| *target != name)
        .filter(|target| match ORDER.iter().position(|known| known == target) {
            Some(theirs) => mine.is_some_and(|mine| theirs >= mine),
            None => TOP.contains(target),
        })
        .map(|target| format!("{name} must not depend on {target}, which is not above it"))
        .collect()
}

fn tokio_faults(package: &Package) -> Option<String> {
    let uses = package.dependencies.iter().any(|name| name == "tokio" || name.starts_with("tokio-"));
    (uses && !WITH_TOKIO.contains(&package.name.as_str())).then(|| {
        format!("{} must not depend on tokio: it lives in the daemon and the CLI only", package.name)
    })
}

fn wall_faults(packages: &[Package], program: &str) -> Vec<String> {
    let graph: BTreeMap<&str, &Package> = packages.iter().map(|p| (p.name.as_str(), p)).collect();
    let mut reached = BTreeSet::new();
    let mut next = vec![program];
    while let Some(name) = next.pop() {
        if let Some(package) = graph.get(name).filter(|_| reached.insert(name)) {
            next.extend(package.dependencies.iter().map(String::as_str));
        }
    }
    WALLS
        .iter()
        .filter(|wall| reached.contains(*wall))
        .map(|wall| format!("{program} must not reach {wall}: it knows the task protocol only"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[&str]) -> Package {
        Package {
            name: name.into(),
            dependencies: dependencies.iter().map(|d| (*d).to_owned()).collect(),
            ..Package::default()
        }
    }

    #[test]
    fn an_arrow_upwards_is_found() {
        let faults = check(&[package("insula-base", &["serde"]), package("insula-sys", &["insula-store"])]);
        assert_eq!(faults, ["insula-sys must not depend on insula-store, which is not above it"]);
        assert!(check(&[package("insula-store", &["insula-base", "rusqlite"])]).is_empty());
    }

    #[test]
    fn an_arrow_of_the_tests_counts_too() {
        let mut sys = package("insula-sys", &[]);
        sys.dev_dependencies = vec!["insula-engine".into()];
        assert_eq!(check(&[sys]).len(), 1);
    }

    #[test]
    fn nobody_depends_on_a_program() {
        assert_eq!(check(&[package("insula-tests", &["insulad"])]).len(), 1);
    }

    #[test]
    fn the_daemon_reaches_no_wall_by_a_detour() {
        let packages = [
            package("insula-sandbox", &[]),
            package("insula-engine", &["insula-sandbox"]),
            package("insulad", &["insula-engine"]),
        ];
        assert_eq!(
            check(&packages),
            ["insulad must not reach insula-sandbox: it knows the task protocol only"]
        );
    }

    #[test]
    fn tokio_stays_where_it_is() {
        assert_eq!(check(&[package("insula-store", &["tokio"])]).len(), 1);
        assert_eq!(check(&[package("insula-container", &["tokio-util"])]).len(), 1);
        assert!(check(&[package("insula-engine", &["tokio"])]).is_empty());
    }

    #[test]
    fn a_crate_without_a_place_is_found() {
        assert_eq!(check(&[package("insula-misc", &[])]).len(), 1);
    }
}
