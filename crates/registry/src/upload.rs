//! Pushing blobs (OCI distribution specification, "Push"): not at all where the registry has them,
//! by a mount where another of its repositories has them, otherwise in a stream that is taken up
//! where it broke.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{Method, StatusCode};
use insula_spec::image::Descriptor;
use reqwest::{Body, Response};
use tokio::sync::mpsc;
use url::Url;

use crate::http::Ask;
use crate::retry::{Attempts, retried};
use crate::{Error, Repository, Result};

/// The bytes of a blob, to be had as often as needed.
pub trait Content: Send + Sync {
    /// Begins to read at an offset. The channel's end is the content's.
    fn open(&self, offset: u64) -> mpsc::Receiver<io::Result<Bytes>>;
}

impl Content for Bytes {
    fn open(&self, offset: u64) -> mpsc::Receiver<io::Result<Bytes>> {
        let (sender, receiver) = mpsc::channel(1);
        let rest = self.slice(usize::try_from(offset).unwrap_or(usize::MAX).min(self.len())..);
        // There is room for one, and the receiver is right here.
        let _ = sender.try_send(Ok(rest));
        receiver
    }
}

/// How a blob came to be in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Exists,
    /// Another repository of the registry had it.
    Mounted(String),
    Uploaded,
}

/// Told how many bytes are sent.
pub type Sent = Arc<dyn Fn(u64) + Send + Sync>;

