//! What the machine is, as far as times depend on it.

use std::fs;

fn line(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find(|line| line.starts_with(key))?.split_once([':', '='])?.1;
    Some(value.trim().trim_matches('"').to_owned())
}

/// One sentence a fact.
pub(crate) fn all() -> Vec<String> {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let uname = rustix::system::uname();
    let groups = match (fs::exists("/sys/fs/cgroup/cgroup.controllers"), fs::exists("/sys/fs/cgroup/unified"))
    {
        (Ok(true), _) => "version 2",
        (_, Ok(true)) => "hybrid",
        _ => "version 1",
    };
    let memory = line("/proc/meminfo", "MemTotal").unwrap_or_default();
    vec![
        format!("{cpus} × {}", line("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown CPU".into())),
        format!("memory {memory}"),
        format!("Linux {}", uname.release().to_string_lossy()),
        line("/etc/os-release", "PRETTY_NAME").unwrap_or_default(),
        format!("cgroups {groups}"),
    ]
}
