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
