//! `/exec`.

use insula_models::{ExecCreateRequest, ExecInspect, ExecStartRequest, IdResponse};

use crate::body::RequestBody;
use crate::connection::{Call, Client, json};
use crate::error::Result;
use crate::hijack::Hijacked;
use crate::query::encode;

impl Client {
    /// `POST /containers/{id}/exec`: the id of what may then be started.
    pub async fn create_exec(&self, container: &str, request: &ExecCreateRequest) -> Result<String> {
        let call = Call::post(format!("/containers/{}/exec", encode(container))).json();
        let made: IdResponse = self.document(call, json(request)?).await?;
        Ok(made.id)
    }

    /// `POST /exec/{id}/start`, attached.
    pub async fn start_exec(&self, id: &str, request: &ExecStartRequest) -> Result<Hijacked> {
        let call = Call::post(format!("/exec/{}/start", encode(id))).json();
        self.hijack(call, json(request)?).await
    }

    /// `POST /exec/{id}/start`, detached.
    pub async fn start_exec_detached(&self, id: &str, request: &ExecStartRequest) -> Result<()> {
        let call = Call::post(format!("/exec/{}/start", encode(id))).json();
        self.nothing(call, json(request)?).await
    }

    /// `GET /exec/{id}/json`.
    pub async fn inspect_exec(&self, id: &str) -> Result<ExecInspect> {
        self.document(Call::get(format!("/exec/{}/json", encode(id))), RequestBody::Empty).await
    }

    /// `POST /exec/{id}/resize`.
    pub async fn resize_exec(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        let path = format!("/exec/{}/resize?h={rows}&w={columns}", encode(id));
        self.nothing(Call::post(path), RequestBody::Empty).await
    }
}
