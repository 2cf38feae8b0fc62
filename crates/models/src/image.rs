//! Images.

use crate::lenient::{document, is_zero, null_if_empty};
use crate::{ContainerConfig, GraphDriver, Labels};

document! {
    /// One line of `GET /images/json`.
    ImageSummary {
        /// -1 is not counted.
        containers: i64,
        /// Seconds since 1970.
        created: i64,
        id: String,
        #[serde(serialize_with = "null_if_empty")]
        labels: Labels,
        parent_id: String,
        repo_digests: Vec<String>,
        repo_tags: Vec<String>,
        /// -1 is not computed.
        shared_size: i64,
        size: i64,
    }
}

document! {
    /// Answer of `GET /images/{name}/json`.
    ImageInspect {
        id: String,
        repo_tags: Vec<String>,
        repo_digests: Vec<String>,
        parent: String,
        comment: String,
        created: String,
        docker_version: String,
        author: String,
        config: ContainerConfig,
        architecture: String,
        #[serde(skip_serializing_if = "is_zero")]
        variant: String,
        os: String,
        #[serde(skip_serializing_if = "is_zero")]
        os_version: String,
        size: i64,
        graph_driver: GraphDriver,
        #[serde(rename = "RootFS")]
        root_fs: RootFs,
        metadata: ImageMetadata,
    }
}

document! {
    /// The layers of an image by the digests of their uncompressed tars.
    RootFs {
        r#type: String,
        #[serde(skip_serializing_if = "is_zero")]
        layers: Vec<String>,
    }
}

document! {
    /// What the engine alone knows about an image.
    ImageMetadata {
        last_tag_time: String,
    }
}

document! {
    /// One line of `GET /images/{name}/history`.
    HistoryItem {
        id: String,
        created: i64,
        created_by: String,
        #[serde(serialize_with = "null_if_empty")]
        tags: Vec<String>,
        size: i64,
        comment: String,
    }
}

document! {
    /// One line of `DELETE /images/{name}`.
    ImageDeleteItem {
        #[serde(skip_serializing_if = "is_zero")]
        untagged: String,
        #[serde(skip_serializing_if = "is_zero")]
        deleted: String,
    }
}

document! {
    /// Answer of `POST /images/prune`.
    ImagesPruneResponse {
        #[serde(serialize_with = "null_if_empty")]
        images_deleted: Vec<ImageDeleteItem>,
        space_reclaimed: u64,
    }
}

document! {
    /// Answer of `POST /build/prune`.
    BuildPruneResponse {
        #[serde(serialize_with = "null_if_empty")]
        caches_deleted: Vec<String>,
        space_reclaimed: u64,
    }
}

document! {
    /// What is in front of the context of `POST /insula/build`.
    BuildExtras {
        /// What commands may be given, by id, in Base64.
        secrets: Labels,
        /// What names in the Dockerfile mean: `folder`, whose archive comes in front of the context, `image:NAME`,
        /// `layout:TAG` of an OCI layout that comes as a folder does, or `remote:ADDRESS` of a repository, an archive or a file.
        contexts: Labels,
        /// Agents that commands may ask, by id.
        agents: Vec<String>,
        /// What connections for agents name the build by: nobody else may know it.
        token: String,
        /// What is answered beside progress: nothing, `archive` or `files`.
        output: String,
        /// OCI layouts with caches, in front of the context and behind the folders: what the client calls them.
        cache_from: Vec<String>,
        /// Where the cache goes: `inline`, `registry:SCOPE:NAME`, `layout:SCOPE`; a scope is `result` or `all`. With a
        /// layout, what is answered beside progress is framed: the output, and an archive of the layout.
        cache_to: Vec<String>,
        /// Steps are told one by one ([`BuildStep`]).
        trace: bool,
        /// Only what changed of the context comes.
        kept: Option<BuildContext>,
        /// What is to be said about the image.
        attestations: Option<BuildAttestations>,
    }
}

document! {
    /// What is to be said about the image that a build makes.
    BuildAttestations {
        /// How it was built: nothing, `min` or `max`.
        provenance: String,
        /// Who builds, for that.
        builder: String,
        /// What is in it.
        sbom: bool,
    }
}

document! {
    /// A context that the engine keeps: in place of its tar come, unless nothing changed, its index, the names that are
    /// gone and a tar of what changed, each in chunks as folders are, and then a tar of what is for the engine alone.
    BuildContext {
        /// Tells the folder from others.
        id: String,
        /// SHA-256 of the index that the changes are to, in hexadecimal digits; empty if everything comes.
        base: String,
        /// The same of the index with them.
        index: String,
        /// For people.
        name: String,
    }
}

document! {
    /// What is told about a step, where that was asked for: `Step` in the results for programs.
    BuildStep {
        /// Tells it from the others of the build.
        id: String,
        /// `begun`, `cached`, `log` or `ended`.
        state: String,
        /// RFC 3339.
        at: String,
        /// Said when it begins.
        #[serde(skip_serializing_if = "is_zero")]
        name: String,
        /// What its command said: whole lines or parts of them.
        #[serde(skip_serializing_if = "is_zero")]
        log: String,
        /// Why it ended; empty if all went well.
        #[serde(skip_serializing_if = "is_zero")]
        error: String,
    }
}

document! {
    /// One line of the progress that load, import, pull, push and build stream.
    ProgressMessage {
        #[serde(rename = "stream", skip_serializing_if = "is_zero")]
        stream: String,
        #[serde(rename = "status", skip_serializing_if = "is_zero")]
        status: String,
        #[serde(rename = "progressDetail", skip_serializing_if = "is_zero")]
        progress_detail: Option<ProgressDetail>,
        #[serde(rename = "progress", skip_serializing_if = "is_zero")]
        progress: String,
        #[serde(rename = "id", skip_serializing_if = "is_zero")]
        id: String,
        #[serde(rename = "errorDetail", skip_serializing_if = "is_zero")]
        error_detail: Option<ErrorDetail>,
        #[serde(rename = "error", skip_serializing_if = "is_zero")]
        error: String,
        /// A result for programs: of a push, tag, digest and size.
        #[serde(rename = "aux", skip_serializing_if = "is_zero")]
        aux: Option<serde_json::Value>,
    }
}

document! {
    /// How far a step is.
    ProgressDetail {
        #[serde(rename = "current", skip_serializing_if = "is_zero")]
        current: i64,
        #[serde(rename = "total", skip_serializing_if = "is_zero")]
        total: i64,
    }
}

document! {
    /// An error inside a stream whose status was already sent.
    ErrorDetail {
        #[serde(rename = "code", skip_serializing_if = "is_zero")]
        code: i64,
        #[serde(rename = "message")]
        message: String,
    }
}

document! {
    /// A layer of an image, insula's own: an element of `GET /insula/images/layers`.
    ImageLayer {
        #[serde(rename = "DiffID")]
        diff_id: String,
        /// The command that made it, if the history says.
        created_by: String,
        /// Bytes of its files.
        size: u64,
        /// Bytes of them that upper layers replace or remove.
        wasted: u64,
        /// Names of other images that have it.
        shared_by: Vec<String>,
    }
}
