//! Documents of images: descriptor, manifest, index, configuration (OCI image specification 1.1)
//! with Docker's extensions, and the two documents of `docker save` archives.
//!
//! Readers are lenient where the field's writers are (`null` for an empty list, unknown members)
//! and bounded everywhere: a document longer than [`DOCUMENT_MAX`] or with more than
//! [`LAYERS_MAX`] layers is refused. A document is identified by the digest of its bytes, so
//! what was read is never written back; insula writes only documents that it makes itself.

use std::collections::{BTreeMap, BTreeSet};

use insula_base::{DiffId, Digest, Kind, Kinded};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes of a manifest, index or configuration; registries use the same bound.
pub const DOCUMENT_MAX: usize = 4 << 20;
/// Layers of an image, as Docker's layer store bounds them.
pub const LAYERS_MAX: usize = 127;
/// Entries of an index or of `manifest.json`.
pub const ENTRIES_MAX: usize = 1024;

/// Media types that are understood.
pub mod media {
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
}

/// Annotation of an index entry: the tag or the name that the image was saved by.
pub const ANNOTATION_REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation of an index entry: the complete name, as containerd and `docker save` write it.
pub const ANNOTATION_IMAGE_NAME: &str = "io.containerd.image.name";

/// A document that is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The bytes are not the JSON that was expected.
    #[error("malformed {what}")]
    Json {
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    /// The document breaks a rule or a bound.
    #[error("invalid {what}: {why}")]
    Invalid { what: &'static str, why: String },
}

impl Kinded for DocumentError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

fn read<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DocumentError> {
    if bytes.len() > DOCUMENT_MAX {
        return Err(invalid(what, format!("{} bytes, at most {DOCUMENT_MAX} are read", bytes.len())));
    }
    serde_json::from_slice(bytes).map_err(|source| DocumentError::Json { what, source })
}

fn invalid(what: &'static str, why: String) -> DocumentError {
    DocumentError::Invalid { what, why }
}

/// OCI image specification, "Content Descriptors".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// Bytes of the content.
    pub size: u64,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// The content is an index or a manifest list.
    #[must_use]
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), media::INDEX | media::DOCKER_LIST)
    }
}

/// What an index entry runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// OCI image specification, "Image Manifest"; Docker's schema 2 has the same members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub config: Descriptor,
    /// Lowest first.
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<Descriptor>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What an artifact is, where that is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifest that it says something about: a signature, a list of parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
}

impl Manifest {
    /// Whether it is the manifest of something that can be run, by what its parts are said to be.
    #[must_use]
    pub fn is_image(&self) -> bool {
        let of_image = |media_type: &str| {
            let begins = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."];
            media_type.is_empty() || begins.iter().any(|begin| media_type.starts_with(begin))
        };
        matches!(self.config.media_type.as_str(), media::CONFIG | media::DOCKER_CONFIG | "")
            && self.layers.iter().all(|layer| of_image(&layer.media_type))
    }

    /// What an artifact is called: what it says, or else what its configuration is.
    #[must_use]
    pub fn kind(&self) -> &str {
        let said = self.artifact_type.as_deref().filter(|kind| !kind.is_empty());
        said.unwrap_or(&self.config.media_type)
    }

    /// Reads and checks a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        const WHAT: &str = "image manifest";
        let manifest: Self = read(WHAT, bytes)?;
        check_schema(WHAT, manifest.schema_version)?;
        check_count(WHAT, "layers", manifest.layers.len(), LAYERS_MAX)?;
        if manifest.config.size > DOCUMENT_MAX as u64 {
            return Err(invalid(WHAT, format!("a configuration of {} bytes", manifest.config.size)));
        }
        Ok(manifest)
    }
}

/// OCI image specification, "Image Index"; Docker's manifest list has the same members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub manifests: Vec<Descriptor>,
}

