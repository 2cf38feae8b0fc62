//! `/containers`: what is asked about and done to containers, streams and files apart.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderValue, StatusCode};
use insula_base::{Lap, Laps};
use insula_engine::containers::{
    Change, ListRequest, RemoveRequest, StatsSampler, StopRequest, WaitCondition,
};
use insula_models::{
    ApiVersion, ContainerCreateRequest, ContainerUpdateRequest, SERVER_TIMING, write_timing,
};
use tokio::time::Interval;

use crate::earlier;
use crate::error::ApiError;
use crate::request::{Json, Params, Path};
use crate::routes::{Answer, Api, Version, json, shaped, shaped_with};
use crate::stream;

/// Between two samples of statistics.
const STATS_PERIOD: Duration = Duration::from_secs(1);

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/containers/json", get(list))
        .route("/containers/create", post(create))
        .route("/containers/prune", post(prune))
        .route("/containers/{id}", axum::routing::delete(remove))
        .route("/containers/{id}/json", get(inspect))
        .route("/containers/{id}/top", get(top))
        .route("/containers/{id}/changes", get(changes))
        .route("/containers/{id}/stats", get(stats))
        .route("/containers/{id}/resize", post(resize))
        .route("/containers/{id}/start", post(start))
        .route("/containers/{id}/stop", post(stop))
        .route("/containers/{id}/restart", post(restart))
        .route("/containers/{id}/kill", post(kill))
        .route("/containers/{id}/update", post(update))
        .route("/containers/{id}/rename", post(rename))
        .route("/containers/{id}/pause", post(pause))
        .route("/containers/{id}/unpause", post(unpause))
        .route("/containers/{id}/wait", post(wait))
}

async fn list(State(api): State<Api>, Version(version): Version, params: Params) -> Answer {
    let request = ListRequest {
        all: params.flag("all"),
        // Docker takes 0 and negative numbers for no limit.
        limit: params
            .number::<i64>("limit")?
            .and_then(|limit| usize::try_from(limit).ok())
            .filter(|limit| *limit > 0),
        size: params.flag("size"),
        filters: params.filters()?,
    };
    shaped(version, &api.engine.list_containers(request).await?)
}

async fn create(
    State(api): State<Api>,
    Version(version): Version,
    params: Params,
    Json(request): Json<ContainerCreateRequest>,
) -> Answer {
    let request = earlier::container(version, request)?;
    let name = params.text("name").map(str::to_owned);
    let platform = params.text("platform").map(str::to_owned);
    let (made, laps) = api.engine.create_container(name, platform, request).await?;
    shaped_with(StatusCode::CREATED, version, &made).map(|response| with_timing(response, &laps))
}

async fn inspect(
    State(api): State<Api>,
    Path(id): Path<String>,
    Version(version): Version,
    params: Params,
) -> Answer {
    shaped(version, &api.engine.inspect_container(&id, params.flag("size")).await?)
}

async fn top(State(api): State<Api>, Path(id): Path<String>, params: Params) -> Answer {
    json(&api.engine.top_container(&id, params.text("ps_args")).await?)
}

async fn changes(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    let changes = api.engine.container_changes(&id).await?;
    // Docker writes a nil list for none.
    if changes.is_empty() { json(&serde_json::Value::Null) } else { json(&changes) }
}

async fn resize(State(api): State<Api>, Path(id): Path<String>, params: Params) -> Answer {
    let (rows, columns) = size(&params)?;
    api.engine.resize_container(&id, rows, columns).await?;
    Ok(StatusCode::OK.into_response())
}

/// Rows and columns of a terminal.
pub(super) fn size(params: &Params) -> Result<(u16, u16), ApiError> {
    let side = |name: &str| {
        params
            .number::<u16>(name)?
            .ok_or_else(|| ApiError::invalid(format!("invalid resize {name}: a number is expected")))
    };
    Ok((side("h")?, side("w")?))
}

