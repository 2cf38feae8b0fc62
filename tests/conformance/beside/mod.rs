//! The same requests to Docker's own daemon and to ours, their answers compared field by field: which fields
//! there are, their types, which are null, empty or zero, and their values. `requests.txt` says what is asked,
//! `differences.txt` what may differ and why; a line of it that nothing needs any more fails the test.

mod accepted;
mod compare;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use insula_tests::{Daemon, Response, daemon, docker, holds, images, request};
use serde_json::Value;

use self::accepted::Accepted;
use crate::engines::place::Place;

/// The newest that Debian's daemon speaks, and the oldest.
const VERSIONS: [&str; 2] = ["1.41", "1.24"];
const REQUESTS: &str = include_str!("requests.txt");

/// One of the two daemons.
struct Side {
    socket: PathBuf,
    /// The exec that was made last.
    exec: String,
    begun: u64,
}

impl Side {
    fn new(socket: PathBuf) -> Self {
        Self { socket, exec: String::new(), begun: now() }
    }

    fn ask(&self, version: &str, asked: &Asked) -> Response {
        let path: String = asked.path.replace("EXEC", &self.exec).chars().map(escaped).collect();
        request(&self.socket, &asked.method, &format!("/v{version}{path}"), asked.body.as_bytes())
    }

    fn get(&self, path: &str) -> Response {
        request(&self.socket, "GET", path, b"")
    }

    fn events(&self) -> Vec<Value> {
        // It answers when that second has come.
        let path = format!("/v{}/events?since={}&until={}", VERSIONS[0], self.begun, now() + 1);
        self.get(&path).text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What a path must not hold as it is.
fn escaped(letter: char) -> String {
    match letter {
        ' ' | '"' | '{' | '}' | '[' | ']' => format!("%{:02X}", u32::from(letter)),
        letter => letter.to_string(),
    }
}

/// A request of the file.
struct Asked {
    method: String,
    path: String,
    body: String,
}

impl Asked {
    /// `METHOD /path BODY`.
    fn parse(line: &str) -> Self {
        let (method, rest) = line.split_once(' ').unwrap();
        // A path may hold blanks; what is behind one and begins like JSON is the body.
        let body = [" {", " [", " nonsense"].iter().filter_map(|begin| rest.find(begin)).min();
        let (path, body) = body.map_or((rest, ""), |at| (&rest[..at], &rest[at + 1..]));
        Self { method: method.to_owned(), path: path.to_owned(), body: body.to_owned() }
    }

    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

struct Beside {
    docker: Side,
    insula: Side,
    accepted: Accepted,
}

impl Beside {
    fn line(&mut self, line: &str) {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["until", container, pointer, value] => {
                let path = format!("/containers/{container}/json");
                self.both(line, |side| side.get(&path).json().pointer(pointer).is_some_and(|is| is == value));
            }
            ["logged", container, words @ ..] => {
                let path = format!("/containers/{container}/logs?stdout=1&stderr=1");
                self.both(line, |side| {
                    let text = side.get(&path).text();
                    words.iter().all(|word| text.contains(word))
                });
            }
            ["until-exec-ends"] => {
                self.both(line, |side| {
                    let found = side.get(&format!("/exec/{}/json", side.exec)).json();
                    found["Running"] == false && found["ExitCode"].is_i64()
                });
            }
            ["gone", container] => {
                let path = format!("/containers/{container}/json");
                self.both(line, |side| side.get(&path).status == 404);
            }
            // Made by one of them alone: nothing to compare.
            ["away", container] => {
                for side in [&self.docker, &self.insula] {
                    request(&side.socket, "DELETE", &format!("/containers/{container}?force=1"), b"");
                }
            }
            ["once", ..] => self.request(&line["once ".len()..], &VERSIONS[..1]),
            ["GET", ..] => self.request(line, &VERSIONS),
            _ => self.request(line, &VERSIONS[..1]),
        }
    }

    fn both(&self, what: &str, so: impl Fn(&Side) -> bool) {
        for side in [&self.docker, &self.insula] {
            holds(&format!("{what}: {}", side.socket.display()), || so(side));
        }
    }

    fn request(&mut self, line: &str, versions: &[&str]) {
        let asked = Asked::parse(line);
        for version in versions {
            let (theirs, ours) = (self.docker.ask(version, &asked), self.insula.ask(version, &asked));
            // What an earlier version did not have Docker shows all the same.
            self.accepted.newest = *version == VERSIONS[0];
            compare::answers(&mut self.accepted, &asked.name(), &theirs, &ours);
            if asked.path.ends_with("/exec") && theirs.status == 201 && ours.status == 201 {
                for (side, answer) in [(&mut self.docker, &theirs), (&mut self.insula, &ours)] {
                    side.exec = answer.json()["Id"].as_str().unwrap().to_owned();
                }
            }
        }
    }
}

#[test]
fn answers_are_as_dockers() {
    let Some(place) = Place::with(&["dockerd", "containerd"]) else { return };
    let Some(client) = docker() else { return insula_tests::skip("root", "docker.io is missing") };
    let socket = dockerd(&place, &client);
    let daemon: Daemon = daemon!();
    let busybox = images::busybox().docker_archive();
    let loaded = request(&socket, "POST", "/images/load?quiet=1", &busybox);
    assert_eq!(loaded.status, 200, "{}", loaded.text());
    let mut beside = Beside {
        docker: Side::new(socket),
        insula: Side::new(daemon.instance().socket()),
        accepted: Accepted::read(),
    };
    let subnet = subnet();
    for line in REQUESTS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        beside.line(&line.replace("SUBNET", &subnet));
    }
    let (theirs, ours) = (beside.docker.events(), beside.insula.events());
    beside.accepted.newest = true;
    compare::events(&mut beside.accepted, &theirs, &ours);
    beside.accepted.finish();
}

/// The beginning of addresses that nobody else here has.
fn subnet() -> String {
    let random = u32::from_str_radix(&insula_tests::tag(), 16).unwrap();
    format!("10.{}.{}", 215 + random % 8, random / 8 % 256)
}

fn dockerd(place: &Place, client: &std::path::Path) -> PathBuf {
    let socket = place.path("docker.sock");
    let host = format!("unix://{}", socket.display());
    let key = format!("{{\"deprecated-key-path\": {:?}}}", place.at("key.json"));
    fs::write(place.path("daemon.json"), key).unwrap();
    let mut daemon = place.command("dockerd");
    daemon.args(["-H", &host, "--config-file", &place.at("daemon.json"), "--pidfile", &place.at("pid")]);
    daemon.args(["--data-root", &place.at("data"), "--exec-root", &place.at("exec")]);
    daemon.args(["--iptables=false", "--ip6tables=false", "--storage-driver", "vfs"]);
    daemon.args(["--cgroup-parent", &format!("/{}", place.group)]);
    place.daemon(&mut daemon, || {
        let mut version = Command::new(client);
        version
            .env_remove("DOCKER_CONTEXT")
            .env("DOCKER_CONFIG", place.path(""))
            .args(["-H", &host, "version"]);
        version
    });
    socket
}
