//! What commands print.

use std::io::Write;
use std::process::Command;

use anyhow::{Context, Result, bail};
use insula_host::cgroup::Stats;
use insula_runtime_core::Found;
use serde_json::{Value, json};

use crate::args::Format;

pub(crate) fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("write standard output")
}

fn document(value: &Value) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// The state of the specification, with what runc adds to it.
fn described(found: &Found) -> Result<Value> {
    let mut value = serde_json::to_value(found.record.state(found.status))?;
    value["pid"] = json!(found.record.state(found.status).pid);
    value["rootfs"] = json!(found.record.plan.rootfs.layers.first());
    value["created"] = json!(found.record.created);
    value["owner"] = json!("");
    Ok(value)
}

pub(crate) fn state(found: &Found) -> Result<()> {
    document(&described(found)?)
}

pub(crate) fn list(all: &[Found], format: Format, quiet: bool) -> Result<()> {
    if quiet {
        return all.iter().try_for_each(|found| print(&format!("{}\n", found.record.id)));
    }
    if format == Format::Json {
        return document(&Value::Array(all.iter().map(described).collect::<Result<_>>()?));
    }
    let width = all.iter().map(|found| found.record.id.len()).chain([2]).max().unwrap_or(2);
    print(&format!("{:width$}  {:7}  {:8}  {:30}  BUNDLE\n", "ID", "PID", "STATUS", "CREATED"))?;
    for found in all {
        let state = found.record.state(found.status);
        let (pid, status, created) = (state.pid, found.status.name(), &found.record.created);
        let bundle = found.record.bundle.display();
        print(&format!("{:width$}  {pid:<7}  {status:8}  {created:30}  {bundle}\n", found.record.id))?;
    }
    Ok(())
}

/// The table is that of ps(1) for the container's processes.
pub(crate) fn processes(pids: &[i32], format: Format, options: &[String]) -> Result<()> {
    if format == Format::Json {
        return print(&format!("{}\n", json!(pids)));
    }
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() { &default } else { options };
    let output = Command::new("ps").args(options).output().context("execute ps")?;
    if !output.status.success() {
        bail!("ps: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head.split_whitespace().position(|name| name == "PID").context("ps prints no column PID")?;
    print(&format!("{head}\n"))?;
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|field| field.parse().ok());
        if pid.is_some_and(|pid: i32| pids.contains(&pid)) {
            print(&format!("{line}\n"))?;
        }
    }
    Ok(())
}

/// One event of runc's kind `oom`.
pub(crate) fn out_of_memory(id: &str) -> Result<()> {
    print(&format!("{}\n", json!({ "type": "oom", "id": id })))
}

/// One event of runc's kind `stats`.
pub(crate) fn stats(id: &str, stats: &Stats) -> Result<()> {
    let event = json!({
        "type": "stats",
        "id": id,
        "data": {
            "cpu": {
                "usage": {
                    "total": stats.cpu_total.unwrap_or(0),
                    "percpu": stats.cpu_each,
                    "kernel": stats.cpu_system.unwrap_or(0),
                    "user": stats.cpu_user.unwrap_or(0),
                },
                "throttling": {
                    "periods": stats.throttle_periods.unwrap_or(0),
                    "throttledPeriods": stats.throttled_periods.unwrap_or(0),
                    "throttledTime": stats.throttled_time.unwrap_or(0),
                },
            },
            "memory": {
                "usage": {
                    "limit": stats.memory_limit.unwrap_or(u64::MAX),
                    "usage": stats.memory_usage.unwrap_or(0),
                    "max": stats.memory_max_usage.unwrap_or(0),
                    "failcnt": stats.memory_failures.unwrap_or(0),
                },
                "raw": stats.memory,
            },
            "pids": { "current": stats.pids.unwrap_or(0), "limit": stats.pids_limit.unwrap_or(0) },
            "blkio": {},
            "hugetlb": {},
            "intel_rdt": {},
            "network_interfaces": null,
        },
    });
    print(&format!("{event}\n"))
}
