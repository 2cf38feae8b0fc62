//! What the process of a machine can still do once its guest runs: read and write what it has open, run
//! processors, manage its own memory, end. A guest that breaks out of a device finds no files (Landlock) and a
//! filter of system calls that ends the process at the first one that is not listed here; each thread has its own.
//!
//! Who starts the process gives it namespaces with nothing in them and a user that owns nothing; it may gain no
//! privileges, which both of these need.

use insula_host::confine::seccomp::{Allowed, Program, allow_only};
use kvm_bindings::{
    kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_dirty_log, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_msr_list, kvm_msrs, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_userspace_memory_region,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

use crate::error::{Error, Result};

/// `KVM_RUN`
const RUN: u64 = 0xae80;
/// `TUNSETOFFLOAD`, linux/if_tun.h
const OFFLOAD: u64 = 0x4004_54d0;
const PROT_EXEC: u64 = libc::PROT_EXEC as u64;

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It works the queues of all devices off.
    Devices,
    /// It runs a processor, and serves what that does to registers.
    Processor,
    /// It carries messages between a port and a server of files.
    Relay,
    /// The first, of a machine that is saved.
    SavedDevices,
    /// The second, of a machine that is saved.
    SavedProcessor,
}

/// A filter for threads of one role.
#[derive(Debug, Clone)]
pub struct Filter(Program);

impl Filter {
    pub fn of(role: Role) -> Result<Self> {
        Self::with(role, &[])
    }

    /// For the devices of a guest that has sockets to the host.
    pub fn with_sockets(role: Role) -> Result<Self> {
        Self::with(role, SOCKETS)
    }

    fn with(role: Role, more: &[Allowed<'static>]) -> Result<Self> {
        let special = match role {
            Role::Devices => &[DEVICES, &logs_writes()].concat(),
            Role::Processor => PROCESSOR,
            Role::Relay => RELAY,
            Role::SavedDevices => &[DEVICES, &saves_machine()].concat(),
            Role::SavedProcessor => &[PROCESSOR, &saves_processor()].concat(),
        };
        let calls = [&always()[..], special, more].concat();
        allow_only(&calls)
            .map(Self)
            .map_err(|error| Error::call("compile", "a filter", std::io::Error::other(error)))
    }

    /// Puts it before every later system call of this thread, and of those that it starts.
    pub fn install(&self) -> Result<()> {
        let installed = self.0.install();
        installed.map(drop).map_err(|error| Error::call("seccomp", "a thread", std::io::Error::other(error)))
    }
}

/// Takes files, networks and other processes away from this thread and those that it starts; what is open
/// stays so. False where the kernel has no Landlock.
pub fn give_files_up() -> Result<bool> {
    let failed = |call| move |source| Error::call(call, "this process", source);
    insula_sys::process::no_new_privileges().map_err(failed("prctl PR_SET_NO_NEW_PRIVS"))?;
    insula_sys::landlock::forbid_everything().map_err(failed("landlock_restrict_self"))
}

/// What every thread may do.
fn always() -> Vec<Allowed<'static>> {
    let own = u64::from(std::process::id());
    vec![
        // Locks, channels, the end of threads.
        Allowed::any("futex"),
        Allowed::any("sched_yield"),
        // Memory for what a request needs; never such that can be executed.
        Allowed::any("brk"),
        Allowed::without("mmap", 2, PROT_EXEC),
        Allowed::without("mprotect", 2, PROT_EXEC),
        Allowed::any("mremap"),
        Allowed::any("munmap"),
        Allowed::any("madvise"),
        // Events, frames of a tap, the serial line, warnings.
        Allowed::any("read"),
        Allowed::any("write"),
        // What is not needed any more.
        Allowed::any("close"),
        // Whether it is open, which builds for debugging ask before (`F_GETFD`).
        Allowed::with("fcntl", 1, libc::F_GETFD as u64),
        // Seeds of hash maps, and what the entropy device gives.
        Allowed::any("getrandom"),
        // The end of a signal's handler, and what a panic does before it aborts.
        Allowed::any("rt_sigreturn"),
        Allowed::any("rt_sigprocmask"),
        Allowed::any("getpid"),
        Allowed::any("gettid"),
        // A signal to a thread of this process: to a processor that is to stop, or that of abort(3).
        Allowed::with("tgkill", 0, own),
        // Where the kernel has no faster way to the time, and waits that a signal interrupted.
        Allowed::any("clock_gettime"),
        Allowed::any("restart_syscall"),
        // The end of a thread, and of the process.
        Allowed::any("sigaltstack"),
        Allowed::any("exit"),
        Allowed::any("exit_group"),
    ]
}

