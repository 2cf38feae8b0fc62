//! `/build`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use insula_models::{AuthConfig, BuildExtras, BuildPruneResponse, Labels, ProgressMessage, Ulimit};

use crate::body::{RequestBody, Upload};
use crate::connection::{Call, Client, json};
use crate::error::Result;
use crate::query::{Filters, Query};
use crate::stream::JsonStream;

/// How an image is built.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Its path in the context.
    pub dockerfile: String,
    pub tags: Vec<String>,
    /// Without a value an argument is as if it were not given.
    pub arguments: BTreeMap<String, Option<String>>,
    pub labels: Labels,
    pub target: String,
    pub no_cache: bool,
    /// Stages, by name or number, that are not taken from the cache.
    pub no_cache_filter: Vec<String>,
    pub pull: bool,
    pub quiet: bool,
    pub platform: String,
    pub network: String,
    pub extra_hosts: Vec<String>,
    /// Bytes.
    pub memory: i64,
    /// Bytes, with the memory; -1 is unlimited.
    pub memory_swap: i64,
    pub cpu_shares: i64,
    pub cpu_period: i64,
    pub cpu_quota: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    pub cgroup_parent: String,
    /// Names of images.
    pub cache_from: Vec<String>,
    pub security_options: Vec<String>,
    pub squash: bool,
    pub ulimits: Vec<Ulimit>,
    /// Bytes.
    pub shm_size: i64,
    /// The wall of the commands.
    pub isolation: String,
    /// What commands may be given, by id.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// By the registries' names.
    pub credentials: BTreeMap<String, AuthConfig>,
}

impl BuildOptions {
    fn query(&self) -> Query {
        let text = |value: serde_json::Result<String>| value.unwrap_or_default();
        let number = |value: i64| if value == 0 { String::new() } else { value.to_string() };
        let mut query = Query::new()
            .with("dockerfile", &self.dockerfile)
            .with_text("target", &self.target)
            .with_text("platform", &self.platform)
            .with_text("networkmode", &self.network)
            .with_text("memory", &number(self.memory))
            .with_text("memswap", &number(self.memory_swap))
            .with_text("cpushares", &number(self.cpu_shares))
            .with_text("cpuperiod", &number(self.cpu_period))
            .with_text("cpuquota", &number(self.cpu_quota))
            .with_text("cpusetcpus", &self.cpuset_cpus)
            .with_text("cpusetmems", &self.cpuset_mems)
            .with_text("cgroupparent", &self.cgroup_parent)
            .with_flag("squash", self.squash)
            .with_text("shmsize", &number(self.shm_size))
            .with_text("isolation", &self.isolation)
            .with_flag("nocache", self.no_cache)
            .with_flag("pull", self.pull)
            .with_flag("q", self.quiet);
        for tag in &self.tags {
            query = query.with("t", tag);
        }
        for stage in &self.no_cache_filter {
            query = query.with("nocachefilter", stage);
        }
        for host in &self.extra_hosts {
            query = query.with("extrahosts", host);
        }
        for option in &self.security_options {
            query = query.with("securityopt", option);
        }
        if !self.cache_from.is_empty() {
            query = query.with("cachefrom", &text(serde_json::to_string(&self.cache_from)));
        }
        if !self.ulimits.is_empty() {
            query = query.with("ulimits", &text(serde_json::to_string(&self.ulimits)));
        }
        if !self.arguments.is_empty() {
            query = query.with("buildargs", &text(serde_json::to_string(&self.arguments)));
        }
        if !self.labels.is_empty() {
            query = query.with("labels", &text(serde_json::to_string(&self.labels)));
        }
        query
    }

    /// What is in front of the context, with its length: nothing if Docker's own request says it all.
    fn extras(&self) -> Result<Option<Vec<u8>>> {
        if self.secrets.is_empty() {
            return Ok(None);
        }
        let secrets = self.secrets.iter().map(|(id, bytes)| (id.clone(), STANDARD.encode(bytes)));
        let RequestBody::Bytes(Some(document)) = json(&BuildExtras { secrets: secrets.collect() })? else {
            return Ok(None);
        };
        let length = u32::try_from(document.len()).unwrap_or(u32::MAX).to_be_bytes();
        Ok(Some([&length[..], &document].concat()))
    }
}

impl Client {
    /// `POST /build`: the context is a tar; `POST /insula/build` with what Docker's has no place for.
    pub async fn build_image(
        &self,
        context: Upload,
        options: &BuildOptions,
    ) -> Result<JsonStream<ProgressMessage>> {
        let query = options.query();
        let (path, context) = match options.extras()? {
            None => ("/build", context),
            Some(head) => ("/insula/build", context.after(head)),
        };
        let call = Call::post(format!("{path}{}", query.as_str())).tar();
        let call = call.with_registries(&options.credentials);
        Ok(JsonStream::new(self.stream(call, RequestBody::Upload(context)).await?.0))
    }

    /// `POST /build/prune`: `keep` bytes may stay.
    pub async fn prune_builds(&self, keep: u64, filters: &Filters) -> Result<BuildPruneResponse> {
        let query = Query::new().with("keep-storage", &keep.to_string()).with_filters(filters);
        self.document(Call::post(format!("/build/prune{}", query.as_str())), RequestBody::Empty).await
    }
}
