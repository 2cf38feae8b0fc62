//! What must be true of a daemon that was started again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use insula_tests::{Daemon, eventually};
use serde_json::Value;

/// Its containers: name, status.
pub(crate) fn containers(daemon: &Daemon) -> Vec<(String, String, String)> {
    let all = daemon.api("GET", "/containers/json?all=1", "").json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = all.as_array().unwrap().iter();
    all.map(|one| (text(&one["Id"]), text(&one["Names"][0]), text(&one["State"]))).collect()
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    // Those of containers to come begin with a dot.
    names.filter(|name| !name.starts_with(".removed-")).collect()
}

/// Every object is fully there or fully gone, and the host has nothing that no object explains.
pub(crate) fn check(daemon: &Daemon, when: &str) {
    let containers = containers(daemon);
    let ids: BTreeSet<String> = containers.iter().map(|(id, ..)| id.clone()).collect();
    let running: BTreeSet<String> =
        containers.iter().filter(|(.., status)| status == "running").map(|(id, ..)| id.clone()).collect();
    let root = daemon.instance().root();
    assert_eq!(names(&root.join("containers")), ids, "folders and rows, {when}");
    let file_name = |path: &std::path::PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    eventually(&format!("no more is on the host than what runs, {when}"), || {
        let leaks = daemon.leaks();
        let groups: BTreeSet<String> = leaks.cgroups.iter().map(file_name).collect();
        let sandboxes: BTreeSet<String> = leaks.sandboxes.iter().map(file_name).collect();
        // Of one that was not used since the host has started nothing is mounted.
        let of =
            |path: &PathBuf, name| ids.iter().any(|id| *path == root.join("containers").join(id).join(name));
        let mounts = leaks.mounts.iter().all(|path| of(path, "layer"));
        let fits = groups == running && sandboxes == running && mounts;
        fits.then_some(())
    });
    // A thread removes what was taken away, after who took it away was answered.
    for folder in ["layers/tmp", "content/ingest"] {
        eventually(&format!("nothing is half done in {folder}, {when}"), || {
            names(&root.join(folder)).is_empty().then_some(())
        });
    }
    let volumes = daemon.insula(&["volume", "ls", "-q"]);
    let rows: BTreeSet<String> = volumes.ok().lines().map(str::to_owned).collect();
    assert_eq!(names(&root.join("volumes")), rows, "volumes, {when}");
    for (id, name, status) in &containers {
        match status.as_str() {
            "running" => drop(daemon.insula(&["exec", id, "true"]).exits(0)),
            "created" | "exited" => drop(daemon.insula(&["start", id]).exits(0)),
            other => panic!("{name} is {other}, {when}"),
        }
    }
}

/// Removes everything, after which nothing of it is left anywhere.
pub(crate) fn clear(daemon: &Daemon, when: &str) {
    let ids: Vec<String> = containers(daemon).into_iter().map(|(id, ..)| id).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    if !ids.is_empty() {
        daemon.insula(&[&["rm", "-f", "-v"], ids.as_slice()].concat()).ok();
    }
    for volume in daemon.insula(&["volume", "ls", "-q"]).ok().lines() {
        assert!(volume.len() < 64, "the anonymous volume {volume} is left, {when}");
        daemon.insula(&["volume", "rm", volume]).ok();
    }
    eventually(&format!("nothing is left, {when}"), || {
        let leaks = daemon.leaks();
        let bare = leaks.cgroups.is_empty() && leaks.sandboxes.is_empty() && leaks.ports.is_empty();
        let bare = bare && leaks.mounts.is_empty();
        (bare && elements(daemon) == 0).then_some(())
    });
}

/// Published ports in the maps of the instance's table.
fn elements(daemon: &Daemon) -> usize {
    let table = daemon.instance().table();
    let shown = Command::new("nft").args(["-j", "list", "table", "inet", &table]).output().unwrap();
    // Before the first container there is no table.
    let Ok(document) = serde_json::from_slice::<Value>(&shown.stdout) else { return 0 };
    let items = document["nftables"].as_array().unwrap().iter();
    let maps = items.filter_map(|item| item.get("map"));
    let ports = maps.filter(|map| map["name"].as_str().unwrap().contains("ports"));
    ports.filter_map(|map| map["elem"].as_array()).map(Vec::len).sum()
}
