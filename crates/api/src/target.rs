//! Targets with characters that no URI has, raw quotes of JSON above all (`?filters={"status":["running"]}`). Go's
//! server takes them as they are, so people and clients send them; HTTP here refuses them without a word
//! (RFC 3986, section 3.4). What begins a request is looked at before HTTP sees it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// Says of a connection when the head of a request comes next.
#[derive(Debug, Clone)]
pub(crate) struct Next(Arc<AtomicBool>);

/// An answer that is under way.
#[derive(Debug)]
pub(crate) struct After(Next);

impl Next {
    /// From when that is dropped on. Nothing of a body may come then: what is mended is longer.
    pub(crate) fn after(self) -> After {
        After(self)
    }

    /// It has come, perhaps with others before it: a body may follow.
    pub(crate) fn is_here(&self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Drop for After {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Release);
    }
}

/// A connection whose requests have URIs for targets, whatever the client has written.
#[derive(Debug)]
pub(crate) struct Mending {
    stream: UnixStream,
    head_is_next: Arc<AtomicBool>,
    /// What was mended and is not read yet.
    mended: Vec<u8>,
}

impl Mending {
    /// The first to come is the head of a request.
    pub(crate) fn new(stream: UnixStream) -> (Self, Next) {
        let head_is_next = Arc::new(AtomicBool::new(true));
        let next = Next(Arc::clone(&head_is_next));
        (Self { stream, head_is_next, mended: Vec::new() }, next)
    }

    /// The connection, and what was taken from it that nobody has read.
    pub(crate) fn into_parts(self) -> (UnixStream, Vec<u8>) {
        (self.stream, self.mended)
    }

    fn give_mended(&mut self, buffer: &mut ReadBuf<'_>) {
        let count = self.mended.len().min(buffer.remaining());
        buffer.put_slice(&self.mended[..count]);
        self.mended.drain(..count);
    }
}

impl AsyncRead for Mending {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.mended.is_empty() {
            this.give_mended(buffer);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        let read = &buffer.filled()[before..];
        if !read.is_empty()
            && this.head_is_next.swap(false, Ordering::AcqRel)
            && let Some(Mended { length, line }) = mended(read)
        {
            this.mended = [line.as_slice(), &read[length..]].concat();
            buffer.set_filled(before);
            this.give_mended(buffer);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Mending {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The beginning of a request whose target is written as a URI.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mended {
    /// Bytes of what it stands for.
    length: usize,
    line: Vec<u8>,
}

/// The first line of a request, up to its end, if its target has to be mended and can be.
fn mended(bytes: &[u8]) -> Option<Mended> {
    let length = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'))?;
    let line = std::str::from_utf8(&bytes[..length]).ok()?;
    let mut words = line.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let is_one = words.next().is_none() && target.starts_with('/') && version.starts_with("HTTP/1.");
    if !is_one || target.parse::<http::uri::PathAndQuery>().is_ok() {
        return None;
    }
    let encoded = encoded(target);
    encoded.parse::<http::uri::PathAndQuery>().ok()?;
    Some(Mended { length, line: format!("{method} {encoded} {version}").into_bytes() })
}

/// Everything but what section 2 of RFC 3986 has names for, and percent signs, which encode already.
fn encoded(target: &str) -> String {
    let mut encoded = String::with_capacity(2 * target.len());
    for byte in target.bytes() {
        match byte {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x7f.. => {
                encoded.push_str(&format!("%{byte:02X}"));
            }
            byte => encoded.push(char::from(byte)),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn only_the_beginnings_of_requests_are_mended() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (mut stream, next) = Mending::new(ours);
        let line = "GET /x?\"a\" HTTP/1.1\r\n";
        let mended = "GET /x?%22a%22 HTTP/1.1\r\n";
        let mut read = async |meant: &str| {
            theirs.write_all(line.as_bytes()).await.unwrap();
            let mut all = Vec::new();
            while all.len() < meant.len() {
                // Room for the line as it was, and not for what it becomes.
                let mut piece = [0; 25];
                let count = stream.read(&mut piece).await.unwrap();
                all.extend_from_slice(&piece[..count]);
            }
            assert_eq!(String::from_utf8(all).unwrap(), meant);
        };
        read(mended).await;
        // A body, or what follows an upgrade.
        read(line).await;
        drop(next.after());
        read(mended).await;
        read(line).await;
        let (_, unread) = stream.into_parts();
        assert!(unread.is_empty());
    }

    #[test]
    fn only_what_no_uri_has_is_mended() {
        let head = b"GET /containers/json?filters={\"name\":[\"a b\"]} HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(mended(head), None, "with a blank it is no request at all");
        let head =
            b"GET /containers/json?all=1&filters={\"name\":[\"x%20\xc3\xa9\"]} HTTP/1.1\r\nHost: x\r\n\r\n";
        let mended = super::mended(head).unwrap();
        let line = "GET /containers/json?all=1&filters=%7B%22name%22:[%22x%20%C3%A9%22]%7D HTTP/1.1";
        assert_eq!(String::from_utf8(mended.line).unwrap(), line);
        assert_eq!(&head[mended.length..mended.length + 2], b"\r\n");
        for whole in [
            "GET /containers/json?filters=%7B%22a%22%3A1%7D HTTP/1.1\r\n",
            "GET /containers/json HTTP/1.1\r\n",
            "GET /x?\"y",
            "* \"x\" HTTP/1.1\r\n",
            "GET x?\" HTTP/1.1\r\n",
            "PRI * HTTP/2.0\r\n",
            "",
        ] {
            assert_eq!(super::mended(whole.as_bytes()), None, "{whole}");
        }
    }
}
