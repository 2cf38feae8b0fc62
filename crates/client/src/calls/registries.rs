//! `/auth`, `/distribution`, search.

use insula_models::{AuthConfig, AuthResponse, RemoteManifest, SearchResult};

use crate::body::RequestBody;
use crate::connection::{Call, Client, json};
use crate::error::Result;
use crate::query::{Filters, Query, encode};

impl Client {
    /// `POST /auth`.
    pub async fn login(&self, auth: &AuthConfig) -> Result<AuthResponse> {
        self.document(Call::post("/auth".to_owned()).json(), json(auth)?).await
    }

    /// `GET /images/search`.
    pub async fn search_images(
        &self,
        term: &str,
        limit: Option<i64>,
        filters: &Filters,
        auth: &AuthConfig,
    ) -> Result<Vec<SearchResult>> {
        let query = Query::new().with("term", term).with_number("limit", limit).with_filters(filters);
        let call = Call::get(format!("/images/search{}", query.as_str())).with_credentials(auth);
        self.document(call, RequestBody::Empty).await
    }

    /// `GET /distribution/{name}/manifest`, which is insula's own.
    pub async fn remote_manifests(
        &self,
        name: &str,
        detail: bool,
        insecure: bool,
        auth: &AuthConfig,
    ) -> Result<Vec<RemoteManifest>> {
        let query = Query::new().with_flag("detail", detail).with_flag("insecure", insecure);
        let call = Call::get(format!("/distribution/{}/manifest{}", encode(name), query.as_str()));
        self.document(call.with_credentials(auth), RequestBody::Empty).await
    }
}
