//! `/networks`: the predefined ones are shown; others are yet to come.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};

use crate::error::ApiError;
use crate::request::Params;
use crate::routes::{Answer, Api, json};

const NO_NETWORKS: &str =
    "user-defined networks are not available in this version: bridge, host, none and container:ID are";

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/create", post(unsupported))
        .route("/networks/prune", post(unsupported))
        .route("/networks/{id}", get(inspect).delete(unsupported))
        .route("/networks/{id}/connect", post(unsupported))
        .route("/networks/{id}/disconnect", post(unsupported))
}

async fn list(State(api): State<Api>, params: Params) -> Answer {
    json(&api.engine.list_networks(&params.filters()?)?)
}

async fn inspect(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    json(&api.engine.inspect_network(&id).await?)
}

async fn unsupported() -> ApiError {
    ApiError::unsupported(NO_NETWORKS)
}
