//! The built-in profile: what moby's default profile allows (its state of mid 2026), for the
//! architectures that have tables here.
//!
//! Left out of moby's lists: what only other architectures have, and the condition on kernel 4.8
//! for ptrace(2), since insula needs 5.15.

use super::super::capabilities::Set;
use super::rules::{Arch, Calls, Condition, Profile, RET_ALLOW, Rule, Test};

/// Default: EPERM.
const DENY: u32 = 0x0005_0001;
const NO_SUCH_CALL: u32 = 0x0005_0026;

/// Which bounding set a group of rules is for.
#[derive(Debug, Clone, Copy)]
enum When {
    Always,
    Has(Set),
    Lacks(Set),
}

struct Group {
    when: When,
    calls: Calls,
    action: u32,
    /// Each alternative is one condition; none at all is no condition.
    alternatives: &'static [Condition],
}

const fn allow(when: When, names: &[&str]) -> Group {
    Group { when, calls: Calls::of(names), action: RET_ALLOW, alternatives: &[] }
}

const fn has(name: &str) -> When {
    When::Has(Set::of(&[name]))
}

const fn first(test: Test) -> Condition {
    Condition { index: 0, test }
}

/// Everyone may do these.
#[rustfmt::skip]
const COMMON: &[&str] = &[
    // Files and folders.
    "access", "chdir", "chmod", "chown", "chown32", "close", "close_range", "copy_file_range", "creat",
    "dup", "dup2", "dup3", "faccessat", "faccessat2", "fadvise64", "fadvise64_64", "fallocate",
    "fanotify_mark", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchown32", "fchownat",
    "fcntl", "fcntl64", "fdatasync", "flock", "fstat", "fstat64", "fstatat64", "fstatfs", "fstatfs64",
    "fsync", "ftruncate", "ftruncate64", "futimesat", "getcwd", "getdents", "getdents64",
    "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "ioctl", "lchown",
    "lchown32", "link", "linkat", "listmount", "_llseek", "lseek", "lstat", "lstat64", "mkdir", "mkdirat",
    "mknod", "mknodat", "name_to_handle_at", "newfstatat", "open", "openat", "openat2", "pipe", "pipe2",
    "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink",
    "readlinkat", "readv", "rename", "renameat", "renameat2", "rmdir", "sendfile", "sendfile64", "splice",
    "stat", "stat64", "statfs", "statfs64", "statmount", "statx", "symlink", "symlinkat", "sync",
    "sync_file_range", "syncfs", "tee", "truncate", "truncate64", "umask", "unlink", "unlinkat", "utime",
    "utimensat", "utimensat_time64", "utimes", "vmsplice", "write", "writev",
    // Extended attributes.
    "fgetxattr", "flistxattr", "fremovexattr", "fsetxattr", "getxattr", "getxattrat", "lgetxattr",
    "listxattr", "listxattrat", "llistxattr", "lremovexattr", "lsetxattr", "removexattr", "removexattrat",
    "setxattr", "setxattrat",
    // Waiting for descriptors and events. (io_uring is left out on purpose.)
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2",
    "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "io_cancel", "io_destroy", "io_getevents",
    "io_pgetevents", "io_pgetevents_time64", "io_setup", "io_submit", "_newselect", "poll", "ppoll",
    "ppoll_time64", "pselect6", "pselect6_time64", "select", "signalfd", "signalfd4",
    // Sockets; socket(2) itself is below.
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recv",
    "recvfrom", "recvmmsg", "recvmmsg_time64", "recvmsg", "send", "sendmmsg", "sendmsg", "sendto",
    "setsockopt", "shutdown", "socketcall", "socketpair",
    // Memory.
    "brk", "cachestat", "madvise", "map_shadow_stack", "membarrier", "memfd_create", "memfd_secret",
    "mincore", "mlock", "mlock2", "mlockall", "mmap", "mmap2", "mprotect", "mremap", "mseal", "msync",
    "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free", "pkey_mprotect", "process_mrelease",
    "remap_file_pages",
    // Processes, threads, identity. clone(2) is below.
    "arch_prctl", "capget", "capset", "execve", "execveat", "exit", "exit_group", "fork", "futex",
    "futex_requeue", "futex_time64", "futex_wait", "futex_waitv", "futex_wake", "getcpu", "getegid",
    "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups", "getgroups32", "getpgid",
    "getpgrp", "getpid", "getppid", "getpriority", "getresgid", "getresgid32", "getresuid",
    "getresuid32", "getrlimit", "get_robust_list", "getrusage", "getsid", "get_thread_area", "gettid",
    "getuid", "getuid32", "ioprio_get", "ioprio_set", "landlock_add_rule", "landlock_create_ruleset",
    "landlock_restrict_self", "modify_ldt", "pidfd_open", "prctl", "prlimit64", "process_vm_readv",
    "process_vm_writev", "ptrace", "rseq", "sched_getaffinity", "sched_getattr", "sched_getparam",
    "sched_get_priority_max", "sched_get_priority_min", "sched_getscheduler", "sched_rr_get_interval",
    "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "sched_yield", "seccomp", "setfsgid", "setfsgid32", "setfsuid", "setfsuid32",
    "setgid", "setgid32", "setgroups", "setgroups32", "setpgid", "setpriority", "setregid",
    "setregid32", "setresgid", "setresgid32", "setresuid", "setresuid32", "setreuid", "setreuid32",
    "setrlimit", "set_robust_list", "setsid", "set_thread_area", "set_tid_address", "setuid", "setuid32",
    "sysinfo", "ugetrlimit", "uname", "uretprobe", "vfork", "wait4", "waitid", "waitpid",
    // Signals.
    "kill", "pause", "pidfd_send_signal", "restart_syscall", "rt_sigaction", "rt_sigpending",
    "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
    "rt_sigtimedwait_time64", "rt_tgsigqueueinfo", "sigaltstack", "sigprocmask", "sigreturn", "tgkill",
    "tkill",
    // System V and POSIX inter-process communication.
    "ipc", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64",
    "mq_timedsend", "mq_timedsend_time64", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "semctl",
    "semget", "semop", "semtimedop", "semtimedop_time64", "shmat", "shmctl", "shmdt", "shmget",
    // Clocks, timers, randomness. Adjusting a clock is still up to capabilities.
    "adjtimex", "alarm", "clock_adjtime", "clock_adjtime64", "clock_getres", "clock_getres_time64",
    "clock_gettime", "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "getitimer",
    "getrandom", "gettimeofday", "nanosleep", "setitimer", "time", "timer_create", "timer_delete",
    "timer_getoverrun", "timer_gettime", "timer_gettime64", "timer_settime", "timer_settime64",
    "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime", "timerfd_settime64",
    "times",
];

