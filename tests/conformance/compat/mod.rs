//! `docs/reference/docker-compat.md` is written by running: every endpoint of Docker's API, and every flag of every
//! command of Docker's, with Docker's client and with insula's own. `INSULA_UPDATE_DOCS=1` writes it again.

mod endpoints;
mod inside;
mod run_flags;
mod verbs;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use insula_tests::clients::client_files;
use insula_tests::registry::{Registry, Wants};
use insula_tests::{Daemon, Outcome, docker, holds, images, program, tag};
use verbs::{GROUPS, Kind, Row, VERBS, Verb};

/// Who runs a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Docker,
    Insula,
}

/// A daemon with something of everything, and a registry.
struct Place {
    daemon: Daemon,
    registry: Registry,
    box_id: String,
    /// The third part of the addresses of `fixed`, and of a network that is made.
    subnets: [String; 2],
    /// What makes a build another one than that before.
    build: RefCell<String>,
    /// Where both clients should print the same and do not.
    disagreements: RefCell<Vec<String>>,
}

impl Place {
    fn new(daemon: Daemon, registry: Registry) -> Self {
        // Nobody else's network has these but by chance.
        let third = |text: &str| u8::from_str_radix(text, 16).unwrap();
        let random = tag();
        let subnets = [format!("10.213.{}", third(&random[..2])), format!("10.214.{}", third(&random[2..4]))];
        let mut place = Self {
            daemon,
            registry,
            box_id: String::new(),
            subnets,
            disagreements: RefCell::default(),
            build: RefCell::default(),
        };
        let folder = place.folder();
        std::fs::write(folder.join("env"), "C=d\n").unwrap();
        let layer = images::Layer::default().file("made", 0o644, b"made\n").bytes();
        std::fs::write(folder.join("import.tar"), layer).unwrap();
        std::fs::create_dir(folder.join("context")).unwrap();
        place.run(Client::Insula, &["save", "-o", &place.real("FOLDER/load.tar"), "busybox"], b"").ok();
        for line in [
            "login -u ann -p secret REGISTRY",
            "network create --subnet SUBNET.0/24 fixed",
            "volume create data",
            "tag busybox REGISTRY/base",
            "push REGISTRY/base",
            "import FOLDER/import.tar kept:1",
            "run --name done --network none busybox sh -c 'echo first; echo second'",
        ] {
            place.insula(line).ok();
        }
        let start = "run -d -t --init --name box -p 127.0.0.1::80 -v data:/data busybox sleep 1000";
        place.box_id = place.insula(start).ok().to_owned();
        place
    }

    fn folder(&self) -> PathBuf {
        self.daemon.folder()
    }

    fn clients(&self) -> [Client; 2] {
        [Client::Docker, Client::Insula]
    }

    fn command(&self, client: Client, words: &[&str]) -> Command {
        let mut command = match client {
            Client::Docker => Command::new(docker().unwrap()),
            Client::Insula => Command::new(program("insula")),
        };
        let socket = format!("unix://{}", self.daemon.instance().socket().display());
        command.env("DOCKER_HOST", &socket).env("INSULA_HOST", &socket).env("DOCKER_BUILDKIT", "0");
        command.env("DOCKER_CONFIG", self.folder()).env_remove("DOCKER_CONTEXT").args(words);
        command
    }

    fn run(&self, client: Client, words: &[&str], input: &[u8]) -> Outcome {
        Outcome::of(&mut self.command(client, words), input)
    }

    /// A command line of insula, with placeholders.
    fn insula(&self, line: &str) -> Outcome {
        let words = split(&self.real(line));
        self.run(Client::Insula, &words.iter().map(String::as_str).collect::<Vec<_>>(), b"")
    }

