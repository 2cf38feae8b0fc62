//! `/insula/check`, `/insula/images`: insula's own, no part of Docker's API.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use insula_engine::check::Repair;
use tokio::sync::mpsc;

use crate::error::ApiError;
use crate::request::Params;
use crate::routes::{Answer, Api, json};
use crate::stream;

/// Lines that wait for a slow client.
const BACKLOG: usize = 16;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/insula/check", post(check))
        .route("/insula/images/layers", get(layers))
        .route("/insula/images/compare", get(compare))
}

/// With `repair=1` what is found is repaired.
async fn check(State(api): State<Api>, params: Params) -> Answer {
    let repair = if params.flag("repair") { Repair::Yes } else { Repair::No };
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let engine = api.engine.clone();
    tokio::spawn(async move { engine.check(repair, sender).await });
    let body = stream::chunks(receiver, |mut receiver| async move {
        let line = receiver.recv().await?;
        Some((stream::line(&line), receiver))
    });
    Ok(stream::json(body))
}

fn wanted<'a>(params: &'a Params, name: &str) -> Result<&'a str, ApiError> {
    params.text(name).ok_or_else(|| ApiError::invalid(format!("{name} is missing in the query")))
}

/// The layers of the image `name`.
async fn layers(State(api): State<Api>, params: Params) -> Answer {
    json(&api.engine.images().layers_of(wanted(&params, "name")?).await?)
}

/// What the image `to` has otherwise than `from`.
async fn compare(State(api): State<Api>, params: Params) -> Answer {
    json(&api.engine.images().compare(wanted(&params, "from")?, wanted(&params, "to")?).await?)
}
