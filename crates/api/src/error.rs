//! One error for every route: a status and the words of the JSON body `{"message": …}`.

use std::fmt;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use insula_base::{Kind, Kinded, chain};

/// What a route answers when it fails.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
}

impl ApiError {
    /// What HTTP calls it.
    pub(crate) fn status(&self) -> u16 {
        self.status.as_u16()
    }

    /// An error with this status and message.
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// The request is malformed: 400.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// No route has this path: 404, in Docker's words.
    pub(crate) fn no_page() -> Self {
        Self::new(StatusCode::NOT_FOUND, "page not found")
    }

    /// The engine cannot do it (yet): 501.
    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }

    /// A defect: 500.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl From<insula_engine::Error> for ApiError {
    fn from(error: insula_engine::Error) -> Self {
        Self { status: status(error.kind()), message: chain(&error) }
    }
}

fn status(kind: Kind) -> StatusCode {
    StatusCode::from_u16(kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = serde_json::json!({ "message": self.message }).to_string();
        body.push('\n');
        let mut response = Response::new(body.into());
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}
