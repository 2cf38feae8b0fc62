//! Fuzz targets: each takes any bytes and must neither panic nor use memory without bound. What
//! it asserts holds for every input.
//!
//! `cargo run -p insula-fuzz` drives them for a bounded time with the stable toolchain, which is
//! what CI does; `libfuzzer/` wraps the same functions for cargo-fuzz and its coverage.

mod archive;
mod guest;
pub mod mutate;
mod seeds;

use std::collections::BTreeSet;

use insula_models::{
    BuildExtras, ContainerCreateRequest, ContainerUpdateRequest, ExecCreateRequest, ExecStartRequest,
    NetworkConnectRequest, NetworkCreateRequest, VolumeCreateRequest,
};
use insula_spec::image::{ImageConfig, Index, Manifest, media, parse_archive_manifest};
use insula_spec::reference::Reference;
use insula_spec::sites::{HostName, MOST_SITES, Site};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One parser, by name.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Valid inputs to begin from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "reference", run: reference, seeds: seeds::references },
    Target { name: "manifest", run: manifest, seeds: seeds::manifests },
    Target { name: "api-body", run: api_body, seeds: seeds::api_bodies },
    Target { name: "takeover", run: takeover, seeds: seeds::takeovers },
    Target { name: "bundle", run: bundle, seeds: seeds::bundles },
    Target { name: "seccomp-profile", run: seccomp_profile, seeds: seeds::seccomp_profiles },
    Target { name: "task-frame", run: task_frame, seeds: seeds::task_frames },
    Target { name: "site", run: site, seeds: seeds::sites },
    Target { name: "log-entry", run: log_entry, seeds: seeds::log_entries },
    Target { name: "relay-message", run: relay_message, seeds: seeds::relay_messages },
    Target { name: "channel-frame", run: channel_frame, seeds: seeds::channel_frames },
    Target { name: "tenant-streams", run: tenant_streams, seeds: seeds::tenant_streams },
    Target { name: "layer", run: archive::layer, seeds: seeds::layers },
    Target { name: "recipe", run: archive::recipe, seeds: seeds::recipes },
    Target { name: "workload", run: archive::workload, seeds: seeds::workloads },
    Target { name: "registry", run: registry, seeds: seeds::registries },
    Target { name: "image-archive", run: archive::image, seeds: seeds::images },
    Target { name: "dockerfile", run: dockerfile, seeds: seeds::dockerfiles },
    Target { name: "packages", run: packages, seeds: seeds::packages },
    Target { name: "dns-query", run: dns_query, seeds: seeds::dns_queries },
    Target { name: "bus-message", run: bus_message, seeds: seeds::bus_messages },
    Target { name: "guest-disk", run: guest::disk, seeds: guest::seeds::disks },
    Target { name: "guest-card", run: guest::card, seeds: guest::seeds::cards },
    Target { name: "guest-console", run: guest::console, seeds: guest::seeds::consoles },
    Target { name: "guest-balloon", run: guest::balloon, seeds: guest::seeds::balloons },
    Target { name: "guest-sockets", run: guest::sockets, seeds: guest::seeds::sockets },
    Target { name: "guest-entropy", run: guest::entropy, seeds: guest::seeds::others },
    Target { name: "guest-image", run: guest::mapped_image, seeds: guest::seeds::others },
    Target { name: "guest-folder", run: guest::folder, seeds: guest::seeds::others },
    Target { name: "guest-ports", run: guest::ports, seeds: guest::seeds::ports },
    Target { name: "guest-relay", run: guest::relay, seeds: guest::seeds::relays },
];

/// Runs one target by name, for the wrappers of cargo-fuzz.
///
/// # Panics
/// When there is no such target, or when it finds something.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("no target {name}")).run)(data);
}

/// A reference that parses is printed in a form that parses to the same reference.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(parsed) = Reference::parse(text) {
        let printed = parsed.familiar();
        assert_eq!(Reference::parse(&printed).as_ref(), Ok(&parsed), "{text:?} printed as {printed:?}");
    }
}

/// Documents of bundles: those that make a plan make the same one again from what was read.
pub fn bundle(data: &[u8]) {
    use insula_spec::bundle::{document, for_machine, plan, process, resources};
    let folder = std::path::Path::new("/bundle");
    if let Ok(config) = document::parse::<document::Config>(data, "config.json") {
        let text = serde_json::to_vec(&config).expect("what was read can be written");
        let again = document::parse(&text, "config.json").expect("what was written can be read");
        assert_eq!(config, again);
        if let Ok(plan) = plan(&config, "box", folder) {
            // One for a guest has nothing left that only the host can do.
            for guest in [None, Some(5)].into_iter().filter_map(|first| for_machine(plan.clone(), first).ok())
            {
                assert!(
                    guest.bundle.is_none() && guest.mounts.iter().all(|mount| mount.target.starts_with('/'))
                );
            }
        }
    }
    if let Ok(found) = document::parse(data, "process") {
        let _ = process(&found, "process");
    }
    if let Ok(found) = document::parse(data, "resources") {
        let _ = resources(&found, "resources");
    }
}

