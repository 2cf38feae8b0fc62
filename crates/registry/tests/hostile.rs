//! Registries that break, lie and lead astray, and token servers.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use insula_base::{Digest, Kinded as _};
use insula_registry::{
    Blob, Content, Credentials, Error, Options, Pushed, Registries, Repository, Sent, Wanted,
};
use insula_spec::image::Descriptor;
use insula_spec::reference::Reference;
use sha2::Digest as _;

use self::server::Server;

const AUTHORIZED: &str = "Basic YW5uOnNlY3JldA==";

fn impatient() -> Options {
    let mut options = Options::default();
    options.limits.first_pause = Duration::from_millis(1);
    options.limits.longest_pause = Duration::from_millis(5);
    options.limits.attempts = 3;
    options
}

fn reference(server: &Server) -> Reference {
    format!("{}/some/app:1", server.address).parse().unwrap()
}

fn ann() -> Credentials {
    Credentials::basic("ann", "secret")
}

fn source(server: &Server, options: Options) -> Repository {
    Registries::new(options).sources(&reference(server), &ann()).unwrap().remove(0)
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&sha2::Sha256::digest(bytes).into())
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    serde_json::from_value(serde_json::json!({"digest": digest(bytes), "size": bytes.len()})).unwrap()
}

fn status(code: u16) -> Response {
    StatusCode::from_u16(code).unwrap().into_response()
}

fn authorization(headers: &HeaderMap) -> Option<String> {
    headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned())
}

async fn all(mut blob: Blob) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = blob.next().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// A body that sends some bytes and then breaks.
fn broken(bytes: &[u8]) -> Body {
    let first = Some(Bytes::copy_from_slice(bytes));
    Body::from_stream(futures_util::stream::unfold(first, |first| async {
        match first {
            Some(bytes) => Some((Ok(bytes), None)),
            None => {
                // What was sent goes out while the body is waited for.
                tokio::task::yield_now().await;
                Some((Err(std::io::Error::other("broken")), None))
            }
        }
    }))
}

fn range(request: &Request) -> Option<usize> {
    let range = request.headers().get(header::RANGE)?.to_str().unwrap();
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

#[tokio::test]
async fn credentials_stay_with_the_registry() {
    let other = Server::start(|request: Request| {
        assert_eq!(authorization(request.headers()), None, "credentials were carried away");
        b"content".to_vec().into_response()
    })
    .await;
    let target = format!("http://{}/storage?signed=1", other.address);
    let registry = Server::start(move |request: Request| match authorization(request.headers()).as_deref() {
        None => (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=x")]).into_response(),
        Some(AUTHORIZED) => {
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target.clone())]).into_response()
        }
        Some(_) => status(403),
    })
    .await;
    let bytes =
        source(&registry, impatient()).document(&descriptor(b"content"), "configuration").await.unwrap();
    assert_eq!(bytes, b"content");
    assert_eq!(other.requests(), 1);
    // One that asks for credentials after the redirect gets none either.
    let asking = Server::start(|request: Request| {
        assert_eq!(authorization(request.headers()), None, "credentials were carried away");
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=x")]).into_response()
    })
    .await;
    let target = format!("http://{}/", asking.address);
    let registry = Server::start(move |request: Request| match request.uri().path() {
        "/v2/" => status(200),
        _ => (StatusCode::FOUND, [(header::LOCATION, target.clone())]).into_response(),
    })
    .await;
    let denied =
        source(&registry, impatient()).document(&descriptor(b"x"), "configuration").await.unwrap_err();
    assert!(matches!(denied, Error::Denied { .. }), "{denied}");
}

#[tokio::test]
async fn redirects_end() {
    let registry = Server::start(|request: Request| match request.uri().path() {
        "/v2/" => status(200),
        path => (StatusCode::FOUND, [(header::LOCATION, format!("{path}x"))]).into_response(),
    })
    .await;
    let error = source(&registry, impatient()).manifest(Some("1"), None).await.unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
    for place in ["file:///etc/passwd", "ftp://x/", "http://u:p@127.0.0.1/"] {
        let registry = Server::start(move |request: Request| match request.uri().path() {
            "/v2/" => status(200),
            _ => (StatusCode::FOUND, [(header::LOCATION, place)]).into_response(),
        })
        .await;
        let error = source(&registry, impatient()).manifest(Some("1"), None).await.unwrap_err();
        assert!(matches!(error, Error::Redirect { .. }), "{error}");
    }
}

