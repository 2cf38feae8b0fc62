//! Bodies on their way from client to container and back.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};

use crate::limits;
use crate::target::Use;

/// A text of ours, or what a container sends.
pub(crate) type ResponseBody = Either<Full<Bytes>, Answer>;

/// What a container sends; the container counts as busy until it has been read or given up.
#[derive(Debug)]
pub(crate) struct Answer {
    inner: Incoming,
    _busy: Option<Use>,
}

impl Answer {
    pub(crate) fn new(inner: Incoming, busy: Option<Use>) -> Self {
        Self { inner, _busy: busy }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// What a client sends, as long as it goes on sending: one that stalls gives its container free.
#[derive(Debug, Default)]
pub(crate) struct RequestBody {
    /// Nothing for a request without a body.
    inner: Option<Incoming>,
    /// Runs while the client is waited for.
    patience: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub(crate) fn new(inner: Incoming) -> Self {
        Self { inner: (!inner.is_end_stream()).then_some(inner), patience: None }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.inner.is_none()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        let Some(inner) = this.inner.as_mut() else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(inner).poll_frame(context) {
            this.patience = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)));
        }
        let patience = this.patience.get_or_insert_with(|| Box::pin(sleep(limits::STALL)));
        patience.as_mut().poll(context).map(|()| Some(Err(io::ErrorKind::TimedOut.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
