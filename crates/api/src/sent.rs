//! A file that a client on this host hands over as a descriptor: its bytes do not go through the connection.
//!
//! ```text
//! client   length of a tar's beginning (4 bytes, big-endian) and of the file (8 bytes), the descriptor with the
//!          first of them; then the beginning: the file's header in the tar, and what extends it
//! daemon   a line of JSON: {"status":200,"message":""}
//! ```
//!
//! What is unpacked is a tar like any other: the beginning, the bytes of the file, zeros to its end.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::error::ApiError;

/// The two lengths.
const LENGTHS: usize = 12;
/// A header and its extensions: a name of 4 KiB takes ten blocks.
const BEGINNING_MAX: usize = 64 << 10;
/// What everything in a tar is a multiple of.
const BLOCK: u64 = 512;
/// How long a client may take to send what it has ready, or to read a line.
const PATIENCE: Duration = Duration::from_secs(10);

/// The tar of one file.
#[derive(Debug)]
pub(crate) struct Sent {
    beginning: io::Cursor<Vec<u8>>,
    file: File,
    /// Where to read on.
    at: u64,
    size: u64,
    /// That are still to come.
    zeros: u64,
}

/// The client's socket, for a thread that may block for a while.
pub(crate) fn patient(socket: OwnedFd) -> io::Result<UnixStream> {
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Takes what the client sends.
pub(crate) fn receive(stream: &UnixStream) -> Result<Sent, ApiError> {
    let failed = |error: io::Error| ApiError::invalid(format!("receive a file's descriptor: {error}"));
    let (mut bytes, mut descriptors) = (Vec::new(), Vec::new());
    let (length, size) = loop {
        if let Some((length, size)) = lengths(&bytes)? {
            if bytes.len() == LENGTHS + length {
                break (length, size);
            }
            if bytes.len() > LENGTHS + length {
                return Err(ApiError::invalid("more was sent than was said"));
            }
        }
        let mut piece = [0; 4096];
        let (count, came) =
            insula_sys::socket::receive(stream.as_fd(), &mut piece).map_err(|error| failed(error.into()))?;
        if count == 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        bytes.extend_from_slice(&piece[..count]);
        descriptors.extend(came);
    };
    let file = match (descriptors.pop().map(File::from), descriptors.is_empty()) {
        (Some(file), true) => file,
        _ => return Err(ApiError::invalid("one descriptor is expected, over a unix socket")),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(ApiError::invalid("the descriptor is not one of a regular file"));
    }
    let beginning = io::Cursor::new(bytes.split_off(bytes.len() - length));
    let zeros = size.next_multiple_of(BLOCK) - size + 2 * BLOCK;
    Ok(Sent { beginning, file, at: 0, size, zeros })
}

/// Of the beginning and of the file, once they are there.
fn lengths(bytes: &[u8]) -> Result<Option<(usize, u64)>, ApiError> {
    let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
    let Some((size, _)) = rest.split_first_chunk() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    // Of sizes that no file has the tar's own header would say so too.
    let size = Some(u64::from_be_bytes(*size)).filter(|size| i64::try_from(*size).is_ok());
    match size {
        Some(size) if length <= BEGINNING_MAX => Ok(Some((length, size))),
        _ => Err(ApiError::invalid("a file's header and size are too large")),
    }
}

/// Says how it went.
pub(crate) fn tell(mut stream: &UnixStream, outcome: Result<(), ApiError>) {
    let (status, message) = match outcome {
        Ok(()) => (200, String::new()),
        Err(error) => (error.status(), error.to_string()),
    };
    let line = format!("{}\n", serde_json::json!({ "status": status, "message": message }));
    if let Err(error) = stream.write_all(line.as_bytes()) {
        tracing::debug!(%error, "a client was not told how its copy went");
    }
}

impl Read for Sent {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.beginning.read(into)?;
        if count > 0 || into.is_empty() {
            return Ok(count);
        }
        let (left, most) = (self.size - self.at, into.len());
        let part = |left: u64| usize::try_from(left).map_or(most, |left| left.min(most));
        if left > 0 {
            let want = part(left);
            let count = match self.file.read_at(&mut into[..want], self.at)? {
                // It is shorter by now, and keeps the size that its header promises.
                0 => {
                    into[..want].fill(0);
                    want
                }
                count => count,
            };
            self.at += count as u64;
            return Ok(count);
        }
        let count = part(self.zeros);
        into[..count].fill(0);
        self.zeros -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(beginning: &[u8], size: u64) -> Vec<u8> {
        let length = u32::try_from(beginning.len()).unwrap();
        [&length.to_be_bytes(), &size.to_be_bytes()[..], beginning].concat()
    }

    fn sent(bytes: &[u8], files: &[&File]) -> Result<Vec<u8>, String> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let descriptors: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        insula_sys::socket::send_all(theirs.as_fd(), bytes, &descriptors).unwrap();
        drop(theirs);
        let stream = patient(ours.into()).unwrap();
        let mut sent = receive(&stream).map_err(|error| error.to_string())?;
        let mut all = Vec::new();
        sent.read_to_end(&mut all).unwrap();
        Ok(all)
    }

    #[test]
    fn a_descriptor_becomes_a_tar() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 700]).unwrap();
        let beginning = [1; 512];
        for (size, content) in [(700, [7; 700].to_vec()), (600, [7; 600].to_vec()), (0, Vec::new())] {
            let all = sent(&message(&beginning, size), &[&file]).unwrap();
            let padding = size.next_multiple_of(512) - size + 1024;
            let expected = [&beginning[..], &content, &vec![0; usize::try_from(padding).unwrap()]].concat();
            assert!(all == expected, "{size}");
        }
        let longer = sent(&message(&beginning, 1000), &[&file]).unwrap();
        assert!(longer[512..1212] == [7; 700] && longer[1212..] == [0; 300 + 24 + 1024]);
    }

    #[test]
    fn what_is_not_such_a_message_is_refused() {
        let (file, folder) = (tempfile::tempfile().unwrap(), File::open("/").unwrap());
        let good = message(&[1; 512], 5);
        for (bytes, files, word) in [
            (good.clone(), vec![], "one descriptor"),
            (good.clone(), vec![&file, &file], "one descriptor"),
            (good.clone(), vec![&folder], "regular file"),
            ([&good[..], b"x"].concat(), vec![&file], "more was sent"),
            (good[..100].to_vec(), vec![&file], "end of file"),
            (message(&[1; 512], u64::MAX), vec![&file], "too large"),
            ([&u32::MAX.to_be_bytes()[..], &[0; 8]].concat(), vec![&file], "too large"),
        ] {
            let error = sent(&bytes, &files).unwrap_err();
            assert!(error.contains(word), "{error}, not {word}");
        }
    }
}
