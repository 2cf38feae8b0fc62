//! What a build puts out that is no image, sent to the client: an archive, or files one by one.
//!
//! ```text
//! daemon:   STAT … STAT of each file, numbered from 0, and one without a file at their end
//! client:   REQ of a number               daemon:   DATA … DATA, an empty one at the end
//! client:   FIN                           daemon:   FIN
//! ```

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use insula_engine::archive::ArchiveChunks;
use insula_engine::build::{ListedFile, Listing};
use insula_engine::{Error, Result};
use tokio::sync::mpsc;

use super::grpc::Call;
use super::messages::{BytesMessage, Packet, Stat, packet};
use super::session::Session;

const SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";
/// Bytes of one message; gRPC has a limit of 4 MiB.
const PIECE: usize = 128 << 10;
/// Bytes of a file in one message, as BuildKit sends them.
const PART: usize = 32 << 10;

/// What is sent to a client beside progress.
pub(super) enum Sent {
    Archive(ArchiveChunks),
    Files(mpsc::Receiver<Listing>),
}

impl Sent {
    pub(super) async fn send(self, session: &Session) -> Result<()> {
        match self {
            Self::Archive(chunks) => send(session, chunks).await,
            Self::Files(mut listings) => match listings.recv().await {
                Some(listing) => send_files(session, listing).await,
                // What went wrong is what the build ends with.
                None => Ok(()),
            },
        }
    }
}

/// Sends an archive as it is made.
async fn send(session: &Session, mut chunks: ArchiveChunks) -> Result<()> {
    if !session.serves(SEND) {
        return Err(Error::InvalidArgument("the client takes no output: it has no place for it".to_owned()));
    }
    let mut call = session.channel.call(SEND, &[])?;
    while let Some(chunk) = chunks.recv().await {
        // What went wrong is what the build ends with.
        let Ok(chunk) = chunk else { return Ok(()) };
        let mut chunk = Bytes::from(chunk);
        while !chunk.is_empty() {
            let data = chunk.split_to(chunk.len().min(PIECE));
            call.send(&BytesMessage { data }).await?;
        }
    }
    call.end();
    while call.next::<BytesMessage>().await?.is_some() {}
    Ok(())
}

/// Sends a list of files, and of them what the client asks for.
async fn send_files(session: &Session, listing: Listing) -> Result<()> {
    if !session.serves(SEND) {
        return Err(Error::InvalidArgument("the client takes no output: it has no place for it".to_owned()));
    }
    let listing = Arc::new(listing);
    let mut call = session.channel.call(SEND, &[])?;
    for file in listing.entries() {
        let stat = Some(described(file));
        call.send(&Packet { kind: packet::STAT, stat, ..Packet::default() }).await?;
    }
    call.send(&Packet { kind: packet::STAT, ..Packet::default() }).await?;
    while let Some(asked) = call.next::<Packet>().await? {
        match asked.kind {
            packet::REQ => send_file(&mut call, &listing, asked.id).await?,
            packet::FIN => {
                call.send(&Packet { kind: packet::FIN, ..Packet::default() }).await?;
                break;
            }
            packet::ERR => {
                let why: String = String::from_utf8_lossy(&asked.data).chars().take(512).collect();
                return Err(Error::InvalidArgument(format!("the client's folder: {why}")));
            }
            kind => return Err(Error::InvalidArgument(format!("the client answers with a packet {kind}"))),
        }
    }
    call.end();
    while call.next::<Packet>().await?.is_some() {}
    Ok(())
}

async fn send_file(call: &mut Call, listing: &Arc<Listing>, id: u32) -> Result<()> {
    let (sender, mut pieces) = mpsc::channel::<Result<Bytes>>(2);
    let listing = listing.clone();
    let read = tokio::task::spawn_blocking(move || {
        let pass = |piece: Result<Bytes>| sender.blocking_send(piece).is_ok();
        match read(&listing, id, &pass) {
            Ok(()) => {}
            // Who does not listen any more ended the call.
            Err(error) => drop(pass(Err(error))),
        }
    });
    while let Some(data) = pieces.recv().await {
        call.send(&Packet { kind: packet::DATA, id, data: data?, ..Packet::default() }).await?;
    }
    read.await.map_err(|error| Error::Internal(format!("a file was not read: {error}")))?;
    Ok(call.send(&Packet { kind: packet::DATA, id, ..Packet::default() }).await?)
}

/// Passes the content of a file on. Blocks.
fn read(listing: &Listing, id: u32, pass: &dyn Fn(Result<Bytes>) -> bool) -> Result<()> {
    let file = listing.open(id as usize)?;
    let fail = |error| Error::InvalidArgument(format!("read an output: {error}"));
    loop {
        let mut piece = Vec::with_capacity(PART);
        (&file).take(PART as u64).read_to_end(&mut piece).map_err(fail)?;
        if piece.is_empty() || !pass(Ok(piece.into())) {
            return Ok(());
        }
    }
}

fn described(file: &ListedFile) -> Stat {
    Stat {
        path: file.path.clone(),
        mode: file.mode,
        uid: file.uid,
        gid: file.gid,
        size: i64::try_from(file.size).unwrap_or(i64::MAX),
        mod_time: file.modified,
        linkname: file.link.clone(),
        dev_major: i64::from(file.number.0),
        dev_minor: i64::from(file.number.1),
        xattrs: file.attributes.iter().cloned().collect(),
    }
}
