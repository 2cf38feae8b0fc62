//! What is served: names, containers, certificates.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use insula_spec::sites::{self, HostName, Speech};
use rustls::crypto::CryptoProvider;

use crate::identity::{Identities, Identity};
use crate::target::{Target, Use};

/// A table, ready to be asked. It is replaced as a whole; targets that stay take their connections with them.
#[derive(Debug, Default)]
pub(crate) struct Table {
    sites: HashMap<String, Arc<Site>>,
    targets: HashMap<SocketAddr, Arc<Target>>,
    identities: Identities,
}

/// Who answers to a name.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) speech: Speech,
    targets: Vec<Arc<Target>>,
    turn: AtomicUsize,
}

impl Table {
    /// With targets from `before` where they are the same; warnings are about certificates that cannot be used.
    pub(crate) fn new(told: sites::Table, before: &Self, provider: &CryptoProvider) -> (Self, Vec<String>) {
        let (identities, warnings) = Identities::new(&told.certificates, provider);
        let mut table = Self { identities, ..Self::default() };
        for served in told.sites {
            let targets = served.targets.iter().map(|address| table.target(*address, before)).collect();
            let site = Site { speech: served.speech, targets, turn: AtomicUsize::new(0) };
            table.sites.insert(served.name.into(), Arc::new(site));
        }
        (table, warnings)
    }

    fn target(&mut self, address: SocketAddr, before: &Self) -> Arc<Target> {
        let known = self.targets.get(&address).or_else(|| before.targets.get(&address)).cloned();
        let target = known.unwrap_or_else(|| Arc::new(Target::new(address)));
        self.targets.insert(address, target.clone());
        target
    }

    pub(crate) fn site(&self, name: &HostName) -> Option<Arc<Site>> {
        name.patterns().find_map(|pattern| self.sites.get(&pattern)).cloned()
    }

    pub(crate) fn identity(&self, name: &HostName) -> Option<Arc<Identity>> {
        self.identities.of(name)
    }

    /// Those of `before` that are served no longer and have requests under way.
    pub(crate) fn departed(&self, before: &Self) -> Vec<Arc<Target>> {
        let gone =
            |target: &&Arc<Target>| target.requests() > 0 && !self.targets.contains_key(&target.address);
        before.targets.values().filter(gone).cloned().collect()
    }

    pub(crate) fn tidy_up(&self) {
        self.targets.values().for_each(|target| target.tidy_up());
    }
}

impl Site {
    /// The container with the least to do, in turn among equals, and none of those that were `tried`.
    pub(crate) fn choose(&self, tried: &[SocketAddr]) -> Option<Use> {
        let count = self.targets.len();
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let all = (0..count).map(|step| &self.targets[(first + step) % count]);
        all.filter(|target| !tried.contains(&target.address))
            .min_by_key(|target| target.open())
            .map(Target::take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use insula_spec::sites::Served;

    fn table(before: &Table, served: &[(&str, &[u16])]) -> Table {
        let sites = served
            .iter()
            .map(|(name, ports)| Served {
                name: name.parse().unwrap(),
                speech: Speech::Http,
                targets: ports.iter().map(|port| ([127, 0, 0, 1], *port).into()).collect(),
            })
            .collect();
        let told = sites::Table { sites, certificates: Vec::new() };
        Table::new(told, before, &rustls::crypto::ring::default_provider()).0
    }

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    #[test]
    fn containers_take_turns_and_the_busy_rest() {
        let table = table(&Table::default(), &[("a", &[1, 2])]);
        let site = table.site(&name("A.")).unwrap();
        let port = |tried: &[SocketAddr]| site.choose(tried).map(|chosen| chosen.target.address.port());
        let mut turns: Vec<_> = (0..4).filter_map(|_| port(&[])).collect();
        assert_eq!((turns[0], turns[1]), (turns[2], turns[3]));
        turns.truncate(2);
        turns.sort_unstable();
        assert_eq!(turns, [1, 2]);
        let busy = site.choose(&[]).unwrap();
        assert!((0..4).all(|_| port(&[]) != Some(busy.target.address.port())));
        assert_eq!(port(&[busy.target.address]).unwrap() + busy.target.address.port(), 3);
        assert_eq!(port(&[([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into()]), None);
    }

    #[test]
    fn a_new_table_knows_the_old_targets() {
        let before = table(&Table::default(), &[("a", &[1, 2]), ("*.b", &[1])]);
        let busy = before.site(&name("x.y.b")).unwrap().choose(&[]).unwrap();
        let after = table(&before, &[("a", &[1])]);
        assert!(after.site(&name("x.b")).is_none());
        let found = after.site(&name("a")).unwrap().choose(&[]).unwrap();
        assert!(Arc::ptr_eq(&found.target, &busy.target) && found.target.open() == 2);
    }

    #[test]
    fn a_thousand_names_are_found() {
        let names: Vec<String> = (0..1000).map(|number| format!("site{number}.example.org")).collect();
        let served: Vec<(&str, &[u16])> = names.iter().map(|name| (name.as_str(), &[1][..])).collect();
        let table = table(&Table::default(), &served);
        assert!(names.iter().all(|text| table.site(&name(text)).is_some()));
        assert!(table.site(&name("example.org")).is_none());
    }
}