    /// Placeholders and what stands for them.
    fn names(&self) -> [(&'static str, String); 5] {
        [
            ("FOLDER", self.folder().display().to_string()),
            ("BOX", self.box_id.clone()),
            ("REGISTRY", self.registry.address().to_string()),
            ("SUBNET", self.subnets[0].clone()),
            ("NETWORK", self.subnets[1].clone()),
        ]
    }

    fn real(&self, text: &str) -> String {
        self.names().iter().fold(text.to_owned(), |text, (name, real)| text.replace(name, real))
    }

    /// What a command that failed said, in one line that is the same every time.
    fn why(&self, outcome: &Outcome) -> String {
        let mut lines =
            outcome.stderr.lines().filter(|line| !line.is_empty() && !line.starts_with("DEPRECATED"));
        let told = lines.clone().find(|line| line.contains("rror") || line.contains("docker:"));
        let why = told.or_else(|| lines.next()).unwrap_or_default();
        // Which commands look like it depends on those that there are.
        let mut why = why.split("; did you mean").next().unwrap_or_default().to_owned();
        for start in ["docker: ", "insula: ", "Error response from daemon: ", "Error: "] {
            why = why.strip_prefix(start).unwrap_or(&why).to_owned();
        }
        let known = self.names().into_iter().filter(|(_, real)| !real.is_empty());
        let why = known.fold(why, |why, (name, real)| why.replace(&real, name));
        let build = format!("echo {}", self.build.borrow());
        why.replace(&build, "echo N").replace('|', "/").trim_end_matches('.').trim().to_owned()
    }

    /// One row of a command's table.
    fn row(&self, verb: &Verb, row: &Row) -> String {
        let mut verdicts = Vec::new();
        let mut shown: Option<Outcome> = None;
        for (client, differs) in self.clients().into_iter().zip([row.1, row.2]) {
            let outcome = self.outcome(client, verb, row.0);
            let same = verb.kind != Kind::Shows
                || shown.as_ref().is_none_or(|theirs| self.agree(theirs, &outcome, verb, row.0));
            if !same && differs.is_empty() {
                let text = format!("{} {}:\n{}\n{outcome}", verb.words, row.0, shown.as_ref().unwrap());
                self.disagreements.borrow_mut().push(text);
            }
            verdicts.push(verdict(outcome.code == 0, differs, &self.why(&outcome)));
            shown = Some(outcome);
        }
        verdicts.join(" | ")
    }

    fn outcome(&self, client: Client, verb: &Verb, flags: &str) -> Outcome {
        if verb.words == "build" {
            // What was built before is not built again.
            self.build.replace(tag());
            let text = format!(
                "FROM {} AS made\nARG A\nRUN echo {}\n",
                self.real("REGISTRY/base"),
                self.build.borrow()
            );
            std::fs::write(self.folder().join("context/Dockerfile"), text).unwrap();
        }
        for line in verb.before {
            self.insula(line).ok();
        }
        let words = split(&self.real(&format!("{} {flags} {}", verb.words, verb.rest)));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let outcome = match verb.kind {
            Kind::Stays => self.released(client, &words),
            Kind::Shows | Kind::Acts => self.run(client, &words, b"secret\n"),
        };
        for line in verb.after {
            // It may not have been made.
            self.insula(line);
        }
        outcome
    }

    /// Attached to `made` until it may end.
    fn released(&self, client: Client, words: &[&str]) -> Outcome {
        let id = self.insula("inspect -f {{.Id}} made").ok().to_owned();
        let mut command = self.command(client, words);
        let attached = std::thread::spawn(move || Outcome::of(&mut command, b""));
        let events = format!("events --since 1h --until 0s --filter event=attach --filter container={id}");
        holds("it is attached", || !self.insula(&events).stdout.is_empty());
        self.insula("exec made touch /go").ok();
        attached.join().unwrap()
    }

    /// Whether both clients have printed the same, times that pass aside.
    fn agree(&self, theirs: &Outcome, ours: &Outcome, verb: &Verb, flags: &str) -> bool {
        if (theirs.code == 0) != (ours.code == 0) {
            return false;
        }
        let same = |theirs: &Outcome, ours: &Outcome| {
            // Docker's older client sorts the fields of a document.
            let document =
                |outcome: &Outcome| serde_json::from_str::<serde_json::Value>(&outcome.stdout).ok();
            let documents = document(theirs).is_some() && document(theirs) == document(ours);
            theirs.code != 0 || theirs.stdout == ours.stdout || documents
        };
        // Ages change between the two, now and then.
        same(theirs, ours)
            || (0..3).any(|_| {
                let [theirs, ours] = self.clients().map(|client| self.outcome(client, verb, flags));
                same(&theirs, &ours)
            })
    }

    /// Commands without a row of their own: all of a group in one.
    fn groups(&self) -> String {
        let mut table = String::from("\n### Others\n\n| command | docker | insula |\n| --- | --- | --- |\n");
        for (_, line, differs) in GROUPS {
            let words = split(&self.real(line));
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let verdicts = self.clients().map(|client| {
                let outcome = self.run(client, &words, b"");
                verdict(outcome.code == 0, differs, &self.why(&outcome))
            });
            writeln!(table, "| `{line}` | {} |", verdicts.join(" | ")).unwrap();
        }
        table
    }

    fn verbs(&self) -> String {
        let mut text = String::new();
        for verb in VERBS {
            write!(text, "\n### {}\n\n| flag | docker | insula |\n| --- | --- | --- |\n", verb.words)
                .unwrap();
            for row in verb.rows {
                let flags =
                    if row.0.is_empty() { "none" } else { &format!("`{}`", row.0.replace("FOLDER/", "")) };
                writeln!(text, "| {flags} | {} |", self.row(verb, row)).unwrap();
            }
        }
        text
    }
}

/// Words, some of them in single quotes.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut quoted) = (Vec::new(), false);
    for part in line.split('\'') {
        match quoted {
            true => words.push(part.to_owned()),
            false => words.extend(part.split_whitespace().map(str::to_owned)),
        }
        quoted = !quoted;
    }
    words
}

