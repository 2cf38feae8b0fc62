//! bollard, the crate that Rust programs speak to Docker with.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::models::{
    ContainerCreateBody, EventMessage, HostConfig, Mount, MountType, NetworkConnectRequest,
    NetworkCreateRequest, NetworkDisconnectRequest, VolumeCreateRequest,
};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, EventsOptionsBuilder,
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptions,
    RemoveVolumeOptions, StatsOptionsBuilder, StopContainerOptionsBuilder, TagImageOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::{Stream, StreamExt, TryStreamExt};
use insula_tests::{Daemon, daemon};
use tokio::io::AsyncWriteExt;

async fn client(daemon: &Daemon) -> Docker {
    let socket = daemon.instance().socket();
    let client = Docker::connect_with_unix(socket.to_str().unwrap(), 60, API_DEFAULT_VERSION).unwrap();
    client.negotiate_version().await.unwrap()
}

/// What a stream of output says, standard output and error apart.
async fn output(stream: impl Stream<Item = Result<LogOutput, Error>>) -> (String, String) {
    let mut said = (String::new(), String::new());
    for piece in stream.try_collect::<Vec<_>>().await.unwrap() {
        match piece {
            LogOutput::StdErr { .. } => said.1.push_str(&piece.to_string()),
            _ => said.0.push_str(&piece.to_string()),
        }
    }
    said
}

fn words(text: &[&str]) -> Option<Vec<String>> {
    Some(text.iter().map(|word| (*word).to_owned()).collect())
}

fn labels() -> HashMap<String, String> {
    HashMap::from([("role".to_owned(), "db".to_owned())])
}

fn now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    format!("{}.{:09}", now.as_secs(), now.subsec_nanos())
}

fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