impl Index {
    /// Reads and checks an index.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        const WHAT: &str = "image index";
        let index: Self = read(WHAT, bytes)?;
        check_schema(WHAT, index.schema_version)?;
        check_count(WHAT, "entries", index.manifests.len(), ENTRIES_MAX)?;
        Ok(index)
    }
}

fn check_schema(what: &'static str, version: u32) -> Result<(), DocumentError> {
    if version == 2 { Ok(()) } else { Err(invalid(what, format!("schemaVersion {version}, 2 is expected"))) }
}

fn check_count(what: &'static str, of: &str, count: usize, max: usize) -> Result<(), DocumentError> {
    if count <= max { Ok(()) } else { Err(invalid(what, format!("{count} {of}, at most {max} are read"))) }
}

/// One image of `manifest.json` in a `docker save` archive. Paths are members of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ArchiveEntry {
    pub config: String,
    #[serde(default, deserialize_with = "nullable")]
    pub repo_tags: Vec<String>,
    /// Lowest first.
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<String>,
}

/// Reads and checks `manifest.json` of a `docker save` archive.
pub fn parse_archive_manifest(bytes: &[u8]) -> Result<Vec<ArchiveEntry>, DocumentError> {
    const WHAT: &str = "manifest.json";
    let entries: Vec<ArchiveEntry> = read(WHAT, bytes)?;
    check_count(WHAT, "images", entries.len(), ENTRIES_MAX)?;
    for entry in &entries {
        check_count(WHAT, "layers", entry.layers.len(), LAYERS_MAX)?;
        check_count(WHAT, "tags", entry.repo_tags.len(), ENTRIES_MAX)?;
    }
    Ok(entries)
}

/// OCI image specification, "Image Configuration", with Docker's members.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default, deserialize_with = "nullable")]
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub config: RunConfig,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The version of Docker that built the image, or empty.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub docker_version: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    #[serde(default, deserialize_with = "nullable")]
    pub os: String,
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    pub rootfs: RootFs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// What a build made the layers by ([`crate::build_cache::CacheRecord`]); whatever else it may be does no harm.
    #[serde(default, rename = "insula.build.cache.v1", skip_serializing_if = "Option::is_none")]
    pub build_cache: Option<serde_json::Value>,
}

impl ImageConfig {
    /// Reads and checks a configuration.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        const WHAT: &str = "image configuration";
        let config: Self = read(WHAT, bytes)?;
        if config.rootfs.kind != "layers" {
            return Err(invalid(
                WHAT,
                format!("rootfs of type {:?}, \"layers\" is expected", config.rootfs.kind),
            ));
        }
        check_count(WHAT, "layers", config.rootfs.diff_ids.len(), LAYERS_MAX)?;
        Ok(config)
    }
}

/// What a container made from the image runs, unless told otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `80/tcp`.
    #[serde(
        default,
        deserialize_with = "set",
        serialize_with = "as_map",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    pub exposed_ports: BTreeSet<String>,
    /// `NAME=value`.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Paths in the container.
    #[serde(
        default,
        deserialize_with = "set",
        serialize_with = "as_map",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    pub volumes: BTreeSet<String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "std::ops::Not::not")]
    pub args_escaped: bool,
}

/// Docker's `HEALTHCHECK`. Durations in nanoseconds; 0 is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// Empty inherits; `["NONE"]`, `["CMD", …]`, `["CMD-SHELL", command]`.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub interval: i64,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub timeout: i64,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub start_period: i64,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// How one layer, or a step without one, came to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub author: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// The layers of an image by their uncompressed digests, lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default, deserialize_with = "nullable")]
    pub diff_ids: Vec<DiffId>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

/// Go writes `null` for an empty list, map or pointer.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Go writes a set as an object with empty values.
fn set<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    let map: BTreeMap<String, serde::de::IgnoredAny> = nullable(deserializer)?;
    Ok(map.into_keys().collect())
}

