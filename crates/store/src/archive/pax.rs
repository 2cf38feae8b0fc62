//! Extension headers: pax records (`length key=value\n`, pax(1) "pax Extended Header") and GNU's
//! long names.

use super::malformed;
use crate::Result;

/// What the headers before a member say about it.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseRecords,
    seen: bool,
}

/// GNU tar manual, "Storing Sparse Files": formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Offsets and lengths in turn, of 0.0 and 0.1.
    pub(super) numbers: Vec<u64>,
}

impl Extensions {
    pub(super) fn is_empty(&self) -> bool {
        !self.seen && self.long_name.is_none() && self.long_link.is_none()
    }

    /// Applies all records of one pax header.
    pub(super) fn read_pax(&mut self, mut bytes: &[u8]) -> Result<()> {
        if std::mem::replace(&mut self.seen, true) {
            return Err(malformed("a member has two pax headers"));
        }
        // Some writers pad with NULs.
        while !bytes.is_empty() && !bytes.iter().all(|byte| *byte == 0) {
            let (key, value, rest) = record(bytes).ok_or_else(|| malformed("a pax record is malformed"))?;
            bytes = rest;
            self.apply(key, value)?;
        }
        Ok(())
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        // An empty value takes back what a global header said.
        if value.is_empty() {
            return Ok(());
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.major" => self.sparse.major = Some(decimal(value)?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(decimal(value)?),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = Some(decimal(value)?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.numbers.push(decimal(value)?),
            b"GNU.sparse.map" => {
                self.sparse.numbers =
                    value.split(|byte| *byte == b',').map(decimal).collect::<Result<_>>()?;
            }
            // Times of access, user names, comments: nothing that a layer keeps.
            _ => {}
        }
        Ok(())
    }
}

/// Key, value and what follows the first record.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space]).ok()?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let content = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = content.iter().position(|byte| *byte == b'=')?;
    (equals > 0).then(|| (&content[..equals], &content[equals + 1..], rest))
}

pub(super) fn decimal(text: &[u8]) -> Result<u64> {
    let wrong = || malformed("a number in a pax record is malformed");
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(wrong());
    }
    text.iter()
        .try_fold(0u64, |value, digit| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
        .ok_or_else(wrong)
}

/// `-12.5`: seconds and nanoseconds, the latter always forward.
fn time(text: &[u8]) -> Result<(i64, u32)> {
    let wrong = || malformed("a time in a pax record is malformed");
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let dot = digits.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = dot.map_or((digits, &[][..]), |dot| (&digits[..dot], &digits[dot + 1..]));
    let seconds = i64::try_from(decimal(whole)?).map_err(|_| wrong())?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(wrong());
    }
    let nanoseconds = fraction
        .iter()
        .chain(std::iter::repeat(&b'0'))
        .take(9)
        .fold(0u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    Ok(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}
