//! The API with many: containers, connections, commands at once, events a second.

mod http;

use std::fmt;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use self::http::Connection;
use crate::engine::Insula;
use crate::memory::rss;
use crate::peer::{Images, Peer};
use crate::sample::Samples;

/// How many of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) containers: usize,
    pub(crate) connections: usize,
    pub(crate) commands: usize,
    pub(crate) events: usize,
}

impl Scale {
    pub(crate) const WHOLE: Self =
        Self { containers: 1000, connections: 2000, commands: 200, events: 20_000 };
    pub(crate) const SHORT: Self = Self { containers: 100, connections: 500, commands: 50, events: 5_000 };
}

/// Times of one question.
const ROUNDS: usize = 20;
const FOLLOWERS: usize = 4;
/// Containers that are made and started one by one, when there are few and when there are many.
const TIMED: usize = 10;
const EVENTS_A_SECOND: usize = 5_000;
/// Containers that events are about: each has a bound on its execs.
const BUSY: usize = 8;
/// Events that are asked for together.
const BATCH: usize = 50;

/// A line of the table.
#[derive(Debug)]
struct Line(String, String);

/// What was seen, in the order of the table.
#[derive(Debug, Default)]
pub(crate) struct Seen(Vec<Line>);

impl Seen {
    fn line(&mut self, what: impl Into<String>, found: impl Into<String>) {
        self.0.push(Line(what.into(), found.into()));
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n# The API of insula with many\n\n| | |\n| --- | --- |")?;
        self.0.iter().try_for_each(|Line(what, found)| writeln!(f, "| {what} | {found} |"))
    }
}

/// All of it, against a daemon of its own.
pub(crate) fn measure(folder: &Path, scale: Scale) -> anyhow::Result<Seen> {
    let folder = folder.join("api");
    let engine = Insula::new(&folder);
    let mut many = Many { socket: engine.socket(), engine, running: Vec::new() };
    let mut seen = Seen::default();
    let measured = many.measure(scale, &mut seen);
    let removed = many.remove();
    many.engine.clean();
    measured.and(removed).map(|()| seen)
}

struct Many {
    engine: Insula,
    socket: PathBuf,
    /// Ids of containers.
    running: Vec<String>,
}

impl Many {
    fn measure(&mut self, scale: Scale, seen: &mut Seen) -> anyhow::Result<()> {
        self.engine.prepare()?;
        self.crowd(scale.containers, seen)?;
        let one = self.running[0].clone();
        for (words, path) in [
            (vec!["ps"], "/containers/json".to_owned()),
            (vec!["inspect", &one], format!("/containers/{one}/json")),
        ] {
            let command = (0..ROUNDS).map(|_| self.engine.timed(&words)).collect::<anyhow::Result<_>>()?;
            let what = format!("`{}` with {} running containers", words[0], scale.containers);
            seen.line(format!("{what}, the command"), milliseconds(command));
            seen.line(format!("{what}, the API alone"), milliseconds(self.asked(&path)?));
        }
        self.connections(scale.connections, seen)?;
        for network in ["none", "bridge"] {
            self.commands(scale.commands, network, seen)?;
        }
        self.events(scale.events, seen)?;
        let (count, began) = (self.running.len(), Instant::now());
        self.remove()?;
        seen.line(format!("{count} containers removed"), rate(count, began.elapsed()));
        Ok(())
    }

    /// As many as there are to be, with what the daemon takes for them and how long the last ones take.
    fn crowd(&mut self, count: usize, seen: &mut Seen) -> anyhow::Result<()> {
        eprintln!("bench: {count} containers");
        let mut memory = vec![format!("{:.1} MiB with none", self.resident()?)];
        self.fill(TIMED)?;
        let few = self.one_by_one(TIMED)?;
        let (began, before) = (Instant::now(), self.running.len());
        self.fill((count / 10).saturating_sub(before))?;
        let mut filling = began.elapsed();
        memory.push(format!("{:.1} MiB with {}", self.resident()?, self.running.len()));
        let began = Instant::now();
        self.fill(count.saturating_sub(self.running.len() + TIMED))?;
        filling += began.elapsed();
        let filled = self.running.len() - before;
        let many = self.one_by_one(TIMED)?;
        memory.push(format!("{:.1} MiB with {}", self.resident()?, self.running.len()));
        seen.line(format!("{filled} containers made and started, 4 at a time"), rate(filled, filling));
        seen.line("one made and started, around the 15th", milliseconds(few));
        seen.line(format!("one made and started, before the {count}th"), milliseconds(many));
        seen.line("memory of `insulad` (RSS)", memory.join(", "));
        Ok(())
    }

