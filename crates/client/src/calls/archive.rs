//! `/containers/{id}/archive`: files in and out as tar streams.

use base64::Engine;
use http::{HeaderMap, Method};
use insula_models::PathStat;

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
