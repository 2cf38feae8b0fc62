//! What happened, to whoever listens: the last events are kept, also for the next daemon; all later
//! ones are passed on in the order in which they were published.

mod journal;
mod kept;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use insula_models::{EventActor, EventMessage, Labels};
use jiff::Timestamp;
use tokio::sync::broadcast;

use self::journal::Journal;
use self::kept::Kept;
use crate::Error;
use crate::filters::{Filters, check_names};
use crate::measures::Measures;

/// Events that a listener may lag behind before its stream ends: more than a second's of a busy host. They are
/// in memory only as long as somebody lags.
const BACKLOG: usize = 8192;
/// Nanoseconds. Clocks that go back by less are not set back: they are slewed, or coarse.
const SET_BACK: i64 = 1_000_000_000;
/// Filters that `GET /events` knows.
const KNOWN: [&str; 12] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "type",
    "volume",
];

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    Container,
    Image,
    Volume,
    Network,
    Daemon,
    Builder,
}

impl EventType {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Network => "network",
            Self::Daemon => "daemon",
            Self::Builder => "builder",
        }
    }
}

/// The events of one engine.
#[derive(Debug)]
pub struct Events {
    history: Mutex<History>,
    sender: broadcast::Sender<Arc<EventMessage>>,
    measures: Measures,
}

#[derive(Debug, Default)]
struct History {
    kept: Kept,
    /// Time of the last event, nanoseconds since 1970.
    last: i64,
    journal: Option<Journal>,
    /// This daemon's events by type and action.
    counts: BTreeMap<(&'static str, String), u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            history: Mutex::default(),
            sender: broadcast::Sender::new(BACKLOG),
            measures: Measures::default(),
        }
    }
}

impl Events {
    /// With what former daemons kept in `folder`, and kept there.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let (journal, events) = Journal::open(folder, kept::MOST)?;
        let last = events.back().map_or(0, |event| event.time_nano);
        let mut kept = Kept::default();
        for event in &events {
            kept.push(event.time_nano, &line(event));
        }
        let history = History { kept, last, journal: Some(journal), ..History::default() };
        Ok(Self { history: Mutex::new(history), ..Self::default() })
    }

    /// Tells everyone that `action` (`start`, `exec_create: sh`, `die`) happened to `id`. For a
    /// container the attributes are its labels with `name` and `image`, and `exitCode`, `signal`
    /// and so on where the action has one.
    pub fn publish(&self, of: EventType, action: &str, id: &str, attributes: Labels) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let now = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
        // Each has its own time. A clock that is set back is believed: order is that of the publishing.
        let close = now <= history.last && history.last - now < SET_BACK;
        history.last = if close { history.last + 1 } else { now };
        let event = message(of, action, id, attributes, history.last);
        let line = line(&event);
        history.kept.push(event.time_nano, &line);
        if let Some(journal) = &mut history.journal {
            journal.append(&line);
        }
        // What follows a colon is a user's words.
        let action = action.split(':').next().unwrap_or(action);
        *history.counts.entry((of.as_str(), action.to_owned())).or_default() += 1;
        // Nobody may be listening. Within the lock, so that order is the same for all.
        let _ = self.sender.send(Arc::new(event));
    }

    /// Tells everyone how many bytes a removal of what nobody uses has freed.
    pub(crate) fn pruned(&self, of: EventType, bytes: u64) {
        self.publish(of, "prune", "", Labels::from([("reclaimed".to_owned(), bytes.to_string())]));
    }

    /// The events that pass `filter`: those of the past from `since` on, if it is given, and those
    /// to come until `until`, for ever without it.
    #[must_use]
    pub fn subscribe(
        &self,
        filter: EventFilter,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> EventStream {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let past = since.map_or_else(VecDeque::new, |since| {
            let until = until.map_or(i128::MAX, Timestamp::as_nanosecond);
            history.kept.between(since.as_nanosecond(), until)
        });
        EventStream { past, future: self.sender.subscribe(), filter, until }
    }

    /// How many there were since this daemon began, by type and action (`start`, `health_status`).
    #[must_use]
    pub fn counts(&self) -> BTreeMap<(&'static str, String), u64> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).counts.clone()
    }

    /// What the engine has done since this daemon began.
    #[must_use]
    pub fn measures(&self) -> &Measures {
        &self.measures
    }

    /// How many listen now.
    #[must_use]
    pub fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }
}

/// As it is kept, and as the journal has it.
fn line(event: &EventMessage) -> Vec<u8> {
    serde_json::to_vec(event).unwrap_or_else(|error| unreachable!("texts and numbers: {error}"))
}

