//! Mistakes, ours and others': a clear word, the right code, nothing half-made.

use insula_tests::{OnDrop, Outcome, daemon, program, text};

#[test]
fn unknown_images() {
    let daemon = daemon!();
    daemon.insula(&["run", "--rm", "nosuch", "true"]).fails(125, &["nosuch"]);
    daemon
        .insula(&["run", "--rm", "No-Such-Upper", "true"])
        .fails(125, &["repository name must be lowercase"]);
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
}

#[test]
fn a_second_daemon_on_the_same_root_is_refused() {
    let daemon = daemon!();
    let mut second = std::process::Command::new(program("insulad"));
    second.env("INSULA_ROOT", daemon.instance().root());
    second.env("INSULA_RUN", daemon.folder().join("other-run"));
    let outcome = Outcome::of(&mut second, b"");
    outcome.fails(1, &[text(daemon.instance().root())]);
    daemon.insula(&["ps"]).ok();
}

#[test]
fn what_lives_in_a_run_folder_is_safe_from_daemons_of_other_roots() {
    let mut daemon = daemon!();
    let id = daemon.detached(&[], "exec sleep 1000");
    let second = |daemon: &insula_tests::Daemon| {
        let mut second = std::process::Command::new(program("insulad"));
        second
            .env("INSULA_ROOT", daemon.folder().join("other-root"))
            .env("INSULA_RUN", daemon.instance().run());
        Outcome::of(&mut second, b"")
    };
    second(&daemon).fails(1, &[text(daemon.instance().run()), "in use"]);
    daemon.insula(&["exec", &id, "true"]).ok();
    // Its containers outlive the daemon.
    daemon.stop();
    second(&daemon).fails(1, &[text(daemon.instance().root()), "--run"]);
    daemon.restart();
    daemon.insula(&["exec", &id, "true"]).ok();
}

