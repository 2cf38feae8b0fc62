//! `/containers`.

use insula_models::{
    ChangeItem, ContainerCreateRequest, ContainerCreateResponse, ContainerInspect, ContainerSummary,
    ContainerUpdateRequest, ContainersPruneResponse, StatsResponse, TopResponse, WaitResponse, Warnings,
};

use crate::body::RequestBody;
use crate::connection::{Call, Client, json};
use crate::error::Result;
use crate::hijack::Hijacked;
use crate::query::{Filters, Query, encode};
use crate::stream::{ByteStream, JsonStream, MULTIPLEXED};

/// Which containers to list.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Those that do not run, too.
    pub all: bool,
    /// The last so many made.
    pub limit: Option<i64>,
    /// With sizes.
    pub size: bool,
    /// Narrowed to these.
    pub filters: Filters,
}

/// What of a container to attach to.
#[derive(Debug, Clone, Default)]
pub struct AttachOptions {
    /// Everything since the start first.
    pub logs: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// Docker's syntax (`ctrl-p,ctrl-q`); empty is the daemon's default.
    pub detach_keys: String,
}

/// Which lines of the log.
#[derive(Debug, Clone, Default)]
pub struct LogsOptions {
    pub follow: bool,
    pub timestamps: bool,
    /// What the log driver noted of each line.
    pub details: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// Unix time, with a fraction if any.
    pub since: String,
    pub until: String,
    /// `all` or a number.
    pub tail: String,
}

/// What is removed with a container, or instead of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Removal {
    /// It is killed first if it runs.
    pub force: bool,
    /// Its anonymous volumes too.
    pub volumes: bool,
    /// The name is that of a link, which alone is removed.
    pub link: bool,
}

impl Client {
    /// `POST /containers/create`; an empty name lets the daemon choose.
    pub async fn create_container(
        &self,
        name: &str,
        platform: &str,
        request: &ContainerCreateRequest,
    ) -> Result<ContainerCreateResponse> {
        let query = Query::new().with_text("name", name).with_text("platform", platform);
        let call = Call::post(format!("/containers/create{}", query.as_str())).json();
        self.document(call, json(request)?).await
    }

