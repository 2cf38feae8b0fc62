//! How the progress of a build is shown: lines as they come, a display on a terminal, or records for programs.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::bail;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use insula_models::{BuildStep, ProgressMessage};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::printer::{self, Sink};
use crate::terminal;

/// Lines of a command's output that are shown while it runs, and those that are told when it fails.
const SHOWN: usize = 4;
const TOLD: usize = 20;
/// Characters of one line that are kept.
const LINE_MAX: usize = 4096;
const PACE: Duration = Duration::from_millis(100);
/// Columns of a terminal that does not tell.
const COLUMNS: usize = 80;

/// Where progress goes.
pub(super) enum Progress {
    Lines(Sink),
    /// Where the id goes, and what is told if there is none.
    Quiet(Sink, String),
    Display(Box<Display>),
    Records(Records),
}

impl Progress {
    /// By the word that was given; on a terminal a display, unless somebody wants otherwise.
    pub(super) fn new(kind: &str, quiet: bool, sink: Sink) -> anyhow::Result<Self> {
        let terminal = std::io::stderr().is_terminal();
        match kind {
            "tty" if !terminal => bail!("--progress tty: standard error is no terminal"),
            "rawjson" if quiet => bail!("--progress rawjson does not go with --quiet"),
            "rawjson" => Ok(Self::Records(Records::default())),
            "tty" | "auto" if terminal && !quiet => Ok(Self::Display(Box::new(Display::new()))),
            _ if quiet => Ok(Self::Quiet(sink, String::new())),
            _ => Ok(Self::Lines(sink)),
        }
    }

    /// Whether steps are to be told one by one.
    pub(super) fn is_traced(&self) -> bool {
        matches!(self, Self::Display(_) | Self::Records(_))
    }

    /// What the daemon told, as far as it is about progress.
    pub(super) fn show(&mut self, message: &ProgressMessage) -> anyhow::Result<()> {
        let step = message.aux.as_ref().and_then(|aux| aux.get("Step"));
        let step = step.and_then(|step| serde_json::from_value::<BuildStep>(step.clone()).ok());
        match (self, step) {
            (Self::Display(display), Some(step)) => display.step(step),
            (Self::Records(records), Some(step)) => records.step(step),
            (Self::Lines(_) | Self::Quiet(..), Some(_)) => {}
            (progress, None) => {
                if let Some(text) = line(message) {
                    progress.line(&text)?;
                }
            }
        }
        Ok(())
    }

    fn line(&mut self, text: &str) -> anyhow::Result<()> {
        match self {
            Self::Lines(sink) => print(*sink, text)?,
            Self::Quiet(_, untold) => untold.push_str(text),
            Self::Display(display) => display.line(&plain(text)),
            Self::Records(records) => records.line(text),
        }
        Ok(())
    }

    /// Nothing more comes; what failed is shown once more. A quiet build has shown nothing so far: it shows the
    /// image's id, or why there is none.
    pub(super) fn end(&mut self, built: Option<&str>) -> anyhow::Result<()> {
        match (self, built) {
            (Self::Display(display), _) => display.end(),
            (Self::Quiet(_, untold), None) => printer::error_text(untold),
            (Self::Quiet(sink, _), Some(id)) if !id.is_empty() => print(*sink, &format!("{id}\n"))?,
            _ => {}
        }
        Ok(())
    }
}

fn print(sink: Sink, text: &str) -> anyhow::Result<()> {
    match sink {
        Sink::Stdout => printer::text(text)?,
        Sink::Stderr => printer::error_text(text),
    }
    Ok(())
}

/// What a message says to people; bars of downloads are not for lines.
fn line(message: &ProgressMessage) -> Option<String> {
    if !message.stream.is_empty() {
        return Some(message.stream.clone());
    }
    let words = !message.status.is_empty() && message.progress_detail.is_none();
    words.then(|| match message.id.as_str() {
        "" => format!("{}\n", message.status),
        id => format!("{id}: {}\n", message.status),
    })
}

