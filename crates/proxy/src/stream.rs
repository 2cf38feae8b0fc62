//! A client's connection, whose first bytes can be read twice, and which notices when the client takes nothing of
//! what is sent to it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::limits;

/// Fails writes that make no progress for [`limits::STALL`]. Waiting for the client to say something is no stall.
#[derive(Debug)]
pub(crate) struct ClientStream<S> {
    inner: S,
    /// Read before, and to be read again.
    begin: Bytes,
    /// Runs while the client is waited for.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<S> ClientStream<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, begin: Bytes::new(), patience: None }
    }

    /// What was read of it comes again, before everything else.
    pub(crate) fn unread(&mut self, bytes: Vec<u8>) {
        self.begin = bytes.into();
    }

    fn watch<T>(&mut self, polled: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.patience = None;
            return polled;
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(limits::STALL)));
        patience.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.begin.is_empty() {
            let count = self.begin.len().min(buffer.remaining());
            buffer.put_slice(&self.begin[..count]);
            self.begin.advance(count);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.watch(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(context, parts);
        self.watch(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn the_beginning_is_read_twice() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut ours = ClientStream::new(ours);
        theirs.write_all(b"PRI and more").await.unwrap();
        let mut first = [0; 3];
        ours.read_exact(&mut first).await.unwrap();
        ours.unread(first.to_vec());
        let mut all = [0; 12];
        ours.read_exact(&mut all).await.unwrap();
        assert_eq!(&all, b"PRI and more");
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_given_up() {
        let (ours, _theirs) = tokio::io::duplex(4);
        let mut ours = ClientStream::new(ours);
        ours.write_all(b"four").await.unwrap();
        let error = ours.write_all(b"more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // And who takes something, however late, is not.
        let (ours, mut theirs) = tokio::io::duplex(4);
        let mut ours = ClientStream::new(ours);
        ours.write_all(b"four").await.unwrap();
        let late = async {
            tokio::time::sleep(limits::STALL / 2).await;
            theirs.read_exact(&mut [0; 4]).await.unwrap();
        };
        let (written, ()) = tokio::join!(ours.write_all(b"more"), late);
        written.unwrap();
    }
}
