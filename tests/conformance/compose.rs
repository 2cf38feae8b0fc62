//! docker-compose, Debian's: a project of a database, a web server and workers.

use std::process::Command;

use insula_tests::clients::client_files;
use insula_tests::{Daemon, Outcome, daemon, eventually, get, holds};

struct Project {
    daemon: Daemon,
}

impl Project {
    fn compose(&self, arguments: &[&str]) -> Outcome {
        self.compose_with(&[], arguments)
    }

    fn compose_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Outcome {
        let mut command = Command::new("docker-compose");
        command.env("DOCKER_HOST", format!("unix://{}", self.daemon.instance().socket().display()));
        command.env("DOCKER_CONFIG", self.daemon.folder()).env_remove("DOCKER_CONTEXT");
        command.args(["-p", "app", "-f"]).arg(client_files().join("compose/docker-compose.yml"));
        command.args(arguments).envs(variables.iter().copied());
        Outcome::of(&mut command, b"")
    }

    fn id(&self, service: &str) -> String {
        self.compose(&["ps", "-q", service]).ok().to_owned()
    }

    fn page(&self) -> String {
        let port = self.compose(&["port", "web", "80"]).ok().to_owned();
        eventually("the page is served", || get(&port)).text().trim().to_owned()
    }
}

#[test]
fn a_project_comes_up_changes_and_goes() {
    let project = Project { daemon: daemon!() };
    // The workers need the database by its name, and both wait for its health.
    project.compose(&["up", "-d", "--scale", "worker=2"]).ok();
    assert_eq!(project.page(), "hello from a file");
    let database = project.id("database");
    assert_eq!(project.daemon.inspect(&database, "/State/Health/Status"), "healthy");
    let logs = || project.compose(&["logs", "--no-color", "worker"]).stdout;
    holds("both workers reach the database", || logs().matches("reached").count() == 2);
    assert!(!project.compose(&["ps"]).ok().contains("debug"), "a profile that nobody asked for");
    project.compose(&["run", "--rm", "debug"]).shows(&["debugging"]);
    project.compose(&["up", "-d", "--scale", "worker=1"]).ok();
    assert_eq!(project.id("worker").lines().count(), 1);

    // One service is replaced, the others stay.
    let web = project.id("web");
    project.compose_with(&[("RELEASE", "2")], &["up", "-d"]).ok();
    assert_ne!(project.id("web"), web);
    assert_eq!(project.id("database"), database);
    assert_eq!(project.page(), "hello from a file");

    // The volume outlives the containers.
    let made = project.compose(&["exec", "-T", "database", "cat", "/data/made"]).ok().to_owned();
    project.compose(&["down"]).ok();
    assert_eq!(project.daemon.insula(&["volume", "ls", "-q"]).ok(), "app_data");
    project.compose(&["up", "-d", "database"]).ok();
    assert_eq!(project.compose(&["exec", "-T", "database", "cat", "/data/made"]).ok(), made);
    project.compose(&["down", "-v"]).ok();
    assert_eq!(project.daemon.insula(&["volume", "ls", "-q"]).ok(), "");
    assert!(!project.daemon.insula(&["network", "ls"]).ok().contains("app_"));
}

const BUILT: &str = "\
version: '3.7'
services:
  app:
    image: built:1
    network_mode: none
    build:
      context: app
      dockerfile: Own
      target: wanted
      network: none
      args:
        WORD: from compose
      labels:
        made: by compose
";

const OWN: &str = "\
FROM busybox AS base
ARG WORD
RUN echo $WORD > /word
FROM base AS wanted
COPY . /files/
CMD cat /word; ls -A /files
FROM wanted
RUN false
";

/// By docker-py, and by Docker's command line in both of its ways.
#[test]
fn services_are_built() {
    let daemon = daemon!();
    let folder = daemon.folder().join("project");
    std::fs::create_dir_all(folder.join("app")).unwrap();
    let files = [("docker-compose.yml", BUILT), ("app/Own", OWN), ("app/x", ""), ("app/y.o", "")];
    for (name, content) in files.into_iter().chain([("app/.dockerignore", "*.o\n")]) {
        std::fs::write(folder.join(name), content).unwrap();
    }
    for (native, kit) in [("0", "0"), ("1", "0"), ("1", "1")] {
        let compose = |arguments: &[&str]| {
            let mut command = Command::new("docker-compose");
            command.env("DOCKER_HOST", format!("unix://{}", daemon.instance().socket().display()));
            command.env("DOCKER_CONFIG", daemon.folder()).env_remove("DOCKER_CONTEXT");
            // The distribution's client has BuildKit built in.
            command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir(&folder);
            command.env("COMPOSE_DOCKER_CLI_BUILD", native).env("DOCKER_BUILDKIT", kit);
            Outcome::of(command.args(["-p", "made"]).args(arguments), b"")
        };
        compose(&["build", "--no-cache"]).exits(0);
        let label = daemon.insula(&["image", "inspect", "-f", "{{.Config.Labels.made}}", "built:1"]);
        assert_eq!(label.ok(), "by compose", "{native} {kit}");
        let said = compose(&["run", "--rm", "app"]);
        assert_eq!(said.ok(), "from compose\n.dockerignore\nOwn\nx", "{native} {kit}: {said}");
        compose(&["down", "--rmi", "all"]).exits(0);
    }
}
