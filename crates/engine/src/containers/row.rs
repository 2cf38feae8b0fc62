//! A container as the state keeps it: what was asked for, and where its life stands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use insula_base::{ContainerId, Digest};
use insula_models::{ContainerConfig, EndpointSettings, Health, HostConfig};
use insula_network::Mode;
use insula_spec::sites::Site;
use insula_store::Record;
use jiff::Timestamp;
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::sites::SiteRow;
use crate::{Error, Result};

/// Raised when an older version could not read the row any more.
const VERSION: u32 = 1;

/// One row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) version: u32,
    pub(crate) id: ContainerId,
    pub(crate) name: String,
    pub(crate) created: Timestamp,
    pub(crate) image: ImageRow,
    /// The user's with the image's.
    #[serde(serialize_with = "sparsely")]
    pub(crate) config: ContainerConfig,
    /// As in effect: what was left open is filled in.
    #[serde(serialize_with = "sparsely")]
    pub(crate) host: HostConfig,
    /// Endpoints asked for, by the network's name.
    pub(crate) endpoints: BTreeMap<String, EndpointSettings>,
    /// `endpoints` has every network, and not only those with wishes of their own: rows of the first version
    /// leave the container's own network out.
    #[serde(default)]
    pub(crate) endpoints_complete: bool,
    pub(crate) mounts: Vec<MountRow>,
    /// The container's own range of ids on the host.
    pub(crate) ids: Option<IdRange>,
    pub(crate) phase: Phase,
    /// When it last began to run.
    #[serde(default)]
    pub(crate) started: Option<Timestamp>,
    /// How often it was started again by its restart policy.
    #[serde(default)]
    pub(crate) restarts: u64,
    /// A user stopped it: `unless-stopped` leaves it so.
    #[serde(default)]
    pub(crate) stopped: bool,
    /// Why the last attempt to start it failed.
    #[serde(default)]
    pub(crate) failure: Option<Failure>,
    /// The boot of the host in which it was started last.
    #[serde(default)]
    pub(crate) boot: String,
    /// It is brought down to be started again, whatever its policy says.
    #[serde(default)]
    pub(crate) again: bool,
    /// The engine holds it still to read its files: a daemon that finds it so when it starts lets it go on.
    #[serde(default)]
    pub(crate) held: bool,
    /// Its removal takes volumes that nobody named too.
    #[serde(default)]
    pub(crate) with_volumes: bool,
    /// Its host names, as its user's own labels have them.
    #[serde(default)]
    pub(crate) sites: Vec<SiteRow>,
    /// What was last known of its health, when it ended.
    #[serde(default)]
    pub(crate) health: Option<Health>,
}

/// A document of which every field may be missing, without those that are as they are then: most of what Docker
/// knows of a container is never asked for, and rows are half as long without it.
fn sparsely<T: Serialize + Default, S: Serializer>(document: &T, serializer: S) -> Result<S::Ok, S::Error> {
    let value = |document: &T| serde_json::to_value(document).map_err(S::Error::custom);
    let mut written = value(document)?;
    if let (Value::Object(fields), Value::Object(missing)) = (&mut written, value(&T::default())?) {
        fields.retain(|name, field| missing.get(name) != Some(field));
    }
    written.serialize(serializer)
}

/// A start that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// 126, 127, or 128 when it has nothing to do with the program.
    pub(crate) code: i32,
    pub(crate) error: String,
}

/// The image that it was made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImageRow {
    pub(crate) id: Digest,
    /// As the user wrote it.
    pub(crate) reference: String,
    /// Folders of the layers, lowest first.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) hidden: Vec<String>,
}

impl ImageRow {
    /// Whether it is what a step of a build begins with.
    pub(crate) fn is_of_build(&self) -> bool {
        self.reference == crate::build::IMAGE
    }
}

/// Ids `first` to `first + count - 1` of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdRange {
    pub(crate) first: u32,
    pub(crate) count: u32,
}

