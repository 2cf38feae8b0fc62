//! Runtime specification, "Seccomp": system calls that somebody outside decides about.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use insula_sys::seccomp::{answer_notification, next_notification};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::{Bundle, Runtime, for_each_runtime};

for_each_runtime!(somebody_else_decides);

/// getppid(2), on x86-64 and elsewhere.
const GETPPID: i32 = if cfg!(target_arch = "x86_64") { 110 } else { 173 };

/// Takes one process, with what is told of it, and answers its first call with `answer`.
fn decide(listener: &UnixListener, answer: i64) -> JoinHandle<(Value, i32)> {
    let listener = listener.try_clone().unwrap();
    std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let mut bytes = vec![0; 1 << 16];
        let (length, descriptors) = insula_sys::socket::receive(socket.as_fd(), &mut bytes).unwrap();
        let [descriptor]: [OwnedFd; 1] = descriptors.try_into().unwrap();
        let told: Value = serde_json::from_slice(&bytes[..length]).unwrap();
        let call = next_notification(descriptor.as_fd()).unwrap();
        answer_notification(descriptor.as_fd(), call.id, Ok(answer)).unwrap();
        // Whoever asks again, as a shell may, gets no other answer.
        while let Ok(call) = next_notification(descriptor.as_fd()) {
            let answered = answer_notification(descriptor.as_fd(), call.id, Ok(answer));
            assert!(matches!(answered, Ok(()) | Err(Errno::NOENT)), "{answered:?}");
        }
        (told, call.number)
    })
}

fn somebody_else_decides(runtime: &Runtime) {
    let mut bundle = Bundle::new(runtime, "sh -c 'echo $PPID'; exec sleep 1000");
    let path = bundle.path("listener");
    let listener = UnixListener::bind(&path).unwrap();
    bundle.config["annotations"] = json!({"a": "b"});
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "listenerPath": path,
        "listenerMetadata": "for who listens",
        "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_NOTIFY"}],
    });
    let first = decide(&listener, 12_345);
    bundle.start();
    let pid = bundle.state()["pid"].clone();
    while !bundle.said("output").contains('\n') {
        std::thread::yield_now();
    }
    assert_eq!(bundle.said("output"), "12345\n");
    let second = decide(&listener, 54_321);
    assert_eq!(bundle.done(&["exec", &bundle.id, "sh", "-c", "echo $PPID"]), "54321\n");
    bundle.done(&["delete", "--force", &bundle.id]);
    for (thread, process) in [(first, Some(&pid)), (second, None)] {
        let (told, number) = thread.join().unwrap();
        assert_eq!(number, GETPPID);
        assert_eq!(told["fds"], json!(["seccompFd"]), "{told}");
        assert_eq!(told["metadata"], "for who listens", "{told}");
        assert_eq!((&told["state"]["id"], &told["state"]["pid"]), (&json!(bundle.id), &pid), "{told}");
        assert_eq!(told["state"]["annotations"]["a"], "b", "{told}");
        match process {
            Some(pid) => assert_eq!(&told["pid"], pid, "{told}"),
            None => assert_ne!(told["pid"], pid, "{told}"),
        }
    }
}

#[test]
fn nobody_to_decide_is_an_error() {
    let Some(runtime) = Runtime::insula() else { return };
    let refused = |seccomp: Value| {
        let mut bundle = Bundle::new(&runtime, "true");
        bundle.config["linux"]["seccomp"] = seccomp;
        let (code, _, said) = bundle.outcome();
        assert!(code == 1 && !bundle.has_groups(), "{said}");
        said
    };
    let notify = json!([{"names": ["getppid"], "action": "SCMP_ACT_NOTIFY"}]);
    let said = refused(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": notify}));
    assert!(said.contains("syscalls[0].action: SCMP_ACT_NOTIFY needs listenerPath"), "{said}");
    let said = refused(
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": notify, "listenerPath": "/nonexistent/socket"}),
    );
    assert!(said.contains("linux.seccomp.listenerPath /nonexistent/socket"), "{said}");
    let said = refused(json!({"defaultAction": "SCMP_ACT_NOTIFY"}));
    assert!(said.contains("defaultAction: cannot be SCMP_ACT_NOTIFY"), "{said}");
}
