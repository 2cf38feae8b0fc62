//! `/insula/kernels`.

use insula_models::{Kernel, KernelUseRequest};

use crate::body::RequestBody;
use crate::connection::{Call, Client, json};
use crate::error::Result;

impl Client {
    /// `GET /insula/kernels`.
    pub async fn kernels(&self) -> Result<Vec<Kernel>> {
        self.document(Call::get("/insula/kernels".to_owned()), RequestBody::Empty).await
    }

    /// `POST /insula/kernels/use`.
    pub async fn use_kernel(&self, request: &KernelUseRequest) -> Result<Kernel> {
        self.document(Call::post("/insula/kernels/use".to_owned()).json(), json(request)?).await
    }
}
