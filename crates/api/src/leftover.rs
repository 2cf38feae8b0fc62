//! What a refused request still sends.
//!
//! A client that uploads (`build`, `cp`, `load`) writes its whole body before it looks for an answer. If the
//! connection were closed on it, it would report a broken pipe instead of the reason. So the rest of
//! the body of a request that failed is read and thrown away, for as long as patience lasts; and that of one that did
//! not, where the client has said how long it is: a unix socket that is closed with something unread takes the answer
//! along. Where the answer is a stream it begins before the work is done, and says at its end what failed: such an
//! answer does not end before the request has.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::oneshot::{self, error::TryRecvError};

/// How long is read for nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long whoever reads a refused request may take to let go of it.
const GIVEN_BACK: Duration = Duration::from_secs(5);

/// A body that gives back what was not read of it.
#[derive(Debug)]
struct Lent {
    body: Option<Body>,
    rest: Option<oneshot::Sender<Option<Body>>>,
}

/// Where it is given back.
#[derive(Debug)]
pub(crate) struct Rest(oneshot::Receiver<Option<Body>>);

/// The body to hand on, and where the rest of it will be.
pub(crate) fn lend(body: Body) -> (Body, Rest) {
    let (sender, receiver) = oneshot::channel();
    (Body::new(Lent { body: Some(body), rest: Some(sender) }), Rest(receiver))
}

impl Rest {
    /// Reads what was left of a refused request, until it ends, or is too much.
    pub(crate) async fn discard(self) {
        // Uploads are read ahead by a task, which may not have heard yet that nobody wants the rest.
        if let Ok(Ok(Some(body))) = tokio::time::timeout(GIVEN_BACK, self.0).await {
            throw_away(body).await;
        }
    }

    /// The same of a request that was granted: of one that nobody reads any more at once, without waiting for more
    /// than was announced, and of one that is still read when its answer is at its end.
    pub(crate) async fn discard_granted(mut self, answer: Body) -> Body {
        match self.0.try_recv() {
            Ok(Some(body)) if http_body::Body::size_hint(&body).exact().is_some() => throw_away(body).await,
            Err(TryRecvError::Empty) => {
                return Body::new(Outlasting { answer: Some(answer), rest: Box::pin(self.discard()) });
            }
            Ok(_) | Err(TryRecvError::Closed) => {}
        }
        answer
    }
}

/// An answer that does not end before what was asked has been read.
struct Outlasting {
    /// Until it has ended.
    answer: Option<Body>,
    rest: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl http_body::Body for Outlasting {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(answer) = &mut self.answer {
            match ready!(Pin::new(answer).poll_frame(context)) {
                Some(frame) => return Poll::Ready(Some(frame)),
                None => self.answer = None,
            }
        }
        self.rest.as_mut().poll(context).map(|()| None)
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}

async fn throw_away(mut body: Body) {
    let read = async {
        // Each frame is let go of as it comes.
        while let Some(Ok(_)) = body.frame().await {}
    };
    if tokio::time::timeout(PATIENCE, read).await.is_err() {
        tracing::debug!("what was left of a request did not end");
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
        if let Some(rest) = self.rest.take() {
            // Whoever answered may be gone.
            let _ = rest.send(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts what is read of it.
    fn counted(pieces: usize, read: &Arc<AtomicUsize>) -> Body {
        let read = Arc::clone(read);
        Body::from_stream(futures_util::stream::iter((0..pieces).map(move |_| {
            read.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::io::Error>("piece")
        })))
    }

    #[tokio::test]
    async fn what_was_not_read_is_read_after_a_refusal() {
        let read = Arc::new(AtomicUsize::new(0));
        let (body, rest) = lend(counted(5, &read));
        let mut body = body.into_data_stream();
        futures_util::StreamExt::next(&mut body).await.unwrap().unwrap();
        // It is let go of by somebody else, and later.
        let later = tokio::spawn(async move { drop(body) });
        rest.discard().await;
        later.await.unwrap();
        assert_eq!(read.load(Ordering::Relaxed), 5);
    }

    #[tokio::test]
    async fn what_was_granted_is_read_as_far_as_it_was_announced() {
        let read = Arc::new(AtomicUsize::new(0));
        let (body, rest) = lend(counted(5, &read));
        drop(body);
        drop(rest.discard_granted(Body::empty()).await);
        assert_eq!(read.load(Ordering::Relaxed), 0, "who knows when it ends");
        let (body, rest) = lend(Body::from("whole"));
        assert_eq!(http_body::Body::size_hint(&body).exact(), Some(5));
        drop(body);
        drop(rest.discard_granted(Body::empty()).await);
    }

    #[tokio::test]
    async fn an_answer_that_is_a_stream_lasts_until_the_request_is_read() {
        let read = Arc::new(AtomicUsize::new(0));
        let (body, rest) = lend(counted(5, &read));
        let said = futures_util::stream::iter([Ok::<_, std::io::Error>("no room")]);
        // As most of our answers, it must not be asked again after its end.
        let said = futures_util::stream::unfold(said, async |mut said| {
            Some((futures_util::StreamExt::next(&mut said).await?, said))
        });
        let mut answer = rest.discard_granted(Body::from_stream(said)).await;
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "no room");
        let end = tokio::spawn(async move { answer.frame().await.is_none() });
        tokio::task::yield_now().await;
        assert!(!end.is_finished(), "somebody reads it yet");
        drop(body);
        assert!(end.await.unwrap());
        assert_eq!(read.load(Ordering::Relaxed), 5);
    }
}
