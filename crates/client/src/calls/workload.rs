//! `/insula/bundle`, `/insula/unbundle`.

use insula_models::{WorkloadConflict, WorkloadRestored};

use crate::body::{RequestBody, Upload};
use crate::connection::{Call, Client};
use crate::error::Result;
use crate::query::Query;
use crate::stream::ByteStream;

/// What becomes otherwise than it is in a bundle: `OLD=NEW` each.
#[derive(Debug, Clone, Default)]
pub struct UnbundleOptions {
    pub containers: Vec<String>,
    pub volumes: Vec<String>,
    pub networks: Vec<String>,
    pub ports: Vec<String>,
}

impl UnbundleOptions {
    fn query(&self) -> Query {
        let kinds = [
            ("rename", &self.containers),
            ("volume", &self.volumes),
            ("network", &self.networks),
            ("port", &self.ports),
        ];
        let all = kinds.into_iter().flat_map(|(kind, values)| values.iter().map(move |value| (kind, value)));
        all.fold(Query::new(), |query, (kind, value)| query.with(kind, value))
    }
}

impl Client {
    /// `GET /insula/bundle`: containers by names or ids, less the layers with these digests.
    pub async fn bundle(&self, names: &[String], pause: bool, without: &[String]) -> Result<ByteStream> {
        let mut query = Query::new().with("pause", if pause { "1" } else { "0" });
        for (kind, values) in [("names", names), ("without", without)] {
            for value in values {
                query = query.with(kind, value);
            }
        }
        let call = Call::get(format!("/insula/bundle{}", query.as_str()));
        Ok(self.stream(call, RequestBody::Empty).await?.0)
    }

    /// `POST /insula/unbundle`.
    pub async fn unbundle(&self, file: Upload, options: &UnbundleOptions) -> Result<WorkloadRestored> {
        let call = Call::post(format!("/insula/unbundle{}", options.query().as_str())).tar();
        self.document(call, RequestBody::Upload(file)).await
    }

    /// `POST /insula/unbundle/check`: what would be in the way of a bundle with this document.
    pub async fn check_unbundle(
        &self,
        document: Vec<u8>,
        options: &UnbundleOptions,
    ) -> Result<Vec<WorkloadConflict>> {
        let call = Call::post(format!("/insula/unbundle/check{}", options.query().as_str()));
        self.document(call, RequestBody::bytes(document)).await
    }
}
