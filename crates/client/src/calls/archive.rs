//! `/containers/{id}/archive`: files in and out as tar streams.

use std::fs::File;
use std::io::{self, IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use base64::Engine;
use http::{HeaderMap, Method};
use insula_models::PathStat;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::body::{RequestBody, Upload};
use crate::connection::{Call, Client};
use crate::error::{Error, Result};
use crate::query::{Query, encode};
use crate::stream::ByteStream;

/// A path of a container as a tar stream.
#[derive(Debug)]
pub struct Archive {
    /// What the path is.
    pub stat: PathStat,
    /// The tar.
    pub bytes: ByteStream,
}

impl Client {
    /// `HEAD /containers/{id}/archive`.
    pub async fn stat_path(&self, id: &str, path: &str) -> Result<PathStat> {
        let target = archive(id, &Query::new().with("path", path));
        stat_of(&self.headers(Call::new(Method::HEAD, target.clone())).await?, &target)
    }

    /// `GET /containers/{id}/archive`.
    pub async fn get_archive(&self, id: &str, path: &str) -> Result<Archive> {
        let target = archive(id, &Query::new().with("path", path));
        let (bytes, headers) = self.stream(Call::get(target.clone()), RequestBody::Empty).await?;
        Ok(Archive { stat: stat_of(&headers, &target)?, bytes })
    }

    /// `GET /containers/{id}/export`: the whole root file system.
    pub async fn export_container(&self, id: &str) -> Result<ByteStream> {
        let call = Call::get(format!("/containers/{}/export", encode(id)));
        Ok(self.stream(call, RequestBody::Empty).await?.0)
    }

    /// `PUT /containers/{id}/archive`: unpacks below the folder `path`. `keep_owner` leaves user and
    /// group as the archive has them.
    pub async fn put_archive(&self, id: &str, path: &str, tar: Upload, keep_owner: bool) -> Result<()> {
        let query = Query::new()
            .with("path", path)
            .with("noOverwriteDirNonDir", "true")
            .with_flag("copyUIDGID", keep_owner);
        let call = Call::new(Method::PUT, archive(id, &query)).tar();
        self.nothing(call, RequestBody::Upload(tar)).await
    }
}

/// A file of this host, to be copied by the daemon itself.
#[derive(Debug)]
pub struct FileUpload {
    /// What a tar of it begins with: its header, and what extends it.
    pub beginning: Vec<u8>,
    /// Open for reading.
    pub file: File,
    /// In bytes, as in the header.
    pub size: u64,
}

impl Client {
    /// `POST /insula/containers/{id}/file`, insula's own: hands an open file over, which is unpacked below the
    /// folder `path`. False where that cannot be done, by another daemon for one: nothing has happened then.
    pub async fn put_file(&self, id: &str, path: &str, upload: &FileUpload) -> Result<bool> {
        let query = Query::new().with("path", path).with("noOverwriteDirNonDir", "true");
        let target = format!("/insula/containers/{}/file{}", encode(id), query.as_str());
        let hijacked = match self.hijack(Call::new(Method::POST, target), RequestBody::Empty).await {
            // What is wrong with the request itself is wrong in the other way too, and is said there.
            Err(Error::Daemon { .. } | Error::Answer { .. }) => return Ok(false),
            hijacked => hijacked?,
        };
        let failed = |source: io::Error| Error::Io { doing: "hand a file to the daemon".to_owned(), source };
        let Some(message) = message(upload) else { return Ok(false) };
        hand_over(&hijacked.stream, &message, &upload.file).map_err(|error| failed(error.into()))?;
        let (mut stream, mut line) = (hijacked.stream, hijacked.leftover);
        let answered = tokio::task::spawn_blocking(move || stream.read_to_end(&mut line).map(|_| line));
        let line = answered.await.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)?;
        let lost = || failed(io::ErrorKind::UnexpectedEof.into());
        let outcome: Outcome = serde_json::from_slice(&line).map_err(|_| lost())?;
        match outcome.status {
            200 => Ok(true),
            status => Err(Error::Daemon { status, message: outcome.message }),
        }
    }
}

/// How it went.
#[derive(serde::Deserialize)]
struct Outcome {
    status: u16,
    message: String,
}

/// Lengths of the beginning and of the file, and the beginning.
fn message(upload: &FileUpload) -> Option<Vec<u8>> {
    let length = u32::try_from(upload.beginning.len()).ok()?;
    Some([&length.to_be_bytes(), &upload.size.to_be_bytes()[..], &upload.beginning].concat())
}

fn hand_over(stream: &UnixStream, mut message: &[u8], file: &File) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let descriptors = [file.as_fd()];
    let mut gift = SendAncillaryBuffer::new(&mut space);
    gift.push(SendAncillaryMessage::ScmRights(&descriptors));
    while !message.is_empty() {
        let sent = sendmsg(stream, &[IoSlice::new(message)], &mut gift, SendFlags::NOSIGNAL)?;
        message = &message[sent..];
        gift.clear();
    }
    Ok(())
}

fn archive(id: &str, query: &Query) -> String {
    format!("/containers/{}/archive{}", encode(id), query.as_str())
}

fn stat_of(headers: &HeaderMap, call: &str) -> Result<PathStat> {
    let wrong = |reason: String| Error::Answer { call: call.to_owned(), reason };
    let header = headers
        .get("X-Docker-Container-Path-Stat")
        .ok_or_else(|| wrong("the header X-Docker-Container-Path-Stat is missing".to_owned()))?;
    let json = base64::engine::general_purpose::STANDARD
        .decode(header.as_bytes())
        .map_err(|error| wrong(error.to_string()))?;
    insula_models::from_json(&json).map_err(|error| wrong(error.to_string()))
}
