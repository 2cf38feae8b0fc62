//! `process.execCPUAffinity` and `linux.memoryPolicy`: which processors and which memory.

use serde::Deserialize;
use serde_json::Value;

use super::scheduling::{named, read};
use super::{AffinityPlan, MemoryPolicyPlan, Result, invalid};

/// More than any kernel is built for.
const HIGHEST: u32 = 8191;

/// `linux/mempolicy.h`.
const MODES: [(&str, u32); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];
const FLAGS: [(&str, u32); 3] = [
    ("MPOL_F_STATIC_NODES", 1 << 15),
    ("MPOL_F_RELATIVE_NODES", 1 << 14),
    ("MPOL_F_NUMA_BALANCING", 1 << 13),
];

/// Modes and flags of `linux.memoryPolicy` that are known.
#[must_use]
pub fn memory_policies() -> ([&'static str; MODES.len()], [&'static str; FLAGS.len()]) {
    (MODES.map(|(name, _)| name), FLAGS.map(|(name, _)| name))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Affinity {
    initial: String,
    #[serde(rename = "final")]
    last: String,
}

#[derive(Deserialize)]
struct MemoryPolicy {
    mode: String,
    #[serde(default)]
    nodes: String,
    #[serde(default)]
    flags: Vec<String>,
}

pub(super) fn affinity(value: Option<&Value>, at: &str) -> Result<Option<AffinityPlan>> {
    let Some(asked) = read::<Affinity>(value, at)? else { return Ok(None) };
    let first = numbers(&asked.initial, &format!("{at}.initial"))?;
    Ok(Some(AffinityPlan { first, then: numbers(&asked.last, &format!("{at}.final"))? }))
}

/// Of `linux.memoryPolicy`.
pub fn memory_policy(value: Option<&Value>) -> Result<Option<MemoryPolicyPlan>> {
    const AT: &str = "linux.memoryPolicy";
    let Some(asked) = read::<MemoryPolicy>(value, AT)? else { return Ok(None) };
    let mut mode = named(&MODES, &asked.mode, format!("{AT}.mode"))?;
    for (number, flag) in asked.flags.iter().enumerate() {
        mode |= named(&FLAGS, flag, format!("{AT}.flags[{number}]"))?;
    }
    Ok(Some(MemoryPolicyPlan { mode, nodes: numbers(&asked.nodes, &format!("{AT}.nodes"))? }))
}

/// The format of lists in cpuset(7): `0-2,4`.
fn numbers(list: &str, at: &str) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|number| *number <= HIGHEST);
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => all.extend(first..=last),
            _ => return Err(invalid(at, format!("{part:?} is no number and no range"))),
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_those_of_the_kernel() {
        assert_eq!(numbers("0-2,4, 1", "x").unwrap(), [0, 1, 2, 4]);
        assert_eq!(numbers("", "x").unwrap(), [0; 0]);
        for wrong in ["2-1", "a", "-1", "1-", "8192", "0-4294967295"] {
            let error = numbers(wrong, "x").unwrap_err().to_string();
            assert_eq!(error, format!("x: {wrong:?} is no number and no range"));
        }
    }

    #[test]
    fn names_become_numbers() {
        let asked = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
        let plan = MemoryPolicyPlan { mode: 2 | 1 << 15, nodes: vec![0] };
        assert_eq!(memory_policy(Some(&asked)).unwrap(), Some(plan));
        let error = memory_policy(Some(&json!({"mode": "MPOL_BEST"}))).unwrap_err().to_string();
        assert_eq!(error, "linux.memoryPolicy.mode: \"MPOL_BEST\" is not known");
        let asked = json!({"initial": "0", "final": "0-1"});
        let plan = AffinityPlan { first: vec![0], then: vec![0, 1] };
        assert_eq!(affinity(Some(&asked), "a").unwrap(), Some(plan));
        assert_eq!(affinity(None, "a").unwrap(), None);
    }
}
