//! A daemon that says what a test tells it to: HTTP/1.1 on a unix socket, a thread a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
}

type Takeover = Box<dyn FnOnce(UnixStream) + Send>;

/// What is answered.
pub(crate) enum Reply {
    /// A status and a body with its length.
    Whole(u16, String),
    /// 200, and chunks as they are.
    Chunks(Vec<Vec<u8>>),
    /// 101, these bytes in the same packet, then the connection is the closure's.
    Hijack(Vec<u8>, Takeover),
}

/// The daemon; its folder and socket go with it.
pub(crate) struct Fake {
    folder: tempfile::TempDir,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Fake {
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("insula.sock")).unwrap();
        let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counter, seen, answer) = (Arc::clone(&connections), Arc::clone(&requests), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                counter.fetch_add(1, Ordering::SeqCst);
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &seen, answer.as_ref()));
            }
        });
        Self { folder, connections, requests }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder().join("insula.sock")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// `METHOD TARGET` of everything that was asked.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.requests().iter().map(|request| format!("{} {}", request.method, request.target)).collect()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(stream: UnixStream, seen: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Reply) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some(request) = read_request(&mut reader) {
        seen.lock().unwrap().push(request.clone());
        match answer(&request) {
            Reply::Whole(status, body) => {
                let bare = request.method == "HEAD" || status == 204;
                let length = if bare { 0 } else { body.len() };
                let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n");
                writer.write_all(head.as_bytes()).unwrap();
                writer.write_all(&body.as_bytes()[..length]).unwrap();
            }
            Reply::Chunks(chunks) => {
                writer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
                for chunk in chunks {
                    writer.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).unwrap();
                    writer.write_all(&chunk).unwrap();
                    writer.write_all(b"\r\n").unwrap();
                }
                writer.write_all(b"0\r\n\r\n").unwrap();
            }
            Reply::Hijack(first, take) => {
                let mut packet = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".to_vec();
                packet.extend(first);
                writer.write_all(&packet).unwrap();
                take(writer);
                return;
            }
        }
    }
}

fn read_request(reader: &mut BufReader<UnixStream>) -> Option<Request> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = String::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        headers.push_str(&header.to_ascii_lowercase());
    }
    let mut body = Vec::new();
    if headers.contains("transfer-encoding: chunked") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else if let Some(rest) = headers.split("content-length: ").nth(1) {
        body = vec![0; rest.lines().next()?.trim().parse().ok()?];
        reader.read_exact(&mut body).ok()?;
    }
    Some(Request { method, target, headers, body })
}
