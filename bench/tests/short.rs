//! The comparison itself works: its short form, with insula and what the kernel takes, writes what it is to write. No time is looked at.

use std::path::Path;
use std::process::Command;

#[test]
fn the_short_form_writes_its_tables() {
    if !rustix::process::geteuid().is_root() {
        let required = std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|need| need == "root"), "root is required");
        return eprintln!("skipped: needs root: engines make namespaces and control groups");
    }
    let built = Path::new(env!("CARGO_BIN_EXE_insula-bench")).with_file_name("");
    let programs = std::env::var_os("INSULA_BIN_DIR").map_or(built, Into::into);
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("RESULTS.md");
    let mut command = Command::new(env!("CARGO_BIN_EXE_insula-bench"));
    command.args(["--short", "--only", "insula,floor", "--no-lives", "--out"]).arg(&results);
    command.args(["--images", "0", "--builds", "0", "--networks", "0", "--runtimes", "0", "--machines", "0"]);
    let done = command.env("INSULA_BIN_DIR", programs).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && !said.contains("left out"), "{said}");
    let text = std::fs::read_to_string(&results).unwrap();
    for row in [
        "## `run --rm --network none busybox true`",
        "floor (the kernel's work alone",
        "## The same after the host's caches were dropped",
        "## `exec CONTAINER true`",
        "--log-driver local`",
        "## 24 × `run -d",
        "helpers, KiB",
        "`ps` with 100 running containers, the command",
        "one made and started, before the 100th",
        "memory of `insulad` (RSS)",
        "50 `run --rm` at once",
        "100 containers removed",
    ] {
        assert!(text.contains(row), "{row} is missing in {text}");
    }
    assert!(folder.path().join("chart.svg").exists());
}
