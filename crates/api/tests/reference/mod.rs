//! `docs/reference/api.yaml` says what is served: all of it, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use crate::daemon::Daemon;

const METHODS: [&str; 5] = ["get", "head", "post", "put", "delete"];

pub(crate) type Operation = (String, String);

fn sources() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn reference() -> String {
    std::fs::read_to_string(sources().join("../../docs/reference/api.yaml")).unwrap()
}

/// Methods and paths of the document, which has them at fixed depths.
fn documented(text: &str) -> BTreeSet<Operation> {
    parameters(text).into_keys().collect()
}

/// The same with the names of the parameters of each.
pub(crate) fn parameters(text: &str) -> BTreeMap<Operation, Vec<String>> {
    let paths = text.split_once("\npaths:\n").unwrap().1.split_once("\ncomponents:\n").unwrap().0;
    let mut found: BTreeMap<Operation, Vec<String>> = BTreeMap::new();
    let mut path = "";
    let mut operation = Operation::default();
    for line in paths.lines() {
        let depth = line.len() - line.trim_start().len();
        let name = line.trim().trim_end_matches(':').trim_matches('"');
        match depth {
            2 => path = name,
            4 if METHODS.contains(&name) => {
                operation = (name.to_owned(), path.to_owned());
                found.insert(operation.clone(), Vec::new());
            }
            8 => {
                if let Some(parameter) = name.strip_prefix("- name: ") {
                    found.get_mut(&operation).unwrap().push(parameter.to_owned());
                }
            }
            _ => {}
        }
    }
    found
}

/// Methods and paths of the routes, as they are written in the sources.
fn routed() -> BTreeSet<Operation> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(sources().join("src/routes")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for route in text.split(".route(").skip(1) {
            let Some((path, rest)) =
                route.trim_start().strip_prefix('"').and_then(|text| text.split_once('"'))
            else {
                continue;
            };
            let handlers = rest.split(';').next().unwrap_or_default();
            for method in METHODS {
                let called = format!("{method}(");
                let whole = |at: usize| !handlers[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
                if handlers.match_indices(&called).any(|(at, _)| whole(at)) {
                    found.insert((method.to_owned(), path.to_owned()));
                }
            }
        }
    }
    // Names hold slashes: these are taken apart behind one route.
    let (get, post) = ("get".to_owned(), "post".to_owned());
    for verb in ["json", "history", "get"] {
        found.insert((get.clone(), format!("/images/{{name}}/{verb}")));
    }
    for verb in ["push", "tag"] {
        found.insert((post.clone(), format!("/images/{{name}}/{verb}")));
    }
    found.insert(("delete".to_owned(), "/images/{name}".to_owned()));
    found.remove(&(get.clone(), "/distribution/{*rest}".to_owned()));
    found.insert((get.clone(), "/distribution/{name}/json".to_owned()));
    for path in ["/insula/registry/", "/insula/registry/{rest}"] {
        found.insert((get.clone(), path.to_owned()));
    }
    // Every GET is a HEAD; this one is asked for in earnest.
    found.insert(("head".to_owned(), "/_ping".to_owned()));
    found
}

#[test]
fn the_document_has_the_routes_and_no_others() {
    let (documented, routed) = (documented(&reference()), routed());
    let missing: Vec<_> = routed.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(&routed).collect();
    assert!(missing.is_empty(), "served, and not in docs/reference/api.yaml: {missing:?}");
    assert!(invented.is_empty(), "in docs/reference/api.yaml, and not served: {invented:?}");
}

#[test]
fn what_is_documented_is_answered() {
    let daemon = Daemon::start();
    for (method, path) in documented(&reference()) {
        if path == "/events" {
            // It goes on until its client leaves.
            continue;
        }
        let target = path.replace("{id}", "nobody").replace("{name}", "nobody");
        let answer =
            daemon.send(&method.to_uppercase(), &target, "Content-Type: application/json\r\n", b"{}");
        let text = String::from_utf8_lossy(&answer.body);
        assert!(!text.contains("page not found"), "{method} {path}: {text}");
        assert_ne!(answer.status, 500, "{method} {path}: {text}");
    }
}

/// Names of the properties of each schema.
fn schemas(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let schemas = text.split_once("\n  schemas:\n").unwrap().1;
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut schema = String::new();
    for line in schemas.lines() {
        let depth = line.len() - line.trim_start().len();
        let name = line.trim().split(':').next().unwrap_or_default().trim_matches('"');
        match depth {
            4 => {
                name.clone_into(&mut schema);
                found.insert(schema.clone(), BTreeSet::new());
            }
            8 => {
                found.get_mut(&schema).unwrap().insert(name.to_owned());
            }
            _ => {}
        }
    }
    found
}

#[test]
fn documents_have_the_properties_that_are_written_down() {
    let schemas = schemas(&reference());
    let mut wrong = Vec::new();
    let mut look = |name: &str, document: serde_json::Value| {
        let Some(properties) = schemas.get(name) else { return wrong.push(format!("schema {name}")) };
        for field in document.as_object().unwrap().keys().filter(|field| !properties.contains(*field)) {
            wrong.push(format!("{name}.{field}"));
        }
    };
    fn of<T: Default + Serialize>() -> serde_json::Value {
        serde_json::to_value(T::default()).unwrap()
    }
    macro_rules! look {
        ($($name:ident)*) => { $(look(stringify!($name), of::<insula_models::$name>());)* };
    }
    look! {
        ContainerConfig ContainerCreateRequest ContainerCreateResponse ContainerInspect ContainerState
        ContainerSummary ContainerUpdateRequest ContainersPruneResponse DiskUsage EndpointSettings
        ErrorResponse EventMessage ExecCreateRequest ExecInspect ExecStartRequest Health HistoryItem HostConfig
        IdResponse ImageInspect ImageSummary ImagesPruneResponse Ipam MountPoint Network NetworkConnectRequest
        NetworkContainer NetworkCreateRequest NetworkCreateResponse NetworkDisconnectRequest NetworkSettings
        NetworksPruneResponse StatsResponse SystemInfo TopResponse Version Volume VolumeCreateRequest
        VolumeListResponse VolumesPruneResponse WaitResponse Warnings
    }
    assert!(wrong.is_empty(), "not in docs/reference/api.yaml: {wrong:?}");
}
