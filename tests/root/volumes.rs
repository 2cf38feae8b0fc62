//! Named and anonymous volumes.

use insula_tests::daemon;
use insula_tests::images::{self, Layer};

#[test]
fn a_new_volume_has_the_images_content_and_keeps_what_is_written() {
    let daemon = daemon!();
    let flags = ["-v", "store:/data", "--network", "none"];
    let first = daemon.sh(&flags, "cat /data/seed; stat -c '%u %a' /data /data/seed; echo more > /data/more");
    assert_eq!(first.ok(), "from the image\n1000 750\n1000 640");
    assert_eq!(daemon.sh(&flags, "cat /data/more").ok(), "more");
    // Not when it is asked not to, nor into a volume that has something.
    assert_eq!(daemon.sh(&["-v", "bare:/data:nocopy", "--network", "none"], "ls /data").ok(), "");
    assert!(!daemon.sh(&["-v", "store:/etc", "--network", "none"], "ls /etc").ok().contains("passwd"));
}

/// What shows that the engine's files are there.
const NAMES: &str =
    "cat /etc/hostname; grep -q nameserver /etc/resolv.conf && grep -q localhost /etc/hosts && echo all";

#[test]
fn what_is_mounted_in_a_folder_is_seen_below_what_is_mounted_on_it() {
    let daemon = daemon!();
    let run =
        |flags: &[&str]| daemon.sh(&[&["--network", "none", "--hostname", "inside"], flags].concat(), NAMES);
    // A new volume has what the image has, and places for what the engine mounts: also one that is read-only.
    for flags in
        [&["-v", "kept:/etc"][..], &["-v", "fixed:/etc:ro"], &["--tmpfs", "/etc"], &["--tmpfs", "/etc:ro"]]
    {
        assert_eq!(run(flags).ok(), "inside\nall", "{flags:?}");
    }
    let folder = daemon.folder().join("etc");
    std::fs::create_dir(&folder).unwrap();
    let bind = format!("{}:/etc", insula_tests::text(&folder));
    // There is nothing to mount on, and no way to make it.
    run(&["-v", &format!("{bind}:ro")]).fails(
        125,
        &["mount to /etc/resolv.conf: there is nothing to mount on, and it cannot be made: Read-only file system"],
    );
    assert_eq!(run(&["-v", &bind]).ok(), "inside\nall");
    // Places were made, what is mounted on them has not been written there.
    assert_eq!(std::fs::read(folder.join("hostname")).unwrap(), b"");
    assert_eq!(run(&["-v", &format!("{bind}:ro")]).ok(), "inside\nall");
    // The user's own are not covered.
    std::fs::write(folder.join("own"), "own\n").unwrap();
    let own = format!("{}:/etc/hostname", insula_tests::text(&folder.join("own")));
    assert_eq!(run(&["-v", &bind, "-v", &own]).ok(), "own\nall");
}

#[test]
fn links_that_lead_nowhere_are_followed_below_the_root() {
    let daemon = daemon!();
    let run = |flags: &[&str], script: &str| {
        daemon.sh(&[&["--network", "none", "--hostname", "inside"], flags].concat(), script)
    };
    // As systemd-resolved leaves it in the folder of a host, and above the root; one to a name that is its own.
    let links =
        "ln -sf ../run/resolve/stub.conf /kept/resolv.conf; ln -sf ../../../../../else/hosts /kept/hosts;
        ln -sf /hostname /kept/hostname; ln -s /else/where /kept/away; ln -s round /kept/round";
    run(&["-v", "kept:/kept"], links).ok();
    let found = run(&["-v", "kept:/etc"], &format!("{NAMES}; ls /run/resolve /else /hostname"));
    assert_eq!(found.ok(), "inside\nall\n/hostname\n\n/else:\nhosts\n\n/run/resolve:\nstub.conf");
    run(&["-v", "kept:/etc", "-v", "far:/etc/away"], "echo far > /else/where/file").ok();
    assert_eq!(run(&["-v", "far:/far"], "cat /far/file").ok(), "far");
    run(&["-v", "kept:/etc", "-v", "far:/etc/round/in"], "true").fails(125, &["/etc/round/in"]);
    // An image's own.
    let mut image = images::busybox();
    "linked:latest".clone_into(&mut image.name);
    let layer = Layer::default()
        .symlink("etc/resolv.conf", "../run/resolve/stub.conf")
        .symlink("etc/hosts", "/else/hosts");
    image.layers.push(layer.bytes());
    daemon.load(&image.docker_archive()).ok();
    for more in [&[][..], &["--read-only"], &["--tmpfs", "/run"]] {
        let flags = [&["run", "--rm", "--network", "none", "--hostname", "inside"], more].concat();
        let found = daemon.insula(&[&flags[..], &["linked", "sh", "-c", NAMES]].concat());
        assert_eq!(found.ok(), "inside\nall", "{more:?}");
    }
    // Nothing of the host's was made.
    assert!(!std::path::Path::new("/else").exists() && !std::path::Path::new("/run/resolve").exists());
}

