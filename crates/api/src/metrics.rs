//! Numbers for Prometheus, in the text format of OpenMetrics 1.0: what clients asked and how long that took,
//! which is counted here, and what the engine knows of itself, which is asked for when somebody looks.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::{Method, StatusCode};
use insula_engine::Engine;
use insula_engine::containers::Traffic;
use insula_engine::measures::Operation;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// What is told, as `Content-Type`.
pub(crate) const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds. What takes longer is a stream, or waits.
const BUCKETS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];
/// Requests that no route is for are one line, whatever they are called.
const NO_ROUTE: &str = "none";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: &'static str,
    route: String,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    method: &'static str,
    route: String,
}

/// Of one server, on all its listeners.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    latencies: Family<Route, Histogram>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::<Request, Counter>::default();
        let latencies = Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram);
        registry.register("insula_requests", "Requests to the API that were answered", requests.clone());
        registry.register_with_unit(
            "insula_request_duration",
            "Time until the head of an answer is there",
            Unit::Seconds,
            latencies.clone(),
        );
        Self { registry, requests, latencies }
    }
}

impl Metrics {
    /// A request was answered, by the route of this pattern.
    pub(crate) fn answered(&self, method: &Method, route: Option<&str>, code: StatusCode, took: Duration) {
        let method = method_name(method);
        let route = route.unwrap_or(NO_ROUTE).to_owned();
        let request = Request { method, route: route.clone(), code: code.as_u16() };
        self.requests.get_or_create(&request).inc();
        self.latencies.get_or_create(&Route { method, route }).observe(took.as_secs_f64());
    }

    /// All numbers as they are now.
    pub(crate) fn text(&self, engine: &Engine, traffic: &[Traffic]) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &of_engine(engine))?;
        encode_registry(&mut text, &of_containers(traffic))?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// One of a few, whatever a client writes.
fn method_name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

type Labelled = [(&'static str, String); 1];
type Labelled2 = [(&'static str, String); 2];
type Labelled4 = [(&'static str, String); 4];

/// What the engine knows of itself.
fn of_engine(engine: &Engine) -> Registry {
    let mut registry = Registry::default();
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    registry.register(
        "insula_engine",
        "The engine that is here",
        prometheus_client::metrics::info::Info::new(version),
    );
    containers(engine, &mut registry);
    operations(engine, &mut registry);
    let events = Family::<Labelled2, Counter>::default();
    for ((of, action), count) in engine.events().counts() {
        events.get_or_create(&[("type", of.to_owned()), ("action", action)]).inc_by(count);
    }
    registry.register("insula_events", "Events since the daemon began", events);
    let listeners = Gauge::<i64>::default();
    listeners.set(signed(engine.events().listeners()));
    registry.register("insula_event_listeners", "Clients that follow events", listeners);
    process(&mut registry);
    registry
}

fn containers(engine: &Engine, registry: &mut Registry) {
    let counts = engine.container_counts();
    let containers = Family::<Labelled, Gauge>::default();
    for (state, count) in
        [("running", counts.running), ("paused", counts.paused), ("stopped", counts.stopped)]
    {
        containers.get_or_create(&[("state", state.to_owned())]).set(signed(count));
    }
    registry.register("insula_containers", "Containers by what they do", containers);
}

/// What each container's interfaces have carried, as the container sees it.
fn of_containers(traffic: &[Traffic]) -> Registry {
    let mut registry = Registry::default();
    let family = Family::<Labelled4, Counter>::default;
    let (bytes, packets, dropped) = (family(), family(), family());
    for of in traffic {
        for (interface, carried) in &of.interfaces {
            for (direction, counts) in [
                ("receive", [carried.rx_bytes, carried.rx_packets, carried.rx_dropped]),
                ("transmit", [carried.tx_bytes, carried.tx_packets, carried.tx_dropped]),
            ] {
                let labels = [
                    ("id", of.id.to_string()),
                    ("name", of.name.clone()),
                    ("interface", interface.clone()),
                    ("direction", direction.to_owned()),
                ];
                for (family, count) in [&bytes, &packets, &dropped].into_iter().zip(counts) {
                    family.get_or_create(&labels).inc_by(count);
                }
            }
        }
    }
    let name = "insula_container_network";
    let help = "What a container's interface has carried since the start";
    registry.register_with_unit(name, help, Unit::Bytes, bytes);
    registry.register("insula_container_network_packets", "The same in packets", packets);
    registry.register("insula_container_network_dropped_packets", "Packets that were dropped", dropped);
    registry
}

fn operations(engine: &Engine, registry: &mut Registry) {
    let counts = Family::<Labelled2, Counter>::default();
    let times = Family::<Labelled, Counter<f64, AtomicU64>>::default();
    for operation in Operation::ALL {
        let measure = engine.events().measures().get(operation);
        let name = || ("operation", operation.name().to_owned());
        for (outcome, count) in [("success", measure.succeeded), ("failure", measure.failed)] {
            counts.get_or_create(&[name(), ("outcome", outcome.to_owned())]).inc_by(count);
        }
        times.get_or_create(&[name()]).inc_by(measure.took.as_secs_f64());
    }
    registry.register("insula_operations", "What was done since the daemon began", counts);
    let help = "Time that it took, all together";
    registry.register_with_unit("insula_operation", help, Unit::Seconds, times);
}

/// The daemon's process, under the names that all programs have for it.
fn process(registry: &mut Registry) {
    let memory = Gauge::<i64>::default();
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: i64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    memory.set(pages.saturating_mul(signed(rustix::param::page_size())));
    registry.register_with_unit("process_resident_memory", "Memory of the daemon", Unit::Bytes, memory);
    let files = Gauge::<i64>::default();
    files.set(std::fs::read_dir("/proc/self/fd").map_or(0, |entries| signed(entries.count())));
    registry.register("process_open_fds", "Files that the daemon has open", files);
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_route_and_not_by_what_clients_write() {
        let metrics = Metrics::default();
        let odd = Method::from_bytes(b"BREW").unwrap();
        let took = Duration::from_millis(2);
        for _ in 0..2 {
            metrics.answered(&Method::GET, Some("/containers/{id}/json"), StatusCode::OK, took);
        }
        metrics.answered(&odd, None, StatusCode::NOT_FOUND, took);
        let mut text = String::new();
        encode_registry(&mut text, &metrics.registry).unwrap();
        for line in [
            r#"insula_requests_total{method="GET",route="/containers/{id}/json",code="200"} 2"#,
            r#"insula_requests_total{method="other",route="none",code="404"} 1"#,
            r#"insula_request_duration_seconds_count{method="GET",route="/containers/{id}/json"} 2"#,
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
