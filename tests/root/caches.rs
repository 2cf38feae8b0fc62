//! What a build makes is used by builds elsewhere.

use insula_tests::{Daemon, daemon, registry};

use crate::build::{build, context, id, run};

const STAGES: &str = "\
FROM busybox AS first
RUN echo first > /first
RUN true
FROM busybox
COPY --from=first /first /copied
COPY a.txt /
RUN cat /copied /a.txt > /both
";

/// Steps that were found, of a build that has six.
fn cached(daemon: &Daemon, folder: &std::path::Path, flags: &[&str]) -> usize {
    build(daemon, folder, &[flags, &["-t", "made"]].concat()).ok().matches("Using cache").count()
}

#[test]
fn a_cache_travels_as_a_folder_and_by_a_registry() {
    let registry = registry!();
    let daemons = [daemon!(), daemon!(), daemon!(), daemon!(), daemon!()];
    let [one, two, three, four, five] = &daemons;
    let folder = context(one, "context", &[("Dockerfile", STAGES), ("a.txt", "a\n")]);
    let cache = one.folder().join("cache");
    let place = cache.to_str().unwrap();
    let (all, least) = (registry.name("team/cache:all"), registry.name("team/cache:least"));
    let (local, from_local) =
        (format!("type=local,dest={place},mode=max"), format!("type=local,src={place}"));
    let pushed = format!("type=registry,ref={all},mode=max");
    let out = one.folder().join("out.tar");
    let output = format!("type=tar,dest={}", out.to_str().unwrap());

    // There is nothing yet, which is no failure; what is put out and the cache go two ways.
    let first = build(
        one,
        &folder,
        &["--cache-from", &from_local, "--cache-from", &all, "--cache-to", &local, "--output", &output],
    );
    first.shows(&["[Warning] importing cache from", "Step 1/"]);
    assert!(first.stderr.contains("has no index.json yet"), "{first}");
    let mut archive = tar::Archive::new(std::fs::File::open(&out).unwrap());
    let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
    assert!(names.collect::<Vec<_>>().contains(&"both".to_owned()));
    let flags = ["--cache-to", &pushed, "--cache-to", &least, "--cache-to", &local];
    assert_eq!(cached(one, &folder, &flags), 5);
    let made = id(one, "made");

    // The same steps elsewhere are found, and make the same image.
    assert_eq!((cached(two, &folder, &["--cache-from", &from_local]), id(two, "made")), (5, made.clone()));
    assert_eq!(run(two, "made", "cat /both"), "first\na");
    assert_eq!((cached(three, &folder, &["--cache-from", &all]), id(three, "made")), (5, made.clone()));
    // Its own cache has them now.
    assert_eq!(cached(three, &folder, &[]), 5);
    // The least is what the image has: the other stage is done again, to the same files.
    let found = cached(four, &folder, &["--cache-from", &format!("type=registry,ref={least}")]);
    assert_eq!((found, id(four, "made")), (3, made));
    four.insula(&["system", "check"]).ok();

    // With the image itself.
    let image = registry.name("team/app:1");
    build(four, &folder, &["-t", &image, "--cache-to", "type=inline", "--push"]).ok();
    assert_eq!(cached(five, &folder, &["--cache-from", &image]), 3);
    assert_eq!(run(five, "made", "cat /both"), "first\na");
    five.insula(&["pull", &image]).ok();
    assert_eq!(run(five, &image, "cat /both"), "first\na");

    // What is not what it says is not used: the step is done.
    let layers = cache.join("blobs/sha256");
    for blob in layers.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
        let mut bytes = std::fs::read(&blob).unwrap();
        if bytes.get(257..262) == Some(b"ustar") {
            bytes[0] ^= 1;
            std::fs::write(&blob, bytes).unwrap();
        }
    }
    five.insula(&["rmi", "-f", "made", &image]).ok();
    five.insula(&["builder", "prune", "-f"]).ok();
    let mended = build(five, &folder, &["--cache-from", &from_local, "-t", "made"]);
    mended.shows(&["the cache has a step that cannot be used"]);
    assert!(!mended.stdout.contains("Using cache"), "{mended}");
    assert_eq!(run(five, "made", "cat /both"), "first\na");
    // Links of a layout lead nowhere.
    let index = cache.join("index.json");
    std::fs::remove_file(&index).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &index).unwrap();
    build(five, &folder, &["--cache-from", &from_local]).shows(&["[Warning] importing cache from"]);
}