#[test]
fn a_tmpfs_is_as_open_as_the_folder_that_it_covers() {
    let daemon = daemon!();
    let run = |flags: &[&str], script: &str| daemon.sh(&[&["--network", "none"], flags].concat(), script);
    let modes = "stat -c '%n %a' /data /new /tmp";
    let flags = ["--tmpfs", "/data", "--tmpfs", "/new", "--tmpfs", "/tmp"];
    assert_eq!(run(&flags, modes).ok(), "/data 750\n/new 1777\n/tmp 1777");
    let flags = [
        "--tmpfs",
        "/data:mode=711",
        "--tmpfs",
        "/new:mode=700",
        "--mount",
        "type=tmpfs,dst=/tmp,tmpfs-mode=755",
    ];
    assert_eq!(run(&flags, modes).ok(), "/data 711\n/new 700\n/tmp 755");
    let flags =
        ["--tmpfs", "/data:ro", "--tmpfs", "/new:ro,mode=700", "--mount", "type=tmpfs,dst=/tmp,readonly"];
    let script = format!("{modes}; for at in /data /new /tmp; do touch $at/file 2>&1; done");
    let found = run(&flags, &script);
    assert!(found.stdout.starts_with("/data 750\n/new 700\n/tmp 1777\n"), "{found}");
    assert_eq!(found.stdout.matches("Read-only file system").count(), 3, "{found}");
    // The folder that was made for one is found by the next start.
    let modes = ["stat", "-c", "%a", "/new", "/new/inner"];
    let again = ["run", "--name", "again", "--network", "none", "--tmpfs", "/new/inner", "busybox"];
    assert_eq!(daemon.insula(&[&again[..], &modes].concat()).ok(), "755\n1777");
    assert_eq!(daemon.insula(&["start", "-a", "again"]).ok(), "755\n1777");
}

