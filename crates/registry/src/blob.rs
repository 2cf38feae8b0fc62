//! A blob on its way here. What breaks is taken up where it broke (RFC 9110 section 14), from the
//! next place if one stays broken: content that is named by its digest is the same everywhere.

use bytes::Bytes;
use http::header::{CONTENT_RANGE, RANGE};
use http::{Method, StatusCode};
use insula_spec::image::Descriptor;
use reqwest::Response;

use crate::http::{Ask, Pace};
use crate::retry::Attempts;
use crate::{Error, Repository, Result};

/// What counts as progress: after it, failures are counted anew.
const PROGRESS: u64 = 1 << 20;

/// A download. Its size is checked here, its digest by who takes it in.
#[derive(Debug)]
pub struct Blob {
    sources: Vec<Repository>,
    /// Which of them is read from.
    current: usize,
    descriptor: Descriptor,
    what: String,
    offset: u64,
    /// Where the open answer began.
    resumed: u64,
    open: Option<(Response, Pace)>,
    /// What was read too far when the place did not know ranges.
    rest: Option<Bytes>,
    attempts: Attempts,
}

impl Blob {
    /// From the first of these places that has it; there has to be one.
    #[must_use]
    pub fn new(sources: Vec<Repository>, descriptor: &Descriptor) -> Option<Self> {
        let first = sources.first()?;
        let attempts = Attempts::new(first.limits());
        let what = format!("layer {} of {}", descriptor.digest, first.name());
        let descriptor = descriptor.clone();
        Some(Self {
            sources,
            current: 0,
            descriptor,
            what,
            offset: 0,
            resumed: 0,
            open: None,
            rest: None,
            attempts,
        })
    }

    /// The next bytes; `None` when all are there.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.try_next().await {
                Ok(chunk) => return Ok(chunk),
                Err(error) => self.recover(error).await?,
            }
        }
    }

    async fn try_next(&mut self) -> Result<Option<Bytes>> {
        let size = self.descriptor.size;
        let (mut response, mut pace) = match self.open.take() {
            Some(open) => open,
            None if self.offset == size && size > 0 => return Ok(None),
            None => self.begin().await?,
        };
        let chunk = match self.rest.take() {
            Some(rest) => Some(rest),
            None => pace.chunk(&mut response, &self.what).await?,
        };
        let Some(chunk) = chunk else {
            if self.offset < size {
                return Err(Error::Cut { what: self.what.clone(), got: self.offset, size });
            }
            return Ok(None);
        };
        self.offset += chunk.len() as u64;
        if self.offset > size {
            return Err(Error::TooLong { what: self.what.clone(), limit: size });
        }
        self.open = Some((response, pace));
        Ok(Some(chunk))
    }

    /// Asks for what is still wanted.
    async fn begin(&mut self) -> Result<(Response, Pace)> {
        let source = &self.sources[self.current];
        let doing = format!("download {} from {}", self.what, source.host());
        let url = source.url(&format!("blobs/{}", self.descriptor.digest)).await?;
        let mut ask = Ask::new(Method::GET, url, &doing);
        if self.offset > 0 {
            tracing::info!(blob = self.what, offset = self.offset, "resuming");
            ask = ask.header(RANGE, &format!("bytes={}-", self.offset));
        }
        let response = source.send(ask).await?;
        let mut pace = Pace::new(source.limits());
        self.resumed = self.offset;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if self.offset > 0 => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                if range.is_none_or(|range| !range.starts_with(&format!("bytes {}-", self.offset))) {
                    return Err(Error::protocol(&doing, "it sends another part than was asked for"));
                }
                Ok((response, pace))
            }
            StatusCode::OK => {
                if let Some(length) =
                    response.content_length().filter(|length| *length > self.descriptor.size)
                {
                    let what = format!("{} ({length} bytes)", self.what);
                    return Err(Error::TooLong { what, limit: self.descriptor.size });
                }
                let response = self.skip(response, &mut pace).await?;
                Ok((response, pace))
            }
            _ => Err(source.failed(&self.what, &doing, response).await),
        }
    }

    /// Reads over what is here already, when the place does not know ranges.
    async fn skip(&mut self, mut response: Response, pace: &mut Pace) -> Result<Response> {
        let mut left = self.offset;
        while left > 0 {
            let Some(mut chunk) = pace.chunk(&mut response, &self.what).await? else {
                let got = self.offset - left;
                return Err(Error::Cut { what: self.what.clone(), got, size: self.descriptor.size });
            };
            let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            left -= skipped as u64;
            let rest = chunk.split_off(skipped);
            self.rest = (!rest.is_empty()).then_some(rest);
        }
        Ok(response)
    }

    /// Waits for another attempt, or goes on to the next place.
    async fn recover(&mut self, error: Error) -> Result<()> {
        (self.open, self.rest) = (None, None);
        if self.offset >= self.resumed.saturating_add(PROGRESS) {
            self.attempts.begin_again();
        }
        match self.attempts.after(error).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_local_to_source() && self.current + 1 < self.sources.len() => {
                let (from, to) = (self.sources[self.current].host(), self.sources[self.current + 1].host());
                tracing::warn!(error = insula_base::chain(&error), from, to, "going on from the next place");
                self.current += 1;
                self.attempts.begin_again();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
