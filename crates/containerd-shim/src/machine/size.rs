//! How large the machine of a pod is. What its containers are to have is known later, to kubelet alone: containerd
//! passes the sum on with the pod's first container, and whoever knows better says so by annotations of ours.

use std::collections::BTreeMap;

use insula_spec::plan::Resources;

use crate::error::{Error, Result};

/// For `pod_annotations` of containerd's configuration.
const MEMORY: &str = "insula.vm/memory";
const CPUS: &str = "insula.vm/cpus";
/// Bytes that the pod's containers have together.
const SUM: &str = "io.kubernetes.cri.sandbox-memory";
const QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// Of one without any limit.
const USUAL: u64 = 512 << 20;
/// What the guest's kernel takes beside the containers.
const KERNEL: u64 = 128 << 20;
const MIB: u64 = 1 << 20;
const MOST_CPUS: u64 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) cpus: u32,
    /// Bytes, whole MiB.
    pub(super) memory: u64,
}

/// By the annotations and limits of the pod's first container, which is the only one outside of Kubernetes.
pub(super) fn size(annotations: &BTreeMap<String, String>, limits: &Resources) -> Result<Size> {
    let told = |name: &str| annotations.get(name).map(String::as_str).filter(|text| !text.is_empty());
    let wrong = |name: &str, text: &str| Error::Invalid(format!("annotation {name}: {text:?} is no size"));
    // containerd's own are numbers, and 0 where there is no limit.
    let number =
        |name: &str| told(name).and_then(|text| text.parse::<u64>().ok()).filter(|number| *number > 0);
    let with_kernel = |bytes: u64| bytes.saturating_add(KERNEL);
    // Unlimited is a number that nobody has.
    let own = limits.memory.filter(|limit| *limit < 1 << 50);
    let memory = match told(MEMORY) {
        Some(text) => insula_base::parse_bytes(text).map_err(|_| wrong(MEMORY, text))?,
        None => number(SUM).or(own).map_or(USUAL, with_kernel),
    };
    if memory < KERNEL {
        return Err(Error::Invalid(format!("a machine of {memory} bytes is too small: {KERNEL} at least")));
    }
    let period = |period: Option<u64>| period.filter(|period| *period > 0).unwrap_or(100_000);
    let own = limits.cpu_quota.and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0);
    let cpus = match told(CPUS) {
        Some(text) => text.parse().map_err(|_| wrong(CPUS, text))?,
        None => match (number(QUOTA), own) {
            (Some(quota), _) => quota.div_ceil(period(number(PERIOD))),
            (None, Some(quota)) => quota.div_ceil(period(limits.cpu_period)),
            (None, None) => 1,
        },
    };
    // At most 64.
    Ok(Size { cpus: cpus.clamp(1, MOST_CPUS) as u32, memory: memory.next_multiple_of(MIB) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(annotations: &[(&str, &str)], limits: &Resources) -> Result<Size> {
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        size(&annotations.collect(), limits)
    }

    #[test]
    fn a_machine_has_room_for_what_its_pod_may_have() {
        let none = Resources::default();
        assert_eq!(of(&[], &none).unwrap(), Size { cpus: 1, memory: 512 << 20 });
        let own = Resources { memory: Some(64 << 20), cpu_quota: Some(150_000), ..Resources::default() };
        assert_eq!(of(&[], &own).unwrap(), Size { cpus: 2, memory: 192 << 20 });
        let pod = [(SUM, "268435456"), (QUOTA, "200000"), (PERIOD, "100000")];
        assert_eq!(of(&pod, &own).unwrap(), Size { cpus: 2, memory: 384 << 20 });
        let unlimited = Resources { memory: Some(i64::MAX as u64), ..Resources::default() };
        assert_eq!(of(&[(SUM, "0"), (QUOTA, "-1")], &unlimited).unwrap().memory, 512 << 20);
        assert_eq!(of(&[(MEMORY, "1g"), (CPUS, "3")], &own).unwrap(), Size { cpus: 3, memory: 1 << 30 });
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for annotation in [(MEMORY, "much"), (MEMORY, "1m"), (CPUS, "one")] {
            assert!(of(&[annotation], &Resources::default()).is_err(), "{annotation:?}");
        }
    }
}
