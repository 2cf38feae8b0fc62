//! The client against a daemon that says what it is told to.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::io::{Read, Write};

use fake::{Fake, Reply};
use insula_base::{Kind, Kinded};
use insula_client::{Address, AttachOptions, Client, Demultiplexer, Removal, Source, StdcopyError, Upload};
use insula_models::ContainerCreateRequest;

fn client(fake: &Fake) -> Client {
    Client::new(Address::Unix(fake.socket()))
}

fn whole(body: &str) -> Reply {
    Reply::Whole(200, body.to_owned())
}

#[tokio::test]
async fn calls_that_follow_each_other_share_a_connection() {
    let fake = Fake::start(|request| match request.target.as_str() {
        "/v1.51/version" => whole(r#"{"Version":"1","ApiVersion":"1.51"}"#),
        "/v1.51/_ping" => whole("OK"),
        _ => Reply::Whole(404, r#"{"message":"No such container: x"}"#.to_owned()),
    });
    let client = client(&fake);
    client.ping().await.unwrap();
    assert_eq!(client.version().await.unwrap().version, "1");
    let error = client.inspect_container("x").await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (Kind::NotFound, "No such container: x"));
    client.ping().await.unwrap();
    assert_eq!(fake.connections(), 1);
}

/// A daemon whose newest version is 1.41.
fn older(request: &fake::Request) -> Reply {
    match request.target.strip_prefix("/v1.41") {
        Some("/version") => whole(r#"{"Version":"20.10.24","ApiVersion":"1.41"}"#),
        Some(_) => whole("{}"),
        None => {
            let why = "client version 1.51 is too new. Maximum supported API version is 1.41";
            Reply::Whole(400, format!(r#"{{"message":"{why}"}}"#))
        }
    }
}

#[tokio::test]
async fn an_older_daemon_is_spoken_to_in_its_version() {
    let fake = Fake::start(older);
    let client = client(&fake);
    assert_eq!(client.version().await.unwrap().version, "20.10.24");
    client.ping().await.unwrap();
    assert_eq!(client.version_spoken().to_string(), "1.41");
    assert_eq!(fake.calls(), ["GET /v1.51/version", "GET /v1.41/version", "GET /v1.41/_ping"]);
}

#[tokio::test]
async fn an_upload_asks_for_the_version_first() {
    let fake = Fake::start(older);
    client(&fake).put_archive("box", "/", Upload::read(&b"archive"[..]), false).await.unwrap();
    let calls = fake.calls();
    assert_eq!(calls[0], "GET /v1.51/_ping");
    assert!(calls[1].starts_with("PUT /v1.41/containers/box/archive"), "{calls:?}");
    assert_eq!(fake.requests()[1].body, b"archive");
}

#[tokio::test]
async fn names_and_queries_are_encoded() {
    let fake = Fake::start(|request| match request.method.as_str() {
        "POST" => Reply::Whole(201, r#"{"Id":"abc","Warnings":null}"#.to_owned()),
        _ => Reply::Whole(204, String::new()),
    });
    let client = client(&fake);
    let request = ContainerCreateRequest { image: "x".to_owned(), ..ContainerCreateRequest::default() };
    assert_eq!(client.create_container("a b", "", &request).await.unwrap().id, "abc");
    client.remove_container("a/b", &Removal { force: true, ..Removal::default() }).await.unwrap();
    assert_eq!(
        fake.calls(),
        ["POST /v1.51/containers/create?name=a%20b", "DELETE /v1.51/containers/a%2Fb?force=1"]
    );
    let sent: ContainerCreateRequest = insula_models::from_json(&fake.requests()[0].body).unwrap();
    assert_eq!(sent, request);
}

#[tokio::test]
async fn a_hijacked_connection_keeps_what_was_read_ahead() {
    let fake = Fake::start(|_| {
        let first = [&[1, 0, 0, 0, 0, 0, 0, 3][..], b"one"].concat();
        Reply::Hijack(
            first,
            Box::new(|mut stream| {
                let mut input = Vec::new();
                stream.read_to_end(&mut input).unwrap();
                let mut frame = vec![2, 0, 0, 0, 0, 0, 0, u8::try_from(input.len()).unwrap()];
                frame.extend(input);
                stream.write_all(&frame).unwrap();
            }),
        )
    });
    let client = client(&fake);
    let options = AttachOptions { stdin: true, stdout: true, stderr: true, ..AttachOptions::default() };
    let mut hijacked = client.attach_container("x", &options).await.unwrap();
    assert_eq!(hijacked.multiplexed, Some(true));
    assert!(fake.requests()[0].headers.contains("upgrade: tcp"));
    hijacked.stream.write_all(b"typed").unwrap();
    hijacked.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut bytes = hijacked.leftover.clone();
    hijacked.stream.read_to_end(&mut bytes).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    Demultiplexer::new()
        .feed(&bytes, |source, payload| {
            if source == Source::Stdout { &mut out } else { &mut err }.extend_from_slice(payload);
            Ok::<(), StdcopyError>(())
        })
        .unwrap();
    assert_eq!((out, err), (b"one".to_vec(), b"typed".to_vec()));
}

#[tokio::test]
async fn documents_of_a_stream_may_be_cut_anywhere() {
    let text = b"{\"status\":\"a\"}\r\n{\"status\":\"b\"}{\"status\":\"c\"}\n";
    for step in 1..text.len() {
        let chunks: Vec<Vec<u8>> = text.chunks(step).map(<[u8]>::to_vec).collect();
        let fake = Fake::start(move |_| Reply::Chunks(chunks.clone()));
        let client = client(&fake);
        let mut stream = client.load_images(Upload::read(&b"tar"[..]), false).await.unwrap();
        let mut seen = String::new();
        while let Some(message) = stream.next().await.unwrap() {
            seen.push_str(&message.status);
        }
        assert_eq!(seen, "abc", "{step}");
        assert_eq!(fake.requests().last().unwrap().body, b"tar");
    }
    let fake = Fake::start(|_| Reply::Chunks(vec![b"{\"status\":".to_vec()]));
    let mut cut = client(&fake).load_images(Upload::read(&b""[..]), false).await.unwrap();
    assert!(cut.next().await.unwrap_err().to_string().contains("inside of a document"));
}

#[tokio::test]
async fn a_large_upload_arrives_whole() {
    let fake = Fake::start(|_| Reply::Chunks(vec![]));
    let content: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
    let sent = content.clone();
    let upload = Upload::write(move |sink| sink.write_all(&sent));
    let mut progress = client(&fake).load_images(upload, true).await.unwrap();
    assert!(progress.next().await.unwrap().is_none());
    assert!(fake.requests().last().unwrap().body == content);
}

#[tokio::test]
async fn a_source_that_breaks_breaks_the_call() {
    let fake = Fake::start(|_| Reply::Chunks(vec![]));
    let upload = Upload::write(|_| Err(std::io::Error::other("disk on fire")));
    let error = client(&fake).load_images(upload, true).await.unwrap_err();
    assert!(insula_base::chain(&error).contains("disk on fire"), "{}", insula_base::chain(&error));
}

#[tokio::test]
async fn nobody_at_the_address() {
    let client = Client::new(Address::Unix("/no/such/socket".into()));
    let error = client.ping().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("unix:///no/such/socket"));
}

#[tokio::test]
async fn answers_that_are_no_documents_are_named() {
    let fake = Fake::start(|_| whole(r#"{"Version":5}"#));
    let error = client(&fake).version().await.unwrap_err().to_string();
    assert!(error.contains("GET /version") && error.contains("Version"), "{error}");
    let fake = Fake::start(|_| Reply::Whole(500, "plain".to_owned()));
    assert_eq!(client(&fake).version().await.unwrap_err().to_string(), "plain");
}