fn verdict(works: bool, differs: &str, why: &str) -> String {
    match (works, differs) {
        (true, "") => "works".to_owned(),
        (true, how) => format!("differs: {how}"),
        (false, "") => format!("not: {}", why.replace('|', "/")),
        (false, how) => format!("not: {} ({how})", why.replace('|', "/")),
    }
}

/// The names of flags that a help text has.
fn flags_of(help: &str) -> BTreeSet<String> {
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let flags = lines.filter_map(|line| line.split_once("--"));
    let names = flags.map(|(_, rest)| rest.split([' ', '=', ',']).next().unwrap_or_default().to_owned());
    names.filter(|name| name != "help").collect()
}

/// The commands that a help text has.
fn commands_of(help: &str) -> Vec<String> {
    let sections =
        help.split("\n\n").filter(|part| part.lines().next().is_some_and(|l| l.ends_with("Commands:")));
    let lines = sections.flat_map(|part| part.lines().skip(1));
    lines.filter_map(|line| Some(line.split_whitespace().next()?.trim_end_matches('*').to_owned())).collect()
}

/// What below a noun is another name of a command.
fn plain_name(words: &str) -> String {
    match words {
        "container ls" => "ps".to_owned(),
        "image ls" => "images".to_owned(),
        "image rm" => "rmi".to_owned(),
        "container inspect" | "image inspect" => "inspect".to_owned(),
        "image prune" | "container prune" => words.to_owned(),
        "builder build" => "build".to_owned(),
        "system events" | "system info" => words.replace("system ", ""),
        words => {
            let known = words.strip_prefix("container ").or_else(|| words.strip_prefix("image "));
            known.unwrap_or(words).to_owned()
        }
    }
}

