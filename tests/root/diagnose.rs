//! The file that helps to find a fault has no secrets in it.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use insula_tests::{daemon, text};
use serde_json::Value;

#[test]
fn a_diagnosis_shows_the_state_and_no_secrets() {
    let mut daemon = daemon!();
    daemon.kill();
    // The daemon refuses credentials in an address, but reads no comments.
    daemon.restart_with_config(
        "# was https://somebody:tr0ub4dor@mirror.example/\nregistry-mirror = [\"http://127.0.0.1:9/\"]\n",
    );
    let secrets =
        ["env-s3cr3t", "label-s3cr3t", "argument-s3cr3t", "health-s3cr3t", "build-s3cr3t", "exec-s3cr3t"];
    let [env, label, argument, health, build, exec] = secrets;
    daemon.sleeper(&[
        "--name",
        "web",
        "-p",
        "127.0.0.1::80",
        "-e",
        &format!("PASSWORD={env}"),
        "-l",
        &format!("owner={label}"),
        "--health-cmd",
        &format!("true {health}"),
        "--memory",
        "64m",
    ]);
    daemon.exec("web", &format!(": {exec}")).ok();
    // The error that is kept says what could not be executed.
    daemon
        .insula(&["run", "--name", "fails", "--network", "none", "busybox", &format!("/bin/{argument}")])
        .exits(127);
    let commit = ["commit", "--change", &format!("ENV TOKEN={build}"), "fails", "made:1"];
    daemon.insula(&commit).ok();
    daemon.insula(&["volume", "create", "data"]).ok();
    let path = daemon.folder().join("fault.tar.gz");
    let flag = format!("--diagnose={}", text(&path));
    daemon.insula(&["system", "info", &flag]).shows(&["fault.tar.gz"]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    daemon.insula(&["info", &flag]).fails(1, &["fault.tar.gz", "exists"]);
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap()));
    let files: BTreeMap<String, String> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            let name = entry.path().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
            (name, content)
        })
        .collect();
    for (name, content) in &files {
        for secret in secrets.iter().copied().chain(["tr0ub4dor", "somebody"]) {
            assert!(!content.contains(secret), "{secret} is in {name}: {content}");
        }
    }
    let document = |name: &str| serde_json::from_str::<Value>(&files[name]).unwrap();
    assert_eq!(files["failures.txt"], "nothing\n");
    assert!(files["host.txt"].contains("MemTotal") && files["host.txt"].contains("== control groups\n"));
    let configuration = "# was https://***@mirror.example/\nregistry-mirror = [\"http://127.0.0.1:9/\"]\n";
    assert!(files["daemon.txt"].contains(configuration), "{}", files["daemon.txt"]);
    assert!(files["daemon.txt"].contains("Max open files"));
    assert_eq!(
        document("versions.json")["Server"]["Version"],
        document("versions.json")["Client"]["Version"]
    );
    assert_eq!(document("info.json")["Containers"], 2);
    let containers = document("containers.json");
    let of =
        |name: &str| containers.as_array().unwrap().iter().find(|one| one["Name"] == name).unwrap().clone();
    assert_eq!(of("/web")["State"]["Status"], "running");
    assert_eq!(of("/web")["HostConfig"]["Memory"], 64 << 20);
    assert_eq!(of("/web")["Counts"]["Labels"], 1);
    let error = of("/fails")["State"]["Error"].as_str().unwrap().to_owned();
    assert!(error.contains("***") && error.contains("no such file"), "{error}");
    assert_eq!(document("networks.json").as_array().unwrap().len(), 3);
    assert_eq!(document("volumes.json")[0]["Name"], "data");
    assert!(document("usage.json")["Storage"].is_object());
    assert!(document("images.json").as_array().unwrap().len() >= 2);
    let events = &files["events.jsonl"];
    assert!(events.contains("\"Action\":\"exec_create\"") && events.contains("\"name\":\"web\""), "{events}");
    assert!(files["check.jsonl"].lines().last().unwrap().contains("\"Checked\""));
}
