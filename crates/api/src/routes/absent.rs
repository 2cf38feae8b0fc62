//! Routes of Docker's API that this engine does not serve, with a word on why.

use axum::Router;
use axum::routing::any;
use http::StatusCode;

use crate::error::ApiError;

/// Swarm's objects. The engine never joins one: past one machine it is a runtime of Kubernetes.
const SWARM: [&str; 12] = [
    "/swarm",
    "/swarm/{*rest}",
    "/nodes",
    "/nodes/{*rest}",
    "/services",
    "/services/{*rest}",
    "/tasks",
    "/tasks/{*rest}",
    "/secrets",
    "/secrets/{*rest}",
    "/configs",
    "/configs/{*rest}",
];

/// What is planned and not there.
const MISSING: [(&str, &str); 4] = [
    ("/containers/{id}/checkpoints", "checkpoints are not available in this version"),
    ("/containers/{id}/checkpoints/{checkpoint}", "checkpoints are not available in this version"),
    ("/plugins/{*rest}", "plugins are not supported: drivers are built in"),
    ("/debug/{*rest}", "profiling over the API is not supported"),
];

pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let mut router = Router::new();
    for path in SWARM {
        router = router.route(path, any(no_swarm));
    }
    for (path, why) in MISSING {
        router = router.route(path, any(async move || ApiError::unsupported(why)));
    }
    router
}

pub(super) async fn no_swarm() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "This node is not a swarm manager. This engine has no swarm mode: for more than one machine, \
         use it as a runtime of Kubernetes.",
    )
}
