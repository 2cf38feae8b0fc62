//! The progress of a build as BuildKit's records: what the engine tells of steps, in `moby.buildkit.trace`.

use std::collections::HashMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use insula_models::{BuildStep, ProgressMessage};
use prost::Message;
use sha2::{Digest as _, Sha256};

use super::messages::{StatusResponse, Timestamp, Vertex, VertexLog};

const TRACE: &str = "moby.buildkit.trace";
const IMAGE: &str = "moby.image.id";

/// What is known of steps that run.
#[derive(Debug, Default)]
pub(super) struct Records {
    running: HashMap<String, Vertex>,
    /// Lines that belong to no step have one of their own.
    spoken: bool,
    quiet: bool,
}

impl Records {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet, ..Self::default() }
    }

    /// What a message of the engine's is to a client; bars of downloads are nothing.
    pub(super) fn of(&mut self, message: ProgressMessage) -> Option<ProgressMessage> {
        if let Some(aux) = &message.aux {
            if let Some(step) = aux.get("Step") {
                let step = serde_json::from_value::<BuildStep>(step.clone()).ok()?;
                return self.step(step).map(|record| told(&record));
            }
            if aux.get("ID").is_some() {
                return Some(ProgressMessage { id: IMAGE.to_owned(), ..message });
            }
            return None;
        }
        let text = match message.stream.is_empty() {
            false => message.stream,
            true if message.progress_detail.is_none() && message.id.is_empty() => message.status,
            true => return None,
        };
        // The image's id is all that a quiet client shows.
        if self.quiet && text.starts_with("sha256:") {
            return Some(ProgressMessage { stream: text, ..ProgressMessage::default() });
        }
        (!text.is_empty()).then(|| told(&self.line(text)))
    }

    fn step(&mut self, step: BuildStep) -> Option<StatusResponse> {
        let digest = digest(&step.id);
        match step.state.as_str() {
            "begun" => {
                let vertex =
                    Vertex { digest, name: step.name, started: timestamp(&step.at), ..Vertex::default() };
                self.running.insert(step.id, vertex.clone());
                Some(vertexes(vertex))
            }
            "cached" => {
                self.running.get_mut(&step.id)?.cached = true;
                None
            }
            "log" => Some(log(digest, step.log, timestamp(&step.at))),
            "ended" => {
                let vertex = self.running.remove(&step.id)?;
                Some(vertexes(Vertex { completed: timestamp(&step.at), error: step.error, ..vertex }))
            }
            _ => None,
        }
    }

    fn line(&mut self, text: String) -> StatusResponse {
        let now = Some(Timestamp::of(jiff::Timestamp::now()));
        let digest = digest("build");
        let mut record = log(digest.clone(), text, now);
        if !std::mem::replace(&mut self.spoken, true) {
            let name = "[internal] build".to_owned();
            record.vertexes.push(Vertex { digest, name, started: now, completed: now, ..Vertex::default() });
        }
        record
    }
}

fn told(record: &StatusResponse) -> ProgressMessage {
    let aux = Some(STANDARD.encode(record.encode_to_vec()).into());
    ProgressMessage { id: TRACE.to_owned(), aux, ..ProgressMessage::default() }
}

fn vertexes(vertex: Vertex) -> StatusResponse {
    StatusResponse { vertexes: vec![vertex], ..StatusResponse::default() }
}

fn log(vertex: String, text: String, timestamp: Option<Timestamp>) -> StatusResponse {
    let log = VertexLog { vertex, timestamp, stream: 1, msg: text.into_bytes() };
    StatusResponse { logs: vec![log], ..StatusResponse::default() }
}

impl Timestamp {
    fn of(time: jiff::Timestamp) -> Self {
        Self { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
    }
}

fn timestamp(text: &str) -> Option<Timestamp> {
    text.parse().ok().map(Timestamp::of)
}

/// A digest that a step is known by.
fn digest(id: &str) -> String {
    Sha256::digest(id).iter().fold(String::from("sha256:"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(state: &str, change: impl FnOnce(&mut BuildStep)) -> ProgressMessage {
        let at = "2026-01-02T03:04:05.5Z".to_owned();
        let mut step =
            BuildStep { id: "0.1".to_owned(), state: state.to_owned(), at, ..BuildStep::default() };
        change(&mut step);
        let aux = Some(serde_json::json!({ "Step": step }));
        ProgressMessage { aux, ..ProgressMessage::default() }
    }

    fn read(message: Option<ProgressMessage>) -> StatusResponse {
        let message = message.unwrap();
        assert_eq!(message.id, TRACE);
        let text = message.aux.unwrap();
        StatusResponse::decode(&STANDARD.decode(text.as_str().unwrap()).unwrap()[..]).unwrap()
    }

    #[test]
    fn steps_become_vertexes() {
        let mut records = Records::new(false);
        let begun = read(records.of(step("begun", |step| step.name = "[1/2] RUN x".to_owned())));
        assert_eq!(begun.vertexes[0].name, "[1/2] RUN x");
        assert_eq!(begun.vertexes[0].started, Some(Timestamp { seconds: 1_767_323_045, nanos: 500_000_000 }));
        assert_eq!(records.of(step("cached", |_| {})), None);
        let said = read(records.of(step("log", |step| step.log = "out\n".to_owned())));
        assert_eq!(
            (said.logs[0].vertex.as_str(), &said.logs[0].msg[..]),
            (&*begun.vertexes[0].digest, &b"out\n"[..])
        );
        let ended = read(records.of(step("ended", |step| step.error = "no".to_owned())));
        let ended = &ended.vertexes[0];
        assert!(ended.cached && ended.completed.is_some() && ended.started.is_some());
        assert_eq!(ended.error, "no");
        // What nothing is known of is nothing.
        assert_eq!(records.of(step("ended", |_| {})), None);
        let line = |stream: &str| ProgressMessage { stream: stream.to_owned(), ..ProgressMessage::default() };
        assert_eq!(read(records.of(line("one\n"))).vertexes.len(), 1);
        assert_eq!(read(records.of(line("two\n"))).vertexes.len(), 0);
        let told = Records::new(true).of(line("sha256:1\n")).unwrap();
        assert_eq!((told.stream.as_str(), told.aux), ("sha256:1\n", None));
    }
}
