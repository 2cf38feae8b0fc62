//! A record of the log driver `local`, as Docker's files hold it: the length in four bytes, big endian,
//! the message, the length once more, so that files can be read from both ends.

/// Bytes of the longest record that is read; the monitor splits lines after 16 KiB.
pub const MAX_ENTRY: usize = 1 << 20;

/// One line, or a part of a long one.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LogEntry {
    /// `stdout` or `stderr`.
    #[prost(string, tag = "1")]
    pub source: String,
    /// Since 1970.
    #[prost(int64, tag = "2")]
    pub time_nano: i64,
    /// Without its newline.
    #[prost(bytes = "vec", tag = "3")]
    pub line: Vec<u8>,
    #[prost(bool, tag = "4")]
    pub partial: bool,
    #[prost(message, optional, tag = "5")]
    pub partial_log_metadata: Option<PartialLogEntry>,
}

/// Which part it is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PartialLogEntry {
    /// The line with this part is complete.
    #[prost(bool, tag = "1")]
    pub last: bool,
    /// The same for all parts of a line.
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(int32, tag = "3")]
    pub ordinal: i32,
}

impl LogEntry {
    /// Appends the record as files hold it.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        use prost::Message;
        // Lines are split long before 4 GiB.
        let length = (self.encoded_len() as u32).to_be_bytes();
        out.extend_from_slice(&length);
        self.encode_raw(out);
        out.extend_from_slice(&length);
    }

    /// The record at the beginning of `bytes` and how many of them it takes; `None` if it is not all there.
    pub fn split_from(bytes: &[u8]) -> Result<Option<(Self, usize)>, Damaged> {
        use prost::Message;
        let Some(head) = bytes.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length == 0 || length > MAX_ENTRY {
            return Err(Damaged);
        }
        let Some(rest) = bytes.get(4..length + 8) else { return Ok(None) };
        let (body, tail) = rest.split_at(length);
        if tail != head {
            return Err(Damaged);
        }
        Ok(Some((Self::decode(body).map_err(|_| Damaged)?, length + 8)))
    }
}

/// Bytes that are no record; where the next one begins cannot be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a file of the log driver local is damaged")]
pub struct Damaged;

/// The file that a compressed log was made of, noted in the extra field of its gzip header (RFC 1952, 2.3.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotatedFrom {
    pub inode: u64,
    /// When it came to be, in nanoseconds since 1970: an inode is used again, and the next log may get it. 0 where
    /// the file system does not tell.
    pub born: u64,
    /// Bytes.
    pub length: u64,
}

impl RotatedFrom {
    #[must_use]
    pub fn of(meta: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let since = meta.created().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        // 64 bits of nanoseconds last until 2554.
        let born = since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
        Self { inode: meta.ino(), born, length: meta.len() }
    }

    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        [self.inode, self.born, self.length].into_iter().flat_map(u64::to_le_bytes).collect()
    }

    /// None for what is something else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 24] = bytes.try_into().ok()?;
        let number = |at: usize| bytes[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        Some(Self { inode: number(0)?, born: number(8)?, length: number(16)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_are_those_of_docker() {
        let entry =
            LogEntry { source: "stdout".into(), time_nano: 1, line: b"hi".to_vec(), ..Default::default() };
        let mut bytes = Vec::new();
        entry.append_to(&mut bytes);
        assert_eq!(bytes, b"\0\0\0\x0e\x0a\x06stdout\x10\x01\x1a\x02hi\0\0\0\x0e");
        assert_eq!(LogEntry::split_from(&bytes), Ok(Some((entry, bytes.len()))));
        for cut in 0..bytes.len() {
            assert_eq!(LogEntry::split_from(&bytes[..cut]), Ok(None));
        }
        bytes[3] = 0;
        assert_eq!(LogEntry::split_from(&bytes), Err(Damaged));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            if let Ok(Some((_, used))) = LogEntry::split_from(&bytes) {
                prop_assert!(used <= bytes.len());
            }
        }
    }
}
