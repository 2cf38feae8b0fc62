//! Paths of `/proc` and `/sys` that tell of the host or act on it: Docker's defaults.

use std::path::Path;
use std::sync::LazyLock;

/// Read as empty inside. Those that a kernel does not have are skipped by who mounts.
pub const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Readable but not writable inside.
pub const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// [`MASKED`], and for each CPU of this host the counters of its thermal throttling, which betray
/// what else runs on it.
#[must_use]
pub fn masked() -> Vec<String> {
    static PATHS: LazyLock<Vec<String>> =
        LazyLock::new(|| masked_below(Path::new("/sys/devices/system/cpu")));
    PATHS.clone()
}

fn masked_below(cpus: &Path) -> Vec<String> {
    let mut paths: Vec<String> = MASKED.iter().map(|path| (*path).to_owned()).collect();
    let entries = std::fs::read_dir(cpus).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = entries
        .filter(|entry| entry.path().join("thermal_throttle").is_dir())
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("cpu")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    paths.extend(numbers.iter().map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle")));
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttle_counters_follow_the_fixed_paths_in_order_of_cpus() {
        let folder = tempfile::tempdir().unwrap();
        for cpu in ["cpu10", "cpu2", "cpuidle"] {
            std::fs::create_dir_all(folder.path().join(cpu).join("thermal_throttle")).unwrap();
        }
        std::fs::create_dir(folder.path().join("cpu3")).unwrap();
        let paths = masked_below(folder.path());
        assert_eq!(paths[..MASKED.len()], MASKED);
        assert_eq!(
            paths[MASKED.len()..],
            [
                "/sys/devices/system/cpu/cpu2/thermal_throttle",
                "/sys/devices/system/cpu/cpu10/thermal_throttle"
            ]
        );
    }

    #[test]
    fn no_cpu_folder_leaves_the_fixed_paths() {
        assert_eq!(masked_below(Path::new("/nonexistent")), MASKED);
    }
}
