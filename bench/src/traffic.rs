//! What networks carry: from container to container, through published ports, and with a thousand containers.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::report::OURS;
use crate::sample::Samples;
use crate::worker::execute;

/// Containers of one network. A bridge has 1,023 ports.
const CROWD: usize = 1000;
/// Containers that are timed together, around the tenth and before the last.
const TIMED: usize = 10;
const PATIENCE: Duration = Duration::from_secs(20);
/// How long each measurement takes.
const SECONDS: &str = "2";
const IPERF: &str = "15201";
const HTTP: &str = "15080";
const NAMES: [&str; 2] = ["traffic", "pages"];

/// Programs of the host in a container that has none.
const PROGRAMS: [&str; 6] = ["-v", "/usr:/usr:ro", "-v", "/usr/lib:/lib:ro", "-v", "/usr/lib64:/lib64:ro"];

const NGINX: &str = "daemon off; worker_processes 2; pid /tmp/pid; events { worker_connections 1024; }
http {
    access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;
    uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
    server { listen 80; location / { return 200 \"hello\\n\"; } }
}
";

/// Runs words of one engine; what they print, and how long they take.
pub(crate) type Engine<'a> = dyn FnMut(&[&str]) -> anyhow::Result<(String, Duration)> + 'a;

/// What a turn sees, in this order.
const COLUMNS: [&str; 5] = [
    "between two containers, Gbit/s",
    "port by address, Gbit/s",
    "port by 127.0.0.1, Gbit/s",
    "by address, requests/s",
    "by 127.0.0.1, requests/s",
];

/// One turn of one engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn([f64; COLUMNS.len()]);

/// Whether the programs are there that make traffic.
pub(crate) fn possible() -> bool {
    ["iperf3", "wrk", "nginx"].iter().all(|program| {
        ["/usr/bin", "/usr/sbin"].iter().any(|folder| Path::new(folder).join(program).exists())
    })
}

/// One turn. Commands of the host begin with `host`; `folder` is for what it needs.
pub(crate) fn turn(engine: &mut Engine<'_>, host: &[String], folder: &Path) -> anyhow::Result<Turn> {
    let result = carry(engine, host, folder);
    for name in NAMES {
        // Which of them are there depends on how far it came.
        let _ = engine(&["rm", "-f", name]);
    }
    result
}

fn carry(engine: &mut Engine<'_>, host: &[String], folder: &Path) -> anyhow::Result<Turn> {
    let run = |flags: &[&'static str]| [&["run"][..], flags, &PROGRAMS].concat();
    let publish = format!("{IPERF}:5201");
    let detached =
        [&run(&["-d"])[..], &["-p", &publish, "--name", NAMES[0], "busybox", "/usr/bin/iperf3", "-s"]];
    engine(&detached.concat())?;
    let mut seen = |field: &str| {
        let template = format!("{{{{.NetworkSettings.{field}}}}}");
        engine(&["inspect", "-f", &template, NAMES[0]]).map(|(text, _)| text)
    };
    // The host's own address on the bridge is as good as any other of the host's.
    let (address, gateway) = (seen("IPAddress")?, seen("Gateway")?);
    let client = ["busybox", "/usr/bin/iperf3", "-c", &address, "-t", SECONDS, "-i", "0", "-J"];
    let client = [&run(&["--rm"])[..], &client].concat();
    let between = patiently(|| rate(&engine(&client)?.0))?;
    let by = |to: &str| {
        let words = ["iperf3", "-c", to, "-p", IPERF, "-t", SECONDS, "-i", "0", "-J"];
        patiently(|| rate(&on(host, &words)?))
    };
    let (published, loopback) = (by(&gateway)?, by("127.0.0.1")?);
    serve_pages(engine, host, folder)?;
    let (requests, local_requests) = (ask(host, &gateway)?, ask(host, "127.0.0.1")?);
    Ok(Turn([between, published, loopback, requests, local_requests]))
}

/// What a command of the host prints.
fn on(host: &[String], words: &[&str]) -> anyhow::Result<String> {
    let words: Vec<String> =
        host.iter().cloned().chain(words.iter().map(|word| (*word).to_owned())).collect();
    execute(&words)?.output()
}

/// Starts nginx in a container and waits until it answers.
fn serve_pages(engine: &mut Engine<'_>, host: &[String], folder: &Path) -> anyhow::Result<()> {
    let configuration = folder.join("nginx.conf");
    fs::write(&configuration, NGINX).context("write nginx.conf")?;
    let configured = format!("{}:/etc/nginx.conf:ro", configuration.display());
    let publish = format!("{HTTP}:80");
    let accounts = ["-v", "/etc/passwd:/etc/passwd:ro", "-v", "/etc/group:/etc/group:ro", "-v", &configured];
    let server = ["busybox", "/usr/sbin/nginx", "-e", "/dev/null", "-c", "/etc/nginx.conf"];
    let run = [&["run", "-d"][..], &PROGRAMS, &accounts, &["-p", &publish, "--name", NAMES[1]], &server];
    engine(&run.concat())?;
    patiently(|| page(host))
}

/// Requests a second that it answers.
fn ask(host: &[String], address: &str) -> anyhow::Result<f64> {
    let url = format!("http://{address}:{HTTP}/");
    requests(&on(host, &["wrk", "-t2", "-c32", &format!("-d{SECONDS}s"), &url])?)
}

/// Tries again until the server in a container that has just started listens.
pub(crate) fn patiently<T>(mut attempt: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        match attempt() {
            Err(_) if began.elapsed() < PATIENCE => std::thread::park_timeout(Duration::from_millis(50)),
            result => return result,
        }
    }
}

fn page(host: &[String]) -> anyhow::Result<()> {
    let answer = on(host, &["busybox", "wget", "-q", "-O", "-", &format!("http://127.0.0.1:{HTTP}/")])?;
    if answer.trim_end() == "hello" { Ok(()) } else { bail!("nginx answers {answer:?}") }
}

/// Gbit/s that iperf3 says were received.
pub(crate) fn rate(text: &str) -> anyhow::Result<f64> {
    let report: serde_json::Value = serde_json::from_str(text).context("a report of iperf3")?;
    let bits = report.pointer("/end/sum_received/bits_per_second").and_then(serde_json::Value::as_f64);
    bits.map(|bits| bits / 1e9).context("iperf3 says no rate")
}

fn requests(text: &str) -> anyhow::Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    line.context("wrk says no rate")?.trim().parse().context("a rate of wrk")
}

/// What it takes to start containers in one network, when there are few and when there are many.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    few: Samples,
    many: Samples,
}

