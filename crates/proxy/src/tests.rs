//! A proxy in this process, with containers that are sockets of the test.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use insula_spec::sites::{self, Certificate, Order, Reply, Served, Speech};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{Error, Listeners, serve};

struct Proxy {
    http: SocketAddr,
    https: SocketAddr,
    control: UnixStream,
    serving: JoinHandle<Result<(), Error>>,
}

impl Proxy {
    async fn start() -> Self {
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (http, https) = (bind(), bind());
        let (plain, secure) = (http.local_addr().unwrap(), https.local_addr().unwrap());
        let folder = insula_folder();
        let path = folder.join("control");
        let control = UnixListener::bind(&path).unwrap();
        let listeners = Listeners {
            http: vec![OwnedFd::from(http)],
            https: vec![OwnedFd::from(https)],
            control: control.into(),
        };
        let serving = tokio::spawn(serve(listeners, 4096));
        let control = UnixStream::connect(&path).await.unwrap();
        std::fs::remove_dir_all(folder).unwrap();
        Self { http: plain, https: secure, control, serving }
    }

    async fn order(&mut self, order: &Order) -> Reply {
        let text = serde_json::to_vec(order).unwrap();
        self.control.write_u32(text.len() as u32).await.unwrap();
        self.control.write_all(&text).await.unwrap();
        let length = self.control.read_u32().await.unwrap();
        let mut reply = vec![0; length as usize];
        self.control.read_exact(&mut reply).await.unwrap();
        serde_json::from_slice(&reply).unwrap()
    }

    async fn tell(&mut self, sites: &[(&str, Speech, &[SocketAddr])], certificates: &[Certificate]) {
        let sites = sites
            .iter()
            .map(|(name, speech, targets)| Served {
                name: name.parse().unwrap(),
                speech: *speech,
                targets: targets.to_vec(),
            })
            .collect();
        let table = sites::Table { sites, certificates: certificates.to_vec() };
        assert_eq!(self.order(&Order::Serve(table)).await, Reply::Served { warnings: Vec::new() });
    }

    /// All that comes back for these bytes.
    async fn say(&self, text: &str) -> String {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        String::from_utf8(all).unwrap()
    }

    async fn get(&self, name: &str) -> String {
        self.say(&format!("GET /x HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n")).await
    }

    async fn tls(
        &self,
        name: &str,
        trusted: &Certificate,
        protocols: &[&[u8]],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(trusted.chain.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let stream = TcpStream::connect(self.https).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

/// A folder for one socket.
fn insula_folder() -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("insula-p-{}", insula_base::random_hex(8)));
    std::fs::create_dir(&path).unwrap();
    path
}

/// A container that treats each connection so.
fn container<F: Future<Output = ()> + Send + 'static>(
    treat: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(treat(stream));
        }
    });
    address
}

/// One that answers with `page` and with the head that it got.
fn site(page: &'static str) -> SocketAddr {
    container(move |mut stream| async move {
        while let Some(head) = head(&mut stream).await {
            let body = format!("{page}\n{head}");
            let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(response.as_bytes()).await.unwrap();
        }
    })
}

async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

fn certificate(name: &str) -> Certificate {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    Certificate { source: name.into(), chain: made.cert.pem(), key: made.signing_key.serialize_pem() }
}

