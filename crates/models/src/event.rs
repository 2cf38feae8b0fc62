//! Events.

use crate::Labels;
use crate::lenient::{document, is_zero};

document! {
    /// One line of `GET /events`. `status`, `id` and `from` repeat what older clients read.
    EventMessage {
        #[serde(rename = "status", skip_serializing_if = "is_zero")]
        status: String,
        #[serde(rename = "id", skip_serializing_if = "is_zero")]
        id: String,
        #[serde(rename = "from", skip_serializing_if = "is_zero")]
        from: String,
        /// `container`, `image`, `volume`, `network`, `daemon`.
        r#type: String,
        action: String,
        actor: EventActor,
        #[serde(rename = "scope", skip_serializing_if = "is_zero")]
        scope: String,
        /// Seconds since 1970.
        #[serde(rename = "time", skip_serializing_if = "is_zero")]
        time: i64,
        #[serde(rename = "timeNano", skip_serializing_if = "is_zero")]
        time_nano: i64,
    }
}

document! {
    /// What the event happened to.
    EventActor {
        #[serde(rename = "ID")]
        id: String,
        attributes: Labels,
    }
}