fn as_map<S: Serializer>(set: &BTreeSet<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(set.iter().map(|key| (key, serde_json::Map::new())))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    #[test]
    fn a_configuration_as_docker_writes_it_is_read() {
        let text = format!(
            r#"{{"architecture":"amd64","config":{{"Hostname":"","Env":["PATH=/bin"],"Cmd":["sh"],"Image":"","Volumes":{{"/data":{{}}}},
            "WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":null,"ExposedPorts":{{"80/tcp":{{}}}},
            "Healthcheck":{{"Test":["CMD-SHELL","true"],"Interval":1000000000}},"StopSignal":"SIGQUIT"}},
            "container_config":{{}},"created":"2024-01-02T03:04:05Z","docker_version":"20.10",
            "history":[{{"created":"2024-01-02T03:04:05Z","created_by":"x"}},{{"empty_layer":true}}],
            "os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            digest('1')
        );
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.config.cmd, ["sh"]);
        assert!(config.config.entrypoint.is_empty());
        assert_eq!(config.config.volumes.iter().collect::<Vec<_>>(), ["/data"]);
        assert_eq!(config.config.healthcheck.as_ref().unwrap().interval, 1_000_000_000);
        assert_eq!(config.rootfs.diff_ids[0].0.as_str(), digest('1'));
        assert!(config.history[1].empty_layer);
        let again = ImageConfig::parse(&serde_json::to_vec(&config).unwrap()).unwrap();
        assert_eq!(again, config);
        assert!(serde_json::to_string(&config).unwrap().contains(r#""ExposedPorts":{"80/tcp":{}}"#));
    }

    #[test]
    fn a_null_config_is_an_empty_one() {
        let config =
            ImageConfig::parse(br#"{"config":null,"rootfs":{"type":"layers","diff_ids":null}}"#).unwrap();
        assert_eq!(config.config, RunConfig::default());
    }

    #[test]
    fn malformed_configurations_are_refused() {
        let many = format!(
            r#"{{"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            vec![format!("{:?}", digest('1')); LAYERS_MAX + 1].join(",")
        );
        let long = format!("{{\"rootfs\":{{\"type\":\"layers\"}}}}{}", " ".repeat(DOCUMENT_MAX));
        for text in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"rootfs":{"type":"zip"}}"#,
            r#"{"rootfs":{"type":"layers","diff_ids":["md5:1"]}}"#,
            r#"{"rootfs":{"type":"layers","diff_ids":["sha256:../../etc"]}}"#,
            &many,
            &long,
        ] {
            assert!(ImageConfig::parse(text.as_bytes()).is_err(), "{}", &text[..text.len().min(80)]);
        }
        assert!(ImageConfig::parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn manifests_and_indexes_are_checked() {
        let descriptor =
            format!(r#"{{"mediaType":"{}","digest":"{}","size":2}}"#, media::MANIFEST, digest('2'));
        let manifest = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[{descriptor}]}}"#);
        assert_eq!(Manifest::parse(manifest.as_bytes()).unwrap().layers.len(), 1);
        assert!(Manifest::parse(manifest.replace(":2,\"config", ":1,\"config").as_bytes()).is_err());
        assert!(Manifest::parse(manifest.replace("\"size\":2", "\"size\":-1").as_bytes()).is_err());
        assert!(Manifest::parse(manifest.replace("\"size\":2", "\"size\":9999999").as_bytes()).is_err());
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{descriptor}]}}"#);
        assert!(!Index::parse(index.as_bytes()).unwrap().manifests[0].is_index());
        let many =
            format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, vec![descriptor; ENTRIES_MAX + 1].join(","));
        assert!(Index::parse(many.as_bytes()).is_err());
    }

    #[test]
    fn archive_manifests_may_lack_tags() {
        let entries =
            parse_archive_manifest(br#"[{"Config":"c.json","RepoTags":null,"Layers":["a/layer.tar"]}]"#)
                .unwrap();
        assert_eq!((entries[0].repo_tags.len(), entries[0].layers[0].as_str()), (0, "a/layer.tar"));
        assert!(parse_archive_manifest(b"{}").is_err());
    }
}
