//! Files of a client's folder (`FileSync.DiffCopy`) as an archive.
//!
//! ```text
//! client:   STAT … STAT of each file, numbered from 0, and one without a file at their end
//! daemon:   REQ of a number               client:   DATA … DATA, an empty one at the end; of several files mixed
//! daemon:   FIN                           client:   FIN
//! ```
//!
//! Small files are asked for ahead, so that nobody waits for a turn there and back with each of them; what comes of
//! a later one is kept until its turn, within bounds that the client cannot move.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;
use prost::Message;
use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;

use super::grpc::{Call, Failure};
use super::messages::{Packet, Stat, packet};
use super::session::Session;

const SYNC: &str = "/moby.filesync.v1.FileSync/DiffCopy";
/// Bytes of a list of files: some millions of them.
const LIST_MAX: usize = 512 << 20;
/// Files that are asked for ahead, and bytes of all of them.
const AHEAD: usize = 128;
const AHEAD_BYTES: u64 = 4 << 20;
const BLOCK: u64 = 512;
/// Time between 1970 and a file's is in these.
const NANOSECONDS: i64 = 1_000_000_000;

/// Go's kinds and modes of files.
mod mode {
    pub(super) const FOLDER: u32 = 1 << 31;
    pub(super) const LINK: u32 = 1 << 27;
    pub(super) const PIPE: u32 = 1 << 25;
    pub(super) const KINDS: u32 = FOLDER | LINK | PIPE | 1 << 26 | 1 << 24 | 1 << 21 | 1 << 19;
    /// Go's bits, and those of chmod(2).
    pub(super) const MORE: [(u32, u32); 3] = [(1 << 23, 0o4000), (1 << 22, 0o2000), (1 << 20, 0o1000)];
}

/// Which files of which of the client's folders.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    pub(super) folder: &'static str,
    /// Names; all if there are none.
    pub(super) only: Vec<String>,
    /// Lines of a `.dockerignore`.
    pub(super) without: Vec<String>,
}

impl Wanted {
    fn metadata(&self) -> Vec<(&'static str, String)> {
        let mut metadata =
            vec![("dir-name", self.folder.to_owned()), ("override-excludes", "true".to_owned())];
        // What is not ASCII would need another spelling for each client: then everything is sent.
        let plain = |patterns: &[String]| patterns.iter().all(|pattern| pattern.is_ascii());
        if plain(&self.only) {
            metadata.extend(self.only.iter().map(|name| ("include-patterns", name.clone())));
            metadata.extend(self.only.iter().map(|name| ("followpaths", name.clone())));
        }
        if plain(&self.without) {
            metadata.extend(self.without.iter().map(|pattern| ("exclude-patterns", pattern.clone())));
        }
        metadata
    }
}

/// Where an archive goes.
pub(super) type Pieces = mpsc::Sender<io::Result<Bytes>>;

/// Has a client send files and writes them as an archive. What went wrong is the archive's end.
pub(super) async fn archive(session: Session, wanted: Wanted, pieces: Pieces) {
    let done = match Transfer::begin(&session, &wanted).await {
        Ok(transfer) => transfer.write(&pieces).await,
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        // The build may have ended.
        let why = format!("the client's folder {}: {error}", wanted.folder);
        let _ = pieces.send(Err(io::Error::other(why))).await;
    }
}

/// A few files of a folder, by their names, as far as they are there.
pub(super) async fn some(
    session: &Session,
    folder: &'static str,
    names: &[String],
    bytes_max: usize,
) -> io::Result<HashMap<String, Vec<u8>>> {
    let wanted = Wanted { folder, only: names.to_vec(), without: Vec::new() };
    let (sender, mut receiver) = mpsc::channel(AHEAD);
    tokio::spawn(archive(session.clone(), wanted, sender));
    let mut bytes = Vec::new();
    while let Some(piece) = receiver.recv().await {
        bytes.extend_from_slice(&piece?);
        if bytes.len() > bytes_max {
            return Err(io::Error::other(format!("{} are larger than {bytes_max} bytes", names.join(", "))));
        }
    }
    let mut found = HashMap::new();
    for entry in tar::Archive::new(&bytes[..]).entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if entry.header().entry_type().is_file() && names.contains(&name) {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            found.insert(name, content);
        }
    }
    Ok(found)
}

/// What came of a file before its turn.
#[derive(Debug, Default)]
struct Arrived {
    pieces: Vec<Bytes>,
    bytes: u64,
    whole: bool,
}

/// A transfer whose list is there.
struct Transfer {
    call: Call,
    files: Vec<Stat>,
    /// What was asked for and is not written.
    asked: HashMap<u32, Arrived>,
    /// Bytes of it.
    ahead: u64,
    /// The next file that may be asked for.
    next: usize,
}

