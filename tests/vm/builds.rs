//! Builds whose commands run behind the wall of a kernel of their own.

use insula_tests::text;

use crate::walls::daemon_with;

const STEPS: &str = "\
FROM busybox AS made
COPY a.txt /a.txt
RUN uname -r > /release && mkdir /made && mkdir -m 750 /made/d && cp /a.txt /made/b && chown 7:8 /made/b && ln -s b /made/link
RUN --mount=type=cache,target=/cache --mount=type=secret,id=word --mount=target=/context \\
    cat /context/a.txt > /cache/x && cat /cache/x >> /made/b && wc -c < /run/secrets/word > /made/count
RUN rm -r /home && test ! -e /run/secrets/word && test ! -e /context/a.txt
FROM busybox
COPY --from=made /made /made
COPY --from=made /release /
";

#[test]
fn commands_of_a_build_have_a_kernel_of_their_own() {
    let Some(daemon) = daemon_with(&["--vm-templates", "off"]) else { return };
    let folder = daemon.folder().join("context");
    std::fs::create_dir(&folder).unwrap();
    for (name, content) in [("Dockerfile", STEPS), ("a.txt", "a\n")] {
        std::fs::write(folder.join(name), content).unwrap();
    }
    let word = daemon.folder().join("word");
    std::fs::write(&word, "secret").unwrap();
    let secret = format!("id=word,src={}", text(&word));
    let build = |wall: &str, name: &str| {
        let flags = ["build", "--network", "none", "--isolation", wall, "--secret", &secret, "-t", name];
        daemon.insula(&[&flags[..], &[text(&folder)]].concat()).ok().to_owned()
    };
    let seen = |name: &str, script: &str| {
        daemon.insula(&["run", "--rm", "--network", "none", name, "sh", "-c", script]).ok().to_owned()
    };
    let files = "cd /made && stat -c '%a %u %g %n' d b link count && cat b count";
    let told = build("vm", "behind");
    assert!(!told.contains("Using cache"), "{told}");
    let release = daemon.insula(&["kernel", "ls", "-q"]).ok().lines().next().unwrap().trim().to_owned();
    assert_eq!(seen("behind", "cat /release"), release);
    assert_eq!(seen("behind", files), "750 0 0 d\n644 7 8 b\n777 0 0 link\n644 0 0 count\na\na\n6");
    // What a command made behind one wall is not taken for what it makes behind another.
    let told = build("process", "plain");
    // Both have the file, and /made of both is the same.
    assert_eq!(told.matches("Using cache").count(), 2, "{told}");
    assert_ne!(seen("plain", "cat /release"), release);
    assert_eq!(seen("plain", files), seen("behind", files));
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
    assert_eq!(build("vm", "again").matches("Using cache").count(), 6);
}

#[test]
fn no_command_runs_behind_a_wall_that_is_not_there() {
    let Some(daemon) = daemon_with(&["--vm-templates", "off"]) else { return };
    let folder = daemon.folder().join("context");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("Dockerfile"), "FROM busybox\nRUN true\n").unwrap();
    let build = ["build", "--network", "none", "--isolation", "machine", text(&folder)];
    daemon.insula(&build).fails(1, &["machine"]);
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
}