    /// MiB that the daemon has in memory.
    fn resident(&self) -> anyhow::Result<f64> {
        let daemon = self.engine.pid().context("the daemon runs")?;
        Ok(rss(daemon)? as f64 / 1024.0)
    }

    /// What it takes to make and start each of some more.
    fn one_by_one(&mut self, count: usize) -> anyhow::Result<Vec<Duration>> {
        let mut connection = Connection::open(&self.socket)?;
        (0..count)
            .map(|_| {
                let began = Instant::now();
                self.running.push(begin(&mut connection)?);
                Ok(began.elapsed())
            })
            .collect()
    }

    /// Makes and starts containers, some at a time.
    fn fill(&mut self, count: usize) -> anyhow::Result<()> {
        let next = AtomicUsize::new(0);
        let lane = || -> anyhow::Result<Vec<String>> {
            let mut connection = Connection::open(&self.socket)?;
            let mut made = Vec::new();
            while next.fetch_add(1, Ordering::Relaxed) < count {
                made.push(begin(&mut connection)?);
            }
            Ok(made)
        };
        let lanes = at_once(4, |_| lane())?;
        self.running.extend(lanes.into_iter().flatten());
        Ok(())
    }

    fn asked(&self, path: &str) -> anyhow::Result<Vec<Duration>> {
        let mut connection = Connection::open(&self.socket)?;
        let once = |connection: &mut Connection| {
            let began = Instant::now();
            connection.ask("GET", path, "").map(|_| began.elapsed())
        };
        (0..ROUNDS).map(|_| once(&mut connection)).collect()
    }

    /// All are open before the first is answered; each is asked twice.
    fn connections(&self, count: usize, seen: &mut Seen) -> anyhow::Result<()> {
        eprintln!("bench: {count} connections");
        let began = Instant::now();
        let mut open =
            (0..count).map(|_| Connection::open(&self.socket)).collect::<anyhow::Result<Vec<_>>>()?;
        let (mut failed, path) = (0, format!("/containers/{}/json", self.running[0]));
        for _ in 0..2 {
            let sent: Vec<bool> = open.iter_mut().map(|one| one.send("GET", &path, "").is_ok()).collect();
            let answered = open.iter_mut().zip(sent).map(|(one, sent)| sent && one.answer().is_ok());
            failed += answered.filter(|answered| !answered).count();
        }
        let found = format!("{}, {failed} failed", seconds(began.elapsed()));
        seen.line(format!("{count} connections at once, asked twice each for a container"), found);
        Ok(())
    }

