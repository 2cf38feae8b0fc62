//! The engine itself.

use insula_models::{DiskUsage, EventMessage, SystemInfo, Version};

use crate::body::RequestBody;
use crate::connection::{Call, Client};
use crate::error::Result;
use crate::query::{Filters, Query};
use crate::stream::JsonStream;

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct EventsOptions {
    /// Unix time, with a fraction if any; empty is now.
    pub since: String,
    /// Unix time; empty is for ever.
    pub until: String,
    pub filters: Filters,
}

impl Client {
    /// `GET /version`.
    pub async fn version(&self) -> Result<Version> {
        self.document(Call::get("/version".to_owned()), RequestBody::Empty).await
    }

    /// `GET /info`.
    pub async fn info(&self) -> Result<SystemInfo> {
        self.document(Call::get("/info".to_owned()), RequestBody::Empty).await
    }

    /// `GET /system/df`.
    pub async fn disk_usage(&self) -> Result<DiskUsage> {
        self.document(Call::get("/system/df".to_owned()), RequestBody::Empty).await
    }

    /// `GET /_ping`.
    pub async fn ping(&self) -> Result<()> {
        self.nothing(Call::get("/_ping".to_owned()), RequestBody::Empty).await
    }

    /// `GET /events`.
    pub async fn events(&self, options: &EventsOptions) -> Result<JsonStream<EventMessage>> {
        let query = Query::new()
            .with_text("since", &options.since)
            .with_text("until", &options.until)
            .with_filters(&options.filters);
        let call = Call::get(format!("/events{}", query.as_str()));
        Ok(JsonStream::new(self.stream(call, RequestBody::Empty).await?.0))
    }
}
