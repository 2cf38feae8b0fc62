//! What a refused request still sends.
//!
//! A client that uploads (`build`, `cp`, `load`) writes its whole body before it looks for an answer. If the
//! connection were closed on it, it would report a broken pipe instead of the reason. So the rest of
//! the body of a request that failed is read and thrown away, up to a point.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

/// How much is read for nothing.
const MOST: usize = 1 << 30;
/// How long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A body that gives back what was not read of it.
#[derive(Debug)]
struct Lent {
    body: Option<Body>,
    rest: Rest,
}

/// Where it is given back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rest(Arc<Mutex<Option<Body>>>);

/// The body to hand on, and where the rest of it will be.
pub(crate) fn lend(body: Body) -> (Body, Rest) {
    let rest = Rest::default();
    (Body::new(Lent { body: Some(body), rest: rest.clone() }), rest)
}

impl Rest {
    /// Reads what was left, until it ends, or is too much.
    pub(crate) async fn discard(self) {
        let Some(mut body) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let read = async {
            let mut count = 0;
            while let Some(Ok(frame)) = body.frame().await {
                count += frame.data_ref().map_or(0, Bytes::len);
                if count > MOST {
                    return;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, read).await.is_err() {
            tracing::debug!("a refused request did not end");
        }
    }
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let left = self.body.take().filter(|body| !http_body::Body::is_end_stream(body));
        *self.rest.0.lock().unwrap_or_else(PoisonError::into_inner) = left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_not_read_is_given_back() {
        let (body, rest) = lend(Body::from("whole"));
        assert_eq!(http_body::Body::size_hint(&body).exact(), Some(5));
        drop(body);
        assert!(rest.0.lock().unwrap().is_some());
        rest.discard().await;
        let (body, rest) = lend(Body::from("whole"));
        body.collect().await.unwrap();
        assert!(rest.0.lock().unwrap().is_none());
    }
}