/// Every flag of every command of Docker's client has its row, or its group has.
fn check_rows(place: &Place) {
    let help = |words: &[&str]| {
        let said = place.run(Client::Docker, &[words, &["--help"]].concat(), b"");
        format!("{}\n", said.ok())
    };
    let mut all: Vec<String> = Vec::new();
    for command in commands_of(&help(&[])) {
        let below = commands_of(&help(&[&command]));
        match below.is_empty() {
            true => all.push(command),
            false => all.extend(below.iter().map(|verb| format!("{command} {verb}"))),
        }
    }
    assert!(all.len() > 80, "the help of docker is read: {all:?}");
    for words in all {
        let grouped =
            |(start, ..): &(&str, &str, &str)| words == *start || words.starts_with(&format!("{start} "));
        if GROUPS.iter().any(grouped) {
            continue;
        }
        let flags = flags_of(&help(&words.split(' ').collect::<Vec<_>>()));
        let plain = plain_name(&words);
        if plain == "run" || plain == "create" {
            for flag in flags {
                let known = run_flags::FLAGS.iter().any(|(name, ..)| *name == flag);
                assert!(known, "--{flag} of docker {words} has no row");
            }
            continue;
        }
        let verb = VERBS.iter().find(|verb| verb.words == plain);
        let verb = verb.unwrap_or_else(|| panic!("docker {words} has no rows"));
        for flag in flags {
            let starts = |row: &&Row| {
                row.0.strip_prefix("--").is_some_and(|rest| rest.split([' ', '=']).next() == Some(&flag))
            };
            assert!(verb.rows.iter().any(|row| starts(&row)), "--{flag} of docker {words} has no row");
        }
    }
}

#[test]
fn the_table_is_what_running_shows() {
    let registry = insula_tests::registry!(&Wants { password: true, ..Default::default() });
    let daemon = insula_tests::daemon!();
    if docker().is_none() {
        return insula_tests::skip("root", "docker's command line (Debian package docker.io) is missing");
    }
    let place = Place::new(daemon, registry);
    check_rows(&place);
    let run = run_flags::flags(&place);
    let groups = place.groups();
    let verbs = place.verbs();
    let start = ["run", "-d", "-t", "--init", "--name", "again", "busybox", "sleep", "1000"];
    let id = place.run(Client::Insula, &start, b"").ok().to_owned();
    let disagreements = place.disagreements.take();
    assert!(disagreements.is_empty(), "the clients print different things: {}", disagreements.join("\n"));
    let endpoints = endpoints::endpoints(&place.daemon, &id);
    let text = format!(
        "# What of Docker works\n\nWritten by running each line against a daemon \
         (`INSULA_UPDATE_DOCS=1 cargo test -p insula-tests --test conformance compat`). What is behind `not` is the \
         answer. What a container finds inside is [beside this](inside.md).\n\n## Endpoints\n\n{endpoints}\n## \
         Commands and flags\n\nThe first column of verdicts is of \
         Debian's Docker client against insula's daemon, the second of the command `insula`. Where both only show \
         something, they were found to print the same.\n{run}{verbs}{groups}"
    );
    check_document("docker-compat.md", &text);
}

#[test]
fn a_container_finds_inside_what_is_written() {
    let daemon = insula_tests::daemon!();
    let inside = inside::inside(&daemon);
    let text = format!(
        "# What a container finds inside\n\nWhat a script prints, behind the process wall; written by running it \
         (`INSULA_UPDATE_DOCS=1 cargo test -p insula-tests --test conformance inside`). Docker 20.10 printed the same, \
         but where it says how it differs.\n\n{inside}"
    );
    check_document("inside.md", &text);
}

/// Whether the document is what was written by running; writes it if that is wished.
fn check_document(name: &str, text: &str) {
    let path = client_files().join("../../../docs/reference").join(name);
    if std::env::var_os("INSULA_UPDATE_DOCS").is_some() {
        std::fs::write(path, text).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(path).unwrap();
    for (kept, now) in kept.lines().zip(text.lines()) {
        assert_eq!(kept, now, "docs/reference/{name} is not what running shows");
    }
    assert_eq!(kept.lines().count(), text.lines().count());
}
