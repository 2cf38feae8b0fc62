//! A monitor that builds nothing: it speaks the task protocol and does what the plan's command says.
//!
//! ```text
//! exit N      starts, writes the exit record, tells the exit
//! sleep       runs until it is signalled; `deaf` too, but for KILL
//! late        as `deaf`; it has ended by itself when KILL comes
//! future      sleeps, and says that it speaks version 99 of the protocol
//! oldest      sleeps, and understands and says no more than the first monitors did
//! missing     cannot be executed: 127
//! vanish      starts, and the monitor dies without a word at the first signal
//! ```

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use insula_base::Kind;
use insula_proto::{
    Attachment, Call, Create, Done, Exec, ExecExited, Exited, Failed, FrameReader, Outcome, Phase, Processes,
    Reply, Request, Started, Status, encode,
};
use insula_spec::plan::{ContainerPlan, ProcessPlan};

use crate::oldest;

#[derive(Default)]
struct Sandbox {
    folder: PathBuf,
    words: Vec<String>,
    phase: i32,
    frozen: bool,
    exit: Option<Exited>,
    clients: Vec<UnixStream>,
    streams: Vec<OwnedFd>,
}

type Shared = Arc<Mutex<Sandbox>>;

/// Serves the daemon at the other end of `control`, then whoever connects, until the container ends.
pub(crate) fn serve(control: UnixStream) -> ! {
    let sandbox = Shared::default();
    converse(&sandbox, control);
    // A real monitor ends too when it has nothing to watch over and nobody to serve.
    while sandbox.lock().unwrap().phase == Phase::Running as i32 {
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
    std::process::exit(0)
}

fn converse(sandbox: &Shared, mut socket: UnixStream) {
    let mut reader = FrameReader::default();
    let mut buffer = [0; 65536];
    loop {
        while let Some(request) = reader.pop::<Request>().unwrap() {
            let descriptors = reader.take(request.descriptors()).unwrap();
            let heard = if is_oldest(sandbox) { oldest::heard(&request) } else { request.call };
            let (outcome, after) = match heard {
                Some(call) => answer(sandbox, &socket, call, descriptors),
                None => (unknown(), None),
            };
            if socket.write_all(&spoken(sandbox, request.id, outcome)).is_err() {
                return;
            }
            if let Some(event) = after {
                tell(sandbox, &event);
            }
        }
        match insula_sys::socket::receive(socket.as_fd(), &mut buffer) {
            Ok((0, _)) | Err(_) => return,
            Ok((count, descriptors)) => reader.push(&buffer[..count], descriptors).unwrap(),
        }
    }
}

fn is_oldest(sandbox: &Shared) -> bool {
    sandbox.lock().unwrap().words.iter().any(|word| word == "oldest")
}

fn spoken(sandbox: &Shared, id: u64, outcome: Outcome) -> Vec<u8> {
    let reply = Reply { id, outcome: Some(outcome) };
    encode(&if is_oldest(sandbox) { oldest::said(&reply) } else { reply })
}

/// The answer, and what happens right after it.
fn answer(
    sandbox: &Shared,
    socket: &UnixStream,
    call: Call,
    descriptors: Vec<OwnedFd>,
) -> (Outcome, Option<Outcome>) {
    let done = (Outcome::Done(Done::default()), None);
    match call {
        Call::Create(call) => create(sandbox, socket, &call, descriptors),
        Call::Exec(call) => exec(&call, descriptors),
        Call::Signal(call) => {
            let late = sandbox.lock().unwrap().words[0] == "late" && call.signal == 9;
            let outcome = if late { over() } else { done.0 };
            (outcome, signalled(sandbox, call.signal))
        }
        Call::Freeze(_) | Call::Thaw(_) => {
            sandbox.lock().unwrap().frozen = matches!(call, Call::Freeze(_));
            done
        }
        Call::Attach(call) => {
            greet(&descriptors[0], call.attachment.as_ref());
            sandbox.lock().unwrap().streams.extend(descriptors);
            done
        }
        Call::Status(_) => {
            let mut sandbox = sandbox.lock().unwrap();
            sandbox.clients.push(socket.try_clone().unwrap());
            (Outcome::Status(status(&sandbox)), None)
        }
        Call::Processes(_) => (Outcome::Processes(Processes { pids: vec![pid()], elsewhere: None }), None),
        Call::Stats(_) => (Outcome::Stats(br#"{"memory_usage":4096}"#.to_vec()), None),
        Call::Destroy(_) => std::process::exit(0),
        _ => done,
    }
}

fn create(
    sandbox: &Shared,
    socket: &UnixStream,
    call: &Create,
    descriptors: Vec<OwnedFd>,
) -> (Outcome, Option<Outcome>) {
    let plan: ContainerPlan = serde_json::from_slice(&call.plan).unwrap();
    let words = plan.process.args;
    if words[0] == "missing" {
        return (failed("exec: \"missing\": executable file not found in $PATH"), None);
    }
    {
        let mut sandbox = sandbox.lock().unwrap();
        sandbox.folder = PathBuf::from(&call.folder);
        sandbox.words = words.clone();
        sandbox.phase = Phase::Running as i32;
        sandbox.clients.push(socket.try_clone().unwrap());
        for (socket, attachment) in descriptors.iter().zip(&call.attachments) {
            greet(socket, Some(attachment));
        }
        sandbox.streams.extend(descriptors);
    }
    let listener = UnixListener::bind(PathBuf::from(&call.folder).join("task.sock")).unwrap();
    let shared = sandbox.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let shared = shared.clone();
            std::thread::spawn(move || converse(&shared, socket));
        }
    });
    let exits = (words[0] == "exit").then(|| ended(sandbox, words[1].parse().unwrap()));
    (started(), exits)
}

