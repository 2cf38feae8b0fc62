//! Named and anonymous volumes.

use insula_tests::daemon;

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