    /// `POST /containers/{id}/start`; started already is success.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let call = Call::post(format!("/containers/{}/start", encode(id))).or_unchanged();
        self.nothing(call, RequestBody::Empty).await
    }

    /// `POST /containers/{id}/stop`; `timeout` in seconds, -1 waits for ever.
    pub async fn stop_container(&self, id: &str, timeout: Option<i64>, signal: &str) -> Result<()> {
        let query = Query::new().with_number("t", timeout).with_text("signal", signal);
        let call = Call::post(format!("/containers/{}/stop{}", encode(id), query.as_str())).or_unchanged();
        self.nothing(call, RequestBody::Empty).await
    }

    /// `POST /containers/{id}/restart`.
    pub async fn restart_container(&self, id: &str, timeout: Option<i64>, signal: &str) -> Result<()> {
        let query = Query::new().with_number("t", timeout).with_text("signal", signal);
        let call = Call::post(format!("/containers/{}/restart{}", encode(id), query.as_str()));
        self.nothing(call, RequestBody::Empty).await
    }

    /// `POST /containers/{id}/kill`.
    pub async fn kill_container(&self, id: &str, signal: &str) -> Result<()> {
        let query = Query::new().with_text("signal", signal);
        let call = Call::post(format!("/containers/{}/kill{}", encode(id), query.as_str()));
        self.nothing(call, RequestBody::Empty).await
    }

    /// `DELETE /containers/{id}`.
    pub async fn remove_container(&self, id: &str, removal: &Removal) -> Result<()> {
        let query = Query::new()
            .with_flag("force", removal.force)
            .with_flag("v", removal.volumes)
            .with_flag("link", removal.link);
        let call = Call::delete(format!("/containers/{}{}", encode(id), query.as_str()));
        self.nothing(call, RequestBody::Empty).await
    }

    /// `GET /containers/json`.
    pub async fn list_containers(&self, options: &ListOptions) -> Result<Vec<ContainerSummary>> {
        let query = Query::new()
            .with_flag("all", options.all)
            .with_number("limit", options.limit)
            .with_flag("size", options.size)
            .with_filters(&options.filters);
        let call = Call::get(format!("/containers/json{}", query.as_str()));
        self.document(call, RequestBody::Empty).await
    }

    /// `GET /containers/{id}/json`.
    pub async fn inspect_container(&self, id: &str) -> Result<ContainerInspect> {
        self.document(Call::get(format!("/containers/{}/json", encode(id))), RequestBody::Empty).await
    }

    /// The same, as the daemon wrote it.
    pub async fn inspect_container_json(&self, id: &str, size: bool) -> Result<String> {
        let query = Query::new().with_flag("size", size);
        let call = Call::get(format!("/containers/{}/json{}", encode(id), query.as_str()));
        self.json_text(call, RequestBody::Empty).await
    }

    /// `POST /containers/{id}/wait`: returns when the daemon has taken note; the stream then has one
    /// answer. Conditions are `not-running`, `next-exit`, `removed`.
    pub async fn wait_container(&self, id: &str, condition: &str) -> Result<JsonStream<WaitResponse>> {
        let query = Query::new().with_text("condition", condition);
        let call = Call::post(format!("/containers/{}/wait{}", encode(id), query.as_str()));
        let (bytes, _) = self.stream(call, RequestBody::Empty).await?;
        Ok(JsonStream::new(bytes))
    }

    /// `POST /containers/{id}/attach`.
    pub async fn attach_container(&self, id: &str, options: &AttachOptions) -> Result<Hijacked> {
        let query = Query::new()
            .with("stream", "1")
            .with_flag("logs", options.logs)
            .with_flag("stdin", options.stdin)
            .with_flag("stdout", options.stdout)
            .with_flag("stderr", options.stderr)
            .with_text("detachKeys", &options.detach_keys);
        let call = Call::post(format!("/containers/{}/attach{}", encode(id), query.as_str()));
        self.hijack(call, RequestBody::Empty).await
    }

    /// `POST /containers/{id}/resize`.
    pub async fn resize_container(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        let path = format!("/containers/{}/resize?h={rows}&w={columns}", encode(id));
        self.nothing(Call::post(path), RequestBody::Empty).await
    }

    /// `GET /containers/{id}/logs`, one frame a record where the daemon knows how for every container
    /// ([`ByteStream::multiplexed`]).
    pub async fn log_records(&self, id: &str, options: &LogsOptions) -> Result<ByteStream> {
        let call = Self::logs_call(id, options).accepting(MULTIPLEXED);
        Ok(self.stream(call, RequestBody::Empty).await?.0)
    }

    /// `GET /containers/{id}/logs`.
    pub async fn logs(&self, id: &str, options: &LogsOptions) -> Result<ByteStream> {
        Ok(self.stream(Self::logs_call(id, options), RequestBody::Empty).await?.0)
    }

    fn logs_call(id: &str, options: &LogsOptions) -> Call<'static> {
        let query = Query::new()
            .with_flag("stdout", options.stdout)
            .with_flag("stderr", options.stderr)
            .with_flag("follow", options.follow)
            .with_flag("timestamps", options.timestamps)
            .with_flag("details", options.details)
            .with_text("since", &options.since)
            .with_text("until", &options.until)
            .with_text("tail", &options.tail);
        Call::get(format!("/containers/{}/logs{}", encode(id), query.as_str()))
    }

    /// `POST /containers/{id}/rename`.
    pub async fn rename_container(&self, id: &str, name: &str) -> Result<()> {
        let query = Query::new().with("name", name);
        let call = Call::post(format!("/containers/{}/rename{}", encode(id), query.as_str()));
        self.nothing(call, RequestBody::Empty).await
    }

    /// `POST /containers/{id}/pause`.
    pub async fn pause_container(&self, id: &str) -> Result<()> {
        self.nothing(Call::post(format!("/containers/{}/pause", encode(id))), RequestBody::Empty).await
    }

    /// `POST /containers/{id}/unpause`.
    pub async fn unpause_container(&self, id: &str) -> Result<()> {
        self.nothing(Call::post(format!("/containers/{}/unpause", encode(id))), RequestBody::Empty).await
    }

    /// `GET /containers/{id}/top`; empty arguments are the daemon's.
    pub async fn top(&self, id: &str, arguments: &str) -> Result<TopResponse> {
        let query = Query::new().with_text("ps_args", arguments);
        let call = Call::get(format!("/containers/{}/top{}", encode(id), query.as_str()));
        self.document(call, RequestBody::Empty).await
    }

    /// `GET /containers/{id}/stats`: one sample a second, or one sample alone.
    pub async fn stats(&self, id: &str, stream: bool) -> Result<JsonStream<StatsResponse>> {
        let query = Query::new().with("stream", if stream { "1" } else { "0" });
        let call = Call::get(format!("/containers/{}/stats{}", encode(id), query.as_str()));
        Ok(JsonStream::new(self.stream(call, RequestBody::Empty).await?.0))
    }

    /// `GET /containers/{id}/changes`.
    pub async fn changes(&self, id: &str) -> Result<Vec<ChangeItem>> {
        let call = Call::get(format!("/containers/{}/changes", encode(id)));
        let changes: Option<Vec<ChangeItem>> = self.document(call, RequestBody::Empty).await?;
        Ok(changes.unwrap_or_default())
    }

    /// `POST /containers/{id}/update`.
    pub async fn update_container(&self, id: &str, request: &ContainerUpdateRequest) -> Result<Warnings> {
        let call = Call::post(format!("/containers/{}/update", encode(id))).json();
        self.document(call, json(request)?).await
    }

    /// `POST /containers/prune`.
    pub async fn prune_containers(&self, filters: &Filters) -> Result<ContainersPruneResponse> {
        let query = Query::new().with_filters(filters);
        let call = Call::post(format!("/containers/prune{}", query.as_str()));
        self.document(call, RequestBody::Empty).await
    }
}
