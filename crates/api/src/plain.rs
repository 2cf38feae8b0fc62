//! `attach` and `exec start` of clients that do not ask to upgrade: the answer is `200 OK` without a
//! length, and the connection is the streams from there on, both ways.
//!
//! That is no HTTP, so such a request is recognised before HTTP sees it: by a look at the head of the
//! first request of a connection, which is where these clients send it. Others (a kept-alive
//! connection, a body in chunks) get the same streams as bodies.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::header;
use http_body_util::BodyExt;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::hijack::Taken;

/// The largest head that is looked at.
const MAX_HEAD: usize = 8 << 10;
/// The largest body of `exec start`.
const MAX_BODY: usize = 64 << 10;
const MAX_HEADERS: usize = 64;

/// Beside a request: where its connection will come from once the answer is written.
#[derive(Debug, Clone)]
pub(crate) struct Promise(Arc<Mutex<Option<oneshot::Receiver<Taken>>>>);

impl Promise {
    /// The connection, for the one who asks first.
    pub(crate) fn claim(&self) -> Option<oneshot::Receiver<Taken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Beside an answer: the connection is awaited.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claimed;

/// The head of a request that takes its connection over without saying so.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    length: usize,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: usize,
}

/// A look at the first bytes of a connection; nothing is taken from it.
pub(crate) async fn look(stream: &UnixStream) -> io::Result<Option<Head>> {
    let mut bytes = vec![0; MAX_HEAD];
    loop {
        stream.readable().await?;
        let peek = || Ok(recv(stream, &mut bytes, RecvFlags::PEEK | RecvFlags::DONTWAIT)?.1);
        match stream.try_io(Interest::READABLE, peek) {
            Ok(count) => return Ok(parse(&bytes[..count])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Recognises such a request when its head is complete.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Head> {
    if !bytes.starts_with(b"POST /") {
        return None;
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(bytes).ok()? else { return None };
    let target = request.path?;
    let path = target.split('?').next()?;
    let takes_over = (path.contains("/containers/") && path.ends_with("/attach"))
        || (path.contains("/exec/") && path.ends_with("/start"));
    let is = |header: &httparse::Header<'_>, name: &str| header.name.eq_ignore_ascii_case(name);
    let framed = |header: &httparse::Header<'_>| {
        ["upgrade", "transfer-encoding", "expect"].iter().any(|name| is(header, name))
    };
    if !takes_over || request.headers.iter().any(framed) {
        return None;
    }
    let body = match request.headers.iter().find(|header| is(header, "content-length")) {
        Some(header) => std::str::from_utf8(header.value).ok()?.trim().parse().ok()?,
        None => 0,
    };
    let headers = request.headers.iter().map(|header| (header.name.to_owned(), header.value.to_vec()));
    (body <= MAX_BODY).then(|| Head { length, target: target.to_owned(), headers: headers.collect(), body })
}

/// Answers the request with `answer`, and gives the connection up if that claims it.
pub(crate) async fn serve<F>(
    mut stream: UnixStream,
    head: Head,
    answer: impl FnOnce(Request) -> F,
) -> io::Result<()>
where
    F: Future<Output = Response>,
{
    let mut skipped = vec![0; head.length];
    stream.read_exact(&mut skipped).await?;
    let mut body = vec![0; head.body];
    stream.read_exact(&mut body).await?;
    let mut request = Request::builder().method("POST").uri(&head.target);
    for (name, value) in head.headers {
        request = request.header(name, value);
    }
    let mut request = request.body(Body::from(body)).map_err(io::Error::other)?;
    let (sender, receiver) = oneshot::channel();
    request.extensions_mut().insert(Promise(Arc::new(Mutex::new(Some(receiver)))));
    let (parts, body) = answer(request).await.into_parts();
    let claimed = parts.extensions.get::<Claimed>().is_some();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut written = format!(
        "HTTP/1.1 {} {}\r\n",
        parts.status.as_u16(),
        parts.status.canonical_reason().unwrap_or_default()
    )
    .into_bytes();
    // The router counts an empty body; here it is the connection that goes on.
    for (name, value) in parts.headers.iter().filter(|(name, _)| *name != header::CONTENT_LENGTH) {
        written.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    if !claimed {
        written
            .extend_from_slice(format!("content-length: {}\r\nconnection: close\r\n", body.len()).as_bytes());
    }
    written.extend_from_slice(b"\r\n");
    written.extend_from_slice(&body);
    stream.write_all(&written).await?;
    if claimed {
        let taken = Taken { descriptor: stream.into_std()?.into(), already_read: Vec::new() };
        // Whoever claimed it may have been dropped with the daemon's end.
        let _ = sender.send(taken);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_for_streams_are_taken() {
        let head =
            parse(b"POST /v1.41/containers/web/attach?stream=1 HTTP/1.1\r\nHost: x\r\n\r\nearly").unwrap();
        assert_eq!((head.target.as_str(), head.body), ("/v1.41/containers/web/attach?stream=1", 0));
        let exec =
            b"POST /exec/1/start HTTP/1.1\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}";
        let head = parse(exec).unwrap();
        assert_eq!((head.body, head.length + 2, head.headers.len()), (2, exec.len(), 2));
        for other in [
            "POST /containers/web/attach HTTP/1.1\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\n",
            "POST /containers/web/attach HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST /containers/web/attach HTTP/1.1\r\nHost: x\r\n",
            "POST /exec/1/start HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
            "POST /exec/1/start HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "POST /containers/web/start HTTP/1.1\r\n\r\n",
            "GET /containers/web/attach HTTP/1.1\r\n\r\n",
            "",
        ] {
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
    }
}
