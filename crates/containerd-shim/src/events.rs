//! Events for containerd, in order: one thread sends what many have to say, and tries again while containerd
//! is away.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::MessageDyn;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::ttrpc::context::with_duration;
use containerd_shim_protos::{Client, EventsClient};
use jiff::Timestamp;
use tracing::warn;

use crate::error::{Context, Error, Result};
use crate::{lock, timestamp};

/// What waits at most while containerd is away; the oldest go first.
const WAITING: usize = 4096;
/// How long one event may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to reach containerd.
const PAUSE: Duration = Duration::from_millis(500);

/// Gets events to containerd.
#[derive(Debug)]
pub struct Publisher {
    namespace: String,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Envelope>,
    /// One is taken out and not yet with containerd.
    sending: bool,
    dropped: u64,
    closing: bool,
}

impl Publisher {
    /// Sends to `address`, the path of containerd's socket for ttrpc.
    pub fn start(namespace: &str, address: &str) -> Result<Arc<Self>> {
        let publisher = Arc::new(Self {
            namespace: namespace.to_owned(),
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        let sending = Arc::clone(&publisher);
        let address = match address.contains("://") {
            true => address.to_owned(),
            false => format!("unix://{address}"),
        };
        let thread = std::thread::Builder::new().name("events".to_owned());
        thread.spawn(move || sending.send(&address)).context("clone", "a thread that sends events")?;
        Ok(publisher)
    }

    /// Comes after everything that was published before.
    pub(crate) fn publish(&self, topic: &str, event: &dyn MessageDyn) {
        let bytes = match event.write_to_bytes_dyn() {
            Ok(bytes) => bytes,
            Err(error) => return warn!(topic, %error, "an event cannot be written"),
        };
        let any =
            Any { type_url: event.descriptor_dyn().full_name().to_owned(), value: bytes, ..Any::default() };
        let mut envelope = Envelope::new();
        envelope.set_timestamp(timestamp(Timestamp::now()));
        envelope.set_namespace(self.namespace.clone());
        envelope.set_topic(topic.to_owned());
        envelope.set_event(any);
        let mut queue = lock(&self.queue);
        if queue.waiting.len() == WAITING {
            queue.waiting.pop_front();
            queue.dropped += 1;
        }
        queue.waiting.push_back(envelope);
        self.changed.notify_all();
    }

    /// Waits until everything is sent, or containerd has been away for long.
    pub fn close(&self) {
        let mut queue = lock(&self.queue);
        queue.closing = true;
        self.changed.notify_all();
        let done = self
            .changed
            .wait_timeout_while(queue, PATIENCE, |queue| queue.sending || !queue.waiting.is_empty());
        drop(done);
    }

    fn send(&self, address: &str) {
        let mut client = None;
        loop {
            let (next, dropped) = self.next();
            if dropped > 0 {
                warn!(dropped, "events were lost while containerd was away");
            }
            let began = Instant::now();
            while let Err(error) = forward(&mut client, address, &next) {
                client = None;
                // Once a while is enough for what goes on as long as containerd is away.
                if began.elapsed() < PAUSE {
                    warn!(topic = next.topic(), error = insula_base::chain(&error), "containerd is away");
                }
                if !self.pause() {
                    break;
                }
            }
            lock(&self.queue).sending = false;
            self.changed.notify_all();
        }
    }

    /// The first one, and how many were lost before it.
    fn next(&self) -> (Envelope, u64) {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(first) = queue.waiting.pop_front() {
                queue.sending = true;
                return (first, std::mem::take(&mut queue.dropped));
            }
            queue = self.changed.wait(queue).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// False when nobody will wait for another attempt.
    fn pause(&self) -> bool {
        let queue = lock(&self.queue);
        let waited = self.changed.wait_timeout_while(queue, PAUSE, |queue| !queue.closing);
        !waited.unwrap_or_else(std::sync::PoisonError::into_inner).0.closing
    }
}

fn forward(client: &mut Option<EventsClient>, address: &str, envelope: &Envelope) -> Result<()> {
    let client = match client {
        Some(client) => client,
        None => {
            let connected = Client::connect(address)
                .map_err(|source| Error::Rpc { on: "connect to containerd", source })?;
            client.insert(EventsClient::new(connected))
        }
    };
    let mut request = ForwardRequest::new();
    request.set_envelope(envelope.clone());
    client
        .forward(with_duration(PATIENCE), &request)
        .map_err(|source| Error::Rpc { on: "forward an event to containerd", source })?;
    Ok(())
}
