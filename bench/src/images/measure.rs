//! What an engine holds while it works, and what many containers of one image share.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use crate::memory::rss;
use crate::worker::execute;

/// Between two looks.
const PACE: Duration = Duration::from_millis(10);

/// The most memory, in KiB, that the processes of an engine had at one moment while `work` was done. Its
/// processes are those whose command line names its folder.
pub(crate) fn peak<T>(folder: &Path, work: impl FnOnce() -> T) -> (T, u64) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(processes(folder).into_iter().filter_map(|pid| rss(pid).ok()).sum());
                thread::sleep(PACE);
            }
            most
        });
        let value = work();
        done.store(true, Ordering::Relaxed);
        (value, looking.join().unwrap_or_default())
    })
}

fn processes(folder: &Path) -> Vec<u32> {
    let wanted = folder.as_os_str().as_bytes();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let names = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != std::process::id() && has_path(&line, wanted)
    };
    pids.filter(names).collect()
}

/// Whether a command line has this path or one below it, and not only one that begins with the same letters.
fn has_path(line: &[u8], path: &[u8]) -> bool {
    let ends = |rest: &[u8]| matches!(rest.first(), None | Some(b'/' | 0));
    (0..line.len()).any(|at| line[at..].strip_prefix(path).is_some_and(ends))
}

/// Bytes below a folder, without what is mounted there.
pub(crate) fn disk(folder: &Path) -> anyhow::Result<u64> {
    let words = ["du", "-sx", "--block-size=1", &folder.display().to_string()].map(str::to_owned);
    // Files come and go meanwhile, which du takes for an error.
    let text = execute(&words)?.stdout;
    let bytes = text.split_whitespace().next().and_then(|word| word.parse().ok());
    bytes.with_context(|| format!("du of {}", folder.display()))
}

/// Of many processes together, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Shared {
    pub(crate) rss: u64,
    pub(crate) pss: u64,
    pub(crate) private: u64,
}

/// What processes have mapped, and how much of it each has for itself.
pub(crate) fn shared(pids: &[u32]) -> anyhow::Result<Shared> {
    let mut all = Shared::default();
    for pid in pids {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let field = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default()
        };
        all.rss += field("Rss:");
        all.pss += field("Pss:");
        all.private += field("Private_Clean:") + field("Private_Dirty:");
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_no_other_one_that_begins_alike() {
        for line in ["insulad\0--root\0/x/i/l\0", "insula\0unix:///x/i\0run", "skopeo\0oci:/x/i"] {
            assert!(has_path(line.as_bytes(), b"/x/i"), "{line:?}");
        }
        assert!(!has_path(b"docker-registry\0serve\0/x/images/registry.json\0", b"/x/i"));
    }
}