/// A mount that the user or the image asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MountRow {
    /// Absolute and plain, in the container.
    pub(crate) target: String,
    pub(crate) source: SourceRow,
    pub(crate) readonly: bool,
    /// The options as written, for inspection.
    pub(crate) mode: String,
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub(crate) enum SourceRow {
    Bind {
        path: PathBuf,
        recursive: bool,
        /// Docker's word (`rprivate`).
        propagation: String,
    },
    Volume {
        name: String,
        /// Nobody named it: it goes with `rm -v`.
        anonymous: bool,
        /// Fill it with what the image has at the target, if it is empty.
        copy: bool,
        /// The folder of the host that its options name in place of its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        folder: Option<PathBuf>,
    },
    Tmpfs {
        size: Option<u64>,
        mode: Option<u32>,
        nosuid: bool,
        nodev: bool,
        noexec: bool,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    /// Of the engine's own, for a step of a build.
    Own {
        path: PathBuf,
        /// Its owners are ids inside.
        mapped: bool,
    },
    /// Folders of layers, lowest first, for a step of a build.
    Merged {
        layers: Vec<PathBuf>,
        /// A folder with `upper` and `work`, for changes that nobody keeps.
        changes: Option<PathBuf>,
    },
}

impl MountRow {
    /// What is mounted, on the host; nothing for what is made for the container alone.
    pub(crate) fn host_path(&self, volumes: &Path) -> Option<PathBuf> {
        match &self.source {
            SourceRow::Bind { path, .. } => Some(path.clone()),
            SourceRow::Volume { folder: Some(folder), .. } => Some(folder.clone()),
            SourceRow::Volume { name, .. } => Some(volumes.join(name).join("_data")),
            SourceRow::Own { path, .. } => Some(path.clone()),
            SourceRow::Tmpfs { .. } | SourceRow::Merged { .. } => None,
        }
    }
}

/// Where a container's life stands.
///
/// ```text
/// created ──> starting ──> running ──> exited
///                ^  └──────────────────^  │
///                └────────────────────────┘      any ──> removing ──> (no row)
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "phase")]
pub(crate) enum Phase {
    Created,
    /// A monitor was or is about to be asked. Every name that it uses follows from the id, and the
    /// endpoint has a row of its own.
    Starting,
    Running {
        pid: i32,
    },
    Exited {
        code: i32,
        oom: bool,
        at: Timestamp,
        /// Why it could not start or was lost; empty otherwise.
        error: String,
    },
    /// Its parts are being taken away.
    Removing,
}

impl Phase {
    /// Whether there is a sandbox, or may be.
    pub(crate) fn live(&self) -> bool {
        matches!(self, Self::Starting | Self::Running { .. })
    }
}

impl Row {
    /// The first row of a container.
    pub(crate) fn version() -> u32 {
        VERSION
    }

    pub(crate) fn record(&self) -> Result<Record> {
        let doc = serde_json::to_vec(self)
            .map_err(|error| Error::Internal(format!("write the row of container {}: {error}", self.id)))?;
        Ok(Record { id: self.id.to_string(), name: Some(self.name.clone()), doc })
    }

    pub(crate) fn read(record: &Record) -> Result<Self> {
        let row: Self = serde_json::from_slice(&record.doc).map_err(|error| {
            Error::Internal(format!("the row of container {} is damaged: {error}", record.id))
        })?;
        if row.version > VERSION {
            return Err(Error::Unsupported(format!(
                "the row of container {} was written by a newer version ({}, this one knows {VERSION})",
                record.id, row.version
            )));
        }
        Ok(row)
    }

    pub(crate) fn running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    pub(crate) fn pid(&self) -> Option<i32> {
        match self.phase {
            Phase::Running { pid } => Some(pid),
            _ => None,
        }
    }

    /// The code of the last exit; 0 before there was one.
    pub(crate) fn exit_code(&self) -> i32 {
        match (&self.phase, &self.failure) {
            (Phase::Created | Phase::Exited { .. }, Some(failure)) => failure.code,
            (Phase::Exited { code, .. }, None) => *code,
            _ => 0,
        }
    }

