//! List: one line for each container, newest first, filtered as Docker does.

use std::collections::HashMap;
use std::sync::Arc;

use insula_base::ContainerId;
use insula_models::{
    ContainerSummary, EndpointSettings, HostConfigSummary, Labels, MountPoint, NetworkSettingsSummary,
    PortSummary,
};
use insula_network::Endpoint;
use jiff::Timestamp;

use super::container::Container;
use super::merge::command;
use super::row::{Phase, Row};
use super::{ContainerCounts, ListRequest, inspect, ports};
use crate::filters::{Filters, check_names, has_label, one_bool};
use crate::{Engine, Error, Result, blocking, volumes};

const KNOWN: [&str; 15] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];
/// Up to here each container's place is looked up by itself.
const FEW: usize = 8;
const STATES: [&str; 7] = ["created", "restarting", "running", "removing", "paused", "exited", "dead"];

impl Engine {
    pub async fn list_containers(&self, request: ListRequest) -> Result<Vec<ContainerSummary>> {
        let filters = &request.filters;
        check_names(filters, &KNOWN)?;
        check_values(filters)?;
        let mut all = self.0.containers.all();
        all.sort_by_cached_key(|container| std::cmp::Reverse(container.row().created));
        let bounds = Bounds::find(self, filters)?;
        let everything = request.all
            || request.limit.is_some()
            || filters.contains_key("status")
            || filters.contains_key("exited")
            || bounds.given();
        let mut chosen = Vec::new();
        for container in all {
            let row = container.row();
            if (everything || row.running())
                && bounds.include(&row)
                && self.passes(&container, &row, filters)?
            {
                chosen.push(container);
            }
            if request.limit.is_some_and(|limit| chosen.len() >= limit) {
                break;
            }
        }
        let mut endpoints = self.endpoints_of(&chosen)?;
        let mut summaries = Vec::with_capacity(chosen.len());
        for container in chosen {
            let mut summary = self.summary(&container, endpoints.remove(&container.id))?;
            if request.size {
                let (rw, root) = self.sizes(&container.row()).await?;
                // Docker leaves zeros out of lists.
                let told = |bytes: i64| Some(bytes).filter(|bytes| *bytes != 0);
                (summary.size_rw, summary.size_root_fs) = (told(rw), told(root));
            }
            summaries.push(summary);
        }
        Ok(summaries)
    }

    /// Bytes of the writable layer, and of all layers.
    pub(super) async fn sizes(&self, row: &Row) -> Result<(i64, i64)> {
        let folder = self.writable_dir(&row.id).await?;
        let rw = blocking(move || volumes::disk_use(&folder.upper())).await?;
        let image = self.images().resolve(row.image.id.as_str()).map_or(0, |image| image.size);
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok((signed(rw), signed(image + rw)))
    }

    /// Of many containers all that there are, which is one question to the state instead of one for each.
    fn endpoints_of(&self, chosen: &[Arc<Container>]) -> Result<HashMap<ContainerId, Endpoint>> {
        let all = match chosen.len() > FEW {
            true => self.networks().endpoints()?,
            false => {
                let each = chosen.iter().map(|container| self.networks().endpoint(&container.id));
                each.filter_map(Result::transpose).collect::<Result<_, _>>()?
            }
        };
        Ok(all.into_iter().map(|endpoint| (endpoint.container.clone(), endpoint)).collect())
    }

    fn summary(&self, container: &Container, endpoint: Option<Endpoint>) -> Result<ContainerSummary> {
        let row = container.row();
        let ports = port_summaries(&row, endpoint.as_ref());
        Ok(ContainerSummary {
            id: row.id.to_string(),
            names: vec![format!("/{}", row.name)],
            image: row.image.reference.clone(),
            image_id: row.image.id.to_string(),
            command: shown(command(&row.config)),
            created: row.created.as_second(),
            ports,
            size_rw: None,
            size_root_fs: None,
            labels: row.config.labels.clone(),
            state: container.status().to_owned(),
            status: status(container, &row, Timestamp::now()),
            host_config: HostConfigSummary {
                network_mode: row.host.network_mode.clone(),
                annotations: row.host.annotations.clone(),
                isolation: Some(&row.host.isolation)
                    .filter(|wall| *wall != "process")
                    .cloned()
                    .unwrap_or_default(),
            },
            network_settings: NetworkSettingsSummary {
                networks: self
                    .settings_of(&row, endpoint)
                    .networks
                    .into_iter()
                    .map(|(name, endpoint)| (name, listed(endpoint)))
                    .collect(),
                host_names: if row.running() { row.host_names() } else { Vec::new() },
            },
            mounts: inspect::mount_points(&row, &self.store().volumes_dir())
                .into_iter()
                .map(unsourced)
                .collect(),
        })
    }

