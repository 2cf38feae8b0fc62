//! Processes beside a container's first one.

use crate::lenient::{document, is_zero, null_if_empty};

document! {
    /// Body of `POST /containers/{id}/exec`.
    ExecCreateRequest {
        user: String,
        privileged: bool,
        tty: bool,
        /// Rows and columns at start.
        #[serde(skip_serializing_if = "is_zero")]
        console_size: Option<[u32; 2]>,
        attach_stdin: bool,
        attach_stderr: bool,
        attach_stdout: bool,
        detach_keys: String,
        #[serde(serialize_with = "null_if_empty")]
        env: Vec<String>,
        working_dir: String,
        cmd: Vec<String>,
    }
}

document! {
    /// Answer of `POST /containers/{id}/exec`, and of others that name what they made.
    IdResponse {
        id: String,
    }
}

document! {
    /// Body of `POST /exec/{id}/start`.
    ExecStartRequest {
        detach: bool,
        tty: bool,
        #[serde(skip_serializing_if = "is_zero")]
        console_size: Option<[u32; 2]>,
    }
}

document! {
    /// Answer of `GET /exec/{id}/json`.
    ExecInspect {
        #[serde(rename = "ID")]
        id: String,
        running: bool,
        /// `None` while it runs.
        exit_code: Option<i64>,
        process_config: ExecProcessConfig,
        open_stdin: bool,
        open_stderr: bool,
        open_stdout: bool,
        can_remove: bool,
        #[serde(rename = "ContainerID")]
        container_id: String,
        detach_keys: String,
        pid: i64,
    }
}

document! {
    /// What was asked to run.
    ExecProcessConfig {
        #[serde(rename = "tty")]
        tty: bool,
        #[serde(rename = "entrypoint")]
        entrypoint: String,
        #[serde(rename = "arguments")]
        arguments: Vec<String>,
        #[serde(rename = "privileged")]
        privileged: bool,
        #[serde(rename = "user", skip_serializing_if = "is_zero")]
        user: String,
    }
}
