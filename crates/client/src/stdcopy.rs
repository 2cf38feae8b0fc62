//! The multiplexed stream of attach, exec and logs without a terminal: frames of an 8-byte header
//! (source, three zero bytes, length as big-endian u32) and their payload.

/// What a piece of output was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Standard output (and the echo of standard input, which nobody uses).
    Stdout,
    /// Standard error.
    Stderr,
}

/// Bytes that are not the multiplexed stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StdcopyError {
    /// An unknown source.
    #[error("the output stream has a frame of unknown kind {0}")]
    Source(u8),
    /// No record of a log is so large.
    #[error("the output stream has a frame of {0} bytes")]
    Size(usize),
    /// The daemon's own error, sent inside of the stream.
    #[error("{0}")]
    Daemon(String),
}

/// Takes the stream apart, however it is cut.
#[derive(Debug, Default)]
pub struct Demultiplexer {
    header: [u8; 8],
    have: usize,
    left: usize,
    daemon: Vec<u8>,
}

/// The daemon's error is cut here.
const MAX_ERROR: usize = 16 << 10;

impl Demultiplexer {
    /// At the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes; `sink` gets the payload in order, uncopied.
    pub fn feed<E: From<StdcopyError>>(
        &mut self,
        mut bytes: &[u8],
        mut sink: impl FnMut(Source, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            if self.left == 0 {
                bytes = self.read_header(bytes);
                if self.have < 8 {
                    return Ok(());
                }
                self.left =
                    u32::from_be_bytes([self.header[4], self.header[5], self.header[6], self.header[7]])
                        as usize;
                if self.left == 0 {
                    self.have = 0;
                    continue;
                }
            }
            let (payload, rest) = bytes.split_at(bytes.len().min(self.left));
            bytes = rest;
            self.left -= payload.len();
            match self.header[0] {
                _ if payload.is_empty() => {}
                0 | 1 => sink(Source::Stdout, payload)?,
                2 => sink(Source::Stderr, payload)?,
                3 => self.daemon_error(payload)?,
                other => return Err(StdcopyError::Source(other).into()),
            }
            if self.left == 0 {
                self.have = 0;
            }
        }
        Ok(())
    }

    fn read_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let take = bytes.len().min(8 - self.have);
        self.header[self.have..self.have + take].copy_from_slice(&bytes[..take]);
        self.have += take;
        &bytes[take..]
    }

    fn daemon_error(&mut self, payload: &[u8]) -> Result<(), StdcopyError> {
        let room = MAX_ERROR.saturating_sub(self.daemon.len());
        self.daemon.extend_from_slice(&payload[..payload.len().min(room)]);
        if self.left > 0 {
            return Ok(());
        }
        Err(StdcopyError::Daemon(String::from_utf8_lossy(&self.daemon).into_owned()))
    }
}

/// Takes a stream apart whose frames mean something each, as the records of a log do.
#[derive(Debug, Default)]
pub struct Frames {
    /// What is not complete.
    held: Vec<u8>,
}

/// No frame is larger: logs are written in pieces of 16 KiB, which readers may have to spell out.
const MAX_FRAME: usize = 4 << 20;

impl Frames {
    /// Takes the next bytes; `sink` gets each frame that is complete.
    pub fn feed<E: From<StdcopyError>>(
        &mut self,
        bytes: &[u8],
        mut sink: impl FnMut(Source, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.held.extend_from_slice(bytes);
        let mut rest = self.held.as_slice();
        while let [kind, _, _, _, a, b, c, d, body @ ..] = rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            if length > MAX_FRAME {
                return Err(StdcopyError::Size(length).into());
            }
            let Some((payload, behind)) = body.split_at_checked(length) else { break };
            match kind {
                0 | 1 => sink(Source::Stdout, payload)?,
                2 => sink(Source::Stderr, payload)?,
                3 => return Err(StdcopyError::Daemon(String::from_utf8_lossy(payload).into_owned()).into()),
                other => return Err(StdcopyError::Source(*other).into()),
            }
            rest = behind;
        }
        let used = self.held.len() - rest.len();
        self.held.drain(..used);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    fn split(bytes: &[u8], step: usize) -> Result<(Vec<u8>, Vec<u8>), StdcopyError> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut demultiplexer = Demultiplexer::new();
        for piece in bytes.chunks(step) {
            demultiplexer.feed(piece, |source, payload| {
                match source {
                    Source::Stdout => out.extend_from_slice(payload),
                    Source::Stderr => err.extend_from_slice(payload),
                }
                Ok::<(), StdcopyError>(())
            })?;
        }
        Ok((out, err))
    }

    #[test]
    fn any_cut_gives_the_same() {
        let bytes = [frame(1, b"one "), frame(2, b"err"), frame(1, b""), frame(1, b"two")].concat();
        for step in 1..=bytes.len() {
            assert_eq!(split(&bytes, step), Ok((b"one two".to_vec(), b"err".to_vec())), "{step}");
        }
    }

    #[test]
    fn frames_come_whole_however_the_stream_is_cut() {
        let bytes = [frame(1, b"one "), frame(2, b"err"), frame(1, b""), frame(1, b"two")].concat();
        let whole = [
            (Source::Stdout, "one "),
            (Source::Stderr, "err"),
            (Source::Stdout, ""),
            (Source::Stdout, "two"),
        ];
        for step in 1..=bytes.len() {
            let (mut frames, mut found) = (Frames::default(), Vec::new());
            for piece in bytes.chunks(step) {
                let keep = |source, payload: &[u8]| {
                    found.push((source, String::from_utf8(payload.to_vec()).unwrap()));
                    Ok::<(), StdcopyError>(())
                };
                frames.feed(piece, keep).unwrap();
            }
            assert_eq!(found, whole.map(|(source, text)| (source, text.to_owned())), "{step}");
        }
        let none = |_, _: &[u8]| Ok(());
        assert_eq!(
            Frames::default().feed(&[1, 0, 0, 0, 255, 0, 0, 0], none),
            Err(StdcopyError::Size(255 << 24))
        );
    }

    #[test]
    fn errors_in_the_stream() {
        assert_eq!(split(&frame(9, b"x"), 3), Err(StdcopyError::Source(9)));
        assert_eq!(split(&frame(3, b"no luck"), 2), Err(StdcopyError::Daemon("no luck".to_owned())));
    }
}