/// What may be mounted, made a namespace of, or looked at from above.
#[rustfmt::skip]
const ADMIN: &[&str] = &[
    "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick",
    "lookup_dcookie", "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr", "mount",
    "mount_setattr", "move_mount", "open_tree", "perf_event_open", "quotactl", "quotactl_fd",
    "setdomainname", "sethostname", "setns", "syslog", "umount", "umount2", "unshare",
];

/// Address families: all up to ROSE, then one by one. Missing are those that kernels no longer
/// have, ALG (the kernel's cryptography, a wide attack surface) and VSOCK (reaches the host or
/// its machines, whatever the network namespace). socketcall(2) cannot be looked into.
const FAMILIES: [u64; 25] =
    [13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36, 39, 41, 42, 43, 44, 45];

const fn families() -> [Condition; 26] {
    let mut conditions = [first(Test::Less(12)); 26];
    let mut index = 0;
    while index < FAMILIES.len() {
        conditions[index + 1].test = Test::Equal(FAMILIES[index]);
        index += 1;
    }
    conditions
}

static SOCKET: [Condition; 26] = families();

/// Linux and 32-bit Linux, each also as version 2.6, and the question which it is.
static PERSONALITY: [Condition; 5] = [
    first(Test::Equal(0)),
    first(Test::Equal(0x8)),
    first(Test::Equal(0x2_0000)),
    first(Test::Equal(0x2_0008)),
    first(Test::Equal(0xffff_ffff)),
];

