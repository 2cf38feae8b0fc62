//! An API on a socket in a folder of its own, and the plainest of clients.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use insula_api::{Group, Server};
use insula_base::Instance;
use insula_engine::{Config, Engine, Policy};
use tokio::sync::watch;

/// Serves until it is dropped.
pub(crate) struct Daemon {
    folder: tempfile::TempDir,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn message(&self) -> String {
        self.json()["message"].as_str().unwrap().to_owned()
    }

    /// A header's value; names are in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("insula-test-").tempdir().unwrap();
        let instance = Instance::new(folder.path().join("root"), folder.path().join("run"));
        let (stop, stopped) = watch::channel(false);
        let (ready, served) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let socket = instance.socket();
                // Nothing is started here, so that any program serves as the monitor.
                let config = Config {
                    network: insula_engine::NetworkOptions::default(),
                    instance,
                    monitor: PathBuf::from("/bin/false"),
                    agent: PathBuf::from("/nonexistent"),
                    vmm: PathBuf::from("/nonexistent"),
                    vm_backend: None,
                    vm_templates: false,
                    vm_boot_timeout: 180,
                    storage: Default::default(),
                    registries: Default::default(),
                    policy: Policy::default(),
                    sites: insula_engine::SiteOptions {
                        proxy: PathBuf::from("/nonexistent"),
                        http: Vec::new(),
                        https: Vec::new(),
                        certificates: PathBuf::from("/nonexistent"),
                    },
                };
                let engine = Engine::open(config).await.unwrap();
                let listener = insula_api::bind(&socket, Group::Usual).unwrap();
                ready.send(()).unwrap();
                Server::new(engine).serve(listener, stopped).await;
            });
            runtime.shutdown_background();
        });
        served.recv_timeout(Duration::from_secs(30)).unwrap();
        Self { folder, stop, thread: Some(thread) }
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.folder.path().join("run/insula.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", b"")
    }

    pub(crate) fn post(&self, path: &str, json: &str) -> Answer {
        let header = if json.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        self.send("POST", path, header, json.as_bytes())
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, "", b"")
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let length = if body.is_empty() && method != "POST" {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}{length}\r\n");
        self.raw(&[head.as_bytes(), body].concat())
    }

    /// Sends bytes and reads what comes until the other side closes.
    pub(crate) fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        // A request that is refused early is not read to its end.
        let _ = stream.write_all(request);
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        parse(&bytes)
    }
}

fn parse(bytes: &[u8]) -> Answer {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a complete head");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = &bytes[end + 4..];
    let chunked = head.contains("transfer-encoding: chunked");
    Answer { status, head, body: if chunked { dechunked(body) } else { body.to_vec() } }
}

fn dechunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = bytes.windows(2).position(|two| two == b"\r\n").expect("a chunk's size");
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..line]).unwrap(), 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&bytes[line + 2..line + 2 + size]);
        bytes = &bytes[line + 2 + size + 2..];
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the API panicked");
        }
    }
}