async fn start(
    State(api): State<Api>,
    Path(id): Path<String>,
    Version(version): Version,
    params: Params,
    body: Body,
) -> Answer {
    // Before 1.24 a body carried another HostConfig; such versions are not served. Later clients send `{}`
    // or nothing.
    let bytes = crate::request::read_bounded(body, crate::request::MAX_JSON).await?;
    if version >= ApiVersion::MIN && bytes.len() > 2 && bytes.as_ref() != b"null" {
        return Err(ApiError::invalid(
            "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24",
        ));
    }
    if params.text("checkpoint").is_some() {
        return Err(ApiError::unsupported("checkpoints are not available in this version"));
    }
    api.attaching.settled(&id).await;
    let mut laps = Laps::begin();
    let change = api.engine.start_container_timed(&id, &mut laps).await?;
    Ok(with_timing(changed(change), laps.all()))
}

/// With what the time went into; names that a monitor may have sent wrong leave it out.
fn with_timing(mut response: Response, laps: &[Lap]) -> Response {
    if let Ok(value) = HeaderValue::try_from(write_timing(laps)) {
        response.headers_mut().insert(SERVER_TIMING, value);
    }
    response
}

/// 204, or 304 for what was so already.
fn changed(change: Change) -> Response {
    match change {
        Change::Done => StatusCode::NO_CONTENT.into_response(),
        Change::Nothing => StatusCode::NOT_MODIFIED.into_response(),
    }
}

fn stop_request(params: &Params) -> Result<StopRequest, ApiError> {
    Ok(StopRequest { signal: params.text("signal").map(str::to_owned), timeout: params.number("t")? })
}

async fn stop(State(api): State<Api>, Path(id): Path<String>, params: Params) -> Answer {
    Ok(changed(api.engine.stop_container(&id, stop_request(&params)?).await?))
}

async fn restart(State(api): State<Api>, Path(id): Path<String>, params: Params) -> Answer {
    api.engine.restart_container(&id, stop_request(&params)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn kill(State(api): State<Api>, Path(id): Path<String>, params: Params) -> Answer {
    api.engine.kill_container(&id, params.text("signal")).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn update(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(request): Json<ContainerUpdateRequest>,
) -> Answer {
    json(&api.engine.update_container(&id, request).await?)
}

async fn rename(State(api): State<Api>, Path(id): Path<String>, params: Params) -> Answer {
    api.engine.rename_container(&id, params.get("name").unwrap_or_default()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn pause(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    api.engine.pause_container(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn unpause(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    api.engine.unpause_container(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn remove(State(api): State<Api>, Path(id): Path<String>, params: Params) -> Answer {
    let request =
        RemoveRequest { volumes: params.flag("v"), force: params.flag("force"), link: params.flag("link") };
    api.engine.remove_container(&id, request).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn prune(State(api): State<Api>, params: Params) -> Answer {
    json(&api.engine.prune_containers(params.filters()?).await?)
}

/// The head of the answer says that the wait is registered, the body comes when it is over.
async fn wait(
    State(api): State<Api>,
    Path(id): Path<String>,
    Version(version): Version,
    params: Params,
) -> Answer {
    let condition = match params.text("condition") {
        // The parameter came with 1.30.
        _ if version < ApiVersion::v1(30) => WaitCondition::NotRunning,
        None | Some("not-running") => WaitCondition::NotRunning,
        Some("next-exit") => WaitCondition::NextExit,
        Some("removed") => WaitCondition::Removed,
        Some(other) => return Err(ApiError::invalid(format!("invalid condition: {other:?}"))),
    };
    let wait = api.engine.wait_container(&id, condition).await?;
    let body = stream::later(async move { stream::versioned(&wait.finish().await, version) });
    Ok(stream::json(body))
}

async fn stats(State(api): State<Api>, Path(id): Path<String>, params: Params) -> Answer {
    let mut sampler = api.engine.container_stats(&id).await?;
    if !params.flag_or("stream", true) {
        // The second of two samples has the use since the first; one alone is asked for with `one-shot`.
        let first = sampler.sample().await?;
        if params.flag("one-shot") {
            return json(&first);
        }
        tokio::time::sleep(STATS_PERIOD).await;
        return json(&sampler.sample().await?);
    }
    let ticks = tokio::time::interval(STATS_PERIOD);
    let next = |(mut sampler, mut ticks): (StatsSampler, Interval)| async move {
        ticks.tick().await;
        // The container is gone: the stream ends.
        let sample = sampler.sample().await.ok()?;
        Some((stream::line(&sample), (sampler, ticks)))
    };
    let body = stream::followed((sampler, ticks), next, api.engine.until_end());
    Ok(stream::json(body))
}
