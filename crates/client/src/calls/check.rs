//! `/insula/check`.

use insula_models::CheckLine;

use crate::body::RequestBody;
use crate::connection::{Call, Client};
use crate::error::Result;
use crate::stream::JsonStream;

impl Client {
    /// `POST /insula/check`.
    pub async fn check(&self, repair: bool) -> Result<JsonStream<CheckLine>> {
        let query = if repair { "?repair=1" } else { "" };
        let call = Call::post(format!("/insula/check{query}"));
        Ok(JsonStream::new(self.stream(call, RequestBody::Empty).await?.0))
    }
}