/// Fills one network.
pub(crate) fn crowd(engine: &mut Engine<'_>) -> anyhow::Result<Crowd> {
    engine(&["network", "create", "--subnet", "10.210.0.0/16", "crowd"])?;
    let names: Vec<String> = (1..=CROWD).map(|number| format!("crowd{number}")).collect();
    let mut crowd = Crowd::default();
    let mut result = Ok(());
    for (at, name) in names.iter().enumerate() {
        let run = ["run", "-d", "--network", "crowd", "--name", name, "busybox", "/bin/sleep", "1000"];
        match engine(&run) {
            // The sixth to the fifteenth, and the last ten.
            Ok((_, time)) if (5..5 + TIMED).contains(&at) => crowd.few.push(time),
            Ok((_, time)) if at >= CROWD - TIMED => crowd.many.push(time),
            Ok(_) => {}
            Err(error) => {
                result = Err(error.context(format!("container {} of one network", at + 1)));
                break;
            }
        }
    }
    for some in names.chunks(100) {
        let some: Vec<&str> = some.iter().map(String::as_str).collect();
        // Those that were not made are no matter.
        let _ = engine(&[&["rm", "-f"][..], &some].concat());
    }
    let removed = engine(&["network", "rm", "crowd"]);
    result.and(removed.map(|_| crowd))
}

/// All turns.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    turns: Vec<(String, Turn)>,
    crowd: Option<Crowd>,
}

impl Traffic {
    pub(crate) fn push(&mut self, name: &str, turn: Turn) {
        self.turns.push((name.to_owned(), turn));
    }

    pub(crate) fn crowded(&mut self, crowd: Crowd) {
        self.crowd = Some(crowd);
    }

    /// The engines, in the order of their first turns.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in &self.turns {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// What an engine's turns saw.
    fn column(&self, name: &str, column: usize) -> Vec<f64> {
        let turns = self.turns.iter().filter(|(known, _)| known == name);
        turns.map(|(_, turn)| turn.0[column]).collect()
    }

