//! Bytes on their way from an archive to a layer: stages in threads of their own with bounded
//! channels between them, so that reading, decompressing, hashing and writing overlap.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use bytes::{Buf as _, Bytes};
use insula_base::{Digest, thread};
use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// Bytes of one chunk: few switches between threads, and still in the second-level cache.
const CHUNK: usize = 256 << 10;
/// Chunks that may wait between two stages.
const WAITING: usize = 4;
/// zstd's window, as a power of two: what the format asks every decoder to support is 2^23,
/// `--long` goes to 2^27.
const ZSTD_WINDOW_LOG: u32 = 27;
/// Bytes that decompressing xz may take: what its best preset needs, twice over.
const XZ_MEMORY: u64 = 192 << 20;
/// Bytes that tell a compression: bzip2's own and those of its first block.
const MAGIC: u64 = 10;
/// Decompressed bytes that wait for a reader of few at a time.
const DECODED: usize = 128 << 10;

/// Where a stage reads from.
#[derive(Debug)]
pub(crate) struct Chunks {
    receiver: Receiver<io::Result<Bytes>>,
    current: Bytes,
    ended: bool,
}

/// Where a stage writes to. Dropping it is the end of the stream.
pub(crate) type Sender = SyncSender<io::Result<Bytes>>;

/// A channel between two stages.
pub(crate) fn channel() -> (Sender, Chunks) {
    let (sender, receiver) = sync_channel(WAITING);
    (sender, Chunks { receiver, current: Bytes::new(), ended: false })
}

impl Chunks {
    /// At most `max` bytes, without a copy; `None` at the end.
    pub(crate) fn chunk(&mut self, max: usize) -> io::Result<Option<Bytes>> {
        self.wait()?;
        if self.current.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.current.split_to(max.min(self.current.len()))))
    }

    /// The next bytes, at least `count` unless the stream ends before, without reading them.
    pub(crate) fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        self.wait()?;
        while self.current.len() < count && !self.ended {
            let first = std::mem::take(&mut self.current);
            self.wait()?;
            self.current = [first, std::mem::take(&mut self.current)].concat().into();
        }
        Ok(&self.current)
    }

    fn wait(&mut self) -> io::Result<()> {
        while self.current.is_empty() && !self.ended {
            match self.receiver.recv() {
                Ok(Ok(bytes)) => self.current = bytes,
                Ok(Err(error)) => {
                    self.ended = true;
                    return Err(error);
                }
                Err(_) => self.ended = true,
            }
        }
        Ok(())
    }
}

impl Read for Chunks {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.len().min(into.len());
        into[..count].copy_from_slice(&self.current[..count]);
        self.current.advance(count);
        Ok(count)
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.wait()?;
        Ok(&self.current)
    }

    fn consume(&mut self, count: usize) {
        self.current.advance(count);
    }
}

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    /// No blob of an image: the OCI has no media type for these two.
    Xz,
    Bzip2,
}

impl Compression {
    /// By the first bytes (RFC 1952 section 2.3.1; RFC 8878 section 3.1.1, and its skippable frames; the
    /// .xz format's section 2.1.1.1; of bzip2 those of a first block, or of the end of what is empty, too).
    pub(crate) fn of(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => Self::Bzip2,
            _ => Self::None,
        }
    }
}

/// What a stream holds that is plain or compressed with gzip, zstd, xz or bzip2, told by its first bytes.
/// Each takes bounded memory: bzip2 4 MB at most, the others what is said above.
pub fn decompressed<'a>(mut input: impl BufRead + Send + 'a) -> io::Result<Box<dyn BufRead + Send + 'a>> {
    // A buffer that holds fewer is refilled by the chain.
    let mut magic = Vec::new();
    input.by_ref().take(MAGIC).read_to_end(&mut magic)?;
    let compression = Compression::of(&magic);
    let input = Read::chain(io::Cursor::new(magic), input);
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => buffered(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            buffered(decoder)
        }
        Compression::Xz => {
            let stream =
                liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
            buffered(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
        Compression::Bzip2 => buffered(bzip2::bufread::MultiBzDecoder::new(input)),
    })
}

fn buffered<'a>(decoder: impl Read + Send + 'a) -> Box<dyn BufRead + Send + 'a> {
    Box::new(BufReader::with_capacity(DECODED, decoder))
}

