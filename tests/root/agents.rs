//! Agents that commands of a build may ask.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

use insula_tests::images::debian;
use insula_tests::{daemon, text};

use crate::build::{build, context, run};

/// An agent that answers everything with its name and what it was asked.
fn agent(path: &Path, name: &'static str) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut asked = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut asked) {
                    let answer = [name.as_bytes(), b" heard ", &asked[..count]].concat();
                    // A program that has heard enough.
                    let _ = stream.write_all(&answer);
                }
            });
        }
    });
}

/// Asks the socket of its first argument twice on one connection.
const ASK: &str = "\
my $s = IO::Socket::UNIX->new(Peer => shift) or die qq(connect: $!\\n);
for my $word (qw(one two)) { $s->syswrite($word); $s->sysread(my $answer, 64); print qq($answer\\n); }
";

const ASKED: &str = "\
FROM debian AS base
COPY ask /ask
FROM base
RUN --mount=type=ssh --mount=type=ssh,id=other,target=/tmp/other,mode=0666,uid=5 \\
    { perl -MIO::Socket::UNIX /ask $SSH_AUTH_SOCK && perl -MIO::Socket::UNIX /ask /tmp/other; \\
    stat -c '%a %u %F %n' $SSH_AUTH_SOCK /tmp/other; } > /seen
RUN --mount=type=ssh for n in 1 2 3 4 5 6 7 8; do perl -MIO::Socket::UNIX /ask $SSH_AUTH_SOCK > /$n & done; wait; \\
    cat /[1-8] | sort | uniq -c >> /seen
RUN --mount=type=ssh,id=absent test -z \"$SSH_AUTH_SOCK\" && test ! -e /tmp/other
";

#[test]
fn commands_ask_agents_of_whoever_builds() {
    let daemon = daemon!();
    daemon.insula(&["import", text(&debian(&[])), "debian"]).ok();
    let places = ["first", "other"].map(|name| daemon.folder().join(name));
    agent(&places[0], "first");
    agent(&places[1], "other");
    let folder = context(&daemon, "context", &[("Dockerfile", ASKED), ("ask", ASK)]);
    let flags = places.each_ref().map(|path| path.to_str().unwrap());
    let (first, other) = (format!("default={}", flags[0]), format!("other={}", flags[1]));
    build(&daemon, &folder, &["-t", "made", "--ssh", &first, "--ssh", &other]).ok();
    assert_eq!(
        run(&daemon, "made", "cat /seen").lines().map(str::trim).collect::<Vec<_>>(),
        [
            "first heard one",
            "first heard two",
            "other heard one",
            "other heard two",
            "600 0 socket /run/buildkit/ssh_agent.0",
            "666 5 socket /tmp/other",
            "8 first heard one",
            "8 first heard two",
        ]
    );
    // Nothing of it is in a layer, and nothing is left.
    assert_eq!(run(&daemon, "made", "ls -A /tmp; test -e /run/buildkit || echo none"), "none");
    assert_eq!(daemon.instance().run().join("builds").read_dir().unwrap().count(), 0);
    let required = "FROM debian\nRUN --mount=type=ssh,required true\n";
    let required = context(&daemon, "required", &[("Dockerfile", required)]);
    build(&daemon, &required, &[]).fails(1, &["there is no agent default", "--ssh default"]);
    build(&daemon, &required, &["--ssh", &first, "--isolation", "vm"])
        .fails(1, &["agents do not reach into machines"]);
    build(&daemon, &required, &["--ssh", "default=/etc/passwd"]).fails(1, &["ssh-add"]);
    // A stranger does not come in between.
    let answer = daemon.api("POST", "/insula/build/agent?id=default", "");
    assert_eq!(answer.status, 404);
}
