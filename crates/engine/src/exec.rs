//! Processes beside a container's first one.

use insula_models::{ExecCreateRequest, ExecInspect, ExecStartRequest, IdResponse};

use crate::engine::not_yet;
use crate::{AttachedStream, Engine, Result};

/// What one needs to know before taking a connection over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecTarget {
    /// Output is raw rather than multiplexed.
    pub tty: bool,
}

impl Engine {
    pub async fn create_exec(&self, _reference: &str, _request: ExecCreateRequest) -> Result<IdResponse> {
        not_yet("exec")
    }

    /// Fails if there is no such exec, or it ran already, before the connection is taken over.
    pub async fn exec_target(&self, _id: &str) -> Result<ExecTarget> {
        not_yet("exec")
    }

    /// Starts it; with a stream, that becomes its standard streams, without it is detached.
    pub async fn start_exec(
        &self,
        _id: &str,
        _request: ExecStartRequest,
        _stream: Option<AttachedStream>,
    ) -> Result<()> {
        not_yet("exec")
    }

    pub async fn inspect_exec(&self, _id: &str) -> Result<ExecInspect> {
        not_yet("exec")
    }

    pub async fn resize_exec(&self, _id: &str, _rows: u16, _columns: u16) -> Result<()> {
        not_yet("exec")
    }
}