/// Documents of images, all kinds.
pub fn manifest(data: &[u8]) {
    let _ = Manifest::parse(data);
    let _ = Index::parse(data);
    let _ = ImageConfig::parse(data);
    let _ = parse_archive_manifest(data);
}

/// Dockerfiles, the values of their variables, and patterns of `.dockerignore`.
pub fn dockerfile(data: &[u8]) {
    use insula_build::dockerfile::{Dockerfile, Quotes, Variables, expand, expand_words, lint};
    if let Ok(file) = Dockerfile::parse(data) {
        assert!(!file.stages.is_empty());
        for warning in lint(&file) {
            assert!(warning.line > 0);
        }
    }
    let text = String::from_utf8_lossy(data);
    let variables =
        Variables::from([("A".to_owned(), "one two".to_owned()), ("E".to_owned(), String::new())]);
    for quotes in [Quotes::Remove, Quotes::Keep] {
        let _ = expand(&text, &variables, '\\', quotes);
    }
    let _ = expand_words(&text, &variables, '\\');
    if let Ok(ignore) = insula_build::Ignore::parse(data) {
        let _ = (ignore.ignores("a/b.c"), ignore.ignores(&text), ignore.may_keep_below("a"));
    }
    if let Ok(reference) = insula_build::GitReference::parse(&text) {
        assert!(!reference.url.starts_with('-') && !reference.reference.starts_with('-'));
        for address in [text.as_ref(), "../x"] {
            let known =
                |url: String| ["http://", "https://", "git://"].iter().any(|known| url.starts_with(known));
            assert!(reference.submodule(address).map_or(true, known));
        }
    }
    let mut source = data;
    while insula_build::Part::new(&mut source).finish().is_ok() {}
}

/// What package systems keep about what they have installed, as an image has it.
pub fn packages(data: &[u8]) {
    use insula_build::attest::{Bom, Distribution, PackageFile, Subject};
    let text = String::from_utf8_lossy(data);
    let distribution = Distribution::parse(&text);
    let files = [PackageFile::Dpkg, PackageFile::Apk, PackageFile::Python, PackageFile::Node];
    let listed: BTreeSet<_> = files.iter().flat_map(|file| file.read("/x/y", &text, 1 << 10)).collect();
    for package in &listed {
        assert!(!package.name.is_empty() && !package.version.is_empty());
        let url = package.url(&distribution);
        assert!(url.starts_with("pkg:") && !url.contains(char::is_whitespace), "{url}");
    }
    let count = listed.len();
    let bom = Bom { distribution, packages: listed, ..Bom::default() };
    let subject = Subject { names: Vec::new(), platform: String::new(), sha256: "0".repeat(64) };
    let document = serde_json::to_value(bom.predicate(&subject)).unwrap_or_default();
    let parts = document["packages"].as_array().map_or(0, Vec::len);
    assert!((count + 1..=count + 2).contains(&parts));
}

/// What registries send: challenges, and documents as any media type; and what clients send for them.
pub fn registry(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for challenge in insula_registry::challenges(&text) {
        assert!(!challenge.scheme.is_empty() && challenge.parameter("").is_none());
    }
    for media_type in [media::MANIFEST, media::INDEX, ""] {
        if let Ok(document) = insula_registry::Document::parse(data.to_vec(), media_type, "x") {
            let _ = document.image("x");
        }
    }
    let _ = insula_registry::Credentials::from_header(&text);
    let _ = insula_registry::Credentials::from_json(data);
    if let Ok(wanted) = text.parse::<insula_registry::Wanted>() {
        assert_eq!(wanted.to_string().parse().as_ref(), Ok(&wanted));
    }
}

/// Bodies of requests. One that is understood is written in a form that is understood.
pub fn api_body(data: &[u8]) {
    body::<ContainerCreateRequest>(data);
    body::<ContainerUpdateRequest>(data);
    body::<ExecCreateRequest>(data);
    body::<ExecStartRequest>(data);
    body::<NetworkCreateRequest>(data);
    body::<NetworkConnectRequest>(data);
    body::<VolumeCreateRequest>(data);
    body::<BuildExtras>(data);
}

fn body<T: DeserializeOwned + Serialize>(data: &[u8]) {
    if let Ok(request) = insula_models::from_request::<T>(data) {
        let text = serde_json::to_vec(&request).unwrap_or_default();
        assert!(insula_models::from_request::<T>(&text).is_ok(), "what was written is not read");
        assert!(insula_models::from_json::<T>(&text).is_ok(), "clients cannot read what was written");
    }
}

/// First bytes of a connection: a request that takes it over without an upgrade, or none.
pub fn takeover(data: &[u8]) {
    if insula_api::parse_plain_takeover(data).is_some() {
        assert!(data.starts_with(b"POST /"), "only POST takes a connection over");
    }
}

/// Profiles of `--security-opt seccomp=`.
pub fn seccomp_profile(data: &[u8]) {
    if let Ok(document) = serde_json::from_slice(data) {
        let _ =
            insula_host::confine::seccomp::compile(&document, insula_host::confine::capabilities::Set::EMPTY);
    }
}