    fn passes(&self, container: &Container, row: &Row, filters: &Filters) -> Result<bool> {
        let values = |name: &str| filters.get(name).map_or(&[][..], Vec::as_slice);
        let any = |name: &str, holds: &dyn Fn(&str) -> bool| {
            values(name).is_empty() || values(name).iter().any(|value| holds(value))
        };
        let name = format!("/{}", row.name);
        Ok(any("id", &|value| row.id.as_str().starts_with(value))
            && any("name", &|value| name.contains(value) || matches_anchored(value, &row.name))
            && any("status", &|value| container.status() == value)
            && any("exited", &|value| exited_with(row, value))
            && any("volume", &|value| mounts(row, value))
            && any("network", &|value| self.in_network(row, value))
            && any("ancestor", &|value| self.made_of(row, value))
            && any("publish", &|value| self.has_port(row, value, true))
            && any("expose", &|value| self.has_port(row, value, false))
            && any("health", &|value| super::health::word(container) == value)
            && any("isolation", &|value| row.host.isolation == value)
            && any("is-task", &|value| matches!(value, "false" | "0"))
            && labelled(&row.config.labels, values("label")))
    }

    fn in_network(&self, row: &Row, wanted: &str) -> bool {
        row.host.network_mode == wanted
            || row.endpoints.keys().any(|name| {
                name == wanted || self.networks().get(name).is_ok_and(|network| network.id.as_str() == wanted)
            })
            || self.networks().get(&row.host.network_mode).is_ok_and(|network| network.id.as_str() == wanted)
    }

    fn made_of(&self, row: &Row, wanted: &str) -> bool {
        // By layers too: a container of an image's child is made of the image.
        self.images()
            .resolve(wanted)
            .is_ok_and(|image| image.id == row.image.id || row.image.layers.starts_with(&image.layer_paths()))
    }

    fn has_port(&self, row: &Row, wanted: &str, published: bool) -> bool {
        let (numbers, proto) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
        let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
        let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else { return false };
        let Ok(endpoint) = self.networks().endpoint(&row.id) else { return false };
        port_summaries(row, endpoint.as_ref()).iter().any(|port| {
            let number = if published { port.public_port } else { port.private_port };
            port.r#type == proto && number != 0 && (first..=last).contains(&number)
        })
    }

    /// How many containers run, are paused, are stopped.
    #[must_use]
    pub fn container_counts(&self) -> ContainerCounts {
        let mut counts = ContainerCounts::default();
        for container in self.0.containers.all() {
            match container.status() {
                "running" => counts.running += 1,
                "paused" => counts.paused += 1,
                _ => counts.stopped += 1,
            }
        }
        counts
    }
}