fn message(of: EventType, action: &str, id: &str, attributes: Labels, time_nano: i64) -> EventMessage {
    // What clients before API 1.22 read is repeated for containers and images, as Docker does.
    let (status, old_id) = match of {
        EventType::Container | EventType::Image => (action.to_owned(), id.to_owned()),
        EventType::Volume | EventType::Network | EventType::Daemon | EventType::Builder => Default::default(),
    };
    let from = match of {
        EventType::Container => attributes.get("image").cloned().unwrap_or_default(),
        _ => String::new(),
    };
    EventMessage {
        status,
        id: old_id,
        from,
        r#type: of.as_str().to_owned(),
        action: action.to_owned(),
        actor: EventActor { id: id.to_owned(), attributes },
        scope: "local".to_owned(),
        time: time_nano / 1_000_000_000,
        time_nano,
    }
}

/// Events as they come.
#[derive(Debug)]
pub struct EventStream {
    past: VecDeque<EventMessage>,
    future: broadcast::Receiver<Arc<EventMessage>>,
    filter: EventFilter,
    until: Option<Timestamp>,
}

impl EventStream {
    /// The next event; `None` once `until` has come, the engine ended, or this listener was so slow that it
    /// would have missed some: it can ask again for what came since.
    pub async fn next(&mut self) -> Option<Arc<EventMessage>> {
        loop {
            let event = match self.past.pop_front() {
                Some(event) => Arc::new(event),
                None => self.receive().await?,
            };
            if self.until.is_some_and(|until| i128::from(event.time_nano) > until.as_nanosecond()) {
                return None;
            }
            if self.filter.includes(&event) {
                return Some(event);
            }
        }
    }

    async fn receive(&mut self) -> Option<Arc<EventMessage>> {
        let deadline = self.until.map(|until| {
            let left = Timestamp::now().until(until).ok().and_then(|span| span.try_into().ok());
            tokio::time::Instant::now() + left.unwrap_or_default()
        });
        let received = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, self.future.recv()).await.ok()?,
            None => self.future.recv().await,
        };
        if let Err(broadcast::error::RecvError::Lagged(lost)) = &received {
            tracing::warn!(lost, "a listener of events is too slow: its stream ends");
        }
        received.ok()
    }
}

/// Conditions on events; several values of one name are alternatives, names must all hold.
#[derive(Debug, Clone, Default)]
pub struct EventFilter(Filters);

impl EventFilter {
    /// Checks that all names are known.
    pub fn new(filters: Filters) -> Result<Self, Error> {
        check_names(&filters, &KNOWN)?;
        Ok(Self(filters))
    }

