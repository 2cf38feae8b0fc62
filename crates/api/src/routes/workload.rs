//! `/insula/bundle`, `/insula/unbundle`: containers with all that they are made of as one file. insula's own,
//! no part of Docker's API.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::{get, post};
use insula_base::Digest;
use insula_engine::workload::{BundleRequest, Changes};

use crate::error::ApiError;
use crate::request::{Params, read_bounded};
use crate::routes::archive::tar;
use crate::routes::{Answer, Api, json};
use crate::upload::Upload;

/// Bytes of the document of a bundle.
const DOCUMENT_MAX: usize = 16 << 20;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/insula/bundle", get(bundle))
        .route("/insula/unbundle", post(unbundle))
        .route("/insula/unbundle/check", post(check))
}

async fn bundle(State(api): State<Api>, params: Params) -> Answer {
    let containers = params.all("names");
    if containers.is_empty() {
        return Err(ApiError::invalid("names is missing in the query"));
    }
    let digests = params.all("without").into_iter().map(|text| {
        text.parse::<Digest>().map_err(|error| ApiError::invalid(format!("without: {text:?}: {error}")))
    });
    let request = BundleRequest {
        containers,
        pause: params.flag_or("pause", true),
        without: digests.collect::<Result<_, _>>()?,
    };
    tar(api.engine.bundle(request).await?).await
}

async fn unbundle(State(api): State<Api>, params: Params, body: Body) -> Answer {
    json(&api.engine.unbundle(Upload::new(body), changes(&params)?).await?)
}

/// The document alone, `insula.json`, and what would be in its way.
async fn check(State(api): State<Api>, params: Params, body: Body) -> Answer {
    let document = read_bounded(body, DOCUMENT_MAX).await?;
    let workload = insula_engine::workload::read(&document)?;
    json(&api.engine.workload_conflicts(workload, changes(&params)?).await?)
}

fn changes(params: &Params) -> Result<Changes, ApiError> {
    let of = |name: &str| Changes::parse(&params.all(name));
    Ok(Changes {
        containers: of("rename")?,
        volumes: of("volume")?,
        networks: of("network")?,
        ports: of("port")?,
    })
}
