//! The routes, by what they are about. Those that Docker has and this engine has not answer in
//! [`absent`]; everything else is `404 page not found`.

mod absent;
mod ping;

use axum::Router;

use crate::error::ApiError;

/// Every route.
pub(crate) fn all() -> Router {
    Router::new()
        .merge(ping::routes())
        .merge(absent::routes())
        .fallback(async || ApiError::no_page())
        .method_not_allowed_fallback(async || ApiError::no_page())
}
