//! Answers that come in pieces.

use std::collections::VecDeque;
use std::marker::PhantomData;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

pub(crate) const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

/// The bytes of an answer, as they come. The connection closes when it is dropped.
#[derive(Debug)]
pub struct ByteStream {
    body: Incoming,
    call: String,
    content_type: Option<String>,
}

impl ByteStream {
    pub(crate) fn new(body: Incoming, call: String, content_type: Option<String>) -> Self {
        Self { body, call, content_type }
    }

    pub(crate) fn call(&self) -> &str {
        &self.call
    }

    /// Whether output is multiplexed, when the daemon said so in its content type.
    #[must_use]
    pub fn multiplexed(&self) -> Option<bool> {
        match self.content_type.as_deref() {
            Some(MULTIPLEXED) => Some(true),
            Some("application/vnd.docker.raw-stream") => Some(false),
            _ => None,
        }
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return Ok(Some(data));
                    }
                }
                Some(Err(source)) => {
                    return Err(Error::Connection { call: self.call.clone(), source });
                }
            }
        }
    }
}

/// One document after another, whatever stands between them.
#[derive(Debug)]
pub struct JsonStream<T> {
    bytes: ByteStream,
    buffer: BytesMut,
    ready: VecDeque<T>,
    marker: PhantomData<fn() -> T>,
}

/// No document of a stream is larger.
pub(crate) const MAX_DOCUMENT: usize = 16 << 20;

impl<T: DeserializeOwned> JsonStream<T> {
    pub(crate) fn new(bytes: ByteStream) -> Self {
        Self { bytes, buffer: BytesMut::new(), ready: VecDeque::new(), marker: PhantomData }
    }

    /// The next document; `None` at the end of the stream.
    pub async fn next(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(document) = self.ready.pop_front() {
                return Ok(Some(document));
            }
            let Some(piece) = self.bytes.next().await? else {
                if self.buffer.iter().all(u8::is_ascii_whitespace) {
                    return Ok(None);
                }
                return Err(self.wrong("it ends inside of a document".to_owned()));
            };
            self.buffer.extend_from_slice(&piece);
            self.parse()?;
        }
    }

    fn parse(&mut self) -> Result<()> {
        let mut documents = serde_json::Deserializer::from_slice(&self.buffer).into_iter::<T>();
        let mut parsed = Vec::new();
        let failure = loop {
            match documents.next() {
                Some(Ok(document)) => parsed.push(document),
                Some(Err(error)) if !error.is_eof() => break Some(error),
                Some(Err(_)) | None => break None,
            }
        };
        let used = documents.byte_offset();
        self.buffer.advance(used);
        self.ready.extend(parsed);
        match failure {
            Some(error) => Err(self.wrong(error.to_string())),
            None if self.buffer.len() > MAX_DOCUMENT => Err(self.wrong("a document is too large".to_owned())),
            None => Ok(()),
        }
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Answer { call: self.bytes.call.clone(), reason }
    }
}
