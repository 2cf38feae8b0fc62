//! `process.scheduler`, `process.ioPriority` and `linux.personality`: names of the standard, numbers of the kernel.

use serde::Deserialize;
use serde_json::Value;

use super::{IoPriorityPlan, Result, SchedulerPlan, invalid};

/// sched(7); 4 was never given.
const POLICIES: [(&str, u32); 6] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];
/// sched_setattr(2).
const FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x1),
    ("SCHED_FLAG_RECLAIM", 0x2),
    ("SCHED_FLAG_DL_OVERRUN", 0x4),
    ("SCHED_FLAG_KEEP_POLICY", 0x8),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];
const CLASSES: [(&str, u8); 3] = [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];
/// personality(2).
const DOMAINS: [(&str, u32); 2] = [("LINUX", 0), ("LINUX32", 8)];

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Scheduler {
    policy: String,
    nice: i32,
    priority: i64,
    flags: Vec<String>,
    runtime: u64,
    deadline: u64,
    period: u64,
}

#[derive(Deserialize)]
struct IoPriority {
    class: String,
    #[serde(default)]
    priority: i64,
}

#[derive(Deserialize)]
struct Personality {
    domain: String,
    #[serde(default)]
    flags: Vec<String>,
}

pub(super) fn read<T: serde::de::DeserializeOwned>(value: Option<&Value>, at: &str) -> Result<Option<T>> {
    let value = value.filter(|value| !value.is_null());
    let parse = |value: &Value| serde_json::from_value(value.clone());
    value.map(parse).transpose().map_err(|error| invalid(at, error.to_string()))
}

pub(super) fn named<T: Copy>(known: &[(&str, T)], name: &str, at: String) -> Result<T> {
    let found = known.iter().find(|(known, _)| *known == name);
    found.map(|(_, number)| *number).ok_or_else(|| invalid(at, format!("{name:?} is not known")))
}

pub(super) fn scheduler(value: Option<&Value>, at: &str) -> Result<Option<SchedulerPlan>> {
    let Some(asked) = read::<Scheduler>(value, at)? else { return Ok(None) };
    if !(-20..=19).contains(&asked.nice) {
        return Err(invalid(format!("{at}.nice"), format!("{} is not from -20 to 19", asked.nice)));
    }
    let priority = u32::try_from(asked.priority).ok().filter(|priority| *priority < 100);
    let flags = asked.flags.iter().enumerate();
    let flags = flags.map(|(number, name)| named(&FLAGS, name, format!("{at}.flags[{number}]")));
    Ok(Some(SchedulerPlan {
        policy: named(&POLICIES, &asked.policy, format!("{at}.policy"))?,
        flags: flags.collect::<Result<Vec<_>>>()?.into_iter().fold(0, |all, flag| all | flag),
        nice: asked.nice,
        priority: priority.ok_or_else(|| {
            invalid(format!("{at}.priority"), format!("{} is not from 0 to 99", asked.priority))
        })?,
        runtime: asked.runtime,
        deadline: asked.deadline,
        period: asked.period,
    }))
}

pub(super) fn io_priority(value: Option<&Value>, at: &str) -> Result<Option<IoPriorityPlan>> {
    let Some(asked) = read::<IoPriority>(value, at)? else { return Ok(None) };
    let level = u8::try_from(asked.priority).ok().filter(|level| *level < 8);
    Ok(Some(IoPriorityPlan {
        class: named(&CLASSES, &asked.class, format!("{at}.class"))?,
        level: level.ok_or_else(|| {
            invalid(format!("{at}.priority"), format!("{} is not from 0 to 7", asked.priority))
        })?,
    }))
}

/// Of `linux.personality`. The standard knows no flags yet.
pub fn personality(value: Option<&Value>) -> Result<Option<u32>> {
    const AT: &str = "linux.personality";
    let Some(asked) = read::<Personality>(value, AT)? else { return Ok(None) };
    if let Some(flag) = asked.flags.first() {
        return Err(invalid(format!("{AT}.flags[0]"), format!("{flag:?} is not known")));
    }
    named(&DOMAINS, &asked.domain, format!("{AT}.domain")).map(Some)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_become_numbers() {
        let asked = json!({"policy": "SCHED_RR", "priority": 7, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
        let plan = SchedulerPlan { policy: 2, priority: 7, flags: 1, ..SchedulerPlan::default() };
        assert_eq!(scheduler(Some(&asked), "s").unwrap(), Some(plan));
        let asked = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 7});
        assert_eq!(io_priority(Some(&asked), "i").unwrap(), Some(IoPriorityPlan { class: 3, level: 7 }));
        assert_eq!(personality(Some(&json!({"domain": "LINUX32"}))).unwrap(), Some(8));
        assert_eq!(personality(Some(&Value::Null)).unwrap(), None);
        assert_eq!(scheduler(None, "s").unwrap(), None);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let error = |result: Result<String>| result.unwrap_err().to_string();
        let of = |value: Value| error(scheduler(Some(&value), "s").map(|_| String::new()));
        assert_eq!(of(json!({"policy": "SCHED_BEST"})), "s.policy: \"SCHED_BEST\" is not known");
        assert_eq!(of(json!({"policy": "SCHED_RR", "priority": 100})), "s.priority: 100 is not from 0 to 99");
        assert_eq!(of(json!({"policy": "SCHED_OTHER", "nice": 20})), "s.nice: 20 is not from -20 to 19");
        assert!(of(json!({"policy": 3})).starts_with("s: "));
        let of = |value: Value| error(io_priority(Some(&value), "i").map(|_| String::new()));
        assert_eq!(of(json!({"class": "BE"})), "i.class: \"BE\" is not known");
        assert_eq!(
            of(json!({"class": "IOPRIO_CLASS_BE", "priority": 8})),
            "i.priority: 8 is not from 0 to 7"
        );
        let of = |value: Value| error(personality(Some(&value)).map(|_| String::new()));
        assert_eq!(of(json!({"domain": "X"})), "linux.personality.domain: \"X\" is not known");
        assert!(of(json!({"domain": "LINUX", "flags": ["X"]})).starts_with("linux.personality.flags[0]"));
    }
}
