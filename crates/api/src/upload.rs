//! The body of a request, for a thread that may block.

use std::io::{self, BufRead, Read};

use axum::body::Body;
use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

/// Pieces that are read ahead, of 64 KiB at most: who takes them and who reads them seldom wait for each
/// other.
const AHEAD: usize = 8;

/// Reads what a client sends, piece by piece as it comes, without a copy.
#[derive(Debug)]
pub(crate) struct Upload {
    /// `None` is the end.
    pieces: mpsc::Receiver<io::Result<Option<Bytes>>>,
    current: Bytes,
    ended: bool,
}

impl Upload {
    /// To be called in the runtime that serves the connection, and read outside of it.
    pub(crate) fn new(body: Body) -> Self {
        let (sender, pieces) = mpsc::channel(AHEAD);
        tokio::spawn(read_ahead(body, sender));
        Self { pieces, current: Bytes::new(), ended: false }
    }
}

async fn read_ahead(body: Body, sender: mpsc::Sender<io::Result<Option<Bytes>>>) {
    let mut body = body.into_data_stream();
    loop {
        let piece = tokio::select! {
            piece = body.next() => piece,
            // Nobody wants the rest.
            () = sender.closed() => return,
        };
        let piece = piece.transpose().map_err(io::Error::other);
        let last = !matches!(piece, Ok(Some(_)));
        if sender.send(piece).await.is_err() || last {
            return;
        }
    }
}

impl BufRead for Upload {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            // Without an end the rest is lost: the daemon ends.
            let piece = self.pieces.blocking_recv().ok_or(io::ErrorKind::UnexpectedEof)??;
            match piece {
                Some(bytes) => self.current = bytes,
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
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
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