#[test]
fn bodies_of_requests() {
    let daemon = daemon!();
    let message = |method: &str, path: &str, body: &str, status: u16| {
        let response = daemon.api(method, path, body);
        assert_eq!(response.status, status, "{method} {path} {body}: {}", response.text());
        let message = response.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(!message.is_empty(), "{method} {path}: {}", response.text());
        message
    };
    message("POST", "/containers/create", "{", 400);
    message("POST", "/containers/create", r#"{"Image":5}"#, 400);
    assert!(message("POST", "/containers/create", r#"{"Image":"nosuch"}"#, 404).contains("nosuch"));
    message("POST", "/containers/create?name=-bad", r#"{"Image":"busybox"}"#, 400);
    message("POST", "/containers/create", r#"{"Image":"busybox","HostConfig":{"Memory":-5}}"#, 400);
    message(
        "POST",
        "/containers/create",
        r#"{"Image":"busybox","HostConfig":{"Binds":["nonsense:::"]}}"#,
        400,
    );
    // Clients pull an image when they hear 404.
    for wish in
        [r#""NetworkMode":"nosuch""#, r#""NetworkMode":"container:nosuch""#, r#""VolumesFrom":["nosuch"]"#]
    {
        let body = format!(r#"{{"Image":"busybox","HostConfig":{{{wish}}}}}"#);
        assert!(message("POST", "/containers/create", &body, 400).contains("nosuch"));
    }
    assert!(message("GET", "/containers/nosuch/json", "", 404).contains("No such container: nosuch"));
    message("POST", "/containers/nosuch/start", "", 404);
    message("GET", "/no/such/route", "", 404);
    message("GET", "/v9.99/info", "", 400);
    assert_eq!(daemon.api("GET", "/v1.41/_ping", "").text(), "OK");
    let huge = format!(r#"{{"Image":"{}"}}"#, "a".repeat(32 << 20));
    let status = daemon.api("POST", "/containers/create", &huge).status;
    assert!((400..500).contains(&status), "{status}");
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
}

#[test]
fn targets_that_no_uri_has() {
    let daemon = daemon!();
    let id = daemon.insula(&["create", "--name", "box", "busybox", "sh"]).ok().to_owned();
    // As `curl -g` sends it and Go's server takes it.
    for (name, found) in [("box", 1), ("fox", 0)] {
        let path = format!(r#"/containers/json?all=1&filters={{"name":["{name}"]}}"#);
        let response = daemon.api("GET", &path, "");
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(response.json().as_array().unwrap().len(), found, "{}", response.text());
    }
    assert_eq!(daemon.api("GET", r#"/containers/json?filters={"a"#, "").status, 400);
    daemon.insula(&["rm", &id]).ok();
}

#[test]
fn links_that_lead_in_a_circle() {
    let daemon = daemon!();
    daemon
        .insula(&["run", "--name", "box", "--network", "none", "busybox", "ln", "-s", "loop", "/loop"])
        .ok();
    // The link itself is there.
    assert_eq!(daemon.api("HEAD", "/containers/box/archive?path=/loop", "").status, 200);
    for path in ["/loop/", "/loop/x"] {
        let path = format!("/containers/box/archive?path={path}");
        assert_eq!(daemon.api("GET", &path, "").status, 400, "{path}");
        assert_eq!(daemon.api("HEAD", &path, "").status, 400, "{path}");
    }
}

#[test]
fn output_that_nobody_takes_is_said_unless_it_is_a_reader_who_left() {
    let daemon = daemon!();
    let script = |target: &str| {
        let mut shell = std::process::Command::new("sh");
        let insula = program("insula");
        shell.args(["-c", &format!("{} run --rm --network none busybox echo hello {target}", text(&insula))]);
        shell.env("INSULA_ROOT", daemon.instance().root()).env("INSULA_RUN", daemon.instance().run());
        Outcome::of(&mut shell, b"")
    };
    script("> /dev/full").fails(1, &["standard output", "No space left"]);
    let left = script("| true; exit ${PIPESTATUS:-0}");
    assert_eq!((left.code, left.stderr.as_str()), (0, ""), "{left}");
}

#[test]
fn unknown_platforms_start_no_pull() {
    let daemon = daemon!();
    let outcome = daemon.insula(&["run", "--rm", "--platform", "foo", "nosuch.invalid/image", "true"]);
    outcome.fails(125, &["foo", "unknown operating system or architecture"]);
    assert!(!outcome.stderr.contains("Unable to find image"), "{outcome}");
    daemon.insula(&["run", "--rm", "--network", "none", "--platform", "linux", "busybox", "true"]).ok();
}

#[test]
fn a_full_disk() {
    if !insula_tests::is_root() {
        return insula_tests::skip("root", "a small file system is mounted");
    }
    let mut daemon = insula_tests::Daemon::absent();
    let root = daemon.instance().root().to_owned();
    std::fs::create_dir_all(&root).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=4m", "insula-test", text(&root)];
    Outcome::of(std::process::Command::new("mount").args(mount), b"").exits(0);
    let _end = OnDrop(|| drop(std::process::Command::new("umount").args(["-l", text(&root)]).output()));
    daemon.restart();
    let mut image = insula_tests::images::busybox();
    image.layers.push(insula_tests::images::Layer::default().file("big", 0o644, &vec![7; 6 << 20]).bytes());
    let outcome = daemon.load(&image.docker_archive());
    outcome.fails(1, &["No space left"]);
    assert_eq!(std::fs::read_dir(root.join("layers/tmp")).unwrap().count(), 0);
    daemon.insula(&["images"]).ok();
    assert!(!daemon.insula(&["images", "-q", "busybox"]).stdout.contains("sha"));
    assert_eq!(daemon.stop(), Some(0));
    drop(_end);
    daemon.restart();
}

#[test]
fn a_daemon_that_cannot_be_reached() {
    let folder = std::env::temp_dir().join(format!("insula-t-{}", insula_tests::tag()));
    let host = format!("unix://{}/none.sock", text(&folder));
    let mut command = std::process::Command::new(program("insula"));
    let outcome = Outcome::of(command.args(["--host", &host, "ps"]), b"");
    outcome.fails(1, &["none.sock"]);
    let mut command = std::process::Command::new(program("insula"));
    Outcome::of(command.args(["--host", "nonsense://x", "ps"]), b"").exits(1);
}

/// Writes what looks like a kernel, whose modules are these.
fn write_kernel(root: &std::path::Path, modules: &[&str]) {
    let folder = root.join("lib/modules/6.1-test");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::create_dir_all(root.join("boot")).unwrap();
    let list: String = modules.iter().map(|name| format!("kernel/{name}.ko:\n")).collect();
    std::fs::write(folder.join("modules.dep"), list).unwrap();
    // Documentation/arch/x86/boot.rst: the magic, and where the release is.
    let mut image = vec![0; 0x400];
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    image[0x300..0x308].copy_from_slice(b"6.1-test");
    std::fs::write(root.join("boot/vmlinuz-6.1-test"), image).unwrap();
}

#[test]
fn kernels_that_guests_cannot_have() {
    let daemon = daemon!();
    daemon.load(&insula_tests::images::busybox().docker_archive()).ok();
    let folder = daemon.folder().join("kernel");
    let run = ["run", "--rm", "--isolation", "vm", "--network", "none", "busybox", "true"];
    if daemon.insula(&["kernel", "ls", "-q"]).ok().is_empty() {
        daemon.insula(&run).fails(125, &["there is no kernel for guests", "insula kernel use PATH"]);
    }
    let drivers = ["virtio_mmio", "virtio_console", "virtiofs", "virtio_net"];
    write_kernel(&folder, &drivers[..2]);
    let choose = ["kernel", "use", text(&folder)];
    daemon.insula(&choose).fails(1, &["kernel 6.1-test has no driver virtiofs, which a guest needs"]);

    write_kernel(&folder, &drivers);
    daemon.insula(&choose).exits(0);
    let list = ["kernel", "ls", "--format", "{{.Current}}{{.Release}}"];
    assert!(daemon.insula(&list).ok().starts_with("*6.1-test"));
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(!daemon.insula(&list).ok().contains('*'));
    daemon.insula(&run).fails(125, &["boot/vmlinuz-6.1-test, chosen for guests, is gone", "kernel use PATH"]);
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
}
