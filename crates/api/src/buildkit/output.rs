//! What a build puts out that is no image: an archive, sent to the client.

use bytes::Bytes;
use insula_engine::archive::ArchiveChunks;
use insula_engine::{Error, Result};

use super::messages::BytesMessage;
use super::session::Session;

const SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";
/// Bytes of one message; gRPC has a limit of 4 MiB.
const PIECE: usize = 128 << 10;

/// Sends an archive as it is made.
pub(super) async fn send(session: &Session, mut chunks: ArchiveChunks) -> Result<()> {
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
