//! The documents of the Docker Engine API, versions 1.24 to 1.51, as serde structs: one for each
//! object of the published specification, field names as published. Data only; no defaults but
//! Go's zero values, no validation beyond types.
//!
//! Fields that Go declares as pointers are `Option`; all others have their zero value when they
//! are absent or `null`. What insula adds to a published object says so in its doc comment and is
//! left out of the output when unset.

mod check;
mod container;
mod event;
mod exec;
mod host_config;
mod image;
mod lenient;
mod machine;
mod network;
mod registry;
mod request;
mod stats;
mod system;
mod timing;
mod version;
mod versions;
mod volume;
mod workload;

pub use check::*;
pub use container::*;
pub use event::*;
pub use exec::*;
pub use host_config::*;
pub use image::*;
pub use lenient::{DocumentError, Empty, Words, from_json};
pub use machine::*;
pub use network::*;
pub use registry::*;
pub use request::from_request;
pub use stats::*;
pub use system::*;
pub use timing::{SERVER_TIMING, read_timing, write_timing};
pub use version::{ApiVersion, NotAVersion};
pub use versions::{Rule, Versioned, to_json};
pub use volume::*;
pub use workload::*;

/// The version of the API that insula speaks.
pub const API_VERSION: &str = "1.51";
/// The oldest version that is accepted in a path.
pub const MIN_API_VERSION: &str = "1.24";

use std::collections::BTreeMap;

/// Names and values, sorted.
pub type Labels = BTreeMap<String, String>;
/// A set, which Go writes as a map to empty objects.
pub type Set = BTreeMap<String, Empty>;

lenient::document! {
    /// What every failed request answers.
    ErrorResponse {
        #[serde(rename = "message")]
        message: String,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_documents_have_dockers_nulls() {
        let host = serde_json::to_value(HostConfig::default()).unwrap();
        for null in ["Binds", "CapAdd", "ExtraHosts", "Devices", "Ulimits", "PidsLimit", "MaskedPaths"] {
            assert!(host[null].is_null(), "{null}");
        }
        for list in ["Dns", "DnsOptions", "DnsSearch"] {
            assert!(host[list].is_array(), "{list}");
        }
        for absent in ["Mounts", "Tmpfs", "Init", "InitSystem", "Sysctls", "KernelMemory"] {
            assert!(host.get(absent).is_none(), "{absent}");
        }
        assert_eq!(host["UTSMode"], "");
        assert_eq!(host["BlkioDeviceReadIOps"], serde_json::Value::Null);
        let config = serde_json::to_value(ContainerConfig::default()).unwrap();
        assert!(config["Cmd"].is_null() && config["Volumes"].is_null() && config["Labels"].is_object());
        assert!(config.get("StopSignal").is_none() && config.get("ExposedPorts").is_none());
    }

    #[test]
    fn null_absent_and_unknown_are_accepted() {
        let text = r#"{"Image":"x","Cmd":"one word","Entrypoint":null,"Env":null,"Labels":null,"Tty":null,
            "HostConfig":{"Binds":null,"PortBindings":{"80/tcp":null,"53/udp":[{"HostPort":"53"}]},"New":1}}"#;
        let (config, host, _) = from_json::<ContainerCreateRequest>(text.as_bytes()).unwrap().into_parts();
        assert_eq!(config.cmd, Some(vec!["one word".to_owned()]));
        assert_eq!(config.entrypoint, None);
        let text = r#"{"CapAdd":"NET_ADMIN","CapDrop":["MKNOD"]}"#;
        let caps: HostConfig = from_json(text.as_bytes()).unwrap();
        assert_eq!(
            (&caps.cap_add[..], &caps.cap_drop[..]),
            (&["NET_ADMIN".into()][..], &["MKNOD".into()][..])
        );
        assert_eq!(host.port_bindings["80/tcp"], None);
        assert_eq!(host.port_bindings["53/udp"].as_ref().unwrap()[0].host_port, "53");
    }

    #[test]
    fn ill_typed_fields_are_named() {
        let of = |text: &str| from_json::<ContainerCreateRequest>(text.as_bytes()).unwrap_err().to_string();
        assert!(of(r#"{"HostConfig":{"Memory":"1g"}}"#).contains("HostConfig.Memory"));
        assert!(of(r#"{"Cmd":5}"#).contains("Cmd"));
        assert!(
            of(r#"{"HostConfig":{"Ulimits":[{"Name":"nofile","Soft":1.5}]}}"#).contains("Ulimits[0].Soft")
        );
        assert!(of("{").contains("not JSON"));
        assert!(of("{} x").contains("not JSON"));
    }

    #[test]
    fn summaries_omit_what_was_not_asked() {
        let port = PortSummary { private_port: 80, r#type: "tcp".to_owned(), ..Default::default() };
        assert_eq!(serde_json::to_string(&port).unwrap(), r#"{"PrivatePort":80,"Type":"tcp"}"#);
        let summary = serde_json::to_value(ContainerSummary::default()).unwrap();
        assert!(summary.get("SizeRw").is_none());
        assert!(summary.get("ImageID").is_some());
    }
}