/// Reads, decompresses and sends until the end, an error, or until nobody listens. What was sent
/// is hashed too, if asked for.
pub(crate) fn pump(input: impl BufRead + Send, sender: &Sender, hashing: Option<&Hashing<'_>>) {
    let result = decompressed(input).and_then(|mut decoded| {
        loop {
            let mut chunk = vec![0; CHUNK];
            let count = fill(&mut decoded, &mut chunk)?;
            chunk.truncate(count);
            let chunk = Bytes::from(chunk);
            if let Some(hashing) = hashing {
                hashing.update(&chunk);
            }
            if count == 0 || sender.send(Ok(chunk)).is_err() {
                return Ok(());
            }
        }
    });
    if let Err(error) = result {
        // That nobody listens any more is no matter: whoever stopped has an error of its own.
        let _ = sender.send(Err(error));
    }
}

/// Reads and sends until the end, an error, or until nobody listens.
pub(crate) fn pump_plain(input: &mut impl Read, sender: &Sender) {
    loop {
        let mut chunk = vec![0; CHUNK];
        let filled = fill(input, &mut chunk).map(|count| {
            chunk.truncate(count);
            Bytes::from(chunk)
        });
        let end = filled.as_ref().map_or(true, |chunk| chunk.is_empty());
        let ended = filled.as_ref().is_ok_and(|chunk| chunk.is_empty());
        if ended || sender.send(filled).is_err() || end {
            return;
        }
    }
}

fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A thread that hashes what it is sent.
#[derive(Debug)]
pub(crate) struct Hashing<'scope> {
    sender: SyncSender<Bytes>,
    thread: ScopedJoinHandle<'scope, Digest>,
}

impl<'scope> Hashing<'scope> {
    pub(crate) fn start<'env>(scope: &'scope Scope<'scope, 'env>) -> Result<Self> {
        let (sender, receiver) = sync_channel::<Bytes>(WAITING);
        let thread = thread::scoped(scope, "hash", move || {
            let mut hash = Sha256::new();
            for bytes in receiver {
                hash.update(&bytes);
            }
            Digest::from_sha256(&hash.finalize().into())
        });
        Ok(Self { sender, thread: thread.map_err(Error::Thread)? })
    }

    /// Adds bytes.
    pub(crate) fn update(&self, bytes: &Bytes) {
        // The thread ends only with its sender.
        let _ = self.sender.send(bytes.clone());
    }

    /// The digest of all bytes.
    pub(crate) fn finish(self) -> Digest {
        drop(self.sender);
        match self.thread.join() {
            Ok(digest) => digest,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn through(input: &[u8]) -> io::Result<Vec<u8>> {
        std::thread::scope(|scope| {
            let (sender, mut chunks) = channel();
            scope.spawn(move || pump(input, &sender, None));
            let mut out = Vec::new();
            chunks.read_to_end(&mut out).map(|_| out)
        })
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_compression_is_recognised() {
        let plain: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
        assert_eq!(through(&plain).unwrap(), plain);
        assert_eq!(through(&gzip(&plain)).unwrap(), plain);
        // Members and frames may follow one another.
        let twice = [gzip(&plain[..1000]), gzip(&plain[1000..])].concat();
        assert_eq!(through(&twice).unwrap(), plain);
        assert_eq!(through(&zstd::encode_all(&plain[..], 1).unwrap()).unwrap(), plain);
        let xz = |bytes: &[u8]| {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let bzip2 = |bytes: &[u8]| {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        for compress in [&xz as &dyn Fn(&[u8]) -> Vec<u8>, &bzip2] {
            let twice = [compress(&plain[..1000]), compress(&plain[1000..])].concat();
            assert!(through(&twice).unwrap() == plain);
            assert!(through(&twice[..twice.len() - 20]).is_err());
            assert_eq!(through(&compress(b"")).unwrap(), b"");
        }
        assert_eq!(through(b"").unwrap(), b"");
        assert_eq!(through(b"abc").unwrap(), b"abc");
    }

    #[test]
    fn damaged_streams_are_errors_and_not_ends() {
        let bytes = gzip(&vec![7; 100_000]);
        assert!(through(&bytes[..bytes.len() - 9]).is_err());
        let bytes = zstd::encode_all(&vec![7; 100_000][..], 1).unwrap();
        assert!(through(&bytes[..bytes.len() - 2]).is_err());
        assert!(through(&[0x1f, 0x8b, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn hashing_agrees_with_the_known_digest() {
        let digest = std::thread::scope(|scope| {
            let hashing = Hashing::start(scope).unwrap();
            hashing.update(&Bytes::from_static(b"ab"));
            hashing.update(&Bytes::from_static(b"c"));
            hashing.finish()
        });
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.hex(), known);
    }
}
