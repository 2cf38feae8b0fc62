//! The routes, by what they are about. Those that Docker has and this engine has not answer in
//! [`absent`]; everything else is `404 page not found`.

mod absent;
mod archive;
mod attaching;
mod build;
mod check;
mod containers;
mod images;
mod machines;
pub(crate) mod metrics;
mod networks;
mod ping;
mod registries;
mod shared;
mod streams;
mod system;
mod volumes;
mod workload;

use std::sync::Arc;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use insula_engine::Engine;
use serde::Serialize;

use self::attaching::Attaching;
use insula_models::{ApiVersion, Versioned};

use crate::buildkit::BuildKit;
use crate::error::ApiError;
use crate::metrics::Metrics;

/// What every route has at hand.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    engine: Engine,
    attaching: Arc<Attaching>,
    buildkit: Arc<BuildKit>,
    metrics: Arc<Metrics>,
}

type Answer = Result<Response, ApiError>;

/// The route of the metrics alone.
pub(crate) fn metrics_alone(engine: Engine, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .merge(metrics::routes())
        .route_layer(axum::middleware::from_fn(metrics::note))
        .fallback(async || ApiError::no_page())
        .with_state(Api { engine, attaching: Arc::default(), buildkit: Arc::default(), metrics })
}

/// Every route.
pub(crate) fn all(engine: Engine, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .merge(ping::routes())
        .merge(system::routes())
        .merge(containers::routes())
        .merge(streams::routes())
        .merge(archive::routes())
        .merge(images::routes())
        .merge(build::routes())
        .merge(registries::routes())
        .merge(volumes::routes())
        .merge(networks::routes())
        .merge(machines::routes())
        .merge(check::routes())
        .merge(metrics::routes())
        .merge(shared::routes())
        .merge(workload::routes())
        .merge(absent::routes())
        .route_layer(axum::middleware::from_fn(metrics::note))
        .fallback(async || ApiError::no_page())
        .method_not_allowed_fallback(async || ApiError::no_page())
        .with_state(Api { engine, attaching: Arc::default(), buildkit: Arc::default(), metrics })
}

/// The version of the API that the request speaks.
#[derive(Debug, Clone, Copy)]
struct Version(ApiVersion);

impl<S: Send + Sync> FromRequestParts<S> for Version {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(parts.extensions.get().copied().unwrap_or(ApiVersion::MAX)))
    }
}

fn json<T: Serialize + ?Sized>(document: &T) -> Answer {
    json_with(StatusCode::OK, document)
}

/// A document of which earlier versions differ.
fn shaped<T: Versioned + ?Sized>(version: ApiVersion, document: &T) -> Answer {
    shaped_with(StatusCode::OK, version, document)
}

fn shaped_with<T: Versioned + ?Sized>(status: StatusCode, version: ApiVersion, document: &T) -> Answer {
    written(status, insula_models::to_json(document, version))
}

fn json_with<T: Serialize + ?Sized>(status: StatusCode, document: &T) -> Answer {
    written(status, serde_json::to_vec(document))
}

fn written(status: StatusCode, document: serde_json::Result<Vec<u8>>) -> Answer {
    let mut bytes = document.map_err(|error| ApiError::internal(format!("write the answer: {error}")))?;
    bytes.push(b'\n');
    let mut response = Response::new(bytes.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