#[test]
fn a_volume_gets_the_labels_of_the_mount_that_it_is_made_for() {
    let daemon = daemon!();
    let labels =
        |name: &str| daemon.insula(&["volume", "inspect", "-f", "{{json .Labels}}", name]).ok().to_owned();
    let run =
        |mount: &str| daemon.sh(&["--network", "none", "--name", "box", "--mount", mount], "true").ok().len();
    run("type=volume,src=kept,dst=/kept,volume-label=tier=db,volume-label=b");
    assert_eq!(labels("kept"), r#"{"b":"","tier":"db"}"#);
    // One that is there stays as it is.
    run("type=volume,src=kept,dst=/kept,volume-label=tier=web");
    assert_eq!(labels("kept"), r#"{"b":"","tier":"db"}"#);
    let mount = "type=volume,dst=/kept,volume-label=tier=db";
    daemon.sleeper(&["--network", "none", "--name", "anonymous", "--mount", mount]);
    let name = daemon.insula(&["inspect", "-f", "{{(index .Mounts 0).Name}}", "anonymous"]);
    assert_eq!(labels(name.ok()), r#"{"com.docker.volume.anonymous":"","tier":"db"}"#);
}

#[test]
fn volumes_are_managed_by_name() {
    let daemon = daemon!();
    assert_eq!(daemon.insula(&["volume", "create", "--label", "a=b", "one"]).ok(), "one");
    assert_eq!(daemon.insula(&["volume", "create", "one"]).ok(), "one");
    daemon.insula(&["volume", "ls"]).shows(&["DRIVER", "local", "one"]);
    assert_eq!(daemon.insula(&["volume", "ls", "-q", "--filter", "label=a=b"]).ok(), "one");
    let point = daemon.insula(&["volume", "inspect", "--format", "{{.Mountpoint}}", "one"]);
    assert!(std::path::Path::new(point.ok()).is_dir());
    let id = daemon.sleeper(&["-v", "one:/v", "--network", "none"]);
    daemon.insula(&["volume", "rm", "one"]).fails(1, &["one", "in use"]);
    daemon.insula(&["rm", "-f", &id]).ok();
    assert_eq!(daemon.insula(&["volume", "rm", "one"]).ok(), "one");
    daemon.insula(&["volume", "rm", "one"]).fails(1, &["one"]);
    daemon.insula(&["volume", "inspect", "one"]).fails(1, &["one"]);
    daemon.insula(&["volume", "create", "../climb"]).fails(1, &["../climb"]);
}

#[test]
fn a_volume_may_stand_for_a_folder_of_the_host() {
    let daemon = daemon!();
    let folder = daemon.folder().join("shown");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("there"), "before\n").unwrap();
    let device = format!("device={}", insula_tests::text(&folder));
    let create = ["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &device, "shown"];
    assert_eq!(daemon.insula(&create).ok(), "shown");
    let options =
        ["volume", "inspect", "-f", "{{.Options.type}} {{.Options.o}} {{.Options.device}}", "shown"];
    assert_eq!(daemon.insula(&options).ok(), format!("none bind {}", insula_tests::text(&folder)));
    let id = daemon.sleeper(&["--name", "box", "-v", "shown:/data", "--network", "none"]);
    assert_eq!(
        daemon.exec("box", "cat /data/*; echo after >/data/new; stat -c %u /data/new").ok(),
        "before\n0"
    );
    assert_eq!(std::fs::read_to_string(folder.join("new")).unwrap(), "after\n");
    let mount = ["inspect", "-f", "{{range .Mounts}}{{.Type}} {{.Name}} {{.Source}}{{end}}", "box"];
    let point = daemon.insula(&["volume", "inspect", "-f", "{{.Mountpoint}}", "shown"]);
    assert_eq!(daemon.insula(&mount).ok(), format!("volume shown {}", point.ok()));
    daemon.insula(&["volume", "rm", "shown"]).fails(1, &["in use"]);
    daemon.insula(&["rm", "-f", &id]).ok();
    daemon.insula(&["volume", "rm", "shown"]).ok();
    assert!(folder.join("new").exists());
    let gone =
        ["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", "device=/nowhere/at/all", "gone"];
    daemon.insula(&gone).ok();
    daemon.sh(&["-v", "gone:/data", "--network", "none"], "true").fails(125, &["/nowhere/at/all"]);
}

#[test]
fn anonymous_volumes_go_with_rm_v() {
    let daemon = daemon!();
    daemon.sh(&["-v", "/scratch", "--network", "none"], "touch /scratch/x").ok();
    assert_eq!(daemon.insula(&["volume", "ls", "-q"]).ok(), "");
    let id = daemon.sleeper(&["-v", "/scratch", "--network", "none"]);
    assert_eq!(daemon.insula(&["volume", "ls", "-q"]).ok().len(), 64);
    daemon.insula(&["rm", "-f", &id]).ok();
    assert_eq!(daemon.insula(&["volume", "ls", "-q"]).ok().len(), 64);
    daemon.insula(&["volume", "prune", "-f"]).ok();
    assert_eq!(daemon.insula(&["volume", "ls", "-q"]).ok(), "");
}

#[test]
fn volumes_from_another_container() {
    let daemon = daemon!();
    let first = daemon.sleeper(&["-v", "store:/data", "--name", "first", "--network", "none"]);
    daemon.exec(&first, "echo shared > /data/x").ok();
    assert_eq!(daemon.sh(&["--volumes-from", "first", "--network", "none"], "cat /data/x").ok(), "shared");
    daemon.sh(&["--volumes-from", "first:ro", "--network", "none"], "touch /data/y").fails(1, &["Read-only"]);
    daemon.sh(&["--volumes-from", "nobody"], "true").fails(125, &["nobody"]);
}