    fn commands(&self, count: usize, network: &str, seen: &mut Seen) -> anyhow::Result<()> {
        eprintln!("bench: {count} commands, network {network}");
        let program = self.engine.program("insula");
        let host = format!("unix://{}", self.socket.display());
        let start = || -> anyhow::Result<Child> {
            let mut command = Command::new(&program);
            command.args(["--host", &host, "run", "--rm", "--network", network, "busybox", "/bin/true"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("run insula")
        };
        let began = Instant::now();
        let children = (0..count).map(|_| start()).collect::<anyhow::Result<Vec<_>>>()?;
        let mut failed = 0;
        for mut child in children {
            failed += usize::from(!child.wait().context("wait for a run")?.success());
        }
        let found = format!("{}, {failed} failed", seconds(began.elapsed()));
        seen.line(format!("{count} `run --rm` at once, network {network}"), found);
        Ok(())
    }

    fn events(&self, count: usize, seen: &mut Seen) -> anyhow::Result<()> {
        eprintln!("bench: {count} events");
        let followers =
            (0..FOLLOWERS).map(|_| Connection::follow(&self.socket)).collect::<anyhow::Result<Vec<_>>>()?;
        let (mut told, rate) = std::thread::scope(|scope| -> anyhow::Result<_> {
            let readers: Vec<_> =
                followers.into_iter().map(|follower| scope.spawn(move || counted(follower, count))).collect();
            let rate = self.cause(count)?;
            let told: Vec<usize> = readers.into_iter().filter_map(|reader| reader.join().ok()).collect();
            Ok((told, rate))
        })?;
        told.sort_unstable();
        let least = told.first().copied().unwrap_or(0);
        let what = format!("{count} events at {EVENTS_A_SECOND} a second, {FOLLOWERS} followers");
        seen.line(what, format!("{rate:.0} a second came; the follower with the fewest saw {least}"));
        Ok(())
    }

    /// Causes events at an even pace; how many a second it were.
    fn cause(&self, count: usize) -> anyhow::Result<f64> {
        let busy = &self.running[..BUSY.min(self.running.len())];
        let mut connections =
            busy.iter().map(|_| Connection::open(&self.socket)).collect::<anyhow::Result<Vec<_>>>()?;
        let began = Instant::now();
        for batch in 0..count / BATCH {
            let due = Duration::from_secs_f64((batch * BATCH) as f64 / EVENTS_A_SECOND as f64);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            let place = batch % busy.len();
            let path = format!("/containers/{}/exec", busy[place]);
            for _ in 0..BATCH {
                connections[place].send("POST", &path, r#"{"Cmd":["true"]}"#)?;
            }
            // The next container's go out while this one's are answered.
            let former = (batch + busy.len() - 1) % busy.len();
            if batch > 0 {
                (0..BATCH).try_for_each(|_| connections[former].answer().map(drop))?;
            }
        }
        let last = (count / BATCH - 1) % busy.len();
        (0..BATCH).try_for_each(|_| connections[last].answer().map(drop))?;
        Ok(count as f64 / began.elapsed().as_secs_f64())
    }

    fn remove(&mut self) -> anyhow::Result<()> {
        let ids = std::mem::take(&mut self.running);
        let next = AtomicUsize::new(0);
        at_once(4, |_| {
            let mut connection = Connection::open(&self.socket)?;
            while let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
                connection.ask("DELETE", &format!("/containers/{id}?force=1"), "")?;
            }
            Ok(())
        })
        .map(drop)
    }
}

/// Makes and starts a container; its id.
fn begin(connection: &mut Connection) -> anyhow::Result<String> {
    let body = r#"{"Image":"busybox","Cmd":["/bin/sleep","1000"],"HostConfig":{"NetworkMode":"none"}}"#;
    let answer = connection.ask("POST", "/containers/create", body)?;
    let answer: serde_json::Value = serde_json::from_slice(&answer).context("a container's id")?;
    let id = answer["Id"].as_str().context("a container has an id")?.to_owned();
    connection.ask("POST", &format!("/containers/{id}/start"), "")?;
    Ok(id)
}

/// Events that a follower is told of, until they are all there or its stream ends.
fn counted(follower: impl BufRead, most: usize) -> usize {
    let lines = follower.split(b'\n').map_while(Result::ok);
    lines.filter(|line| line.windows(10).any(|part| part == b"\"timeNano\"")).take(most).count()
}

fn at_once<T: Send>(count: usize, act: impl Fn(usize) -> anyhow::Result<T> + Sync) -> anyhow::Result<Vec<T>> {
    std::thread::scope(|scope| {
        let act = &act;
        let all: Vec<_> = (0..count).map(|n| scope.spawn(move || act(n))).collect();
        all.into_iter()
            .map(|one| {
                let done = one.join();
                ensure!(done.is_ok(), "a thread of the comparison failed");
                done.unwrap_or_else(|_| unreachable!("it was looked at"))
            })
            .collect()
    })
}

fn rate(count: usize, time: Duration) -> String {
    format!("{}, {:.0} a second", seconds(time), count as f64 / time.as_secs_f64())
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn milliseconds(times: Vec<Duration>) -> String {
    let mut samples = Samples::default();
    times.into_iter().for_each(|time| samples.push(time));
    let part = |part| samples.at(part).unwrap_or_default();
    format!("{:.1} ms (p10 {:.1}, p90 {:.1})", part(0.5), part(0.1), part(0.9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn followers_count_events_and_nothing_between_them() {
        let stream =
            b"HTTP/1.1 200 OK\r\n\r\n20\r\n{\"timeNano\":1}\n\r\n20\r\n{\"timeNano\":2}\n\r\n0\r\n\r\n";
        assert_eq!(counted(&stream[..], 10), 2);
        assert_eq!(counted(&stream[..], 1), 1);
    }

    #[test]
    fn nothing_seen_is_nothing_said() {
        assert_eq!(Seen::default().to_string(), "");
        let mut seen = Seen::default();
        seen.line("one", milliseconds(vec![Duration::from_millis(4)]));
        assert!(seen.to_string().ends_with("| one | 4.0 ms (p10 4.0, p90 4.0) |\n"), "{seen}");
    }
}
