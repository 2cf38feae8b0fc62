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
