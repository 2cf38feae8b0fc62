//! `/volumes`.

use insula_models::{Volume, VolumeCreateRequest, VolumeListResponse, VolumesPruneResponse};

use crate::body::RequestBody;
use crate::connection::{Call, Client, json};
use crate::error::Result;
use crate::query::{Filters, Query, encode};

impl Client {
    /// `POST /volumes/create`.
    pub async fn create_volume(&self, request: &VolumeCreateRequest) -> Result<Volume> {
        self.document(Call::post("/volumes/create".to_owned()).json(), json(request)?).await
    }

    /// `GET /volumes`.
    pub async fn list_volumes(&self, filters: &Filters) -> Result<VolumeListResponse> {
        let query = Query::new().with_filters(filters);
        self.document(Call::get(format!("/volumes{}", query.as_str())), RequestBody::Empty).await
    }

    /// `GET /volumes/{name}`, as the daemon wrote it.
    pub async fn inspect_volume_json(&self, name: &str) -> Result<String> {
        self.json_text(Call::get(format!("/volumes/{}", encode(name))), RequestBody::Empty).await
    }

    /// `DELETE /volumes/{name}`.
    pub async fn remove_volume(&self, name: &str, force: bool) -> Result<()> {
        let query = Query::new().with_flag("force", force);
        self.nothing(Call::delete(format!("/volumes/{}{}", encode(name), query.as_str())), RequestBody::Empty)
            .await
    }

    /// `POST /volumes/prune`.
    pub async fn prune_volumes(&self, filters: &Filters) -> Result<VolumesPruneResponse> {
        let query = Query::new().with_filters(filters);
        self.document(Call::post(format!("/volumes/prune{}", query.as_str())), RequestBody::Empty).await
    }
}
