//! `/insula/kernels`, `/insula/templates`, `/insula/tenants` and what machines write: insula's own, no part of Docker's
//! API.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{delete, get, post};
use http::StatusCode;
use insula_models::{KernelUseRequest, TemplateRequest, TenantCreateRequest};

use crate::error::ApiError;
use crate::request::{OptionalJson, Params, Path};
use crate::routes::{Answer, Api, json};

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/insula/kernels", get(kernels))
        .route("/insula/kernels/use", post(use_kernel))
        .route("/insula/templates", get(templates).post(warm))
        .route("/insula/templates/prune", post(prune))
        .route("/insula/templates/{id}", delete(remove))
        .route("/insula/tenants", get(tenants).post(create_tenant))
        .route("/insula/tenants/{name}", get(tenant).delete(remove_tenant))
        .route("/insula/tenants/{name}/dirty-rate", get(tenant_dirty_rate))
        .route("/insula/containers/{id}/dirty-rate", get(container_dirty_rate))
}

/// The time for which writes are counted where nothing is said.
const PERIOD: u64 = 1000;

fn period(params: &Params) -> Result<Duration, ApiError> {
    Ok(Duration::from_millis(params.number("milliseconds")?.unwrap_or(PERIOD)))
}

async fn container_dirty_rate(State(api): State<Api>, Path(id): Path<String>, params: Params) -> Answer {
    json(&api.engine.container_dirty_rate(&id, period(&params)?).await?)
}

async fn tenant_dirty_rate(State(api): State<Api>, Path(name): Path<String>, params: Params) -> Answer {
    json(&api.engine.tenant_dirty_rate(&name, period(&params)?).await?)
}

async fn tenants(State(api): State<Api>) -> Answer {
    json(&api.engine.tenants().await?)
}

async fn create_tenant(
    State(api): State<Api>,
    OptionalJson(request): OptionalJson<TenantCreateRequest>,
) -> Answer {
    json(&api.engine.create_tenant(request).await?)
}

async fn tenant(State(api): State<Api>, Path(name): Path<String>) -> Answer {
    json(&api.engine.tenant(&name).await?)
}

async fn remove_tenant(State(api): State<Api>, Path(name): Path<String>) -> Answer {
    api.engine.remove_tenant(&name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn kernels(State(api): State<Api>) -> Answer {
    json(&api.engine.kernels().await?)
}

async fn use_kernel(State(api): State<Api>, OptionalJson(request): OptionalJson<KernelUseRequest>) -> Answer {
    json(&api.engine.use_kernel(request).await?)
}

async fn templates(State(api): State<Api>) -> Answer {
    json(&api.engine.templates().await?)
}

async fn warm(State(api): State<Api>, OptionalJson(request): OptionalJson<TemplateRequest>) -> Answer {
    json(&api.engine.warm(request).await?)
}

async fn remove(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    api.engine.remove_template(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn prune(State(api): State<Api>, params: Params) -> Answer {
    json(&api.engine.prune_templates(params.flag("all")).await?)
}