impl Transfer {
    async fn begin(session: &Session, wanted: &Wanted) -> Result<Self, Wrong> {
        if !session.serves(SYNC) {
            return Err(Wrong::Said("the client sends no files".to_owned()));
        }
        let mut call = session.channel.call(SYNC, &wanted.metadata())?;
        let (mut files, mut bytes) = (Vec::new(), 0);
        loop {
            let packet = next(&mut call).await?;
            let Some(stat) = packet.stat.filter(|_| packet.kind == packet::STAT) else {
                if packet.kind != packet::STAT {
                    return Err(Wrong::Said(format!("a packet of kind {} is no list of files", packet.kind)));
                }
                break;
            };
            bytes += stat.encoded_len() + size_of::<Stat>();
            if bytes > LIST_MAX {
                return Err(Wrong::Said(format!("the list of files is larger than {LIST_MAX} bytes")));
            }
            files.push(stat);
        }
        Ok(Self { call, files, asked: HashMap::new(), ahead: 0, next: 0 })
    }

    async fn write(mut self, pieces: &Pieces) -> Result<(), Wrong> {
        let mut head = Builder::new(Vec::new());
        for number in 0..self.files.len() {
            let stat = std::mem::take(&mut self.files[number]);
            let size = content(&stat);
            self.files[number].size = size as i64;
            if !append(&mut head, &stat, size)? {
                continue;
            }
            if size > 0 {
                self.ask(number).await?;
                give(pieces, std::mem::take(head.get_mut())).await?;
                self.content(number, size, pieces).await?;
                let rest = (BLOCK - size % BLOCK) % BLOCK;
                head.get_mut().resize(rest as usize, 0);
            }
            if head.get_ref().len() > 64 << 10 {
                give(pieces, std::mem::take(head.get_mut())).await?;
            }
        }
        self.call.send(&Packet { kind: packet::FIN, ..Packet::default() }).await?;
        while let Some(packet) = self.call.next::<Packet>().await? {
            if packet.kind == packet::FIN {
                break;
            }
        }
        give(pieces, head.into_inner()?).await
    }

    /// Asks for a file, and for those after it as long as they are small.
    async fn ask(&mut self, number: usize) -> Result<(), Wrong> {
        while let Some(stat) = self.files.get(self.next.max(number)) {
            let at = self.next.max(number);
            let size = content(stat);
            let room = self.asked.len() < AHEAD && self.ahead + size <= AHEAD_BYTES;
            if at > number && !room {
                break;
            }
            self.next = at + 1;
            if size == 0 {
                continue;
            }
            let id = u32::try_from(at).map_err(|_| Wrong::Said("there are too many files".to_owned()))?;
            self.ahead += size;
            self.asked.insert(id, Arrived::default());
            self.call.send(&Packet { kind: packet::REQ, id, ..Packet::default() }).await?;
        }
        Ok(())
    }

    /// Writes the content of a file, whichever come in between.
    async fn content(&mut self, number: usize, size: u64, pieces: &Pieces) -> Result<(), Wrong> {
        let wanted = number as u32;
        let mut written = 0;
        loop {
            let arrived = self.asked.get_mut(&wanted);
            let arrived = arrived.ok_or_else(|| Wrong::Said("a file was not asked for".to_owned()))?;
            let whole = arrived.whole;
            for piece in std::mem::take(&mut arrived.pieces) {
                written += piece.len() as u64;
                pieces.send(Ok(piece)).await.map_err(|_| Wrong::Ended)?;
            }
            if whole {
                break;
            }
            self.take().await?;
        }
        self.asked.remove(&wanted);
        self.ahead -= size;
        if written != size {
            return Err(Wrong::Said("a file was changed while it was sent".to_owned()));
        }
        Ok(())
    }

    /// The next piece of some file.
    async fn take(&mut self) -> Result<(), Wrong> {
        let packet = next(&mut self.call).await?;
        let size = self.files.get(packet.id as usize).map_or(0, |stat| stat.size as u64);
        let arrived = self.asked.get_mut(&packet.id).filter(|arrived| !arrived.whole);
        let (packet::DATA, Some(arrived)) = (packet.kind, arrived) else {
            return Err(Wrong::Said("the client sends what was not asked for".to_owned()));
        };
        arrived.whole = packet.data.is_empty();
        arrived.bytes += packet.data.len() as u64;
        if arrived.bytes > size {
            return Err(Wrong::Said("a file grew while it was sent".to_owned()));
        }
        if !arrived.whole {
            arrived.pieces.push(packet.data);
        }
        Ok(())
    }
}

async fn next(call: &mut Call) -> Result<Packet, Wrong> {
    let packet = call.next::<Packet>().await?;
    let packet = packet.ok_or_else(|| Wrong::Said("the transfer ended early".to_owned()))?;
    match packet.kind {
        packet::ERR => Err(Wrong::Said(String::from_utf8_lossy(&packet.data).chars().take(512).collect())),
        _ => Ok(packet),
    }
}

