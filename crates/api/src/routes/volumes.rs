//! `/volumes`.

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use http::StatusCode;
use insula_models::{ApiVersion, VolumeCreateRequest};

use crate::request::{OptionalJson, Params, Path};
use crate::routes::{Answer, Api, Version, json, shaped, shaped_with};

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(inspect).put(crate::routes::absent::no_swarm).delete(remove))
}

async fn list(State(api): State<Api>, Version(version): Version, params: Params) -> Answer {
    let users = api.engine.volume_users()?;
    shaped(version, &api.engine.volumes().list(&params.filters()?, &users)?)
}

async fn create(
    State(api): State<Api>,
    Version(version): Version,
    OptionalJson(request): OptionalJson<VolumeCreateRequest>,
) -> Answer {
    shaped_with(StatusCode::CREATED, version, &api.engine.volumes().create(request)?)
}

async fn inspect(State(api): State<Api>, Path(name): Path<String>, Version(version): Version) -> Answer {
    shaped(version, &api.engine.volumes().inspect(&name)?)
}

async fn remove(State(api): State<Api>, Path(name): Path<String>, params: Params) -> Answer {
    let users = api.engine.volume_users()?;
    api.engine.volumes().remove(&name, params.flag("force"), &users).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn prune(State(api): State<Api>, Version(version): Version, params: Params) -> Answer {
    let mut filters = params.filters()?;
    // Until 1.41 named volumes were pruned as well.
    if version < ApiVersion::v1(42) {
        filters.entry("all".to_owned()).or_insert_with(|| vec!["true".to_owned()]);
    }
    let users = api.engine.volume_users()?;
    json(&api.engine.volumes().prune(filters, users).await?)
}
