//! Writable layers with a size.

use std::path::Path;

use insula_tests::{Daemon, daemon, eventually};

const SIZED: [&str; 4] = ["--network", "none", "--storage-opt", "size=20m"];
const MIB: u64 = 1 << 20;

/// A container that has written what fits, and runs.
fn full(daemon: &Daemon, flags: &[&str]) -> String {
    let script = "test -e /said || dd if=/dev/zero of=/large bs=64k 2>/said; echo ready; exec sleep 1000";
    let id = daemon.detached(&[&SIZED, flags].concat(), script);
    eventually("it is full", || daemon.insula(&["logs", &id]).stdout.contains("ready").then_some(()));
    id
}

/// Bytes that `df` shows of the root: all, and free ones.
fn df(daemon: &Daemon, container: &str) -> (u64, u64) {
    let shown = daemon.exec(container, "df -Pk / | tail -n 1").ok().to_owned();
    let words: Vec<u64> = shown.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    (words[0] * 1024, words[2] * 1024)
}

#[test]
fn a_container_writes_no_more_than_its_size() {
    let mut daemon = daemon!();
    let id = full(&daemon, &["--name", "box"]);
    daemon.exec(&id, "cat /said").shows(&["No space left on device"]);
    let written: u64 = daemon.exec(&id, "stat -c %s /large").ok().parse().unwrap();
    assert!((18 * MIB..=21 * MIB).contains(&written), "{written}");
    let (size, free) = df(&daemon, &id);
    assert!((20 * MIB..=21 * MIB).contains(&size) && free < MIB / 2, "{size} {free}");
    assert_eq!(daemon.inspect(&id, "/HostConfig/StorageOpt/size"), "20m");
    // Another one has all that there is.
    let other = daemon.sleeper(&["--network", "none"]);
    assert!(df(&daemon, &other).0 > 100 * MIB);
    // Whoever looks at its files finds them, whether it runs or not, whoever was killed meanwhile.
    for round in 0..4 {
        match round {
            0 => {}
            1 => drop(daemon.insula(&["kill", &id]).exits(0)),
            2 => {
                daemon.kill();
                daemon.restart();
            }
            // Nothing is mounted any more.
            _ => {
                daemon.crash_host();
                daemon.restart();
            }
        }
        daemon.insula(&["diff", &id]).shows(&["A /large", "A /said"]);
        let copied = daemon.folder().join("said");
        daemon.insula(&["cp", &format!("{id}:/said"), insula_tests::text(&copied)]).exits(0);
        assert!(std::fs::read_to_string(&copied).unwrap().contains("No space"));
        let sizes = daemon.insula(&["ps", "-as", "--filter", "name=box", "--format", "{{.Size}}"]);
        assert!(sizes.ok().contains("MB (virtual"), "{sizes}");
    }
    // It goes on as it was, and has room again once something is removed.
    daemon.insula(&["start", &id]).exits(0);
    daemon.insula(&["cp", &format!("{id}:/large"), "-"]).exits(0);
    daemon.exec(&id, "rm /large && echo more > /more && cat /more").shows(&["more"]);
    // With the next commit of the journal.
    eventually("what was removed is free", || (df(&daemon, &id).1 > 18 * MIB).then_some(()));
    daemon.insula(&["rm", "-f", &id]).exits(0);
    assert!(daemon.leaks().mounts.is_empty());
    assert!(!daemon.instance().root().join("containers").join(&id).exists());
}

#[test]
fn what_is_copied_in_and_taken_elsewhere_has_the_size_too() {
    let (here, there) = (daemon!(), daemon!(bare));
    here.insula(&[&["create", "--name", "box"], &SIZED[..], &["busybox", "sleep", "1000"]].concat()).ok();
    let file = here.folder().join("large");
    std::fs::write(&file, vec![7; 30 * MIB as usize]).unwrap();
    for _ in 0..2 {
        let copied = here.insula(&["cp", insula_tests::text(&file), "box:/large"]);
        copied.fails(1, &["No space left on device"]);
        here.insula(&["start", "box"]).ok();
        here.exec("box", "rm -f /large").exits(0);
    }
    here.exec("box", "echo kept > /kept; mkdir /a; mv /a /b").exits(0);
    here.insula(&["commit", "box", "made"]).exits(0);
    assert_eq!(here.insula(&["run", "--rm", "--network", "none", "made", "cat", "/kept"]).ok(), "kept");
    let bundle = here.command(&["bundle", "box"]).output().unwrap();
    assert!(bundle.status.success());
    there.insula_with(&["unbundle", "-"], &bundle.stdout).exits(0);
    there.exec("box", "cat /kept && test -d /b && ! dd if=/dev/zero of=/large bs=64k 2>/dev/null").exits(0);
    assert!(df(&there, "box").0 < 21 * MIB);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let mut daemon = daemon!();
    let create = |option: &str| daemon.insula(&["create", "--storage-opt", option, "busybox", "true"]);
    create("size=1k").fails(1, &["too small", "4.19MB"]);
    create("size=much").fails(1, &["\"much\" is not a size"]);
    create("size=-1").fails(1, &["is not a size"]);
    create("colour=red").fails(1, &["Unknown option colour"]);
    create("size").fails(1, &["invalid storage option"]);
    create("size=8000p").fails(1, &["ftruncate"]);
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
    let folders = std::fs::read_dir(daemon.instance().root().join("containers")).unwrap();
    let names = folders.map(|entry| entry.unwrap().file_name());
    // Those of containers to come have names that are none.
    assert_eq!(names.filter(|name| !name.to_string_lossy().starts_with('.')).count(), 0);
    // What the daemon says for all, and a container for itself.
    assert_eq!(daemon.stop(), Some(0));
    daemon.restart_with_config("storage-opt = [\"size=8m\"]");
    let (small, large) = (daemon.sleeper(&[]), daemon.sleeper(&["--storage-opt", "size=0"]));
    assert!(df(&daemon, &small).0 < 9 * MIB && df(&daemon, &large).0 > 100 * MIB);
    // A daemon that ends in order leaves mounted what is in use.
    daemon.insula(&["create", "--name", "idle", "busybox", "true"]).ok();
    assert_eq!(daemon.leaks().mounts.len(), 2);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(daemon.leaks().mounts.len(), 1);
    daemon.restart();
    assert!(df(&daemon, &small).0 < 9 * MIB);
    daemon.insula(&["start", "-a", "idle"]).exits(0);
}

