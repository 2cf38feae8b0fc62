//! RESULTS.md.

use std::collections::BTreeMap;
use std::fmt;

use crate::chart::{Chart, Group};
use crate::floor::FLOOR;
use crate::images::Seen;
use crate::inside::Inside;
use crate::memory::Memory;
use crate::peer::Scenario;
use crate::sample::Samples;
use crate::starts::Starts;
use crate::traffic::Traffic;
use crate::{api, builds, facts, machines, postgres, runtimes};

/// Everything that was seen.
#[derive(Debug)]
pub(crate) struct Report {
    rounds: usize,
    /// In the order in which the peers took their turns.
    versions: Vec<(String, String)>,
    times: BTreeMap<Scenario, Vec<(String, Samples)>>,
    memory: Vec<(String, Memory)>,
    pub(crate) starts: Starts,
    pub(crate) postgres: postgres::Copies,
    pub(crate) inside: Inside,
    images: Seen,
    builds: builds::Seen,
    pub(crate) traffic: Traffic,
    api: api::Seen,
    machines: machines::Seen,
    runtimes: runtimes::Seen,
}

pub(crate) const OURS: &str = "insula";

impl Report {
    pub(crate) fn new(rounds: usize) -> Self {
        Self {
            rounds,
            versions: Vec::new(),
            times: BTreeMap::new(),
            memory: Vec::new(),
            starts: Starts::default(),
            postgres: postgres::Copies::default(),
            inside: Inside::default(),
            images: Seen::default(),
            builds: builds::Seen::default(),
            traffic: Traffic::default(),
            api: api::Seen::default(),
            machines: machines::Seen::default(),
            runtimes: runtimes::Seen::default(),
        }
    }

    pub(crate) fn version(&mut self, name: &str, version: &str) {
        self.versions.push((name.to_owned(), version.to_owned()));
    }

    pub(crate) fn memory(&mut self, name: &str, memory: Option<Memory>) {
        self.memory.extend(memory.map(|memory| (name.to_owned(), memory)));
    }

    pub(crate) fn images(&mut self, seen: Seen) {
        self.images = seen;
    }

    pub(crate) fn builds(&mut self, seen: builds::Seen) {
        self.builds = seen;
    }

    pub(crate) fn api(&mut self, seen: api::Seen) {
        self.api = seen;
    }

    pub(crate) fn runtimes(&mut self, seen: runtimes::Seen) {
        self.runtimes = seen;
    }

    pub(crate) fn machines(&mut self, seen: machines::Seen) {
        self.machines = seen;
    }