    fn includes(&self, event: &EventMessage) -> bool {
        let attribute = |name: &str| event.actor.attributes.get(name).map_or("", String::as_str);
        let names = |key: &str| self.begins(key, &event.actor.id) || self.begins(key, attribute("name"));
        self.action(&event.action)
            && self.equals("type", &event.r#type)
            && self.equals("scope", &event.scope)
            && ["container", "volume", "network", "plugin", "daemon"].into_iter().all(names)
            && self.equals("node", attribute("node"))
            && self.equals("config", attribute("config"))
            && self.image(event)
            && self.labels(&event.actor.attributes)
    }

    fn values(&self, key: &str) -> Option<&[String]> {
        self.0.get(key).map(Vec::as_slice).filter(|values| !values.is_empty())
    }

    fn equals(&self, key: &str, text: &str) -> bool {
        self.values(key).is_none_or(|values| values.iter().any(|value| value == text))
    }

    fn begins(&self, key: &str, text: &str) -> bool {
        self.values(key).is_none_or(|values| values.iter().any(|value| text.starts_with(value)))
    }

    /// `exec_create: sh` is met by `exec_create`; other actions have to be equal.
    fn action(&self, action: &str) -> bool {
        const WITH_DETAIL: [&str; 3] = ["health_status", "exec_create", "exec_start"];
        self.values("event").is_none_or(|values| {
            values.iter().any(|value| {
                value == action || (WITH_DETAIL.contains(&value.as_str()) && action.starts_with(value))
            })
        })
    }

    /// An image's own events, and those of containers made from it, with or without its tag.
    fn image(&self, event: &EventMessage) -> bool {
        let key = if event.r#type == EventType::Container.as_str() { "image" } else { "name" };
        let name = event.actor.attributes.get(key).map_or("", String::as_str);
        let matches = |text: &str| self.equals("image", text) || self.equals("image", without_tag(text));
        matches(&event.actor.id) || matches(name)
    }

    /// `NAME` or `NAME=VALUE`, all of them.
    fn labels(&self, labels: &Labels) -> bool {
        self.values("label").is_none_or(|wanted| {
            wanted.iter().all(|label| match label.split_once('=') {
                Some((name, value)) => labels.get(name).is_some_and(|found| found == value),
                None => labels.contains_key(label),
            })
        })
    }
}

fn without_tag(reference: &str) -> &str {
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => reference,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn filter(name: &str, values: &[&str]) -> EventFilter {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        EventFilter::new(Filters::from([(name.to_owned(), values)])).unwrap()
    }

    fn example() -> EventMessage {
        let attributes = labels(&[("name", "web"), ("image", "nginx:1.2"), ("tier", "front")]);
        message(EventType::Container, "exec_create: sh", "0123abcd", attributes, 5_000_000_001)
    }

    #[test]
    fn filters_have_docker_s_meaning() {
        let event = example();
        for (name, value, expected) in [
            ("type", "container", true),
            ("type", "image", false),
            ("event", "exec_create", true),
            ("event", "exec_create: sh", true),
            ("event", "exec", false),
            ("event", "start", false),
            ("container", "web", true),
            ("container", "0123", true),
            ("container", "db", false),
            ("image", "nginx", true),
            ("image", "nginx:1.2", true),
            ("image", "nginx:1.3", false),
            ("label", "tier", true),
            ("label", "tier=front", true),
            ("label", "tier=back", false),
            ("scope", "local", true),
        ] {
            assert_eq!(filter(name, &[value]).includes(&event), expected, "{name}={value}");
        }
        assert!(filter("type", &["image", "container"]).includes(&event));
        assert!(EventFilter::default().includes(&event));
        assert!(EventFilter::new(Filters::from([("colour".to_owned(), vec![])])).is_err());
    }

    #[test]
    fn a_container_s_event_repeats_the_old_fields() {
        let event = serde_json::to_value(example()).unwrap();
        assert_eq!(event["status"], "exec_create: sh");
        assert_eq!(event["id"], "0123abcd");
        assert_eq!(event["from"], "nginx:1.2");
        assert_eq!(event["time"], 5);
        let volume = message(EventType::Volume, "create", "data", labels(&[("driver", "local")]), 1);
        assert!(serde_json::to_value(volume).unwrap().get("status").is_none());
    }

    #[tokio::test]
    async fn the_past_comes_first_and_in_order() {
        let events = Events::default();
        for n in 0..kept::MOST + 10 {
            events.publish(EventType::Volume, "create", &n.to_string(), Labels::new());
        }
        let mut stream = events.subscribe(EventFilter::default(), Some(Timestamp::UNIX_EPOCH), None);
        events.publish(EventType::Volume, "destroy", "last", Labels::new());
        let mut times = Vec::new();
        for n in 10..kept::MOST + 10 {
            let event = stream.next().await.unwrap();
            assert_eq!(event.actor.id, n.to_string());
            times.push(event.time_nano);
        }
        assert!(times.is_sorted_by(|a, b| a < b));
        assert_eq!(stream.next().await.unwrap().actor.id, "last");
    }

    #[tokio::test]
    async fn who_lags_too_far_behind_is_sent_away() {
        let events = Events::default();
        let mut slow = events.subscribe(EventFilter::default(), None, None);
        for n in 0..=BACKLOG {
            events.publish(EventType::Volume, "create", &n.to_string(), Labels::new());
        }
        assert!(slow.next().await.is_none(), "rather than a gap");
    }

    #[tokio::test]
    async fn what_the_next_daemon_saw_is_later_even_when_the_clock_was_set_back() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(folder.path(), kept::MOST).unwrap();
        let hour = Duration::from_secs(3600);
        let ahead = Timestamp::now() + hour;
        let nanoseconds = i64::try_from(ahead.as_nanosecond()).unwrap();
        for (id, at) in [("old", 5), ("ahead", nanoseconds)] {
            journal.append(&line(&message(EventType::Volume, "create", id, Labels::new(), at)));
        }
        drop(journal);
        let events = Events::open(folder.path()).unwrap();
        events.publish(EventType::Volume, "create", "next", Labels::new());
        let mut stream = events.subscribe(EventFilter::default(), Some(ahead), None);
        let ids = [stream.next().await.unwrap(), stream.next().await.unwrap()];
        assert_eq!(ids.map(|event| event.actor.id.clone()), ["ahead", "next"]);
    }

    #[tokio::test]
    async fn until_ends_the_stream() {
        let events = Events::default();
        events.publish(EventType::Volume, "create", "a", Labels::new());
        let until = Timestamp::now() + Duration::from_millis(20);
        let mut stream = events.subscribe(EventFilter::default(), Some(Timestamp::UNIX_EPOCH), Some(until));
        assert!(stream.next().await.is_some());
        let end = tokio::time::timeout(Duration::from_secs(10), stream.next()).await.unwrap();
        assert!(end.is_none());
        let mut past = events.subscribe(
            EventFilter::default(),
            Some(Timestamp::UNIX_EPOCH),
            Some(Timestamp::UNIX_EPOCH + Duration::from_secs(1)),
        );
        assert!(past.next().await.is_none());
    }
}