const DEVICES: &[Allowed<'static>] = &[
    // Waits for everything.
    Allowed::any("epoll_wait"),
    Allowed::any("epoll_pwait"),
    Allowed::any("epoll_pwait2"),
    // Ports of the console are sockets.
    Allowed::any("recvfrom"),
    Allowed::any("sendto"),
    // Disks: requests, flushes, blocks that are given back.
    Allowed::any("preadv"),
    Allowed::any("pwritev"),
    Allowed::any("fdatasync"),
    Allowed::any("fallocate"),
    // When a card that has sent as much as it may goes on, and how long writes are counted.
    Allowed::any("timerfd_settime"),
];

/// Beside what devices need where the guest has sockets to the host.
const SOCKETS: &[Allowed<'static>] = &[
    // Who wants to reach the guest connects to a socket that listens already; who the guest wants to reach is
    // connected to by somebody else, and comes with a message.
    Allowed::any("accept4"),
    Allowed::any("recvmsg"),
    // Such a connection is watched, and can end in one direction before the other.
    Allowed::any("epoll_ctl"),
    Allowed::any("shutdown"),
];

const PROCESSOR: &[Allowed<'static>] = &[
    Allowed::with("ioctl", 1, RUN),
    // A driver that begins or ends says what frames its card takes.
    Allowed::with("ioctl", 1, OFFLOAD),
    // And the server of a shared folder gets its queues, or gives them back.
    Allowed::any("recvmsg"),
    Allowed::any("sendmsg"),
];

const RELAY: &[Allowed<'static>] = &[
    // Waits for both sides.
    Allowed::any("poll"),
    Allowed::any("ppoll"),
    // The port is a socket.
    Allowed::any("recvfrom"),
    Allowed::any("sendto"),
    // The server is told that nobody needs it any more.
    Allowed::any("recvmsg"),
    Allowed::any("sendmsg"),
];

/// A request to KVM that reads a `T`.
const fn says<T>(number: u64) -> u64 {
    const WRITE: u64 = 1;
    (WRITE << 30) | (size_of::<T>() as u64) << 16 | KVM | number
}

/// A request to KVM that fills a `T`.
const fn gets<T>(number: u64) -> u64 {
    const READ: u64 = 2;
    (READ << 30) | (size_of::<T>() as u64) << 16 | KVM | number
}

/// One that also reads a `T`.
const fn asks<T>(number: u64) -> u64 {
    const WRITE: u64 = 1;
    (WRITE << 30) | gets::<T>(number)
}

/// `KVMIO`, linux/kvm.h
const KVM: u64 = 0xae00;

/// Beside what all devices need, where somebody may ask what the guest writes.
fn logs_writes() -> Vec<Allowed<'static>> {
    let log = [
        // Which pages were written.
        says::<kvm_dirty_log>(0x42),
        // The log goes on, and off. A guest sees other memory by it too, but none that is not this process' own.
        says::<kvm_userspace_memory_region>(0x46),
    ];
    log.into_iter().map(|request| Allowed::with("ioctl", 1, request)).collect()
}

/// Beside what the devices of every machine that is saved need.
fn saves_machine() -> Vec<Allowed<'static>> {
    let state = [
        // Which registers a processor has.
        asks::<kvm_msr_list>(0x02),
        // What the kernel has of a machine: interrupt controllers, clock, timer.
        asks::<kvm_irqchip>(0x62),
        gets::<kvm_clock_data>(0x7c),
        gets::<kvm_pit_state2>(0x9f),
    ];
    let state = state.into_iter().map(|request| Allowed::with("ioctl", 1, request));
    // Waits for who is to say when.
    [Allowed::any("poll"), Allowed::any("ppoll")].into_iter().chain(state).collect()
}

