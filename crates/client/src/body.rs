//! Bodies of requests.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use insula_base::thread;
use tokio::sync::mpsc;

/// The body of a request.
#[derive(Debug)]
pub enum RequestBody {
    /// None.
    Empty,
    /// Whole, with its length.
    Bytes(Option<Bytes>),
    /// Of unknown length, as it comes.
    Upload(Upload),
}

impl RequestBody {
    /// A body that is there already.
    #[must_use]
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::Bytes(Some(bytes.into()))
    }

    /// The same body for another attempt; an upload goes once.
    pub(crate) fn again(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Bytes(bytes) => Some(Self::Bytes(bytes.clone())),
            Self::Upload(_) => None,
        }
    }
}

/// A body that a thread fills by reading a blocking source.
#[derive(Debug)]
pub struct Upload {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    /// Sent before them.
    head: Option<Bytes>,
    /// Nothing comes after that.
    whole: bool,
}

/// Read and sent at once.
const CHUNK: usize = 256 << 10;

impl Upload {
    /// Nothing, and its length says so: a daemon that has no need of it answers and closes, and would find the end of a
    /// body of unknown length unread.
    #[must_use]
    pub fn empty() -> Self {
        Self { chunks: mpsc::channel(1).1, head: None, whole: true }
    }

    /// The same with something in front of it.
    #[must_use]
    pub fn after(self, head: impl Into<Bytes>) -> Self {
        Self { head: Some(head.into()), ..self }
    }

    /// Reads `source` to its end in a thread of its own, a few chunks ahead of the connection.
    pub fn read<R: io::Read + Send + 'static>(mut source: R) -> Self {
        let (sender, receiver) = mpsc::channel(4);
        let failed = sender.clone();
        let reading = thread::spawn("read", move || {
            loop {
                let mut chunk = vec![0; CHUNK];
                let item = match source.read(&mut chunk) {
                    Ok(0) => return,
                    Ok(count) => {
                        chunk.truncate(count);
                        Ok(Bytes::from(chunk))
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(error),
                };
                let last = item.is_err();
                // The receiver is gone when the request was given up.
                if sender.blocking_send(item).is_err() || last {
                    return;
                }
            }
        });
        tell(reading, &failed);
        Self { chunks: receiver, head: None, whole: false }
    }

    /// A body that `write` produces in a thread of its own.
    pub fn write<F>(write: F) -> Self
    where
        F: FnOnce(&mut dyn io::Write) -> io::Result<()> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(4);
        let failed = sender.clone();
        let writing = thread::spawn("write", move || {
            let mut sink = io::BufWriter::with_capacity(CHUNK, Sink(sender.clone()));
            let result = write(&mut sink).and_then(|()| io::Write::flush(&mut sink));
            if let Err(error) = result {
                // As above; and a broken pipe is the connection's own error, reported there.
                let _ = sender.blocking_send(Err(error));
            }
        });
        tell(writing, &failed);
        Self { chunks: receiver, head: None, whole: false }
    }
}

/// A body that no thread could be had for ends at once with that.
fn tell(started: io::Result<JoinHandle<()>>, body: &mpsc::Sender<io::Result<Bytes>>) {
    if let Err(error) = started {
        // There is room, and who would read it is here.
        let _ = body.try_send(Err(error));
    }
}

struct Sink(mpsc::Sender<io::Result<Bytes>>);

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(bytes)))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Bytes(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Upload(upload) => match upload.head.take() {
                Some(head) => Poll::Ready(Some(Ok(Frame::data(head)))),
                None => {
                    let chunk = upload.chunks.poll_recv(context);
                    chunk.map(|item| item.map(|chunk| chunk.map(Frame::data)))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Bytes(None) => true,
            Self::Bytes(Some(_)) => false,
            Self::Upload(upload) => upload.whole && upload.head.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Bytes(None) => SizeHint::with_exact(0),
            Self::Bytes(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Upload(upload) if upload.whole => {
                SizeHint::with_exact(upload.head.as_ref().map_or(0, |head| head.len() as u64))
            }
            Self::Upload(_) => SizeHint::default(),
        }
    }
}