impl Repository {
    /// Makes sure that the repository has a blob. `others` are repositories of the same registry that
    /// may have it.
    pub async fn push_blob(
        &self,
        descriptor: &Descriptor,
        others: &[String],
        content: &Arc<dyn Content>,
        sent: &Sent,
    ) -> Result<Pushed> {
        if self.has_blob(&descriptor.digest).await? {
            return Ok(Pushed::Exists);
        }
        for other in others.iter().filter(|other| *other != self.path()) {
            let query = format!("?mount={}&from={other}", descriptor.digest);
            match self.begin(&query).await {
                Ok(None) => return Ok(Pushed::Mounted(other.clone())),
                Ok(Some(location)) => {
                    self.upload(descriptor, location, content, sent).await?;
                    return Ok(Pushed::Uploaded);
                }
                // The right to read it from there may be missing; it can be uploaded all the same.
                Err(Error::Denied { .. } | Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        match self.begin("").await? {
            Some(location) => self.upload(descriptor, location, content, sent).await?,
            None => return Err(Error::protocol("begin an upload", "it says that nothing is to be uploaded")),
        }
        Ok(Pushed::Uploaded)
    }

    /// Whether the repository has a blob, or got it from another one of the registry by a mount.
    pub async fn mount_blob(&self, descriptor: &Descriptor, others: &[String]) -> Result<Option<Pushed>> {
        if self.has_blob(&descriptor.digest).await? {
            return Ok(Some(Pushed::Exists));
        }
        for other in others.iter().filter(|other| *other != self.path()) {
            let query = format!("?mount={}&from={other}", descriptor.digest);
            match self.begin(&query).await {
                Ok(None) => return Ok(Some(Pushed::Mounted(other.clone()))),
                // What was begun in its place is forgotten by the registry in time.
                Ok(Some(_)) | Err(Error::Denied { .. } | Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Begins an upload and returns where it goes; `None` if a mount made it unnecessary.
    async fn begin(&self, query: &str) -> Result<Option<Url>> {
        let what = format!("push to {}", self.name());
        let url = self.url(&format!("blobs/uploads/{query}")).await?;
        retried(self.limits(), || async {
            let ask = Ask::new(Method::POST, url.clone(), &what).header(CONTENT_LENGTH, "0");
            let response = self.send(ask).await?;
            match response.status() {
                StatusCode::CREATED => Ok(None),
                StatusCode::ACCEPTED => location(&url, &response, &what).map(Some),
                _ => Err(self.failed(&what, &what, response).await),
            }
        })
        .await
    }

    async fn upload(
        &self,
        descriptor: &Descriptor,
        mut place: Url,
        content: &Arc<dyn Content>,
        sent: &Sent,
    ) -> Result<()> {
        let what = format!("layer {} of {}", descriptor.digest, self.name());
        let mut attempts = Attempts::new(self.limits());
        let mut offset = 0;
        loop {
            match self.patch(descriptor, &place, offset, content, sent, &what).await {
                Ok(next) => {
                    place = next;
                    break;
                }
                Err(error) => {
                    attempts.after(error).await?;
                    match self.uploaded(&place, &what).await {
                        Ok((next, received)) => (place, offset) = (next, received.min(descriptor.size)),
                        // The registry forgot it.
                        Err(error) => {
                            tracing::info!(error = insula_base::chain(&error), "the upload begins anew");
                            (place, offset) = (self.begin_anew().await?, 0);
                        }
                    }
                }
            }
        }
        self.finish(descriptor, &place, &what).await
    }

    async fn begin_anew(&self) -> Result<Url> {
        self.begin("").await?.ok_or_else(|| Error::protocol("begin an upload", "it begins none"))
    }

    /// Sends what is left, and returns where the upload goes on.
    async fn patch(
        &self,
        descriptor: &Descriptor,
        place: &Url,
        offset: u64,
        content: &Arc<dyn Content>,
        sent: &Sent,
        what: &str,
    ) -> Result<Url> {
        let doing = format!("upload {what}");
        if offset == descriptor.size && offset > 0 {
            return Ok(place.clone());
        }
        let failure: Failure = Arc::default();
        let mut ask = Ask::new(Method::PATCH, place.clone(), &doing)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, &(descriptor.size - offset).to_string());
        if offset > 0 {
            ask = ask.header(CONTENT_RANGE, &format!("{offset}-{}", descriptor.size - 1));
        }
        let body = body(content.open(offset), offset, descriptor.size, sent.clone(), failure.clone());
        let response = self.send(ask.body(body)).await;
        // Content that failed is no failure of the connection, though that is how it ends.
        if let Some(source) = failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(Error::Content { what: what.to_owned(), source });
        }
        let response = response?;
        match response.status() {
            StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED => {
                location(place, &response, &doing)
            }
            _ => Err(self.failed(what, &doing, response).await),
        }
    }

    /// How far an upload that broke had come.
    async fn uploaded(&self, place: &Url, what: &str) -> Result<(Url, u64)> {
        let doing = format!("ask how far the upload of {what} is");
        retried(self.limits(), || async {
            let response = self.send(Ask::new(Method::GET, place.clone(), &doing)).await?;
            if !response.status().is_success() {
                return Err(self.failed(what, &doing, response).await);
            }
            let range = response.headers().get(RANGE).and_then(|value| value.to_str().ok());
            // `0-0` is what registries say of nothing and of one byte; nothing is safe.
            let last = range.and_then(|range| range.rsplit('-').next()?.parse::<u64>().ok()).unwrap_or(0);
            let received = if last == 0 { 0 } else { last + 1 };
            Ok((location(place, &response, &doing).unwrap_or_else(|_| place.clone()), received))
        })
        .await
    }

    async fn finish(&self, descriptor: &Descriptor, place: &Url, what: &str) -> Result<()> {
        let doing = format!("complete the upload of {what}");
        let mut url = place.clone();
        url.query_pairs_mut().append_pair("digest", descriptor.digest.as_str());
        let done = retried(self.limits(), || async {
            let ask = Ask::new(Method::PUT, url.clone(), &doing).header(CONTENT_LENGTH, "0");
            let response = self.send(ask).await?;
            match response.status().is_success() {
                true => Ok(()),
                false => Err(self.failed(what, &doing, response).await),
            }
        })
        .await;
        match done {
            // The answer of an earlier attempt was lost, and with the upload its place.
            Err(Error::NotFound { .. }) if self.has_blob(&descriptor.digest).await? => Ok(()),
            done => done,
        }
    }
}

type Failure = Arc<Mutex<Option<io::Error>>>;

/// The content as the body of a request; it ends early with an error rather than with another length.
fn body(
    content: mpsc::Receiver<io::Result<Bytes>>,
    offset: u64,
    size: u64,
    sent: Sent,
    failure: Failure,
) -> Body {
    let fail = move |error: io::Error| {
        let text = error.to_string();
        *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        Err(io::Error::other(text))
    };
    let stream = stream::unfold((content, offset, false), move |(mut content, offset, ended)| {
        let (sent, fail) = (sent.clone(), fail.clone());
        async move {
            if ended {
                return None;
            }
            match content.recv().await {
                Some(Ok(bytes)) if offset + bytes.len() as u64 <= size => {
                    let offset = offset + bytes.len() as u64;
                    sent(offset);
                    Some((Ok(bytes), (content, offset, false)))
                }
                Some(Ok(_)) => {
                    Some((fail(io::Error::other("it is longer than it was")), (content, offset, true)))
                }
                Some(Err(error)) => Some((fail(error), (content, offset, true))),
                None if offset < size => {
                    Some((fail(io::Error::other("it is shorter than it was")), (content, offset, true)))
                }
                None => None,
            }
        }
    });
    Body::wrap_stream(stream)
}

fn location(url: &Url, response: &Response, doing: &str) -> Result<Url> {
    let said = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    said.and_then(|said| url.join(said).ok())
        .ok_or_else(|| Error::protocol(doing, "it does not say where the upload goes"))
}