/// Without what would steer a terminal.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(sign) = rest.next() {
        match sign {
            '\u{1b}' if rest.peek() == Some(&'[') => {
                rest.next();
                while rest.next().is_some_and(|sign| !('@'..='~').contains(&sign)) {}
            }
            '\t' => plain.push(' '),
            sign if sign.is_control() => {}
            sign => plain.push(sign),
        }
    }
    plain
}

/// A step that runs.
struct Running {
    name: String,
    begun: Instant,
    cached: bool,
    bar: ProgressBar,
    /// The last lines, and a beginning of one.
    log: VecDeque<String>,
    rest: String,
    shown: Vec<ProgressBar>,
}

impl Running {
    /// Takes output in; whole lines are shown.
    fn take(&mut self, log: &str, all: &MultiProgress) {
        for piece in log.split_inclusive('\n') {
            if self.rest.len() < LINE_MAX {
                self.rest.push_str(piece);
            }
            if !piece.ends_with('\n') {
                continue;
            }
            if self.log.len() == TOLD {
                self.log.pop_front();
            }
            self.log.push_back(plain(&std::mem::take(&mut self.rest)));
        }
        while self.shown.len() < self.log.len().min(SHOWN) {
            let bar = all.insert_after(self.shown.last().unwrap_or(&self.bar), ProgressBar::new(0));
            bar.set_style(style(" => => {wide_msg}"));
            self.shown.push(bar);
        }
        let skipped = self.log.len().saturating_sub(SHOWN);
        for (bar, text) in self.shown.iter().zip(self.log.iter().skip(skipped)) {
            bar.set_message(format!("# {text}"));
        }
    }
}

/// Steps that run, with their last lines, below those that are done.
pub(super) struct Display {
    all: MultiProgress,
    head: ProgressBar,
    running: BTreeMap<String, Running>,
    steps: usize,
    done: usize,
    begun: Instant,
    failed: Vec<String>,
}

impl Display {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let head = all.add(ProgressBar::new(0));
        head.set_style(style("[+] Building {seconds} {msg}"));
        head.enable_steady_tick(PACE);
        Self {
            all,
            head,
            running: BTreeMap::new(),
            steps: 0,
            done: 0,
            begun: Instant::now(),
            failed: Vec::new(),
        }
    }

    fn step(&mut self, step: BuildStep) {
        match step.state.as_str() {
            "begun" => self.begin(step),
            "cached" => {
                if let Some(running) = self.running.get_mut(&step.id) {
                    running.cached = true;
                }
            }
            "log" => {
                if let Some(running) = self.running.get_mut(&step.id) {
                    running.take(&step.log, &self.all);
                }
            }
            "ended" => self.finish(&step),
            _ => {}
        }
        self.head.set_message(format!("({}/{})", self.done, self.steps));
    }

    fn begin(&mut self, step: BuildStep) {
        self.steps += 1;
        let name = plain(step.name.lines().next().unwrap_or_default());
        let bar = self.all.add(ProgressBar::new(0));
        bar.set_style(style(" => {wide_msg} {seconds:>6}"));
        bar.set_message(name.clone());
        bar.enable_steady_tick(PACE);
        let running = Running {
            name,
            begun: Instant::now(),
            cached: false,
            bar,
            log: VecDeque::new(),
            rest: String::new(),
            shown: Vec::new(),
        };
        self.running.insert(step.id, running);
    }

    fn finish(&mut self, step: &BuildStep) {
        let Some(mut running) = self.running.remove(&step.id) else { return };
        self.done += 1;
        if !running.rest.is_empty() {
            running.take("\n", &self.all);
        }
        for bar in running.shown.drain(..) {
            self.all.remove(&bar);
        }
        running.bar.finish_and_clear();
        self.all.remove(&running.bar);
        let how = match (step.error.is_empty(), running.cached) {
            (false, _) => "ERROR ",
            (true, true) => "CACHED ",
            (true, false) => "",
        };
        self.line(&row(&format!(" => {how}{}", running.name), running.begun.elapsed()));
        if !step.error.is_empty() {
            self.failed.push("------".to_owned());
            self.failed.push(format!(" > {}:", running.name));
            self.failed.extend(running.log);
            self.failed.push("------".to_owned());
        }
    }

    /// Above what moves.
    fn line(&self, text: &str) {
        // A terminal that is gone is nobody's concern.
        let _ = self.all.println(text.trim_end());
    }

    fn end(&mut self) {
        self.running.clear();
        self.head.finish_and_clear();
        let _ = self.all.clear();
        let how = if self.failed.is_empty() { "FINISHED" } else { "FAILED" };
        let took = self.begun.elapsed().as_secs_f64();
        printer::error(&format!("[+] Building {took:.1}s ({}/{}) {how}", self.done, self.steps));
        self.failed.iter().for_each(|line| printer::error(line));
    }
}