/// Ports that are published, and those that the image or the user only names.
fn port_summaries(row: &Row, endpoint: Option<&Endpoint>) -> Vec<PortSummary> {
    if !row.running() {
        return Vec::new();
    }
    let published = endpoint.map_or(&[][..], |endpoint| &endpoint.ports);
    let mut summaries: Vec<PortSummary> = published
        .iter()
        .map(|port| PortSummary {
            ip: port.host_ip.to_string(),
            private_port: port.container_port,
            public_port: port.host_port,
            r#type: port.proto.name().to_owned(),
        })
        .collect();
    for exposed in row.config.exposed_ports.keys() {
        let Ok((private_port, proto)) = ports::port_of(exposed) else { continue };
        let r#type = proto.name().to_owned();
        if !summaries.iter().any(|port| port.private_port == private_port && port.r#type == r#type) {
            summaries.push(PortSummary { private_port, r#type, ..PortSummary::default() });
        }
    }
    summaries
}

/// What lists show of a place in a network.
fn listed(endpoint: EndpointSettings) -> EndpointSettings {
    EndpointSettings {
        links: Vec::new(),
        aliases: Vec::new(),
        driver_opts: Labels::new(),
        dns_names: Vec::new(),
        ..endpoint
    }
}

/// Of volumes lists show the name alone.
fn unsourced(mount: MountPoint) -> MountPoint {
    let source = if mount.name.is_empty() { mount.source } else { String::new() };
    MountPoint { source, ..mount }
}

/// The words of a command, those with blanks in quotes as Docker has it.
fn shown<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let quoted = |word: &str| if word.contains(' ') { format!("'{word}'") } else { word.to_owned() };
    words
        .enumerate()
        .map(|(n, word)| if n == 0 { word.to_owned() } else { quoted(word) })
        .collect::<Vec<_>>()
        .join(" ")
}

/// `before` and `since`: moments at which other containers were created.
struct Bounds {
    before: Option<Timestamp>,
    since: Option<Timestamp>,
}

impl Bounds {
    fn find(engine: &Engine, filters: &Filters) -> Result<Self> {
        let moments = |name: &str| -> Result<Vec<Timestamp>> {
            let names = filters.get(name).into_iter().flatten();
            names.map(|reference| Ok(engine.find(reference)?.row().created)).collect()
        };
        Ok(Self { before: moments("before")?.into_iter().min(), since: moments("since")?.into_iter().max() })
    }

    fn given(&self) -> bool {
        self.before.is_some() || self.since.is_some()
    }

    fn include(&self, row: &Row) -> bool {
        self.before.is_none_or(|before| row.created < before)
            && self.since.is_none_or(|since| row.created > since)
    }
}

fn check_values(filters: &Filters) -> Result<()> {
    let wrong =
        |name: &str, value: &str| Err(Error::InvalidArgument(format!("invalid filter '{name}={value}'")));
    let values = |name: &str| filters.get(name).into_iter().flatten();
    if let Some(value) = values("status").find(|value| !STATES.contains(&value.as_str())) {
        return wrong("status", value);
    }
    if let Some(value) = values("exited").find(|value| value.parse::<i32>().is_err()) {
        return wrong("exited", value);
    }
    if let Some(value) =
        values("health").find(|value| !["none", "starting", "healthy", "unhealthy"].contains(&value.as_str()))
    {
        return wrong("health", value);
    }
    one_bool(filters, "is-task").map(drop)
}

/// `^/web$`, `^web$`: what people write who know that Docker takes expressions.
fn matches_anchored(pattern: &str, name: &str) -> bool {
    let start = pattern.strip_prefix('^');
    let rest = start.unwrap_or(pattern);
    let rest = if start.is_some() { rest.strip_prefix('/').unwrap_or(rest) } else { rest };
    match (start.is_some(), rest.strip_suffix('$')) {
        (true, Some(text)) => name == text,
        (true, None) => name.starts_with(rest),
        (false, Some(text)) => name.ends_with(text),
        (false, None) => name.contains(rest),
    }
}

fn exited_with(row: &Row, code: &str) -> bool {
    matches!(&row.phase, Phase::Exited { code: found, .. } if code.parse() == Ok(*found))
}

fn mounts(row: &Row, wanted: &str) -> bool {
    row.mounts.iter().any(|mount| {
        let source = match &mount.source {
            super::row::SourceRow::Bind { path, .. } => path.to_str() == Some(wanted),
            super::row::SourceRow::Volume { name, .. } => name == wanted,
            super::row::SourceRow::Own { .. }
            | super::row::SourceRow::Merged { .. }
            | super::row::SourceRow::Tmpfs { .. } => false,
        };
        source || mount.target == wanted
    })
}

/// All of them.
pub(super) fn labelled(labels: &Labels, wanted: &[String]) -> bool {
    wanted.iter().all(|label| has_label(labels, label))
}

/// One of them.
pub(super) fn any_label(labels: &Labels, wanted: &[String]) -> bool {
    wanted.iter().any(|label| has_label(labels, label))
}

/// `Up 2 minutes`, `Exited (0) 5 seconds ago`.
fn status(container: &Container, row: &Row, now: Timestamp) -> String {
    let since = |moment: Timestamp| human(u64::try_from(now.duration_since(moment).as_secs()).unwrap_or(0));
    let up = || row.started.map_or_else(|| "Up".to_owned(), |started| format!("Up {}", since(started)));
    match (&row.phase, container.status()) {
        (_, "paused") => format!("{} (Paused)", up()),
        (Phase::Exited { code, at, .. }, "restarting") => format!("Restarting ({code}) {} ago", since(*at)),
        (Phase::Exited { code, at, .. }, _) => format!("Exited ({code}) {} ago", since(*at)),
        (Phase::Running { .. }, _) => match super::health::of(container).map(|health| health.status) {
            Some(status) if status == super::health::STARTING => format!("{} (health: {status})", up()),
            Some(status) => format!("{} ({status})", up()),
            None => up(),
        },
        (Phase::Created | Phase::Starting, _) => "Created".to_owned(),
        (Phase::Removing, _) => "Removal In Progress".to_owned(),
    }
}

/// Docker's words for a span of time.
fn human(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        _ if minutes == 1 => "About a minute".to_owned(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

impl Engine {
    /// By name, id or unique beginning of an id.
    pub(crate) fn find(&self, reference: &str) -> Result<Arc<Container>> {
        self.0.containers.find(reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_as_dockers() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (86_400 * 3, "3 days"),
            (86_400 * 30, "4 weeks"),
            (86_400 * 100, "3 months"),
            (86_400 * 800, "2 years"),
        ] {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn words_with_blanks_are_quoted() {
        assert_eq!(shown(["sh", "-c", "echo a; b"].into_iter()), "sh -c 'echo a; b'");
        assert_eq!(shown(["a b"].into_iter()), "a b");
    }

    #[test]
    fn names_may_be_anchored() {
        assert!(matches_anchored("^/web$", "web") && matches_anchored("^web$", "web"));
        assert!(!matches_anchored("^web$", "web1") && matches_anchored("^web", "web1"));
        assert!(matches_anchored("b1$", "web1") && !matches_anchored("eb$", "web1"));
    }
}