#[test]
fn a_damaged_disk_is_found_and_repaired() {
    use std::os::unix::fs::FileExt as _;
    let mut daemon = daemon!();
    assert_eq!(daemon.stop(), Some(0));
    // In mounts of its own, of which nobody else on this host has copies.
    daemon.restart_with_mounts(":");
    let id = full(&daemon, &[]);
    daemon.insula(&["system", "check"]).shows(&["disk"]);
    daemon.insula(&["kill", &id]).exits(0);
    assert_eq!(daemon.stop(), Some(0));
    // What it had in memory is written with the end of its last mount, which a killed process may hold.
    eventually("its disk is not in use", || daemon.leaks().disks.is_empty().then_some(()));
    // The checksum of its first group, in the second block.
    let path = daemon.instance().root().join("containers").join(&id).join("disk");
    let disk = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let mut checksum = [0; 2];
    disk.read_exact_at(&mut checksum, 4096 + 30).unwrap();
    disk.write_all_at(&checksum.map(|byte| !byte), 4096 + 30).unwrap();
    daemon.restart();
    daemon.insula(&["start", &id]).fails(1, &["is damaged", "system check --repair"]);
    let found = daemon.insula(&["system", "check"]);
    assert!(found.code == 1 && found.stdout.contains(&format!("disk {id}")), "{found}");
    daemon.insula(&["system", "check", "--repair"]).shows(&["e2fsck"]);
    daemon.insula(&["system", "check"]).exits(0);
    daemon.insula(&["start", &id]).exits(0);
    daemon.exec(&id, "cat /said").shows(&["No space"]);
}

#[test]
fn errors_that_the_kernel_meets_in_a_disk_are_told() {
    use std::os::unix::fs::MetadataExt as _;
    let daemon = daemon!();
    let id =
        daemon.detached(&["--network", "none", "--name", "sized", "--storage-opt", "size=8m"], "sleep 1000");
    assert_eq!(daemon.inspect(&id, "/State/Error"), "");
    let layer = daemon.instance().root().join("containers").join(&id).join("layer");
    let device = std::fs::metadata(&layer).unwrap().dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let device = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).unwrap();
    // What the kernel has for such tests.
    let trigger = Path::new("/sys/fs/ext4").join(device.file_name().unwrap()).join("trigger_fs_error");
    std::fs::write(trigger, "a test").unwrap();
    // It counts in a thread of its own.
    let told =
        || daemon.inspect(&id, "/State/Error").as_str().map(str::to_owned).filter(|said| !said.is_empty());
    let said = eventually("the kernel has counted it", told);
    assert!(said.contains("has met an error") && said.contains("--repair"), "{said}");
    daemon.insula(&["info", "-f", "{{json .Warnings}}"]).shows(&["Container sized: the disk"]);
    let found = daemon.insula(&["system", "check"]);
    assert!(found.code == 1 && found.stdout.contains(&format!("disk {id}")), "{found}");
}

#[test]
fn the_hosts_own_files_with_a_size() {
    let daemon = daemon!(bare);
    let script = "dd if=/dev/zero of=/var/large bs=64k 2>&1; df -Pk / | tail -n 1";
    let words = ["run", "--rm", "--network", "none", "--storage-opt", "size=20m", "host", "sh", "-c", script];
    let shown = daemon.insula(&words);
    shown.shows(&["No space left on device"]);
    let size: u64 = shown.ok().lines().last().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((20 << 10..=21 << 10).contains(&size), "{shown}");
}