#[tokio::test]
async fn containers_live_and_are_watched() {
    let daemon = daemon!();
    let docker = client(&daemon).await;
    let begun = now();
    let body = ContainerCreateBody {
        image: Some("busybox".to_owned()),
        cmd: words(&["sh", "-c", "echo begun; echo aside >&2; exec sleep 1000"]),
        labels: Some(labels()),
        host_config: Some(HostConfig { init: Some(true), memory: Some(64 << 20), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    };
    let named = CreateContainerOptionsBuilder::default().name("box").build();
    let id = docker.create_container(Some(named), body).await.unwrap().id;
    docker.start_container("box", None).await.unwrap();

    let follow = LogsOptionsBuilder::default().stdout(true).stderr(true).follow(true).build();
    let lines: Vec<_> = docker.logs("box", Some(follow)).take(2).try_collect().await.unwrap();
    let mut shown: Vec<String> = lines.iter().map(ToString::to_string).collect();
    shown.sort();
    assert_eq!(shown, ["aside\n", "begun\n"]);

    let found = docker.inspect_container("box", None).await.unwrap();
    assert_eq!((found.id.as_deref(), found.name.as_deref()), (Some(id.as_str()), Some("/box")));
    assert_eq!(found.state.unwrap().running, Some(true));
    let filters = HashMap::from([("label", vec!["role=db"])]);
    let listed = ListContainersOptionsBuilder::default().filters(&filters).build();
    let listed = docker.list_containers(Some(listed)).await.unwrap();
    assert_eq!(listed[0].names, words(&["/box"]));
    let once = StatsOptionsBuilder::default().stream(false).build();
    let stats = docker.stats("box", Some(once)).next().await.unwrap().unwrap();
    assert_eq!(stats.memory_stats.unwrap().limit, Some(64 << 20));
    let top = docker.top_processes("box", None).await.unwrap();
    assert!(top.processes.unwrap().iter().any(|row| row.last().unwrap() == "sleep 1000"));

    let missing = docker.start_container("nobody", None).await.unwrap_err();
    assert_eq!(status(&missing), Some(404), "{missing}");
    let soon = StopContainerOptionsBuilder::default().t(1).build();
    docker.stop_container("box", Some(soon)).await.unwrap();
    let removal = RemoveContainerOptionsBuilder::default().v(true).build();
    docker.remove_container("box", Some(removal)).await.unwrap();

    let filters = HashMap::from([("container", vec![id])]);
    let past = EventsOptionsBuilder::default().since(&begun).until(&now()).filters(&filters).build();
    let events: Vec<EventMessage> = docker.events(Some(past)).try_collect().await.unwrap();
    let actions: Vec<_> = events.iter().filter_map(|event| event.action.as_deref()).collect();
    for action in ["create", "start", "kill", "die", "stop", "destroy"] {
        assert!(actions.contains(&action), "{action} is not in {actions:?}");
    }
    let attributes = events[0].actor.clone().unwrap().attributes.unwrap();
    assert_eq!((attributes["role"].as_str(), attributes["name"].as_str()), ("db", "box"));
}

#[tokio::test]
async fn streams_go_both_ways() {
    let daemon = daemon!();
    let docker = client(&daemon).await;
    let body = ContainerCreateBody {
        image: Some("busybox".to_owned()),
        cmd: words(&["cat"]),
        open_stdin: Some(true),
        stdin_once: Some(true),
        attach_stdin: Some(true),
        ..ContainerCreateBody::default()
    };
    let id = docker.create_container(None, body).await.unwrap().id;
    let attach = AttachContainerOptionsBuilder::default().stdin(true).stdout(true).stream(true).build();
    let mut attached = docker.attach_container(&id, Some(attach)).await.unwrap();
    docker.start_container(&id, None).await.unwrap();
    let exec = CreateExecOptions {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        env: Some(vec!["A=b"]),
        cmd: Some(vec!["sh", "-c", "echo $A; cat; echo aside >&2; exit 4"]),
        ..CreateExecOptions::default()
    };
    let exec = docker.create_exec(&id, exec).await.unwrap().id;
    let StartExecResults::Attached { output: said, mut input } =
        docker.start_exec(&exec, None::<StartExecOptions>).await.unwrap()
    else {
        panic!("the process is attached to");
    };
    input.write_all(b"typed\n").await.unwrap();
    input.shutdown().await.unwrap();
    assert_eq!(output(said).await, ("b\ntyped\n".to_owned(), "aside\n".to_owned()));
    let exec = docker.inspect_exec(&exec).await.unwrap();
    assert_eq!((exec.exit_code, exec.running), (Some(4), Some(false)));

    attached.input.write_all(b"to its end\n").await.unwrap();
    attached.input.shutdown().await.unwrap();
    assert_eq!(output(attached.output).await, ("to its end\n".to_owned(), String::new()));
    let ended = docker.wait_container(&id, None).try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(ended[0].status_code, 0);
}

#[tokio::test]
async fn images_networks_and_volumes() {
    let daemon = daemon!();
    let docker = client(&daemon).await;
    let tag = TagImageOptionsBuilder::default().repo("copy").tag("1").build();
    docker.tag_image("busybox", Some(tag)).await.unwrap();
    let image = docker.inspect_image("copy:1").await.unwrap();
    assert!(image.repo_tags.unwrap().contains(&"copy:1".to_owned()));
    assert!(!docker.image_history("copy:1").await.unwrap().is_empty());
    let saved: usize = docker
        .export_image("copy:1")
        .try_fold(0, |sum, chunk| async move { Ok(sum + chunk.len()) })
        .await
        .unwrap();
    assert!(saved > 10240, "{saved}");
    let removed = docker.remove_image("copy:1", None::<RemoveImageOptions>, None).await.unwrap();
    assert_eq!(removed[0].untagged.as_deref(), Some("copy:1"));

    let volume = VolumeCreateRequest {
        name: Some("data".to_owned()),
        labels: Some(labels()),
        ..VolumeCreateRequest::default()
    };
    assert_eq!(docker.create_volume(volume).await.unwrap().labels, labels());
    let network =
        NetworkCreateRequest { name: "net".to_owned(), labels: Some(labels()), ..Default::default() };
    docker.create_network(network).await.unwrap();
    let mount = Mount {
        target: Some("/v".to_owned()),
        source: Some("data".to_owned()),
        typ: Some(MountType::VOLUME),
        ..Mount::default()
    };
    let body = ContainerCreateBody {
        image: Some("busybox".to_owned()),
        cmd: words(&["sh", "-c", "echo kept >/v/file; exec sleep 1000"]),
        host_config: Some(HostConfig {
            init: Some(true),
            mounts: Some(vec![mount]),
            network_mode: Some("net".to_owned()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let id = docker.create_container(None, body).await.unwrap().id;
    docker.start_container(&id, None).await.unwrap();
    let found = docker.inspect_network("net", None).await.unwrap();
    assert!(found.containers.unwrap().contains_key(&id));
    let second = NetworkCreateRequest { name: "second".to_owned(), ..Default::default() };
    docker.create_network(second).await.unwrap();
    let connect = NetworkConnectRequest { container: id.clone(), ..Default::default() };
    docker.connect_network("second", connect).await.unwrap();
    let networks = docker.inspect_container(&id, None).await.unwrap().network_settings.unwrap().networks;
    assert!(!networks.unwrap()["second"].ip_address.as_deref().unwrap_or_default().is_empty());
    let disconnect = NetworkDisconnectRequest { container: id.clone(), force: Some(false) };
    docker.disconnect_network("second", disconnect).await.unwrap();

    let used = docker.remove_volume("data", None::<RemoveVolumeOptions>).await.unwrap_err();
    assert_eq!(status(&used), Some(409), "{used}");
    let removal = RemoveContainerOptionsBuilder::default().force(true).build();
    docker.remove_container(&id, Some(removal)).await.unwrap();
    docker.remove_volume("data", None::<RemoveVolumeOptions>).await.unwrap();
    for network in ["net", "second"] {
        docker.remove_network(network).await.unwrap();
    }
    assert!(docker.list_networks(None).await.unwrap().iter().all(|net| net.labels != Some(labels())));
}