#[tokio::test]
async fn bodies_are_bounded() {
    let endless = || {
        let zeros = std::iter::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 1 << 16])));
        Body::from_stream(futures_util::stream::iter(zeros)).into_response()
    };
    let registry = Server::start(move |request: Request| match request.uri().path() {
        "/v2/" => status(200),
        _ => endless(),
    })
    .await;
    let repository = source(&registry, impatient());
    let error = repository.manifest(Some("1"), None).await.unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }), "{error}");
    let error =
        all(Blob::new(vec![repository.clone()], &descriptor(&[b' '; 1000])).unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }), "{error}");
    let error = repository.tags().await.unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }), "{error}");
}

#[tokio::test]
async fn a_trickle_is_cut_off() {
    let registry = Server::start(|request: Request| match request.uri().path() {
        "/v2/" => status(200),
        _ => Body::from_stream(futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
        }))
        .into_response(),
    })
    .await;
    let mut options = impatient();
    options.limits.window = Duration::from_millis(200);
    options.limits.attempts = 2;
    let repository = source(&registry, options);
    let error = all(Blob::new(vec![repository], &descriptor(&[0; 100_000])).unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::Slow { .. }), "{error}");
}

#[tokio::test]
async fn what_breaks_is_resumed() {
    let content: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    for knows_ranges in [true, false] {
        let sent = content.clone();
        let registry = Server::start(move |request: Request| {
            if request.uri().path() == "/v2/" {
                return status(200);
            }
            let from = range(&request).filter(|_| knows_ranges).unwrap_or(0);
            // Broken the first two times.
            let upto = match range(&request).unwrap_or(0) {
                0 => 100_000,
                at if at < 200_000 => 200_000,
                _ => return part(&sent, from),
            };
            let mut response = Response::new(broken(&sent[from..upto]));
            if from > 0 {
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                let range = format!("bytes {from}-{}/{}", sent.len() - 1, sent.len());
                response.headers_mut().insert(header::CONTENT_RANGE, range.parse().unwrap());
            }
            response
        })
        .await;
        let blob = Blob::new(vec![source(&registry, impatient())], &descriptor(&content)).unwrap();
        assert!(all(blob).await.unwrap() == content, "ranges: {knows_ranges}");
    }
}

fn part(content: &[u8], from: usize) -> Response {
    if from == 0 {
        return content.to_vec().into_response();
    }
    let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
    (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, range)], content[from..].to_vec()).into_response()
}

#[tokio::test]
async fn another_place_goes_on_where_the_first_broke() {
    let content = vec![7; 50_000];
    let sent = content.clone();
    let mirror = Server::start(move |request: Request| match range(&request) {
        None => Response::new(broken(&sent[..20_000])),
        Some(_) => status(503),
    })
    .await;
    let sent = content.clone();
    let registry = Server::start(move |request: Request| match (request.uri().path(), range(&request)) {
        ("/v2/", _) => status(200),
        (_, Some(from)) => part(&sent, from),
        (_, None) => status(500),
    })
    .await;
    let mut options = impatient();
    options.add_mirror(&format!("{}=http://{}", registry.address, mirror.address)).unwrap();
    let sources = Registries::new(options).sources(&reference(&registry), &ann()).unwrap();
    assert_eq!(sources.iter().map(Repository::is_mirror).collect::<Vec<_>>(), [true, false]);
    let bytes = all(Blob::new(sources, &descriptor(&content)).unwrap()).await.unwrap();
    assert!(bytes == content);
    assert!(mirror.seen().iter().all(|headers| authorization(headers).is_none()));
}