    /// How we were beside another one in the same turn: the host is faster in some turns than in others.
    fn beside(&self, name: &str, column: usize) -> Samples {
        let mut beside = Samples::new();
        let turns = self.column(OURS, column).into_iter().zip(self.column(name, column));
        turns.for_each(|(ours, theirs)| beside.push_number(ours / theirs));
        beside
    }

    /// `runs` are the milliseconds of a `run` on the default bridge, and of one without a network.
    pub(crate) fn write(&self, f: &mut impl fmt::Write, runs: Option<(f64, f64)>) -> fmt::Result {
        if let Some((bridge, none)) = runs {
            let share = bridge - none;
            writeln!(
                f,
                "\n## Networks\n\nOf insula's `run` on the default bridge the network takes {share:.1} ms."
            )?;
        }
        if !self.turns.is_empty() {
            self.table(f)?;
        }
        let Some(Crowd { few, many }) = &self.crowd else { return Ok(()) };
        let part = |samples: &Samples| samples.at(0.5).unwrap_or_default();
        writeln!(
            f,
            "\n`run -d` into one network, medians of {TIMED}: {:.1} ms around the 10th container, {:.1} ms before \
             the {CROWD}th.",
            part(few),
            part(many)
        )
    }

    fn table(&self, f: &mut impl fmt::Write) -> fmt::Result {
        let turns =
            self.turns.iter().filter(|(name, _)| Some(name) == self.turns.first().map(|(name, _)| name));
        writeln!(
            f,
            "\nMedians of {} turns of {SECONDS} s in changing order: iperf3 between two containers of the default\n\
             bridge, iperf3 and wrk (32 connections, nginx) from the host through a published port, which is\n\
             reached by an address of the host and by 127.0.0.1. Each engine is alone in a network namespace: where\n\
             there are two, the packets of each pass the tables of both. The kernel's br_netfilter is docker's: it\n\
             loads it, and insula's namespace is as a host that has it not. The part of an engine is of the same turn:\n\
             the median, and between which two half of the turns are.\n",
            turns.count()
        )?;
        writeln!(f, "| | {} |\n| --- |{}", COLUMNS.join(" | "), " ---: |".repeat(COLUMNS.len()))?;
        for name in self.names() {
            let cell = |column: usize| {
                let mut seen = Samples::new();
                self.column(name, column).into_iter().for_each(|number| seen.push_number(number));
                let value = seen.at(0.5).unwrap_or_default();
                let text = if value < 1000.0 { format!("{value:.1}") } else { format!("{value:.0}") };
                let beside = self.beside(name, column);
                match [0.25, 0.5, 0.75].map(|part| beside.at(part)) {
                    [Some(low), Some(half), Some(high)] if name != OURS => {
                        format!("{text} (insula {half:.2} ×, {low:.2} to {high:.2})")
                    }
                    _ => text,
                }
            };
            writeln!(f, "| {name} | {} |", (0..COLUMNS.len()).map(cell).collect::<Vec<_>>().join(" | "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        let text = r#"{"end":{"sum_sent":{"bits_per_second":9e9},"sum_received":{"bits_per_second":25e8}}}"#;
        assert_eq!(rate(text).unwrap(), 2.5);
        assert!(rate("{}").is_err() && rate("x").is_err());
        assert_eq!(requests("Running\nRequests/sec:  12345.50\nTransfer/sec: 1\n").unwrap(), 12345.5);
        assert!(requests("").is_err());
    }

    #[test]
    fn a_median_of_turns_stands_for_an_engine() {
        let mut traffic = Traffic::default();
        let written = |traffic: &Traffic| {
            let mut text = String::new();
            traffic.write(&mut text, Some((24.0, 20.5))).unwrap();
            text
        };
        assert!(!written(&traffic).contains("iperf3"));
        for published in [3.0, 1.0, 2.0] {
            traffic.push(OURS, Turn([10.0, published, 2.0, 2000.4, 3000.0]));
            traffic.push("docker", Turn([20.0, 1.0, 1.0, 2000.0, 1000.0]));
        }
        let text = written(&traffic);
        assert!(text.contains("| insula | 10.0 | 2.0 | 2.0 | 2000 | 3000 |"), "{text}");
        let docker = "| docker | 20.0 (insula 0.50 ×, 0.50 to 0.50) | 1.0 (insula 2.00 ×, 1.50 to 2.50) |";
        assert!(text.contains(docker) && text.contains("takes 3.5 ms"), "{text}");
        assert!(text.contains("Medians of 3 turns of 2 s"), "{text}");
    }
}
