//! `/insula/kernels`: insula's own, no part of Docker's API.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use insula_models::KernelUseRequest;

use crate::request::OptionalJson;
use crate::routes::{Answer, Api, json};

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/insula/kernels", get(kernels)).route("/insula/kernels/use", post(use_kernel))
}

async fn kernels(State(api): State<Api>) -> Answer {
    json(&api.engine.kernels().await?)
}

async fn use_kernel(State(api): State<Api>, OptionalJson(request): OptionalJson<KernelUseRequest>) -> Answer {
    json(&api.engine.use_kernel(request).await?)
}
