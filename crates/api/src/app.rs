//! From a request to its answer: the version in the path, the routes, the headers that every
//! answer has.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::HeaderName;
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};
use tower::ServiceExt;

use insula_models::ApiVersion;

use crate::authorization::{Authorization, Peer};
use crate::error::ApiError;
use crate::hijack::BothWays;
use crate::metrics::Metrics;
use crate::routes::metrics::Route;
use crate::{leftover, version};

/// What answers.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) router: Router,
    pub(crate) authorization: Authorization,
    pub(crate) metrics: Arc<Metrics>,
}

/// Answers one request; failures are answers too.
pub(crate) async fn answer(site: Site, peer: Peer, request: Request) -> Result<Response, Infallible> {
    let started = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let routed = async |mut request| match prepare(&mut request) {
        Ok(()) => site.router.oneshot(request).await.unwrap_or_else(|never| match never {}),
        Err(error) => error.into_response(),
    };
    let (parts, body) = request.into_parts();
    let (body, rest) = leftover::lend(body);
    let request = Request::from_parts(parts, body);
    let mut response = site.authorization.guard(&peer, request, routed).await;
    if response.status().is_client_error() || response.status().is_server_error() {
        rest.discard().await;
    } else if response.extensions().get::<BothWays>().is_none() {
        let (parts, body) = response.into_parts();
        response = Response::from_parts(parts, rest.discard_granted(body).await);
    }
    decorate(&mut response);
    let route = response.extensions().get::<Route>().map(|route| &*route.0);
    site.metrics.answered(&method, route, response.status(), started.elapsed());
    let status = response.status().as_u16();
    tracing::debug!(%method, path, status, micros = started.elapsed().as_micros(), "request");
    Ok(response)
}

/// Takes the version out of the path and keeps it beside the request.
fn prepare(request: &mut Request<Body>) -> Result<(), ApiError> {
    let path = request.uri().path();
    // Clients put names into paths as they are, and a container's name may be written `/name`.
    let single = path.contains("//").then(|| collapse_slashes(path));
    let (version, rest) = version::split(single.as_deref().unwrap_or(path))?;
    if rest.len() != path.len() {
        let target = match request.uri().query() {
            Some(query) => format!("{rest}?{query}"),
            None => rest.to_owned(),
        };
        let target = PathAndQuery::try_from(target)
            .map_err(|error| ApiError::invalid(format!("the path of the request: {error}")))?;
        *request.uri_mut() = Uri::from(target);
    }
    request.extensions_mut().insert(version);
    Ok(())
}

fn collapse_slashes(path: &str) -> String {
    let mut single = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !single.ends_with('/') {
            single.push(character);
        }
    }
    single
}

fn decorate(response: &mut Response) {
    let headers = response.headers_mut();
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    set("api-version", &ApiVersion::MAX.to_string());
    set("docker-experimental", "false");
    set("ostype", "linux");
    set("server", concat!("insula/", env!("CARGO_PKG_VERSION"), " (linux)"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(uri: &str) -> String {
        let mut request = Request::builder().uri(uri).body(Body::empty()).unwrap();
        prepare(&mut request).unwrap();
        request.uri().to_string()
    }

    #[test]
    fn version_and_doubled_slashes_leave_the_path() {
        assert_eq!(prepared("/v1.41/containers/json?all=1"), "/containers/json?all=1");
        assert_eq!(prepared("/containers//web/json"), "/containers/web/json");
        assert_eq!(prepared("/v1.41//_ping"), "/_ping");
        assert_eq!(prepared("/_ping"), "/_ping");
    }
}