/// Host names of users, and in the headers of anybody.
pub fn site(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(site) = text.parse::<Site>() {
        let again: HostName = site.name.as_str().parse().expect("a name is one in its own form too");
        assert_eq!(again, site.name);
        assert!(site.name.as_str().len() <= 253 && site.port != Some(0));
    }
    if let Ok(sites) = Site::list(&text) {
        assert!(sites.len() <= MOST_SITES);
    }
    // A header of any client.
    if let Ok(name) = HostName::of_authority(&text) {
        assert!(!name.as_str().starts_with('*') && name.patterns().count() <= 128);
    }
}

/// Files of the log driver `local`. A record that is read is written in a form that is read.
pub fn log_entry(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some((entry, used))) = insula_proto::LogEntry::split_from(rest) {
        let mut written = Vec::new();
        entry.append_to(&mut written);
        // An empty one has no length to be told by.
        if written.len() > 8 {
            let again = insula_proto::LogEntry::split_from(&written);
            assert_eq!(again, Ok(Some((entry, written.len()))));
        }
        rest = &rest[used..];
    }
}

/// What the kernel of a guest may ask a server of files, through a port.
pub fn relay_message(data: &[u8]) {
    use insula_vmm_core::relay::message::{LARGEST, Message};
    let mut rest = data;
    while let Ok(Some(message)) = Message::first(rest) {
        assert!(!message.bytes.is_empty() && message.bytes.len() as u64 <= LARGEST);
        assert!(u64::from(message.room) <= LARGEST, "a slot holds the answer");
        rest = &rest[message.bytes.len()..];
    }
}

/// What a guest may send, in pieces: frames, and what is in them.
pub fn channel_frame(data: &[u8]) {
    use insula_proto::channel::{ChannelReader, Kind, LARGEST_PAYLOAD};
    let mut reader = ChannelReader::default();
    for piece in data.chunks(7) {
        reader.push(piece);
        while let Ok(Some(frame)) = reader.pop() {
            assert!(frame.payload.len() <= LARGEST_PAYLOAD && frame.payload.len() <= data.len());
            let _ = (frame.credit(), frame.hello());
            if frame.kind == Kind::Reply {
                let _ = insula_proto::decode::<insula_proto::Reply>(&frame.payload);
            }
        }
    }
}

/// What the guest of a tenant may send: it reaches the stream that it says, within a window, or nobody.
pub fn tenant_streams(data: &[u8]) {
    use insula_proto::channel::WINDOW;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    let pair = || UnixStream::pair().expect("descriptors are not short");
    let ((ours, mut guest), (end, socket)) = (pair(), pair());
    let mut mux = insula_sandbox::mux::Mux::new(ours.into()).expect("a socket");
    mux.open(7, socket.into()).expect("a socket");
    end.set_nonblocking(true).expect("a socket");
    let mut got = 0;
    for piece in data.chunks(4 << 10) {
        guest.write_all(piece).expect("it takes more than a piece");
        let Ok(turn) = mux.turn() else { return };
        assert!(turn.open && turn.frames.iter().all(|frame| frame.payload.len() <= data.len()));
        let mut bytes = vec![0; 2 * WINDOW];
        got += (&end).read(&mut bytes).unwrap_or(0);
        guest.set_nonblocking(true).expect("a socket");
        while guest.read(&mut bytes).is_ok_and(|count| count > 0) {}
        guest.set_nonblocking(false).expect("a socket");
    }
    assert!(got <= data.len());
}

/// What a peer of the task protocol may send, in pieces.
pub fn task_frame(data: &[u8]) {
    let mut reader = insula_proto::FrameReader::default();
    for piece in data.chunks(7) {
        if reader.push(piece, []).is_err() {
            return;
        }
        while let Ok(Some(_)) = reader.pop::<insula_proto::Request>() {}
    }
}

/// A message of D-Bus is as long as it says, and what is read of it is no longer.
pub fn bus_message(data: &[u8]) {
    use insula_host::systemd::{LONGEST, Message, length};
    if let Some(length) = data.first_chunk().and_then(|begin| length(begin).ok()) {
        assert!(length <= LONGEST, "a message of {length} bytes");
    }
    if let Ok(message) = Message::parse(data) {
        assert!(message.said().len() <= data.len());
        let _ = message.items();
    }
}

/// What a container may send to its name server, and what a resolver may answer. A reply fits where the query
/// came from.
pub fn dns_query(data: &[u8]) {
    use insula_network::names::{Answer, Directory, Transport, answer, failure, relates};
    let (directory, container) = (Directory::default(), insula_base::ContainerId::random());
    for transport in [Transport::Udp, Transport::Tcp] {
        if let Answer::Reply(reply) = answer(data, &directory.view(&container), transport, 1) {
            assert!(transport == Transport::Tcp || reply.len() <= 1232, "a reply of {} bytes", reply.len());
        }
    }
    let _ = failure(data);
    let (query, reply) = data.split_at(data.len() / 2);
    let _ = relates(query, reply);
}
