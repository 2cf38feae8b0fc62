//! What the steps of a build made, as it travels: a member of an image's configuration, about the layers that the
//! image has. An image that a build pushed may have it, and so has one that is nothing but a cache.

use insula_base::DiffId;
use serde::{Deserialize, Serialize};

use crate::image::{DocumentError, ImageConfig};

/// Records that are read of one configuration.
pub const RECORDS_MAX: usize = 4096;

/// What one step made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheRecord {
    /// What the step is found by: 64 hexadecimal digits.
    pub key: String,
    /// The layer that it put on those below; none if it changed nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<DiffId>,
    /// RFC 3339.
    pub created: String,
    /// The instruction, for people.
    #[serde(default)]
    pub text: String,
}

impl CacheRecord {
    /// The records of a configuration; none if it has no such member.
    ///
    /// # Errors
    /// When they are malformed or too many, or about layers that the image does not have.
    pub fn of(config: &ImageConfig) -> Result<Vec<Self>, DocumentError> {
        const WHAT: &str = "records of the build cache";
        let Some(member) = &config.build_cache else { return Ok(Vec::new()) };
        let invalid = |why: String| DocumentError::Invalid { what: WHAT, why };
        if member.as_array().is_some_and(|records| records.len() > RECORDS_MAX) {
            return Err(invalid(format!("more than {RECORDS_MAX} of them")));
        }
        let records: Vec<Self> = serde_json::from_value(member.clone())
            .map_err(|source| DocumentError::Json { what: WHAT, source })?;
        for record in &records {
            if record.key.len() != 64 || !record.key.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(invalid("a key is not 64 hexadecimal digits".to_owned()));
            }
            if record.layer.as_ref().is_some_and(|layer| !config.rootfs.diff_ids.contains(layer)) {
                return Err(invalid(format!("the step {} made a layer that is not there", record.key)));
            }
        }
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cache: &str) -> ImageConfig {
        let layer = format!("sha256:{}", "1".repeat(64));
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{layer}"]}},"insula.build.cache.v1":{cache}}}"#
        );
        ImageConfig::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn records_are_about_layers_of_the_image() {
        let key = "a".repeat(64);
        let record =
            |layer: &str| format!(r#"[{{"key":"{key}","layer":{layer},"created":"x","text":"RUN"}}]"#);
        let there = record(&format!("\"sha256:{}\"", "1".repeat(64)));
        let read = CacheRecord::of(&config(&there)).unwrap();
        assert_eq!((read.len(), read[0].text.as_str()), (1, "RUN"));
        assert_eq!(CacheRecord::of(&config(&record("null"))).unwrap()[0].layer, None);
        assert_eq!(CacheRecord::of(&config("null")).unwrap(), []);
        let absent = record(&format!("\"sha256:{}\"", "2".repeat(64)));
        let many = format!("[{}]", vec!["null"; RECORDS_MAX + 1].join(","));
        for wrong in ["{}", "[{}]", r#"[{"key":"../x","created":""}]"#, &absent, &many] {
            assert!(CacheRecord::of(&config(wrong)).is_err(), "{wrong:.80}");
        }
    }
}
