//! Records as entries of systemd's journal, by its native protocol: a datagram of `NAME=value` lines, or
//! of `NAME`, the length in eight bytes, little endian, and the bytes where they hold newlines.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use super::{Record, Stream};
use crate::error::{Context, Result};

const SOCKET: &str = "/run/systemd/journal/socket";

#[derive(Debug)]
pub(super) struct Journal {
    socket: OwnedFd,
    /// Of every entry.
    fields: Vec<u8>,
    failing: bool,
}

impl Journal {
    /// Fails where there is no journal.
    pub(super) fn connect(fields: &BTreeMap<String, String>) -> Result<Self> {
        Self::connect_to(Path::new(SOCKET), fields)
    }

    fn connect_to(path: &Path, fields: &BTreeMap<String, String>) -> Result<Self> {
        const CALL: &str =
            "failed to initialize logging driver: journald is not enabled on this host: connect to";
        let socket = UnixDatagram::unbound().context("socket", path.display())?;
        socket.connect(path).context(CALL, path.display())?;
        socket.set_nonblocking(true).context("ioctl FIONBIO", path.display())?;
        let mut text = Vec::new();
        for (name, value) in fields {
            field(&mut text, name, value.as_bytes());
        }
        Ok(Self { socket: socket.into(), fields: text, failing: false })
    }

    pub(super) fn record(&mut self, record: &Record<'_>) {
        let priority: &[u8] = match record.stream {
            Stream::Stdout => b"6",
            Stream::Stderr => b"3",
        };
        let line = record.line.strip_suffix(b"\n").unwrap_or(record.line);
        let mut entry = Vec::with_capacity(self.fields.len() + line.len() + 64);
        entry.extend_from_slice(&self.fields);
        field(&mut entry, "PRIORITY", priority);
        if let Some(part) = record.part {
            if !part.last {
                field(&mut entry, "CONTAINER_PARTIAL_MESSAGE", b"true");
            }
            field(&mut entry, "CONTAINER_PARTIAL_ID", part.id.as_bytes());
            field(&mut entry, "CONTAINER_PARTIAL_ORDINAL", part.ordinal.to_string().as_bytes());
            field(&mut entry, "CONTAINER_PARTIAL_LAST", if part.last { b"true" } else { b"false" });
        }
        field(&mut entry, "MESSAGE", line);
        match insula_sys::socket::send(self.socket.as_fd(), &entry, &[]) {
            Ok(_) => self.failing = false,
            // A journal that is busy or gone never holds a container up.
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    crate::report("output is lost to the journal", &std::io::Error::from(error));
                }
            }
        }
    }
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Part;
    use crate::log::tests::Folder;

    #[test]
    fn entries_are_those_of_the_native_protocol() {
        let folder = Folder::new();
        let path = folder.path("journal");
        assert!(Journal::connect_to(&path, &BTreeMap::new()).is_err());
        let receiver = UnixDatagram::bind(&path).unwrap();
        let fields = BTreeMap::from([("CONTAINER_NAME".to_owned(), "web".to_owned())]);
        let mut journal = Journal::connect_to(&path, &fields).unwrap();
        let part = Part { id: "a", ordinal: 2, last: false };
        for (line, part, expected) in [
            (&b"hi\n"[..], None, &b"CONTAINER_NAME=web\nPRIORITY=6\nMESSAGE=hi\n"[..]),
            (
                b"a\nb",
                Some(part),
                b"CONTAINER_NAME=web\nPRIORITY=6\nCONTAINER_PARTIAL_MESSAGE=true\nCONTAINER_PARTIAL_ID=a\n\
                  CONTAINER_PARTIAL_ORDINAL=2\nCONTAINER_PARTIAL_LAST=false\nMESSAGE\n\x03\0\0\0\0\0\0\0a\nb\n",
            ),
        ] {
            journal.record(&Record { stream: Stream::Stdout, line, part });
            let mut bytes = [0; 512];
            let count = receiver.recv(&mut bytes).unwrap();
            assert_eq!(bytes[..count], *expected, "{}", String::from_utf8_lossy(&bytes[..count]));
        }
    }
}