    pub(crate) fn samples(&mut self, scenario: Scenario, name: &str) -> &mut Samples {
        let peers = self.times.entry(scenario).or_default();
        let place = peers.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            peers.push((name.to_owned(), Samples::default()));
            peers.len() - 1
        });
        &mut peers[place].1
    }

    fn scenario(&self, f: &mut fmt::Formatter<'_>, scenario: Scenario) -> fmt::Result {
        let Some(peers) = self.times.get(&scenario) else { return Ok(()) };
        let ours = peers.iter().find(|(name, _)| name == OURS).and_then(|(_, samples)| samples.at(0.5));
        writeln!(f, "\n## {}\n", scenario.title())?;
        writeln!(f, "| | median ms | p10 | p90 | insula is |\n| --- | ---: | ---: | ---: | --- |")?;
        for (name, samples) in peers {
            let part = |part| samples.at(part).unwrap_or_default();
            let note = match name.as_str() {
                FLOOR => " (the kernel's work alone, in static C)",
                name if self.is_bundle(name) => " (prepared bundle)",
                _ => "",
            };
            let ratio = match ours {
                Some(ours) if name != OURS => ratio(part(0.5), ours),
                _ => String::new(),
            };
            writeln!(
                f,
                "| {name}{note} | {:.1} | {:.1} | {:.1} | {ratio} |",
                part(0.5),
                part(0.1),
                part(0.9)
            )?;
        }
        if peers.iter().any(|(name, _)| name == FLOOR) {
            writeln!(
                f,
                "\nThe last row makes namespaces, control groups, an overlay and the mounts that containers have, and \
                 removes\nthem; no user namespace and no filter of system calls, which insula's containers have too \
                 (bench/src/floor.c)."
            )?;
        }
        Ok(())
    }

    /// What engines take for whole commands, as a picture. Who runs prepared bundles does less, and is left out.
    pub(crate) fn chart(&self) -> String {
        let bars = |peers: &[(String, Samples)]| {
            let engines = peers.iter().filter(|(name, _)| !self.is_bundle(name));
            engines.filter_map(|(name, samples)| Some((name.clone(), samples.at(0.5)?))).collect()
        };
        let commands = Scenario::COMMANDS.iter().filter_map(|scenario| self.times.get_key_value(scenario));
        let groups: Vec<Group> = commands
            .map(|(scenario, peers)| Group { title: scenario.title().to_owned(), bars: bars(peers) })
            .collect();
        Chart { groups: &groups, ours: OURS }.to_string()
    }

    /// Our median in milliseconds.
    fn ours(&self, scenario: Scenario) -> Option<f64> {
        let peers = self.times.get(&scenario)?;
        peers.iter().find(|(name, _)| name == OURS).and_then(|(_, samples)| samples.at(0.5))
    }

    fn is_bundle(&self, name: &str) -> bool {
        !self.memory.iter().any(|(known, _)| known == name)
    }

    fn memories(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n## Memory\n\nHelper processes of one idle container (PSS, mean of ten; the container's own not"
        )?;
        writeln!(f, "counted), and the daemons without containers (RSS).\n")?;
        writeln!(f, "| | helpers, KiB | daemons, MiB |\n| --- | ---: | ---: |")?;
        for (name, memory) in &self.memory {
            let daemon = memory.daemon_rss.map_or("none".into(), |kib| format!("{:.1}", kib as f64 / 1024.0));
            writeln!(f, "| {name} | {} | {daemon} |", memory.helper_pss)?;
        }
        Ok(())
    }
}

pub(crate) fn ratio(theirs: f64, ours: f64) -> String {
    let times = theirs / ours;
    if times >= 1.0 { format!("{times:.1} × faster") } else { format!("{:.1} × slower", 1.0 / times) }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Results of `make bench`\n")?;
        writeln!(
            f,
            "Written by the program, not by hand. {} rounds after one to warm up; in each round every",
            self.rounds
        )?;
        writeln!(
            f,
            "program has its turn in every scenario. Times are of whole commands, from start to exit, all"
        )?;
        writeln!(
            f,
            "in one network namespace, with `/run` in memory as on most hosts. The same image for all: the static busybox alone.\n"
        )?;
        facts::all().iter().try_for_each(|fact| writeln!(f, "- {fact}"))?;
        for (name, version) in &self.versions {
            writeln!(f, "- {name}: {}", version.lines().next().unwrap_or_default())?;
        }
        let (first, rest) = Scenario::COMMANDS.split_at(1);
        for scenario in first.iter().chain(Scenario::COLD).chain(rest).chain(Scenario::LOGS) {
            self.scenario(f, *scenario)?;
        }
        self.starts.fmt(f)?;
        self.postgres.fmt(f)?;
        self.memories(f)?;
        self.runtimes.fmt(f)?;
        self.inside.fmt(f)?;
        self.images.fmt(f)?;
        self.builds.fmt(f)?;
        self.traffic.write(f, self.ours(Scenario::RunBridge).zip(self.ours(Scenario::RunAlone)))?;
        self.api.fmt(f)?;
        self.machines.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ratios_are_of_medians() {
        let mut report = Report::new(1);
        for (name, milliseconds) in [(OURS, 10), ("docker", 200), ("crun", 5)] {
            report.samples(Scenario::RunAlone, name).push(Duration::from_millis(milliseconds));
        }
        report.memory("docker", Some(Memory { helper_pss: 2048, daemon_rss: Some(102_400) }));
        let text = report.to_string();
        assert!(text.contains("| docker | 200.0 | 200.0 | 200.0 | 20.0 × faster |"), "{text}");
        assert!(text.contains("| crun (prepared bundle) | 5.0 | 5.0 | 5.0 | 2.0 × slower |"), "{text}");
        assert!(text.contains("| docker | 2048 | 100.0 |"), "{text}");
    }
}
