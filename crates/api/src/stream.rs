//! Bodies that come into being while they are sent.

use std::convert::Infallible;
use std::future::Future;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{HeaderValue, header};
use insula_models::{ApiVersion, Versioned};
use serde::Serialize;

/// A body of the chunks that `next` gives until it gives none.
pub(crate) fn chunks<T, F, N>(source: T, next: N) -> Body
where
    T: Send + 'static,
    F: Future<Output = Option<(Bytes, T)>> + Send + 'static,
    N: Fn(T) -> F + Send + 'static,
{
    let stream = stream::unfold((source, next), |(source, next)| async move {
        let (chunk, source) = next(source).await?;
        Some((Ok::<_, Infallible>(chunk), (source, next)))
    });
    Body::from_stream(stream)
}

/// As [`chunks`], of a source that somebody follows for as long as it goes on. When `end` comes the body is
/// broken off rather than ended: there is more, and the next daemon can be asked for it.
pub(crate) fn followed<T, F, N>(source: T, next: N, end: impl Future<Output = ()> + Send + 'static) -> Body
where
    T: Send + 'static,
    F: Future<Output = Option<(Bytes, T)>> + Send + 'static,
    N: Fn(T) -> F + Send + 'static,
{
    let stream = stream::unfold(Some((source, next, Box::pin(end))), |state| async {
        let (source, next, mut end) = state?;
        tokio::select! {
            biased;
            () = &mut end => Some((Err(BrokenOff), None)),
            chunk = next(source) => {
                let (chunk, source) = chunk?;
                Some((Ok(chunk), Some((source, next, end))))
            }
        }
    });
    Body::from_stream(stream)
}

/// Why a body has no end.
#[derive(Debug, thiserror::Error)]
#[error("the daemon ends while somebody follows")]
struct BrokenOff;

/// A document and a newline. Docker ends them with CR and LF in progress streams and with LF elsewhere;
/// readers of either take both.
pub(crate) fn line<T: Serialize>(document: &T) -> Bytes {
    ended(serde_json::to_vec(document))
}

fn ended(document: serde_json::Result<Vec<u8>>) -> Bytes {
    match document {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            bytes.into()
        }
        Err(error) => {
            tracing::error!(%error, "write a document of a stream");
            Bytes::new()
        }
    }
}

/// As [`line`], of a document of which earlier versions differ.
pub(crate) fn versioned<T: Versioned>(document: &T, version: ApiVersion) -> Bytes {
    ended(insula_models::to_json(document, version))
}

/// A body of one document that is not there yet: the head of the answer goes out at once.
pub(crate) fn later(document: impl Future<Output = Bytes> + Send + 'static) -> Body {
    Body::from_stream(stream::once(document).map(Ok::<_, Infallible>))
}

/// An answer whose body is JSON.
pub(crate) fn json(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