/// Status and body by HTTP/2.
async fn two(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    uri: &str,
) -> (StatusCode, String) {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = uri.parse().unwrap();
    *request.version_mut() = Version::HTTP_2;
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_host_leads_to_its_container() {
    let mut proxy = Proxy::start().await;
    let (one, two) = (site("one"), site("two"));
    proxy
        .tell(
            &[
                ("a.org", Speech::Http, &[one]),
                ("*.a.org", Speech::Http, &[two]),
                ("down.org", Speech::Http, &[]),
            ],
            &[],
        )
        .await;
    let answer = proxy.get("A.org:8080").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.contains("\r\n\r\none\nGET /x HTTP/1.1\r\n"),
        "{answer}"
    );
    for line in ["host: A.org:8080", "x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http"] {
        assert!(
            answer.to_ascii_lowercase().contains(&format!("{}\r\n", line.to_ascii_lowercase())),
            "{answer}"
        );
    }
    assert!(proxy.get("x.a.org").await.contains("\r\n\r\ntwo\n"));
    let refused = proxy.get("b.org").await;
    assert!(refused.starts_with("HTTP/1.1 404"), "{refused}");
    assert!(refused.ends_with("insula: no container is published as b.org\n"), "{refused}");
    assert!(proxy.get("down.org").await.starts_with("HTTP/1.1 503"));
    assert!(proxy.say("GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    assert!(
        proxy
            .say("CONNECT a.org:80 HTTP/1.1\r\nHost: a.org\r\nConnection: close\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 405")
    );
    let huge = format!("GET / HTTP/1.1\r\nHost: a.org\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let mut stream = TcpStream::connect(proxy.http).await.unwrap();
    // Refused before all of it was taken.
    let _ = stream.write_all(huge.as_bytes()).await;
    let mut begin = [0; 12];
    if stream.read_exact(&mut begin).await.is_ok() {
        assert_eq!(&begin, b"HTTP/1.1 431");
    }
}

#[tokio::test]
async fn a_container_that_is_gone_is_passed_over() {
    let mut proxy = Proxy::start().await;
    // No port that the kernel gives anybody meanwhile.
    let gone = "127.0.0.1:1".parse().unwrap();
    let silent = container(|stream| async move { drop(stream) });
    let one = site("one");
    proxy
        .tell(
            &[
                ("a", Speech::Http, &[gone, one]),
                ("b", Speech::Http, &[gone]),
                ("c", Speech::Http, &[silent]),
            ],
            &[],
        )
        .await;
    for _ in 0..4 {
        assert!(proxy.get("a").await.contains("\r\n\r\none\n"));
    }
    assert!(proxy.get("b").await.contains("no container of b accepts connections"));
    assert!(proxy.get("c").await.starts_with("HTTP/1.1 502"));
}

#[tokio::test]
async fn requests_of_one_client_share_its_connection() {
    let mut proxy = Proxy::start().await;
    let (one, other) = (site("one"), site("other"));
    proxy.tell(&[("a", Speech::Http, &[one]), ("b", Speech::Http, &[other])], &[]).await;
    let mut stream = TcpStream::connect(proxy.http).await.unwrap();
    for (name, page) in [("a", "one"), ("b", "other"), ("a", "one")] {
        stream
            .write_all(format!("POST / HTTP/1.1\r\nHost: {name}\r\nContent-Length: 0\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let answer = head(&mut stream).await.unwrap().to_ascii_lowercase();
        let (_, length) = answer.split_once("content-length: ").unwrap();
        let mut body = vec![0; length.split("\r\n").next().unwrap().parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        assert!(body.starts_with(page.as_bytes()), "{}", String::from_utf8_lossy(&body));
    }
    // Targets change under way: the next request goes to the new one.
    let new = site("new");
    proxy.tell(&[("a", Speech::Http, &[new])], &[]).await;
    assert!(proxy.get("a").await.contains("\r\n\r\nnew\n"));
}

#[tokio::test]
async fn a_connection_can_change_its_protocol() {
    let mut proxy = Proxy::start().await;
    let echo = container(|mut stream| async move {
        let head = head(&mut stream).await.unwrap().to_ascii_lowercase();
        assert!(
            head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"),
            "{head}"
        );
        let response =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        stream.write_all(response.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    proxy.tell(&[("a", Speech::Http, &[echo])], &[]).await;
    let mut stream = TcpStream::connect(proxy.http).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let answer = head(&mut stream).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut echoed = String::new();
    stream.read_to_string(&mut echoed).await.unwrap();
    assert_eq!(echoed, "hello");
}

#[tokio::test]
async fn tls_is_decrypted_by_name_and_passed_on_where_the_container_speaks_it() {
    let mut proxy = Proxy::start().await;
    let (own, theirs, other) = (certificate("a.org"), certificate("raw.org"), certificate("other.org"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(theirs.chain.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(theirs.key.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let raw = container(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            stream.write_all(b"from inside").await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    let page = site("page");
    let sites: [(&str, Speech, &[SocketAddr]); 3] = [
        ("a.org", Speech::Http, &[page]),
        ("raw.org", Speech::Tls, &[raw]),
        ("other.org", Speech::Http, &[page]),
    ];
    proxy.tell(&sites, &[own.clone(), other]).await;

    let stream = proxy.tls("a.org", &own, &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (status, body) = two(stream, "https://a.org/x").await;
    assert!(status == StatusCode::OK && body.starts_with("page\nGET /x HTTP/1.1\r\n"), "{body}");
    assert!(body.contains("x-forwarded-proto: https\r\n") && body.contains("host: a.org\r\n"), "{body}");
    // Another name than the one that the certificate is for.
    let stream = proxy.tls("a.org", &own, &[b"h2"]).await.unwrap();
    let (status, body) = two(stream, "https://other.org/").await;
    assert_eq!(
        (status, body.as_str()),
        (
            StatusCode::MISDIRECTED_REQUEST,
            "insula: the certificate of this connection is not for other.org\n"
        )
    );

    let mut stream = proxy.tls("raw.org", &theirs, &[]).await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "from inside");
    assert!(proxy.get("raw.org").await.starts_with("HTTP/1.1 421"));

    let error = proxy.tls("unknown.org", &own, &[]).await.unwrap_err().to_string();
    assert!(error.contains("UnrecognizedName") || error.contains("UnrecognisedName"), "{error}");
}

#[tokio::test]
async fn http_2_is_known_without_tls() {
    let mut proxy = Proxy::start().await;
    let page = site("page");
    proxy.tell(&[("a.org", Speech::Http, &[page])], &[]).await;
    let stream = TcpStream::connect(proxy.http).await.unwrap();
    let (status, body) = two(stream, "http://a.org/x").await;
    assert!(status == StatusCode::OK && body.starts_with("page\n"), "{body}");
    let stream = TcpStream::connect(proxy.http).await.unwrap();
    assert_eq!(two(stream, "http://b.org/").await.0, StatusCode::NOT_FOUND);
}

/// One of HTTP/2 that answers as servers of gRPC do, with what it was asked and on which of its connections.
fn grpc(ended: watch::Receiver<()>) -> SocketAddr {
    let count = AtomicUsize::new(0);
    container(move |stream| {
        let (number, mut ended) = (count.fetch_add(1, Ordering::Relaxed), ended.clone());
        ended.mark_unchanged();
        let answer = service_fn(move |request: Request<Incoming>| async move {
            let te = request.headers().get("te").cloned();
            let body = format!("{number} {:?} {} {te:?}", request.version(), request.uri());
            let status =
                HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from(0))]);
            let body = Full::new(Bytes::from(body)).with_trailers(std::future::ready(Some(Ok(status))));
            Ok::<_, std::convert::Infallible>(Response::new(body))
        });
        async move {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::select! {
                _ = builder.serve_connection(TokioIo::new(stream), answer) => {}
                _ = ended.changed() => {}
            }
        }
    })
}

#[tokio::test]
async fn a_container_may_speak_http_2() {
    let mut proxy = Proxy::start().await;
    let (end, ended) = watch::channel(());
    proxy.tell(&[("g.org", Speech::H2c, &[grpc(ended)])], &[certificate("g.org")]).await;
    let stream = TokioIo::new(TcpStream::connect(proxy.http).await.unwrap());
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let ask = || {
        let mut sender = sender.clone();
        async move {
            let request = Request::get("http://g.org/a.B/C").header("te", "trailers");
            let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
            let code = response.status();
            let all = response.into_body().collect().await.unwrap();
            assert_eq!(code, StatusCode::OK, "{all:?}");
            let status = all.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
            assert_eq!(status, Some(HeaderValue::from(0)));
            String::from_utf8(all.to_bytes().to_vec()).unwrap()
        }
    };
    let expected = |number: u8| format!("{number} HTTP/2.0 http://g.org/a.B/C Some(\"trailers\")");
    let (first, second) = tokio::join!(ask(), ask());
    assert_eq!((first, second), (expected(0), expected(0)), "requests share the connection");
    // Clients of HTTP/1.1 are understood as well.
    let answer = proxy.get("g.org").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.contains("0 HTTP/2.0 http://g.org/x None"),
        "{answer}"
    );
    end.send(()).unwrap();
    assert_eq!(ask().await, expected(1), "a connection that has ended is replaced");
}

#[tokio::test]
async fn who_comes_without_tls_is_sent_to_the_certificate() {
    let mut proxy = Proxy::start().await;
    let page = site("page");
    let sites: [(&str, Speech, &[SocketAddr]); 3] = [
        ("a.org", Speech::Http, &[page]),
        ("b.org", Speech::Plain, &[page]),
        ("c.org", Speech::Http, &[page]),
    ];
    proxy.tell(&sites, &[certificate("a.org"), certificate("b.org")]).await;
    let answer = proxy.get("A.org:8080").await;
    let location = format!("\r\nlocation: https://a.org:{}/x\r\n", proxy.https.port());
    assert!(answer.starts_with("HTTP/1.1 301 ") && answer.contains(&location), "{answer}");
    let post = "POST /x?y HTTP/1.1\r\nHost: a.org\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let answer = proxy.say(post).await;
    assert!(answer.starts_with("HTTP/1.1 308 ") && answer.contains("/x?y\r\n"), "{answer}");
    for served in ["b.org", "c.org"] {
        assert!(proxy.get(served).await.starts_with("HTTP/1.1 200 "), "{served}");
    }
    let challenge = "GET /.well-known/acme-challenge/t HTTP/1.1\r\nHost: a.org\r\nConnection: close\r\n\r\n";
    assert!(proxy.say(challenge).await.starts_with("HTTP/1.1 200 "));
}

/// A container that says when a request has come, and answers `late` once the gate is open.
fn slow() -> (SocketAddr, UnboundedReceiver<()>, watch::Sender<bool>) {
    let (begun, beginning) = tokio::sync::mpsc::unbounded_channel();
    let (release, gate) = watch::channel(false);
    let address = container(move |mut stream| {
        let (begun, mut gate) = (begun.clone(), gate.clone());
        async move {
            head(&mut stream).await.unwrap();
            begun.send(()).unwrap();
            gate.wait_for(|open| *open).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate").await.unwrap();
        }
    });
    (address, beginning, release)
}

#[tokio::test]
async fn who_leaves_answers_what_it_was_asked() {
    let mut proxy = Proxy::start().await;
    let (slow, mut beginning, release) = slow();
    let other = site("other");
    proxy.tell(&[("a", Speech::Http, &[slow])], &[]).await;
    let mut stream = TcpStream::connect(proxy.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    beginning.recv().await.unwrap();
    let drain = |within| Order::Drain { targets: vec![slow], within };
    assert_eq!(proxy.order(&drain(20_000)).await, Reply::Drained { left: 0 }, "it has not left");
    proxy.tell(&[("a", Speech::Http, &[other])], &[]).await;
    assert!(proxy.get("a").await.contains("other"));
    assert_eq!(proxy.order(&drain(1)).await, Reply::Drained { left: 1 });
    let answer = async {
        release.send_replace(true);
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        all
    };
    let drain = drain(20_000);
    let (answer, drained) = tokio::join!(answer, proxy.order(&drain));
    assert!(answer.ends_with("late"), "{answer}");
    assert_eq!(drained, Reply::Drained { left: 0 });
}

#[tokio::test]
async fn the_end_waits_for_what_is_under_way() {
    let mut proxy = Proxy::start().await;
    let (slow, mut beginning, release) = slow();
    proxy.tell(&[("a", Speech::Http, &[slow])], &[]).await;
    let mut stream = TcpStream::connect(proxy.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    beginning.recv().await.unwrap();
    let mut idle = TcpStream::connect(proxy.http).await.unwrap();
    assert_eq!(proxy.order(&Order::End).await, Reply::Ended);
    drop(TcpListener::bind(proxy.http).unwrap());
    release.send_replace(true);
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    assert!(all.ends_with("late"), "{all}");
    // It has said nothing yet, and has nothing to hope for.
    idle.shutdown().await.unwrap();
    proxy.serving.await.unwrap().unwrap();
}