#[tokio::test]
async fn what_is_false_is_refused_and_what_is_gone_is_not_asked_for_again() {
    let registry = Server::start(|request: Request| match request.uri().path() {
        "/v2/" => status(200),
        path if path.ends_with("/missing") => status(404),
        path if path.contains("/blobs/") => b"others".to_vec().into_response(),
        path if path.ends_with("/liar") => {
            ([("docker-content-digest", format!("sha256:{:064}", 1))], "{}").into_response()
        }
        _ => "{}".into_response(),
    })
    .await;
    let repository = source(&registry, impatient());
    let wrong = digest(b"x");
    let error = repository.manifest(None, Some(&wrong)).await.unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    let error = repository.manifest(Some("liar"), None).await.unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    let error = repository.document(&descriptor(b"wanted"), "configuration").await.unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    let before = registry.requests();
    let error = repository.manifest(Some("missing"), None).await.unwrap_err();
    assert_eq!(error.kind(), insula_base::Kind::NotFound, "{error}");
    assert_eq!(registry.requests(), before + 1);
}

#[tokio::test]
async fn indexes_do_not_nest_for_ever() {
    let registry = Server::start(|request: Request| match request.uri().path() {
        "/v2/" => status(200),
        path => {
            // Each names the next by a digest that it really has.
            let level: u32 = path.rsplit('/').next().unwrap().parse().unwrap_or(10);
            nested(level).into_response()
        }
    })
    .await;
    let error = source(&registry, impatient()).resolve(Some("10"), None, &Wanted::host()).await.unwrap_err();
    assert!(error.to_string().contains("digest") || error.to_string().contains("nested"), "{error}");
}

fn nested(level: u32) -> String {
    let inner = if level == 0 { String::from("{}") } else { nested(level - 1) };
    let kind = "application/vnd.oci.image.index.v1+json";
    serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests":
        [{"mediaType": kind, "digest": digest(inner.as_bytes()), "size": inner.len()}]})
    .to_string()
}

#[tokio::test]
async fn tokens_are_obtained_once_and_again_when_they_are_refused() {
    let count = Arc::new(AtomicUsize::new(0));
    let given = count.clone();
    let tokens = Server::start(move |request: Request| {
        assert_eq!(authorization(request.headers()).as_deref(), Some(AUTHORIZED));
        let query = request.uri().query().unwrap();
        assert!(query.contains("scope=repository%3Asome%2Fapp%3Apull") && query.contains("service=s"), "{query}");
        let number = given.fetch_add(1, Ordering::SeqCst) + 1;
        // So short that it is renewed before the next request.
        axum::Json(serde_json::json!({"token": format!("t{number}"), "expires_in": if number == 1 { 300 } else { 1 }}))
            .into_response()
    })
    .await;
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", tokens.address);
    let registry = Server::start(move |request: Request| {
        if authorization(request.headers()).is_some_and(|value| value.starts_with("Bearer t")) {
            return "{}".into_response();
        }
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge.clone())]).into_response()
    })
    .await;
    let repository = source(&registry, impatient());
    let several = (0..5).map(|_| {
        let repository = repository.clone();
        tokio::spawn(async move { repository.manifest(Some("1"), None).await.map(drop) })
    });
    for one in several.collect::<Vec<_>>() {
        one.await.unwrap().unwrap();
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let tokens = Server::start(|request: Request| match request.method().as_str() {
        "GET" => {
            assert!(request.uri().query().unwrap().contains("offline_token=true"));
            axum::Json(serde_json::json!({"token": "t", "refresh_token": "identity"})).into_response()
        }
        _ => axum::Json(serde_json::json!({"access_token": "by-identity"})).into_response(),
    })
    .await;
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", tokens.address);
    let registry = Server::start(move |request: Request| match authorization(request.headers()).as_deref() {
        Some("Bearer by-identity") => status(200),
        _ => (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge.clone())]).into_response(),
    })
    .await;
    let registries = Registries::new(impatient());
    let login = registries.login(&registry.address.to_string(), &ann()).await.unwrap();
    assert_eq!(login.identity_token.as_deref(), Some("identity"));
    let denied = Server::start(|_| {
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=x")]).into_response()
    })
    .await;
    let error = registries.login(&denied.address.to_string(), &ann()).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
}