fn exec(call: &Exec, descriptors: Vec<OwnedFd>) -> (Outcome, Option<Outcome>) {
    let process: ProcessPlan = serde_json::from_slice(&call.process).unwrap();
    if process.args[0] == "missing" {
        return (failed("exec: \"missing\": executable file not found in $PATH"), None);
    }
    for (socket, attachment) in descriptors.iter().zip(&call.attachments) {
        greet(socket, Some(attachment));
    }
    let code = process.args.get(1).map_or(0, |code| code.parse().unwrap());
    (started(), Some(Outcome::ExecExited(ExecExited { exec: call.exec.clone(), code })))
}

/// What a client hears: that it was connected.
fn greet(socket: &OwnedFd, attachment: Option<&Attachment>) {
    let text: &[u8] =
        if attachment.unwrap().multiplexed { b"\x01\0\0\0\0\0\0\x06hello\n" } else { b"hello\n" };
    rustix::io::write(socket, text).unwrap();
}

fn signalled(sandbox: &Shared, signal: i32) -> Option<Outcome> {
    let word = sandbox.lock().unwrap().words[0].clone();
    match word.as_str() {
        "vanish" => std::process::exit(1),
        "deaf" | "late" if signal != 9 => None,
        _ => Some(ended(sandbox, 128 + signal)),
    }
}

fn ended(sandbox: &Shared, code: i32) -> Outcome {
    let exited = Exited { code, oom: false, at: now(), error: String::new() };
    let mut sandbox = sandbox.lock().unwrap();
    let record = format!(r#"{{"code":{code},"oom":false,"at":{}}}"#, exited.at);
    let path = sandbox.folder.join("exit.json");
    insula_base::replace(&path, record.as_bytes(), 0o600, insula_base::Durability::Process).unwrap();
    sandbox.exit = Some(exited.clone());
    Outcome::Exited(exited)
}

fn tell(sandbox: &Shared, event: &Outcome) {
    let frame = spoken(sandbox, 0, event.clone());
    let mut sandbox = sandbox.lock().unwrap();
    for mut client in &sandbox.clients {
        let _ = client.write_all(&frame);
    }
    if matches!(event, Outcome::Exited(_)) {
        sandbox.phase = Phase::Ended as i32;
        std::process::exit(0);
    }
}

fn status(sandbox: &Sandbox) -> Status {
    Status {
        phase: sandbox.phase,
        pid: pid(),
        started: now(),
        frozen: sandbox.frozen,
        exit: sandbox.exit.clone(),
        version: if sandbox.words.iter().any(|word| word == "future") { 99 } else { insula_proto::VERSION },
        execs: Vec::new(),
        ended_execs: Vec::new(),
    }
}

fn started() -> Outcome {
    Outcome::Started(Started { pid: pid(), warnings: Vec::new(), at: now(), laps: Vec::new() })
}

fn failed(message: &str) -> Outcome {
    Outcome::Failed(Failed {
        kind: Kind::InvalidArgument.code(),
        message: message.to_owned(),
        exit_code: 127,
    })
}

/// As a monitor says to what came after its time.
fn unknown() -> Outcome {
    let message = "this monitor does not know the request".to_owned();
    Outcome::Failed(Failed { kind: Kind::Unsupported.code(), message, exit_code: 0 })
}

/// As a monitor says whose container has just ended.
fn over() -> Outcome {
    let message = "the container is empty, not created".to_owned();
    Outcome::Failed(Failed { kind: Kind::Conflict.code(), message, exit_code: 0 })
}

fn pid() -> i32 {
    std::process::id().cast_signed()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64
}
