//! What the engine of an ordinary user cannot do, by its name and with the reason.

use std::sync::OnceLock;

use insula_host::cgroup::Layout;
pub use insula_host::rootless::{Error as EnterError, Outside, enter, outside};
use insula_models::HostConfig;
use insula_spec::plan::Resources;

use crate::plan::resources;
use crate::{Error, Result};

const HOW: &str = "this engine is an ordinary user's, who may make none";

/// Whether no control group can be made.
pub(crate) fn without_groups() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        insula_sys::process::in_user_namespace() && Layout::probe().is_ok_and(|layout| layout.is_empty())
    })
}

/// What a container asks for that takes more rights than there are.
pub(crate) fn check(host: &HostConfig) -> Result<()> {
    if outside().is_some() {
        check_devices(host)?;
    }
    if !without_groups() {
        return Ok(());
    }
    if !matches!(host.pid_mode.as_str(), "" | "private") {
        return Err(Error::Unsupported(format!(
            "--pid {}: without control groups its processes cannot be told from others; {HOW}",
            host.pid_mode
        )));
    }
    check_limits(&resources::of(host)?)
}

/// Limits, of which nobody would see to it that they are kept.
pub(crate) fn check_limits(wanted: &Resources) -> Result<()> {
    if !without_groups() || *wanted == Resources::default() {
        return Ok(());
    }
    Err(Error::Unsupported(format!("limits ({}) need control groups; {HOW}", names(wanted).join(", "))))
}

fn check_devices(host: &HostConfig) -> Result<()> {
    let isolation = host.isolation.as_str();
    if !matches!(isolation, "" | "default" | "process") {
        return Err(Error::Unsupported(format!(
            "--isolation {isolation}: this engine is an ordinary user's, which runs no machines in this version"
        )));
    }
    if host.storage_opt.contains_key("size") {
        return Err(Error::Unsupported(
            "--storage-opt size: sized layers need loop devices or project quotas, which are root's; this engine is an ordinary user's"
                .to_owned(),
        ));
    }
    Ok(())
}

/// What is limited, as the document has it.
fn names(wanted: &Resources) -> Vec<String> {
    let document = serde_json::to_value(wanted).unwrap_or_default();
    let empty = |value: &serde_json::Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    let fields = document.as_object().into_iter().flatten();
    fields.filter(|(_, value)| !empty(value)).map(|(name, _)| name.replace('_', " ")).collect()
}

/// For `info`.
pub(crate) fn warnings() -> Vec<String> {
    let groups = without_groups()
        .then(|| format!("No control groups: limits are refused, and containers cannot be paused; {HOW}"));
    let ids = outside().map(|_| {
        "Containers have the ids of this user's engine: for the host their root is this user, confined by capabilities \
         and the system call filter"
            .to_owned()
    });
    ids.into_iter().chain(groups).chain(outside().into_iter().flat_map(Outside::missing)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_named() {
        let wanted = Resources { memory: Some(1), pids: Some(2), ..Resources::default() };
        assert_eq!(names(&wanted), ["memory", "pids"]);
        assert!(names(&Resources::default()).is_empty());
    }
}
