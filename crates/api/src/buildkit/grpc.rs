//! gRPC towards a client, over HTTP/2: calls with messages both ways.
//!
//! ```text
//! message:   0 (not compressed), 1 byte │ its length, big endian, 4 bytes │ protobuf
//! ```

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use axum::body::Body;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::TokioExecutor;
use prost::Message;
use tokio::sync::mpsc;

/// Bytes of one message: files come in pieces of 32 KiB, secrets have 500 KiB at most.
const MESSAGE_MAX: usize = 4 << 20;
/// Bytes that are on their way without an answer, of one call and of all.
const WINDOW: u32 = 1 << 20;
/// Messages that wait to be sent.
const WAITING: usize = 64;
const HEAD: usize = 5;

const NOT_FOUND: u32 = 5;
const INTERNAL: u32 = 13;
const UNAVAILABLE: u32 = 14;

/// How a call ended that did not go well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    code: u32,
    message: String,
}

impl Failure {
    fn internal(message: impl fmt::Display) -> Self {
        Self { code: INTERNAL, message: message.to_string() }
    }

    fn gone(message: impl fmt::Display) -> Self {
        Self { code: UNAVAILABLE, message: format!("the client went away: {message}") }
    }

    /// What was asked for is not there.
    pub(super) fn is_not_found(&self) -> bool {
        self.code == NOT_FOUND
    }

    /// What an answer says at its end; `None` if it says nothing yet.
    fn of(headers: &HeaderMap) -> Option<Result<(), Self>> {
        let code: u32 = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
        if code == 0 {
            return Some(Ok(()));
        }
        let message = headers.get("grpc-message").map(|value| decoded(value.as_bytes())).unwrap_or_default();
        Some(Err(Self { code, message }))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message.is_empty() {
            true => write!(f, "status {}", self.code),
            false => f.write_str(&self.message),
        }
    }
}

impl From<Failure> for insula_engine::Error {
    fn from(failure: Failure) -> Self {
        match failure.code {
            NOT_FOUND => Self::NotFound(failure.to_string()),
            UNAVAILABLE => Self::Unavailable(failure.to_string()),
            _ => Self::InvalidArgument(failure.to_string()),
        }
    }
}

/// Signs of `grpc-message` that are written `%XX`.
fn decoded(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A connection on which a client answers.
#[derive(Debug, Clone)]
pub(super) struct Channel(SendRequest<Body>);

impl Channel {
    /// Begins, and has `ended` run when the connection is no more.
    pub(super) async fn open<S>(stream: S, ended: impl FnOnce() + Send + 'static) -> Result<Self, Failure>
    where
        S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (sender, connection) = builder.handshake(stream).await.map_err(Failure::gone)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a session with a client ended");
            }
            ended();
        });
        Ok(Self(sender))
    }

    /// One question and its answer.
    pub(super) async fn ask<A: Message + Default>(
        &self,
        method: &str,
        question: &impl Message,
    ) -> Result<A, Failure> {
        let mut call = self.call(method, &[])?;
        call.send(question).await?;
        call.end();
        let answer = call.next::<A>().await?;
        answer.ok_or_else(|| Failure::internal(format!("{method} was not answered")))
    }

    /// A call with messages both ways.
    pub(super) fn call(&self, method: &str, more: &[(&'static str, String)]) -> Result<Call, Failure> {
        let (sender, receiver) = mpsc::channel::<Bytes>(WAITING);
        let body = stream::unfold(receiver, |mut receiver| async {
            let bytes = receiver.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(bytes), receiver))
        });
        let mut request = Request::new(Body::from_stream(body));
        *request.version_mut() = Version::HTTP_2;
        *request.method_mut() = http::Method::POST;
        let address = format!("http://localhost{method}");
        *request.uri_mut() = address.parse().map_err(Failure::internal)?;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        for (name, value) in more {
            let value = HeaderValue::from_bytes(value.as_bytes()).map_err(Failure::internal)?;
            headers.append(HeaderName::from_static(name), value);
        }
        let mut channel = self.0.clone();
        let answer = Box::pin(async move { channel.send_request(request).await });
        Ok(Call { sender: Some(sender), answer: Answer::Asked(answer), read: BytesMut::new() })
    }
}

type Asked = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

enum Answer {
    Asked(Asked),
    Coming(Incoming),
    Ended,
}