async fn give(pieces: &Pieces, bytes: Vec<u8>) -> Result<(), Wrong> {
    match bytes.is_empty() {
        true => Ok(()),
        false => pieces.send(Ok(bytes.into())).await.map_err(|_| Wrong::Ended),
    }
}

/// Bytes that are asked for of a file: nothing of what has no content, or has it from an earlier one.
fn content(stat: &Stat) -> u64 {
    let file = stat.mode & mode::KINDS == 0 && stat.linkname.is_empty();
    if file { u64::try_from(stat.size).unwrap_or(0) } else { 0 }
}

/// Writes the head of an entry; not of what no archive of files has: devices and sockets.
fn append(builder: &mut Builder<Vec<u8>>, stat: &Stat, size: u64) -> io::Result<bool> {
    let mut header = Header::new_gnu();
    let more = mode::MORE.iter().filter(|(bit, _)| stat.mode & bit != 0).fold(0, |all, (_, more)| all | more);
    header.set_mode(stat.mode & 0o777 | more);
    header.set_uid(u64::from(stat.uid));
    header.set_gid(u64::from(stat.gid));
    header.set_mtime(u64::try_from(stat.mod_time / NANOSECONDS).unwrap_or(0));
    header.set_size(size);
    let path = Path::new(OsStr::from_bytes(&stat.path));
    let link = Path::new(OsStr::from_bytes(&stat.linkname));
    let kind = match (stat.mode & mode::KINDS, stat.linkname.is_empty()) {
        (mode::FOLDER, _) => EntryType::Directory,
        (mode::LINK, _) => EntryType::Symlink,
        (mode::PIPE, _) => EntryType::Fifo,
        (0, true) => EntryType::Regular,
        (0, false) => EntryType::Link,
        _ => return Ok(false),
    };
    header.set_entry_type(kind);
    let names: Vec<(String, &[u8])> =
        stat.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice())).collect();
    if !names.is_empty() && kind != EntryType::Link {
        builder.append_pax_extensions(names.iter().map(|(name, value)| (name.as_str(), *value)))?;
    }
    match kind {
        EntryType::Symlink | EntryType::Link => builder.append_link(&mut header, path, link)?,
        _ => builder.append_data(&mut header, path, io::empty())?,
    }
    Ok(true)
}

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error("{0}")]
    Call(Failure),
    #[error("{0}")]
    Said(String),
    #[error(transparent)]
    Archive(#[from] io::Error),
    #[error("nobody reads it")]
    Ended,
}

impl From<Failure> for Wrong {
    fn from(failure: Failure) -> Self {
        Self::Call(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(path: &str, mode: u32, link: &str) -> Stat {
        Stat {
            path: path.into(),
            mode,
            linkname: link.into(),
            mod_time: 5 * NANOSECONDS + 7,
            uid: 1,
            gid: 2,
            size: 3,
            ..Stat::default()
        }
    }

    #[test]
    fn files_become_entries() {
        let mut builder = Builder::new(Vec::new());
        let long = "x".repeat(300);
        let named = |path: &str, kind: u32, link: &str| stat(path, kind | 0o644, link);
        let mut with = named("setuid", 1 << 23, "");
        with.xattrs.insert("user.a".to_owned(), b"v".to_vec());
        for stat in [
            with,
            named("dir", mode::FOLDER, ""),
            named(&format!("dir/{long}"), mode::LINK, "/../etc"),
            named("other", 0, "setuid"),
            named("pipe", mode::PIPE, ""),
        ] {
            let size = content(&stat);
            assert!(append(&mut builder, &stat, size).unwrap());
            if size > 0 {
                builder.get_mut().extend_from_slice(&[b"abc", &[0; 509][..]].concat());
            }
        }
        for kind in [1 << 26, 1 << 24, 1 << 21, 1 << 19] {
            assert!(!append(&mut builder, &named("device", kind, ""), 0).unwrap());
        }
        let bytes = builder.into_inner().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let xattrs = entry.pax_extensions().unwrap().map_or(0, Iterator::count);
            let link = entry.link_name().unwrap().map(|link| link.display().to_string()).unwrap_or_default();
            let (name, header) = (entry.path().unwrap().display().to_string(), entry.header());
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (5, 1, 2));
            seen.push((
                name,
                header.mode().unwrap(),
                header.entry_type(),
                link,
                header.size().unwrap(),
                xattrs,
            ));
        }
        let row = |name: &str, mode, kind, link: &str, size, xattrs| {
            (name.to_owned(), mode, kind, link.to_owned(), size, xattrs)
        };
        assert_eq!(
            seen,
            [
                row("setuid", 0o4644, EntryType::Regular, "", 3, 1),
                row("dir", 0o644, EntryType::Directory, "", 0, 0),
                row(&format!("dir/{long}"), 0o644, EntryType::Symlink, "/../etc", 0, 0),
                row("other", 0o644, EntryType::Link, "setuid", 0, 0),
                row("pipe", 0o644, EntryType::Fifo, "", 0, 0),
            ]
        );
    }
}
