//! `/images`.

use insula_models::{
    AuthConfig, HistoryItem, IdResponse, ImageDeleteItem, ImageSummary, ImagesPruneResponse, ProgressMessage,
};

use crate::body::{RequestBody, Upload};
use crate::connection::{Call, Client};
use crate::error::Result;
use crate::query::{Filters, Query, encode};
use crate::stream::{ByteStream, JsonStream};

/// What an imported root file system becomes.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// `repository[:tag]`; empty leaves the image unnamed.
    pub reference: String,
    pub message: String,
    /// Dockerfile instructions that are applied to the configuration.
    pub changes: Vec<String>,
    /// `os/architecture`; empty is the host's.
    pub platform: String,
}

/// What an image of a container becomes.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// Empty leaves the image unnamed.
    pub repository: String,
    pub tag: String,
    pub author: String,
    pub message: String,
    /// Dockerfile instructions that are applied to the configuration.
    pub changes: Vec<String>,
    /// Hold the container still meanwhile.
    pub pause: bool,
}

/// Which of an image's platforms is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    /// Empty for any.
    pub variant: String,
}

fn of_platform(query: Query, platform: Option<&Platform>) -> Query {
    let Some(Platform { os, architecture, variant }) = platform else { return query };
    let mut wanted = serde_json::json!({ "os": os, "architecture": architecture });
    if !variant.is_empty() {
        wanted["variant"] = variant.as_str().into();
    }
    query.with("platform", &wanted.to_string())
}

impl Client {
    /// `GET /images/json`.
    pub async fn list_images(&self, all: bool, filters: &Filters) -> Result<Vec<ImageSummary>> {
        let query = Query::new().with_flag("all", all).with_filters(filters);
        self.document(Call::get(format!("/images/json{}", query.as_str())), RequestBody::Empty).await
    }

    /// `GET /images/{name}/json`, as the daemon wrote it.
    pub async fn inspect_image_json(&self, name: &str) -> Result<String> {
        self.json_text(Call::get(format!("/images/{}/json", encode(name))), RequestBody::Empty).await
    }

    /// `GET /images/{name}/history`.
    pub async fn image_history(&self, name: &str, platform: Option<&Platform>) -> Result<Vec<HistoryItem>> {
        let query = of_platform(Query::new(), platform);
        let call = Call::get(format!("/images/{}/history{}", encode(name), query.as_str()));
        self.document(call, RequestBody::Empty).await
    }

    /// `POST /images/load`.
    pub async fn load_images(&self, archive: Upload, quiet: bool) -> Result<JsonStream<ProgressMessage>> {
        let query = Query::new().with("quiet", if quiet { "1" } else { "0" });
        let call = Call::post(format!("/images/load{}", query.as_str())).tar();
        Ok(JsonStream::new(self.stream(call, RequestBody::Upload(archive)).await?.0))
    }

    /// `POST /images/create?fromSrc=-`.
    pub async fn import_image(
        &self,
        archive: Upload,
        options: &ImportOptions,
    ) -> Result<JsonStream<ProgressMessage>> {
        let mut query = Query::new()
            .with("fromSrc", "-")
            .with_text("repo", &options.reference)
            .with_text("message", &options.message)
            .with_text("platform", &options.platform);
        for change in &options.changes {
            query = query.with("changes", change);
        }
        let call = Call::post(format!("/images/create{}", query.as_str())).tar();
        Ok(JsonStream::new(self.stream(call, RequestBody::Upload(archive)).await?.0))
    }

    /// `POST /images/create?fromImage=…`. Without a tag, all of them.
    pub async fn pull_image(
        &self,
        name: &str,
        tag: &str,
        platform: &str,
        auth: &AuthConfig,
    ) -> Result<JsonStream<ProgressMessage>> {
        let query =
            Query::new().with("fromImage", name).with_text("tag", tag).with_text("platform", platform);
        let call = Call::post(format!("/images/create{}", query.as_str())).with_credentials(auth);
        Ok(JsonStream::new(self.stream(call, RequestBody::Empty).await?.0))
    }

    /// `POST /images/{name}/push`. Without a tag, all of them.
    pub async fn push_image(
        &self,
        name: &str,
        tag: &str,
        auth: &AuthConfig,
        platform: Option<&Platform>,
    ) -> Result<JsonStream<ProgressMessage>> {
        let query = of_platform(Query::new().with_text("tag", tag), platform);
        let call = Call::post(format!("/images/{}/push{}", encode(name), query.as_str()));
        Ok(JsonStream::new(self.stream(call.with_credentials(auth), RequestBody::Empty).await?.0))
    }

    /// `GET /images/get`: an archive of images by names or ids.
    pub async fn save_images(&self, names: &[String], platform: Option<&Platform>) -> Result<ByteStream> {
        let mut query = of_platform(Query::new(), platform);
        for name in names {
            query = query.with("names", name);
        }
        let call = Call::get(format!("/images/get{}", query.as_str()));
        Ok(self.stream(call, RequestBody::Empty).await?.0)
    }

    /// `POST /commit`: makes an image of a container; returns its id.
    pub async fn commit(&self, container: &str, options: &CommitOptions) -> Result<String> {
        let mut query = Query::new()
            .with("container", container)
            .with_text("repo", &options.repository)
            .with_text("tag", &options.tag)
            .with_text("author", &options.author)
            .with_text("comment", &options.message)
            .with("pause", if options.pause { "1" } else { "0" });
        for change in &options.changes {
            query = query.with("changes", change);
        }
        let call = Call::post(format!("/commit{}", query.as_str()));
        let made: IdResponse = self.document(call, RequestBody::Empty).await?;
        Ok(made.id)
    }

    /// `POST /images/{name}/tag`.
    pub async fn tag_image(&self, name: &str, repository: &str, tag: &str) -> Result<()> {
        let query = Query::new().with("repo", repository).with_text("tag", tag);
        let call = Call::post(format!("/images/{}/tag{}", encode(name), query.as_str()));
        self.nothing(call, RequestBody::Empty).await
    }

    /// `DELETE /images/{name}`.
    pub async fn remove_image(
        &self,
        name: &str,
        force: bool,
        no_prune: bool,
    ) -> Result<Vec<ImageDeleteItem>> {
        let query = Query::new().with_flag("force", force).with_flag("noprune", no_prune);
        let call = Call::delete(format!("/images/{}{}", encode(name), query.as_str()));
        self.document(call, RequestBody::Empty).await
    }

    /// `POST /images/prune`.
    pub async fn prune_images(&self, filters: &Filters) -> Result<ImagesPruneResponse> {
        let query = Query::new().with_filters(filters);
        self.document(Call::post(format!("/images/prune{}", query.as_str())), RequestBody::Empty).await
    }
}
