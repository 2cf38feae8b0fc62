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
/// Pieces in which a head may come; one of more is left to HTTP. What is only looked at stays in the socket's
/// buffer, and a few hundred pieces fill it, however small they are.
const MAX_PIECES: usize = 64;

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

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// One of these requests.
    Takeover(Head),
    /// Something for HTTP to answer: a complete head, one that is longer than we look, or no HTTP at all.
    Http,
    /// There is more to come.
    Partial,
}

/// Waits for the head of the first request, and looks at it; nothing is taken from the connection. A client
/// that closes its side before is at its end: `Partial`.
pub(crate) async fn look(stream: &UnixStream) -> io::Result<Look> {
    for _ in 0..MAX_PIECES {
        let ready = stream.ready(Interest::READABLE).await?;
        let peeked = stream.try_io(Interest::READABLE, || match peek(stream)? {
            // Only this makes the next call wait for more bytes.
            Look::Partial if !ready.is_read_closed() => Err(io::ErrorKind::WouldBlock.into()),
            other => Ok(other),
        });
        match peeked {
            Ok(look) => return Ok(look),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Look::Http)
}

/// A look at what is there by now.
pub(crate) fn peek(stream: &UnixStream) -> io::Result<Look> {
    // Here, not beside the waiting: it costs memory only while it is looked at.
    let mut bytes = [0; MAX_HEAD];
    let count = recv(stream, &mut bytes, RecvFlags::PEEK | RecvFlags::DONTWAIT)?.1;
    Ok(first(&bytes[..count]))
}

fn first(bytes: &[u8]) -> Look {
    if let Some(head) = parse(bytes) {
        return Look::Takeover(head);
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    match httparse::Request::new(&mut headers).parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => Look::Partial,
        _ => Look::Http,
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

    #[test]
    fn a_head_is_awaited_and_nothing_else() {
        for partial in ["", "G", "GET / HTTP/1.1\r\nHost: x\r\nX-Half", "POST /exec/1/start HTTP/1.1\r\n"] {
            assert_eq!(first(partial.as_bytes()), Look::Partial, "{partial}");
        }
        let long = format!("GET / HTTP/1.1\r\nX-Long: {}", "x".repeat(MAX_HEAD));
        for http in ["GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02", "PRI * HTTP/2.0\r\n", &long[..MAX_HEAD]] {
            assert_eq!(first(http.as_bytes()), Look::Http, "{http}");
        }
        let attach = b"POST /containers/web/attach HTTP/1.1\r\nHost: x\r\n\r\n";
        assert!(matches!(first(attach), Look::Takeover(_)));
    }

    #[tokio::test]
    async fn a_head_may_come_in_pieces() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let (look, ()) = tokio::join!(look(&server), async {
            for piece in ["POST /containers/web", "/attach HTTP/1.1\r\nHo", "st: x\r\n", "\r\n"] {
                client.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        assert!(matches!(look.unwrap(), Look::Takeover(_)));
    }

    #[tokio::test]
    async fn who_leaves_early_is_not_awaited() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let (look, ended) = tokio::join!(look(&server), client.shutdown());
        ended.unwrap();
        assert_eq!(look.unwrap(), Look::Partial);
    }
}