/// Beside what every processor needs: each part of its state.
fn saves_processor() -> Vec<Allowed<'static>> {
    let state = [
        gets::<kvm_regs>(0x81),
        gets::<kvm_sregs>(0x83),
        asks::<kvm_msrs>(0x88),
        gets::<kvm_lapic_state>(0x8e),
        asks::<kvm_cpuid2>(0x91),
        gets::<kvm_mp_state>(0x98),
        gets::<kvm_vcpu_events>(0x9f),
        gets::<kvm_debugregs>(0xa1),
        // KVM_GET_TSC_KHZ answers with a number.
        KVM | 0xa3,
        gets::<kvm_xsave>(0xa4),
        gets::<kvm_xcrs>(0xa6),
    ];
    state.into_iter().map(|request| Allowed::with("ioctl", 1, request)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    const ACTION: &str = "INSULA_TEST_JAIL";
    const ROLES: [(&str, Role); 5] = [
        ("devices", Role::Devices),
        ("processor", Role::Processor),
        ("relay", Role::Relay),
        ("saved-devices", Role::SavedDevices),
        ("saved-processor", Role::SavedProcessor),
    ];
    const FORBIDDEN: [&str; 8] = ["open", "socket", "execute", "thread", "code", "control", "kill", "accept"];

    fn act(action: &str, file: &std::fs::File) {
        match action {
            "open" => drop(std::fs::File::open("/dev/null")),
            "socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
            "execute" => drop(Command::new("true").status()),
            "thread" => drop(std::thread::Builder::new().spawn(|| ())),
            "code" => {
                use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
                let flags = ProtFlags::READ | ProtFlags::EXEC;
                // SAFETY: a new mapping that nobody uses.
                let _ = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, flags, MapFlags::PRIVATE) };
            }
            "control" => drop(rustix::io::ioctl_fionread(file)),
            "kill" => drop(rustix::process::test_kill_process(rustix::process::getpid())),
            "accept" => drop(rustix::net::accept_with(file, rustix::net::SocketFlags::CLOEXEC)),
            other => panic!("{other}"),
        }
    }

    /// Of a process of its own: see the test below.
    #[test]
    fn what_a_child_does() {
        let Ok(asked) = std::env::var(ACTION) else { return };
        let (role, action) = asked.split_once(' ').unwrap();
        let role = ROLES.iter().find(|(name, _)| *name == role).unwrap().1;
        let file = std::fs::File::open("/dev/null").unwrap();
        insula_sys::process::no_new_privileges().unwrap();
        Filter::of(role).unwrap().install().unwrap();
        act(action, &file);
    }

    #[test]
    fn a_forbidden_call_ends_the_process() {
        const SIGSYS: i32 = 31;
        for (number, (role, _)) in ROLES.into_iter().enumerate() {
            // Those after the first have been taken from the same list, but for a few.
            let actions = if number == 0 { &FORBIDDEN[..] } else { &FORBIDDEN[..2] };
            for action in actions {
                let status = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "jail::tests::what_a_child_does"])
                    .env(ACTION, format!("{role} {action}"))
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status()
                    .unwrap();
                assert_eq!(status.signal(), Some(SIGSYS), "{role} {action}: {status}");
            }
        }
    }

    #[test]
    fn what_every_role_needs_passes() {
        for (_, role) in ROLES {
            // One that does not pass ends this process.
            std::thread::spawn(move || {
                let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
                insula_sys::process::no_new_privileges().unwrap();
                Filter::of(role).unwrap().install().unwrap();
                event.write(7).unwrap();
                assert_eq!(event.read().unwrap(), 7);
                let large: Vec<u8> = (0..4 << 20).map(|number| number as u8).collect();
                assert_eq!(large.iter().filter(|byte| **byte == 1).count(), (4 << 20) / 256);
                let mut seeded = std::collections::HashMap::new();
                seeded.insert("one", std::time::Instant::now());
                assert!(seeded["one"].elapsed().as_secs() < 1000);
            })
            .join()
            .unwrap();
        }
    }
}