/// A call that goes on.
pub(super) struct Call {
    sender: Option<mpsc::Sender<Bytes>>,
    answer: Answer,
    read: BytesMut,
}

impl Call {
    /// Sends a message. The answer has to be read beside, since nothing is sent before the call begins.
    pub(super) async fn send(&mut self, message: &impl Message) -> Result<(), Failure> {
        let bytes = framed(message);
        let Some(sender) = self.sender.clone() else {
            return Err(Failure::internal("the call was ended"));
        };
        loop {
            let Answer::Asked(answer) = &mut self.answer else {
                return sender.send(bytes).await.map_err(|_| Failure::gone("it ended a call"));
            };
            tokio::select! {
                biased;
                room = sender.reserve() => {
                    room.map_err(|_| Failure::gone("it ended a call"))?.send(bytes);
                    return Ok(());
                }
                answer = answer => self.begun(answer.map_err(Failure::gone)?)?,
            }
        }
    }

    /// Nothing more is sent.
    pub(super) fn end(&mut self) {
        self.sender = None;
    }

    fn begun(&mut self, response: Response<Incoming>) -> Result<(), Failure> {
        // One without messages has its end in front.
        if let Some(Err(failure)) = Failure::of(response.headers()) {
            self.answer = Answer::Ended;
            return Err(failure);
        }
        if !response.status().is_success() {
            return Err(Failure::internal(format!("the client answers with HTTP {}", response.status())));
        }
        self.answer = Answer::Coming(response.into_body());
        Ok(())
    }

    /// The next message; `None` at the end.
    pub(super) async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Failure> {
        loop {
            if let Some(message) = taken(&mut self.read)? {
                return M::decode(message).map(Some).map_err(Failure::internal);
            }
            match &mut self.answer {
                Answer::Asked(answer) => {
                    let response = answer.await.map_err(Failure::gone)?;
                    self.begun(response)?;
                }
                Answer::Ended => return Ok(None),
                Answer::Coming(body) => match body.frame().await.transpose().map_err(Failure::gone)? {
                    None => self.answer = Answer::Ended,
                    Some(frame) => match frame.into_data() {
                        Ok(data) => self.read.extend_from_slice(&data),
                        Err(frame) => {
                            self.answer = Answer::Ended;
                            let trailers = frame.into_trailers().unwrap_or_default();
                            Failure::of(&trailers).unwrap_or(Ok(()))?;
                        }
                    },
                },
            }
        }
    }
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(HEAD + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // There is room for all of it.
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

/// A whole message, taken off what was read.
fn taken(read: &mut BytesMut) -> Result<Option<Bytes>, Failure> {
    let Some(head) = read.first_chunk::<HEAD>() else { return Ok(None) };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 || length > MESSAGE_MAX {
        return Err(Failure::internal(format!("a message is compressed or larger than {MESSAGE_MAX} bytes")));
    }
    if read.len() < HEAD + length {
        return Ok(None);
    }
    read.advance(HEAD);
    Ok(Some(read.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use super::super::messages::BytesMessage;
    use super::*;

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let sent: Vec<Bytes> =
            [&b"one"[..], b"", b"three"].map(|data| framed(&BytesMessage { data: data.into() })).into();
        let (mut read, mut found) = (BytesMut::new(), Vec::new());
        for byte in sent.concat() {
            read.put_u8(byte);
            while let Some(message) = taken(&mut read).unwrap() {
                found.push(BytesMessage::decode(message).unwrap().data);
            }
        }
        assert_eq!(found, ["one", "", "three"]);
        for wrong in [&[1, 0, 0, 0, 0][..], &[0, 0xff, 0, 0, 0]] {
            assert!(taken(&mut BytesMut::from(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn ends_say_why() {
        let mut headers = HeaderMap::new();
        assert_eq!(Failure::of(&headers), None);
        headers.insert("grpc-status", HeaderValue::from_static("5"));
        headers.insert("grpc-message", HeaderValue::from_static("not%20here 100%"));
        let failure = Failure::of(&headers).unwrap().unwrap_err();
        assert!(failure.is_not_found());
        assert_eq!(failure.to_string(), "not here 100%");
        headers.insert("grpc-status", HeaderValue::from_static("0"));
        assert_eq!(Failure::of(&headers), Some(Ok(())));
    }
}
