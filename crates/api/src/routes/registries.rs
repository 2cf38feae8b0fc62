//! What is asked of registries: `/auth`, `/distribution`, search; and the credentials of a request.

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode};
use insula_engine::images::Credentials;
use insula_models::AuthConfig;

use crate::error::ApiError;
use crate::request::{Json, Params, Path};
use crate::routes::{Answer, Api, json};

const AUTH_HEADER: &str = "x-registry-auth";

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/auth", post(login))
        .route("/images/search", get(search))
        .route("/distribution/{*rest}", get(distribution))
}

/// Those of `X-Registry-Auth`.
pub(super) fn credentials(headers: &HeaderMap) -> Result<Credentials, ApiError> {
    let Some(header) = headers.get(AUTH_HEADER) else { return Ok(Credentials::Anonymous) };
    let text = header.to_str().map_err(|_| ApiError::invalid("X-Registry-Auth: it is not Base64"))?;
    Credentials::from_header(text).map_err(|error| ApiError::invalid(error.to_string()))
}

async fn login(State(api): State<Api>, Json(auth): Json<AuthConfig>) -> Answer {
    match api.engine.images().login(&auth).await {
        Ok(answer) => json(&answer),
        // Docker's client tells wrong credentials from other failures by the status.
        Err(error) if error.is_unauthorized() => {
            Ok(ApiError::new(StatusCode::UNAUTHORIZED, insula_base::chain(&error)).into_response())
        }
        Err(error) => Err(error.into()),
    }
}

async fn search(State(api): State<Api>, headers: HeaderMap, params: Params) -> Answer {
    let term = params.text("term").ok_or_else(|| ApiError::invalid("term is missing"))?;
    let limit = params.number("limit")?.unwrap_or(0);
    let (filters, credentials) = (params.filters()?, credentials(&headers)?);
    json(&api.engine.images().search(term, limit, &filters, &credentials).await?)
}

/// `/distribution/NAME/json`, and insula's own `/distribution/NAME/manifest`.
async fn distribution(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(rest): Path<String>,
    params: Params,
) -> Answer {
    let (name, verb) = rest.rsplit_once('/').unwrap_or((&rest, ""));
    let (images, credentials) = (api.engine.images(), credentials(&headers)?);
    match verb {
        "json" => json(&images.distribution(name, &credentials).await?),
        "manifest" => {
            let (detail, insecure) = (params.flag("detail"), params.flag("insecure"));
            json(&images.remote_manifests(name, detail, insecure, &credentials).await?)
        }
        _ => Err(ApiError::no_page()),
    }
}
