//! What leaves an image or a container as a file, and comes back.

use insula_tests::daemon;
use rustix::fs::XattrFlags;

const ALONE: &[&str] = &["--network", "none"];

#[test]
fn saved_images_are_loaded_elsewhere() {
    let daemon = daemon!();
    let archive = daemon.folder().join("saved.tar");
    let path = archive.to_str().unwrap();
    daemon.insula(&["tag", "busybox", "busybox:second"]).ok();
    let id = daemon.insula(&["images", "-q", "--no-trunc", "busybox:latest"]).ok().to_owned();
    daemon.insula(&["save", "-o", path, "busybox"]).ok();
    let bytes = std::fs::read(&archive).unwrap();
    assert_eq!(daemon.command(&["save", "busybox"]).output().unwrap().stdout, bytes, "the same to a pipe");
    daemon.insula(&["save", "nosuch"]).fails(1, &["nosuch"]);
    daemon.insula(&["save", "-o", "/no/such/folder/x", "busybox"]).fails(1, &["invalid output path"]);
    daemon.insula(&["rmi", "busybox:latest", "busybox:second"]).shows(&["Deleted: sha256:"]);
    daemon.load(&bytes).shows(&["Loaded image: busybox:latest", "Loaded image: busybox:second"]);
    assert_eq!(daemon.insula(&["images", "-q", "--no-trunc", "busybox:second"]).ok(), id);
    assert_eq!(daemon.insula(&["run", "--rm", "--network", "none", "busybox", "echo", "back"]).ok(), "back");
}

#[test]
fn a_commit_is_an_image_of_the_changes() {
    let daemon = daemon!();
    let script = "echo new > /etc/new; rm /bin/true; mkdir /made; mv /made /moved; ln /etc/new /etc/same; \
                  chown 12:34 /etc/new; chmod 4711 /etc/new; echo ready; exec sleep 1000";
    let id = daemon.detached(ALONE, script);
    insula_tests::eventually("the script is done", || {
        daemon.insula(&["logs", &id]).stdout.contains("ready").then_some(())
    });
    let change = ["-c", "CMD [\"cat\", \"/etc/same\"]", "-c", "ENV A=b", "-m", "patched", "-a", "someone"];
    let made = daemon.insula(&[&["commit"], &change[..], &[&id, "made:1"]].concat());
    assert!(made.ok().starts_with("sha256:"), "{made}");
    // It runs on.
    daemon.exec(&id, "true && test -d /moved").ok();
    assert_eq!(daemon.inspect(&id, "/State/Paused"), false);
    let run =
        |words: &[&str]| daemon.insula(&[&["run", "--rm", "--network", "none", "made:1"], words].concat());
    assert_eq!(run(&[]).ok(), "new");
    assert_eq!(run(&["stat", "-c", "%a %u %g %h", "/etc/new"]).ok(), "4711 12 34 2");
    assert_eq!(
        run(&["sh", "-c", "test ! -e /bin/true && test ! -e /made && test -d /moved && echo $A"]).ok(),
        "b"
    );
    daemon.insula(&["history", "--no-trunc", "made:1"]).shows(&["patched", "CREATED BY"]);
    let again = daemon.insula(&["commit", "--pause=false", &id]);
    let layers = |image: &str| {
        daemon.insula(&["image", "inspect", "-f", "{{json .RootFS.Layers}}", image]).ok().to_owned()
    };
    assert_eq!(layers("made:1"), layers(again.ok()), "the same changes are the same layer");
    daemon.insula(&["commit", "-c", "RUN ls", &id]).fails(1, &["RUN ls"]);
    daemon.insula(&["commit", "nosuch"]).fails(1, &["nosuch"]);
}

#[test]
fn an_export_is_the_whole_root_file_system() {
    let daemon = daemon!();
    let id = daemon.sleeper(ALONE);
    daemon.exec(&id, "echo mine > /etc/mine; rm /bin/true").ok();
    // cap_net_raw+ep, as setcap(8) writes it.
    let mut capability = [0; 20];
    (capability[0], capability[3], capability[5]) = (1, 2, 0x20);
    let file = daemon.instance().root().join("containers").join(&id).join("upper/etc/mine");
    rustix::fs::setxattr(&file, "security.capability", &capability, XattrFlags::empty()).unwrap();
    let bytes = daemon.command(&["export", &id]).output().unwrap().stdout;
    assert_eq!(capability_of(&bytes, "etc/mine"), capability);
    let mut archive = tar::Archive::new(&bytes[..]);
    let names: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|entry| String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap())
        .collect();
    assert!(names.iter().any(|name| name == "etc/mine") && names.iter().any(|name| name == "bin/sh"));
    assert!(!names.iter().any(|name| name == "bin/true"));
    daemon.insula_with(&["import", "-", "exported:1"], &bytes).ok();
    assert_eq!(
        daemon.insula(&["run", "--rm", "--network", "none", "exported:1", "cat", "/etc/mine"]).ok(),
        "mine"
    );
    let again = daemon.insula(&["create", "--network", "none", "exported:1", "true"]).ok().to_owned();
    let bytes = daemon.command(&["export", &again]).output().unwrap().stdout;
    assert_eq!(capability_of(&bytes, "etc/mine"), capability, "import keeps it too");
    let bytes = daemon.command(&["cp", &format!("{again}:/etc/mine"), "-"]).output().unwrap().stdout;
    assert_eq!(capability_of(&bytes, "mine"), capability);
}

/// The capabilities that an archive gives a file; empty where it gives none.
fn capability_of(archive: &[u8], name: &str) -> Vec<u8> {
    let mut archive = tar::Archive::new(archive);
    let mut found = archive.entries().unwrap().map(Result::unwrap);
    let mut entry = found.find(|entry| *entry.path_bytes() == *name.as_bytes()).unwrap();
    let extensions = entry.pax_extensions().unwrap().into_iter().flatten().map(Result::unwrap);
    let mut values = extensions.filter(|one| one.key() == Ok("SCHILY.xattr.security.capability"));
    values.next().map(|one| one.value_bytes().to_vec()).unwrap_or_default()
}
