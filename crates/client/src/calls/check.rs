//! `/insula/check`, `/insula/images`.

use insula_models::{ChangeItem, CheckLine, ImageLayer};

use crate::body::RequestBody;
use crate::connection::{Call, Client};
use crate::error::Result;
use crate::query::Query;
use crate::stream::JsonStream;

impl Client {
    /// `POST /insula/check`.
    pub async fn check(&self, repair: bool) -> Result<JsonStream<CheckLine>> {
        let query = if repair { "?repair=1" } else { "" };
        let call = Call::post(format!("/insula/check{query}"));
        Ok(JsonStream::new(self.stream(call, RequestBody::Empty).await?.0))
    }

    /// `GET /insula/images/layers`: lowest first.
    pub async fn image_layers(&self, name: &str) -> Result<Vec<ImageLayer>> {
        let query = Query::new().with_text("name", name);
        let call = Call::get(format!("/insula/images/layers{}", query.as_str()));
        self.document(call, RequestBody::Empty).await
    }

    /// `GET /insula/images/compare`: what `to` has otherwise than `from`.
    pub async fn compare_images(&self, from: &str, to: &str) -> Result<Vec<ChangeItem>> {
        let query = Query::new().with_text("from", from).with_text("to", to);
        let call = Call::get(format!("/insula/images/compare{}", query.as_str()));
        self.document(call, RequestBody::Empty).await
    }
}
