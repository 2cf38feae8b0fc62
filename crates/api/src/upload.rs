//! The body of a request, for a thread that may block.

use std::io::{self, BufRead, Read};

use axum::body::{Body, BodyDataStream};
use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use tokio::runtime::Handle;

/// Reads what a client sends, piece by piece as it comes, without a copy.
#[derive(Debug)]
pub(crate) struct Upload {
    body: BodyDataStream,
    current: Bytes,
    ended: bool,
    runtime: Handle,
}

impl Upload {
    /// To be called in the runtime that serves the connection, and read outside of it.
    pub(crate) fn new(body: Body) -> Self {
        let body = body.into_data_stream();
        Self { body, current: Bytes::new(), ended: false, runtime: Handle::current() }
    }
}

impl BufRead for Upload {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.runtime.block_on(self.body.next()) {
                Some(Ok(bytes)) => self.current = bytes,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => self.ended = true,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, count: usize) {
        self.current.advance(count);
    }
}

impl Read for Upload {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_in_order_and_an_error_is_no_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let upload = |pieces: Vec<io::Result<&'static str>>| {
            let _inside = runtime.enter();
            Upload::new(Body::from_stream(futures_util::stream::iter(pieces)))
        };
        let mut text = String::new();
        upload(vec![Ok("one "), Ok(""), Ok("two")]).read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
        let mut cut = upload(vec![Ok("one"), Err(io::Error::other("the client went away"))]);
        let error = cut.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(insula_base::chain(&error).contains("went away"), "{error}");
    }
}
