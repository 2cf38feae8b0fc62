//! Libraries that speak to Docker, from their own packages, unchanged.

use std::path::Path;
use std::process::Command;

use insula_tests::clients::{client_files, node_modules, python};
use insula_tests::images::debian;
use insula_tests::{Daemon, Outcome, daemon, text};

fn client(daemon: &Daemon, program: impl AsRef<Path>, script: &str) -> Command {
    let mut command = Command::new(program.as_ref());
    command.env("DOCKER_HOST", format!("unix://{}", daemon.instance().socket().display()));
    command
        .env("DOCKER_CONFIG", daemon.folder())
        .env_remove("DOCKER_CONTEXT")
        .arg(client_files().join(script));
    command
}

#[test]
fn docker_py() {
    let daemon = daemon!();
    let said = Outcome::of(&mut client(&daemon, python(), "docker_py.py"), b"");
    assert_eq!(said.ok(), "system\nrun\nlife\nattach\nevents\nimages\nbuilds");
}

#[test]
fn dockerode() {
    let daemon = daemon!();
    let mut command = client(&daemon, "node", "dockerode.js");
    let said = Outcome::of(command.env("NODE_PATH", node_modules()), b"");
    assert_eq!(said.ok(), "run\nattach\nlife\nrest");
}

/// What the official image's entrypoint does, as far as Testcontainers needs it.
const POSTGRES: &str = r#"
    export PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/data
    echo "$POSTGRES_PASSWORD" >/tmp/password
    initdb -U "$POSTGRES_USER" --pwfile=/tmp/password -A scram-sha-256 --no-sync >/dev/null
    echo "host all all all scram-sha-256" >>$PGDATA/pg_hba.conf
    echo "local all all trust" >$PGDATA/local && cat $PGDATA/pg_hba.conf >>$PGDATA/local
    mv $PGDATA/local $PGDATA/pg_hba.conf
    export PGHOST=/tmp
    pg_ctl -w -o "-c listen_addresses= -c unix_socket_directories=/tmp -c fsync=off" start >/dev/null
    test "$POSTGRES_DB" = postgres || createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl -w stop >/dev/null
    exec postgres -c listen_addresses=* -c unix_socket_directories=/tmp -c fsync=off
"#;

#[test]
fn testcontainers_has_a_database() {
    let daemon = daemon!();
    let entrypoint = serde_json::to_string(&["sh", "-ec", POSTGRES]).unwrap();
    let change = format!("ENTRYPOINT {entrypoint}");
    let import = ["import", "-c", &change, "-c", "USER postgres", "-c", "EXPOSE 5432"];
    let archive = debian(&["postgresql-15"]);
    daemon.insula(&[&import[..], &[text(&archive), "postgres:15"]].concat()).ok();
    let mut command = client(&daemon, python(), "testcontainers_pg.py");
    // Its own reaper is an image of a registry.
    let said = Outcome::of(command.env("TESTCONTAINERS_RYUK_DISABLED", "true"), b"");
    assert!(said.ok().ends_with("done"), "{said}");
}
