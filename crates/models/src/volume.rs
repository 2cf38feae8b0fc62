//! Volumes.

use crate::Labels;
use crate::lenient::{document, is_zero, null_if_empty};

document! {
    /// Answer of `GET /volumes/{name}`, and an entry of the list.
    Volume {
        #[serde(skip_serializing_if = "is_zero")]
        created_at: String,
        driver: String,
        #[serde(serialize_with = "null_if_empty")]
        labels: Labels,
        mountpoint: String,
        name: String,
        #[serde(serialize_with = "null_if_empty")]
        options: Labels,
        /// `local` or `global`.
        scope: String,
        #[serde(skip_serializing_if = "is_zero")]
        usage_data: Option<VolumeUsage>,
    }
}

document! {
    /// What a volume takes; -1 is not known.
    VolumeUsage {
        ref_count: i64,
        size: i64,
    }
}

document! {
    /// Answer of `GET /volumes`.
    VolumeListResponse {
        volumes: Vec<Volume>,
        #[serde(serialize_with = "null_if_empty")]
        warnings: Vec<String>,
    }
}

document! {
    /// Body of `POST /volumes/create`.
    VolumeCreateRequest {
        name: String,
        driver: String,
        driver_opts: Labels,
        labels: Labels,
        /// Of swarm mode.
        #[serde(skip_serializing_if = "is_zero")]
        cluster_volume_spec: Option<serde_json::Value>,
    }
}

document! {
    /// Answer of `POST /volumes/prune`.
    VolumesPruneResponse {
        #[serde(serialize_with = "null_if_empty")]
        volumes_deleted: Vec<String>,
        space_reclaimed: u64,
    }
}
