//! `/networks`.

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use http::StatusCode;
use insula_models::{NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest};

use crate::request::{Json, Params, Path};
use crate::routes::{Answer, Api, Version, json, json_with, shaped};

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/create", post(create))
        .route("/networks/prune", post(prune))
        .route("/networks/{id}", get(inspect).delete(remove))
        .route("/networks/{id}/connect", post(connect))
        .route("/networks/{id}/disconnect", post(disconnect))
}

async fn list(State(api): State<Api>, Version(version): Version, params: Params) -> Answer {
    shaped(version, &api.engine.list_networks(&params.filters()?)?)
}

async fn inspect(State(api): State<Api>, Path(id): Path<String>, Version(version): Version) -> Answer {
    shaped(version, &api.engine.inspect_network(&id).await?)
}

async fn create(State(api): State<Api>, Json(request): Json<NetworkCreateRequest>) -> Answer {
    json_with(StatusCode::CREATED, &api.engine.create_network(request).await?)
}

async fn remove(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    api.engine.remove_network(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn prune(State(api): State<Api>, params: Params) -> Answer {
    json(&api.engine.prune_networks(&params.filters()?).await?)
}

async fn connect(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(request): Json<NetworkConnectRequest>,
) -> Answer {
    api.engine.connect_network(&id, request).await?;
    Ok(StatusCode::OK.into_response())
}

async fn disconnect(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(request): Json<NetworkDisconnectRequest>,
) -> Answer {
    api.engine.disconnect_network(&id, request).await?;
    Ok(StatusCode::OK.into_response())
}