/// No flag that makes a namespace: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
static CLONE: [Condition; 1] = [first(Test::MaskedEqual { mask: 0x7e02_0000, value: 0 })];

const SYS_ADMIN: Set = Set::of(&["CAP_SYS_ADMIN"]);

static GROUPS: [Group; 19] = [
    allow(When::Always, COMMON),
    Group { when: When::Always, calls: Calls::of(&["socket"]), action: RET_ALLOW, alternatives: &SOCKET },
    Group {
        when: When::Always,
        calls: Calls::of(&["personality"]),
        action: RET_ALLOW,
        alternatives: &PERSONALITY,
    },
    allow(When::Has(SYS_ADMIN), ADMIN),
    Group {
        when: When::Lacks(SYS_ADMIN),
        calls: Calls::of(&["clone"]),
        action: RET_ALLOW,
        alternatives: &CLONE,
    },
    // Its flags are behind a pointer; C libraries fall back to clone(2).
    Group {
        when: When::Lacks(SYS_ADMIN),
        calls: Calls::of(&["clone3"]),
        action: NO_SUCH_CALL,
        alternatives: &[],
    },
    allow(has("CAP_DAC_READ_SEARCH"), &["open_by_handle_at"]),
    allow(has("CAP_SYS_BOOT"), &["reboot"]),
    allow(has("CAP_SYS_CHROOT"), &["chroot"]),
    allow(has("CAP_SYS_MODULE"), &["delete_module", "finit_module", "init_module"]),
    allow(has("CAP_SYS_PACCT"), &["acct"]),
    allow(has("CAP_SYS_PTRACE"), &["kcmp", "pidfd_getfd", "process_madvise"]),
    allow(has("CAP_SYS_RAWIO"), &["ioperm", "iopl"]),
    allow(has("CAP_SYS_TIME"), &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    allow(has("CAP_SYS_TTY_CONFIG"), &["vhangup"]),
    allow(has("CAP_SYS_NICE"), &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    allow(has("CAP_SYSLOG"), &["syslog"]),
    allow(has("CAP_BPF"), &["bpf"]),
    allow(has("CAP_PERFMON"), &["perf_event_open"]),
];

const VSOCK: u64 = 40;

static VSOCK_SOCKET: Rule<'static> =
    Rule { calls: &Calls::of(&["socket"]), action: RET_ALLOW, conditions: &[first(Test::Equal(VSOCK))] };

/// The profile for a process that sockets to its guest's host were given to.
pub(super) fn profile_with_vsock(bounding: Set) -> Profile<'static> {
    let mut profile = profile(bounding);
    profile.rules.push(VSOCK_SOCKET);
    profile
}

/// The profile for a process with this bounding set.
pub(super) fn profile(bounding: Set) -> Profile<'static> {
    let mut rules = Vec::with_capacity(64);
    for group in &GROUPS {
        let applies = match group.when {
            When::Always => true,
            When::Has(needed) => bounding.contains(needed),
            When::Lacks(needed) => !bounding.contains(needed),
        };
        if !applies {
            continue;
        }
        let rule = |conditions| Rule { calls: &group.calls, action: group.action, conditions };
        if group.alternatives.is_empty() {
            rules.push(rule(&[]));
        } else {
            rules.extend(group.alternatives.chunks(1).map(rule));
        }
    }
    Profile { default: DENY, arches: vec![Arch::X86, Arch::X32], rules, flags: super::FLAG_SPEC_ALLOW }
}
