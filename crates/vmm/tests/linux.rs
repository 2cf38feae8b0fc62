//! A distribution's kernel in this machine. It needs a KVM that runs such kernels, which a nested or
//! emulating host may not have; the end-to-end tests run this program in a machine that has one, and
//! name kernel and initial file system in the environment.
//!
//! The guest executes each line that it reads from the port `test` and answers with the output and a
//! line that says `END`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use insula_vmm_core::virtio::block::{Access, Disk};
use insula_vmm_core::virtio::console::Console;
use insula_vmm_core::virtio::entropy::Entropy;
use insula_vmm_core::{Host, Kernel, Machine, Running, Shape, Stop};
use rustix::event::{PollFd, PollFlags, poll};

const KERNEL: &str = "INSULA_TEST_GUEST_KERNEL";
const INITRD: &str = "INSULA_TEST_GUEST_INITRD";
const ARGUMENTS: &str = "INSULA_TEST_GUEST_ARGUMENTS";

/// What the guest prints.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A machine and the port into it.
struct Guest {
    running: Running,
    port: UnixStream,
    screen: Screen,
    heard: String,
}

impl Guest {
    fn new(running: Running, port: UnixStream, screen: Screen) -> Self {
        port.set_nonblocking(true).unwrap();
        running.resume().unwrap();
        Self { running, port, screen, heard: String::new() }
    }

    /// Serves the machine until the guest has said `END`.
    fn listen(&mut self) -> String {
        loop {
            if let Some((answer, rest)) = self.heard.split_once("END\n") {
                let answer = answer.trim().to_owned();
                self.heard = rest.to_owned();
                return answer;
            }
            let (machine, port) = (self.running.event_fd(), self.port.as_fd());
            let mut descriptors = [PollFd::new(&machine, PollFlags::IN), PollFd::new(&port, PollFlags::IN)];
            poll(&mut descriptors, None).unwrap();
            let stop = self.running.turn().unwrap();
            let console = String::from_utf8_lossy(&self.screen.0.lock().unwrap()).into_owned();
            assert_eq!(stop, None, "the guest ended: {console}");
            let mut bytes = [0; 4096];
            if let Ok(length) = self.port.read(&mut bytes) {
                self.heard.push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        }
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.port, "{command}").unwrap();
        self.listen()
    }

    fn switch_off(mut self) -> Stop {
        writeln!(self.port, "poweroff -f").unwrap();
        self.running.run().unwrap()
    }
}

fn attach(machine: &mut Machine, disk: &File) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    machine
        .attach(Box::new(Disk::new(disk.try_clone().unwrap(), Access::ReadWrite, "first").unwrap()))
        .unwrap();
    machine.attach(Box::new(Console::new([("test".to_owned(), theirs)]).unwrap())).unwrap();
    machine.attach(Box::new(Entropy)).unwrap();
    ours
}

#[test]
fn a_kernel_of_a_distribution_boots_is_saved_and_goes_on_twice() {
    let (Ok(kernel), Ok(initrd)) = (std::env::var(KERNEL), std::env::var(INITRD)) else {
        eprintln!("skipped: needs {KERNEL} and {INITRD}");
        return;
    };
    let mut disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();
    let screen = Screen::default();
    let mut machine =
        Machine::new(Host::open().unwrap(), Shape { cpus: 2, memory: 128 << 20 }, Box::new(screen.clone()))
            .unwrap();
    let port = attach(&mut machine, &disk);
    let kernel = Kernel {
        image: File::open(&kernel).unwrap(),
        name: kernel,
        initrd: Some(File::open(initrd).unwrap()),
        command_line: format!("console=ttyS0 panic=-1 {}", std::env::var(ARGUMENTS).unwrap_or_default()),
    };
    let mut guest = Guest::new(machine.boot(&kernel).unwrap(), port, screen);
    assert_eq!(guest.listen(), "up");
    assert_eq!(guest.ask("nproc"), "2");
    assert_eq!(guest.ask("cat /sys/block/vda/serial /sys/block/vda/size"), "first2048");
    assert_eq!(guest.ask("cat /sys/class/misc/hw_random/rng_current"), "virtio_rng.0");
    assert_eq!(guest.ask("echo written | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null; kept=47"), "");
    let mut first = [0; 8];
    disk.rewind().unwrap();
    disk.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"written\n");
    // More than fits into the queue and the socket, in both directions.
    assert_eq!(guest.ask("head -c 3000000 /dev/zero | tr '\\0' x").len(), 3_000_000);

    guest.running.pause().unwrap();
    let [mut state, memory] = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    guest.running.save(&mut state, &memory).unwrap();
    for _ in 0..2 {
        let screen = Screen::default();
        state.rewind().unwrap();
        let (mut machine, snapshot) = Machine::of_snapshot(
            Host::open().unwrap(),
            &mut state,
            memory.try_clone().unwrap(),
            Box::new(screen.clone()),
        )
        .unwrap();
        let port = attach(&mut machine, &disk);
        let mut restored = Guest::new(machine.restore(&snapshot).unwrap(), port, screen);
        assert_eq!(restored.ask("echo $kept"), "47");
        assert_eq!(
            restored.ask("dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | head -c 7"),
            "written"
        );
        assert_eq!(restored.switch_off(), Stop::PowerOff);
    }
    guest.running.resume().unwrap();
    assert_eq!(guest.ask("echo $kept"), "47");
    assert_eq!(guest.switch_off(), Stop::PowerOff);
    eprintln!("linux ran");
}