/// A registry that takes one blob, and breaks off the first time.
#[tokio::test]
async fn a_broken_upload_goes_on() {
    let taken = Arc::new(tokio::sync::Mutex::new(Vec::new()));
    let store = taken.clone();
    let registry = Server::start_async(move |request: Request| {
        let store = store.clone();
        async move {
            let place = [(header::LOCATION, "/v2/some/app/blobs/uploads/1".to_owned())];
            match request.method().as_str() {
                "HEAD" => status(404),
                "POST" => (StatusCode::ACCEPTED, place).into_response(),
                "GET" if request.uri().path() == "/v2/" => status(200),
                "GET" => {
                    let range = format!("0-{}", store.lock().await.len() - 1);
                    (StatusCode::NO_CONTENT, place, [(header::RANGE, range)]).into_response()
                }
                "PATCH" => {
                    let mut bytes = store.lock().await;
                    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
                    if bytes.is_empty() {
                        bytes.extend_from_slice(&body[..30_000]);
                        return status(502);
                    }
                    bytes.extend_from_slice(&body);
                    (StatusCode::ACCEPTED, place).into_response()
                }
                _ => {
                    let query = request.uri().query().unwrap().replace("%3A", ":");
                    assert_eq!(query, format!("digest={}", digest(&store.lock().await)));
                    status(201)
                }
            }
        }
    })
    .await;
    let content = Bytes::from((0..100_000u32).map(|n| (n % 199) as u8).collect::<Vec<_>>());
    let target = Registries::new(impatient()).target(&reference(&registry), &ann()).unwrap();
    let (shared, sent): (Arc<dyn Content>, Sent) = (Arc::new(content.clone()), Arc::new(|_| {}));
    let pushed = target.push_blob(&descriptor(&content), &[], &shared, &sent).await.unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    assert!(*taken.lock().await == content);
}

#[tokio::test]
async fn a_registry_without_search_says_so() {
    let registry = Server::start(|request: Request| match request.uri().path() {
        "/v1/search" => {
            let query = request.uri().query().unwrap();
            assert_eq!(query, "q=my+app&n=25");
            axum::Json(serde_json::json!({"results": [{"name": "a/app", "star_count": 3, "description": "x\u{1b}[2J"}]}))
                .into_response()
        }
        _ => status(200),
    })
    .await;
    let registries = Registries::new(impatient());
    let search =
        |server: &Server| insula_registry::Search { term: format!("{}/my app", server.address), limit: 0 };
    let found = registries.search(&search(&registry), &Credentials::Anonymous).await.unwrap();
    assert_eq!((found[0].name.as_str(), found[0].star_count), ("a/app", 3));
    assert_eq!(found[0].description.as_deref(), Some("x [2J"));
    let without = Server::start(|_| status(404)).await;
    let error = registries.search(&search(&without), &Credentials::Anonymous).await.unwrap_err();
    assert_eq!(error.kind(), insula_base::Kind::Unsupported, "{error}");
}

#[tokio::test]
async fn a_manifest_is_stored_though_the_registry_does_not_list_it() {
    let subject = descriptor(b"subject");
    let document = serde_json::json!({
        "schemaVersion": 2, "config": {"mediaType": "x/y", "digest": digest(b"{}"), "size": 2}, "layers": [],
        "subject": {"mediaType": "x/y", "digest": subject.digest, "size": 7},
    });
    let bytes = document.to_string().into_bytes();
    // Tags never change there, and what refers to what is nothing it knows of.
    let server = Server::start(|request| {
        let to_a_tag = request.uri().path().contains("/manifests/sha256-");
        match (request.method().as_str(), to_a_tag) {
            ("PUT", false) => status(201),
            ("PUT", true) => Response::builder()
                .status(400)
                .body(Body::from(r#"{"errors":[{"code":"TAG_INVALID","message":"the tag is immutable"}]}"#))
                .unwrap(),
            _ => status(404),
        }
    })
    .await;
    let target = source(&server, impatient());
    let name = digest(&bytes);
    let stored = target.put_manifest(name.as_str(), "x/y", &bytes).await.unwrap();
    assert_eq!(stored.digest, name);
    let why = stored.unlisted.unwrap().to_string();
    assert!(why.contains("the tag is immutable"), "{why}");
}
