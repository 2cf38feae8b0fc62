//! `/insula/kernels`, `/insula/templates` and `/insula/tenants`.

use insula_models::{
    DirtyRate, Kernel, KernelUseRequest, Template, TemplateRequest, TemplatesPruned, Tenant,
    TenantCreateRequest,
};

use crate::body::RequestBody;
use crate::connection::{Call, Client, json};
use crate::error::Result;
use crate::query::encode;

impl Client {
    /// `GET /insula/kernels`.
    pub async fn kernels(&self) -> Result<Vec<Kernel>> {
        self.document(Call::get("/insula/kernels".to_owned()), RequestBody::Empty).await
    }

    /// `POST /insula/kernels/use`.
    pub async fn use_kernel(&self, request: &KernelUseRequest) -> Result<Kernel> {
        self.document(Call::post("/insula/kernels/use".to_owned()).json(), json(request)?).await
    }

    /// `GET /insula/templates`.
    pub async fn templates(&self) -> Result<Vec<Template>> {
        self.document(Call::get("/insula/templates".to_owned()), RequestBody::Empty).await
    }

    /// `POST /insula/templates`.
    pub async fn warm(&self, request: &TemplateRequest) -> Result<Template> {
        self.document(Call::post("/insula/templates".to_owned()).json(), json(request)?).await
    }

    /// `DELETE /insula/templates/{id}`.
    pub async fn remove_template(&self, id: &str) -> Result<()> {
        self.nothing(Call::delete(format!("/insula/templates/{}", encode(id))), RequestBody::Empty).await
    }

    /// `GET /insula/tenants`.
    pub async fn tenants(&self) -> Result<Vec<Tenant>> {
        self.document(Call::get("/insula/tenants".to_owned()), RequestBody::Empty).await
    }

    /// `POST /insula/tenants`.
    pub async fn create_tenant(&self, request: &TenantCreateRequest) -> Result<Tenant> {
        self.document(Call::post("/insula/tenants".to_owned()).json(), json(request)?).await
    }

    /// `GET /insula/tenants/{name}`, as it came.
    pub async fn inspect_tenant_json(&self, name: &str) -> Result<String> {
        self.json_text(Call::get(format!("/insula/tenants/{}", encode(name))), RequestBody::Empty).await
    }

    /// `DELETE /insula/tenants/{name}`.
    pub async fn remove_tenant(&self, name: &str) -> Result<()> {
        self.nothing(Call::delete(format!("/insula/tenants/{}", encode(name))), RequestBody::Empty).await
    }

    /// `GET /insula/containers/{id}/dirty-rate`.
    pub async fn container_dirty_rate(&self, id: &str, milliseconds: u64) -> Result<DirtyRate> {
        let path = format!("/insula/containers/{}/dirty-rate?milliseconds={milliseconds}", encode(id));
        self.document(Call::get(path), RequestBody::Empty).await
    }

    /// `GET /insula/tenants/{name}/dirty-rate`.
    pub async fn tenant_dirty_rate(&self, name: &str, milliseconds: u64) -> Result<DirtyRate> {
        let path = format!("/insula/tenants/{}/dirty-rate?milliseconds={milliseconds}", encode(name));
        self.document(Call::get(path), RequestBody::Empty).await
    }

    /// `POST /insula/templates/prune`.
    pub async fn prune_templates(&self, all: bool) -> Result<TemplatesPruned> {
        let path = format!("/insula/templates/prune?all={all}");
        self.document(Call::post(path), RequestBody::Empty).await
    }
}
