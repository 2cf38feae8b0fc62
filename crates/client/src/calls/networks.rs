//! `/networks`, as far as they can be looked at.

use insula_models::Network;

use crate::body::RequestBody;
use crate::connection::{Call, Client};
use crate::error::Result;
use crate::query::{Filters, Query, encode};

impl Client {
    /// `GET /networks`.
    pub async fn list_networks(&self, filters: &Filters) -> Result<Vec<Network>> {
        let query = Query::new().with_filters(filters);
        self.document(Call::get(format!("/networks{}", query.as_str())), RequestBody::Empty).await
    }

    /// `GET /networks/{id}`, as the daemon wrote it.
    pub async fn inspect_network_json(&self, id: &str) -> Result<String> {
        self.json_text(Call::get(format!("/networks/{}", encode(id))), RequestBody::Empty).await
    }
}
