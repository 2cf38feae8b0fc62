//! `/insula/check`: insula's own, no part of Docker's API.

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use insula_engine::check::Repair;
use tokio::sync::mpsc;

use crate::request::Params;
use crate::routes::{Answer, Api};
use crate::stream;

/// Lines that wait for a slow client.
const BACKLOG: usize = 16;

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/insula/check", post(check))
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
