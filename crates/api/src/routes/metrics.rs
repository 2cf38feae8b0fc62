//! `GET /metrics`: numbers for Prometheus.

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header;

use crate::error::ApiError;
use crate::metrics::TYPE;
use crate::routes::{Answer, Api};

/// Beside an answer: the pattern of the route that gave it.
#[derive(Debug, Clone)]
pub(crate) struct Route(pub(crate) Arc<str>);

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(State(api): State<Api>) -> Answer {
    let traffic = api.engine.traffic().await?;
    let text = api.metrics.text(&api.engine, &traffic);
    let text = text.map_err(|error| ApiError::internal(format!("write the metrics: {error}")))?;
    Ok(([(header::CONTENT_TYPE, TYPE)], text).into_response())
}

/// Notes which route answers.
pub(super) async fn note(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| Route(path.as_str().into()));
    let mut response = next.run(request).await;
    if let Some(route) = route {
        response.extensions_mut().insert(route);
    }
    response
}
