//! `/networks`.

use insula_models::{
    Network, NetworkConnectRequest, NetworkCreateRequest, NetworkCreateResponse, NetworkDisconnectRequest,
    NetworksPruneResponse,
};

use crate::body::RequestBody;
use crate::connection::{Call, Client, json};
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

    /// `POST /networks/create`.
    pub async fn create_network(&self, request: &NetworkCreateRequest) -> Result<NetworkCreateResponse> {
        self.document(Call::post("/networks/create".to_owned()).json(), json(request)?).await
    }

    /// `DELETE /networks/{id}`.
    pub async fn remove_network(&self, id: &str) -> Result<()> {
        self.nothing(Call::delete(format!("/networks/{}", encode(id))), RequestBody::Empty).await
    }

    /// `POST /networks/prune`.
    pub async fn prune_networks(&self, filters: &Filters) -> Result<NetworksPruneResponse> {
        let query = Query::new().with_filters(filters);
        self.document(Call::post(format!("/networks/prune{}", query.as_str())), RequestBody::Empty).await
    }

    /// `POST /networks/{id}/connect`.
    pub async fn connect_network(&self, id: &str, request: &NetworkConnectRequest) -> Result<()> {
        self.nothing(Call::post(format!("/networks/{}/connect", encode(id))).json(), json(request)?).await
    }

    /// `POST /networks/{id}/disconnect`.
    pub async fn disconnect_network(&self, id: &str, request: &NetworkDisconnectRequest) -> Result<()> {
        self.nothing(Call::post(format!("/networks/{}/disconnect", encode(id))).json(), json(request)?).await
    }
}