/// A line with how long it took at its end, as wide as the terminal.
fn row(text: &str, took: Duration) -> String {
    let columns = terminal::size().map_or(COLUMNS, |(_, columns)| usize::from(columns)).max(20);
    let took = format!("{:.1}s", took.as_secs_f64());
    let room = columns - took.len() - 2;
    let text: String = text.chars().take(room).collect();
    format!("{text:<room$} {took}")
}

fn style(template: &str) -> ProgressStyle {
    // A template of this program is valid; without it bars look different.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.with_key("seconds", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{:.1}s", state.elapsed().as_secs_f64());
    })
}

/// BuildKit's records of what changed, one JSON document a line on standard error.
#[derive(Default)]
pub(super) struct Records {
    /// What is known of steps that run.
    running: BTreeMap<String, Value>,
    /// Lines that belong to no step have one of their own.
    spoken: bool,
}

impl Records {
    fn step(&mut self, step: BuildStep) {
        let digest = named(&step.id);
        match step.state.as_str() {
            "begun" => {
                let vertex = json!({ "digest": digest, "name": step.name, "started": step.at });
                put("vertexes", &vertex);
                self.running.insert(step.id, vertex);
            }
            "cached" => {
                if let Some(vertex) = self.running.get_mut(&step.id) {
                    vertex["cached"] = true.into();
                }
            }
            "log" => log(&digest, &step.log, &step.at),
            "ended" => {
                let Some(mut vertex) = self.running.remove(&step.id) else { return };
                vertex["completed"] = step.at.into();
                if !step.error.is_empty() {
                    vertex["error"] = step.error.into();
                }
                put("vertexes", &vertex);
            }
            _ => {}
        }
    }

    fn line(&mut self, text: &str) {
        let (digest, now) = (named("build"), jiff::Timestamp::now().to_string());
        if !std::mem::replace(&mut self.spoken, true) {
            let vertex = json!({ "digest": digest, "name": "[internal] build", "started": now });
            put("vertexes", &vertex);
        }
        log(&digest, text, &now);
    }
}

/// A digest that a step is known by.
fn named(id: &str) -> String {
    let hash = Sha256::digest(id);
    hash.iter().fold(String::from("sha256:"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn put(kind: &str, what: &Value) {
    printer::error(&json!({ kind: [what] }).to_string());
}

fn log(vertex: &str, text: &str, at: &str) {
    let data = STANDARD.encode(text);
    put("logs", &json!({ "vertex": vertex, "stream": 1, "data": data, "timestamp": at }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(plain("a\u{1b}[31;1mred\u{1b}[0m\tb\r\u{7}\u{1b}]0;x\u{7}\n"), "ared b]0;x");
        assert_eq!(plain("\u{1b}[never ends"), "ever ends");
        assert_eq!(plain("\u{1b}["), "");
    }

    #[test]
    fn rows_end_with_how_long_it_took() {
        let row = row(&"x".repeat(500), Duration::from_millis(1250));
        assert!(row.ends_with("x 1.2s") && row.len() <= 500, "{row}");
    }

    #[test]
    fn steps_are_known_by_digests() {
        assert_eq!(named("1.2").len(), 71);
        assert_ne!(named("1.2"), named("1.3"));
    }
}