    /// Seconds between the stop signal and KILL; `None` is never.
    pub(crate) fn stop_timeout(&self) -> Option<u64> {
        u64::try_from(self.config.stop_timeout.unwrap_or(10)).ok()
    }

    /// Every network that it is to be in, when its own is called `primary`.
    pub(crate) fn endpoints(&self, primary: &str) -> BTreeMap<String, EndpointSettings> {
        let mut endpoints = self.endpoints.clone();
        if !self.endpoints_complete && matches!(Mode::parse(primary), Mode::Network(_)) {
            // The default bridge had two names.
            let asked = endpoints.remove("default").unwrap_or_default();
            endpoints.entry(primary.to_owned()).or_insert(asked);
        }
        endpoints
    }

    /// Brings a row of the first version up to date.
    pub(crate) fn complete_endpoints(&mut self) {
        self.endpoints = self.endpoints(&self.host.network_mode);
        self.endpoints_complete = true;
    }

    /// Its host names, each with its port and what is spoken there.
    pub(crate) fn host_names(&self) -> Vec<String> {
        let of = |row: &SiteRow| {
            let site = Site { name: row.name.clone(), port: Some(row.port), speech: row.speech };
            site.to_string()
        };
        self.sites.iter().map(of).collect()
    }

    /// Names of volumes that it mounts.
    pub(crate) fn volumes(&self) -> impl Iterator<Item = (&str, bool)> {
        self.mounts.iter().filter_map(|mount| match &mount.source {
            SourceRow::Volume { name, anonymous, .. } => Some((name.as_str(), *anonymous)),
            _ => None,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A plain container of a plain image.
    pub(crate) fn row() -> Row {
        let mut host = HostConfig { masked_paths: Some(vec!["/proc/kcore".into()]), ..HostConfig::default() };
        crate::plan::complete(&mut host);
        Row {
            version: Row::version(),
            id: "ab".repeat(32).parse().unwrap(),
            name: "web".into(),
            created: Timestamp::UNIX_EPOCH,
            image: ImageRow {
                id: format!("sha256:{}", "cd".repeat(32)).parse().unwrap(),
                reference: "busybox".into(),
                layers: vec!["/layers/a".into(), "/layers/b".into()],
                hidden: Vec::new(),
            },
            config: ContainerConfig {
                cmd: Some(vec!["sh".into(), "-c".into(), "true".into()]),
                hostname: "abababababab".into(),
                ..ContainerConfig::default()
            },
            host,
            endpoints: BTreeMap::new(),
            endpoints_complete: false,
            mounts: Vec::new(),
            ids: Some(IdRange { first: 1_879_048_192, count: 65536 }),
            phase: Phase::Created,
            started: None,
            restarts: 0,
            stopped: false,
            failure: None,
            boot: String::new(),
            again: false,
            held: false,
            with_volumes: false,
            sites: Vec::new(),
            health: None,
        }
    }

    #[test]
    fn rows_are_read_back_and_newer_ones_refused() {
        let written = row();
        let mut record = written.record().unwrap();
        assert_eq!(Row::read(&record).unwrap(), written);
        // What is as it is without a word is left out, and read all the same when it is not.
        let text = String::from_utf8(record.doc.clone()).unwrap();
        assert!(text.contains("MaskedPaths") && !text.contains("CapAdd") && !text.contains("Tty"), "{text}");
        record.doc = text.replace(r#""host":{"#, r#""host":{"CapAdd":null,"Memory":0,"#).into_bytes();
        assert_eq!(Row::read(&record).unwrap(), written);
        let newer = Row { version: VERSION + 1, ..written };
        record.doc = serde_json::to_vec(&newer).unwrap();
        assert!(matches!(Row::read(&record), Err(Error::Unsupported(_))));
        record.doc = b"{}".to_vec();
        assert!(matches!(Row::read(&record), Err(Error::Internal(_))));
    }
}
