/* The kernel's work for one container, and nothing else: no engine, no image, no state, no user namespace, no
 * filter of system calls. FOLDER has the prepared root file system as `rootfs`, with `proc`, `sys` and `dev` in it; NAME is new;
 * VOLUME is mounted at /mnt. Run as root: floor [-v VOLUME] FOLDER NAME PROGRAM [ARGUMENT...]. Built statically, as a floor below
 * which no engine with these namespaces, control groups and mounts can be. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define MUST(call) ((call) == -1 ? fail(#call) : (void)0)
#define COUNT(array) (sizeof(array) / sizeof(*(array)))

static const char *const groups[] = {"cpu",     "cpuacct", "cpuset", "memory", "devices",
                                     "freezer", "blkio",   "pids",   "systemd", "unified"};
static const char *const masked[] = {"proc/acpi", "proc/kcore", "proc/keys", "proc/latency_stats",
                                     "proc/timer_list", "proc/scsi", "sys/firmware"};
static const char *const guarded[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"};
static const struct { const char *name; int major, minor; } nodes[] = {
    {"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};

static void fail(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(125);
}

static const char *at(const char *format, const char *first, const char *second) {
    static char text[4096];
    if ((size_t)snprintf(text, sizeof text, format, first, second) >= sizeof text) {
        errno = ENAMETOOLONG;
        fail(first);
    }
    return text;
}

/* A group of this name in each hierarchy that is mounted, open for the child to enter; cpuset wants to be told what
 * it may use. Of version 2 it is the group itself, into which the child is cloned. */
static int make(const char *hierarchy, const char *name) {
    if (mkdir(at("/sys/fs/cgroup/%s/%s", hierarchy, name), 0755) == -1) {
        if (errno == ENOENT) return -1;
        fail("mkdir a control group");
    }
    int group = open(at("/sys/fs/cgroup/%s/%s", hierarchy, name), O_PATH | O_CLOEXEC);
    if (!strcmp(hierarchy, "unified")) return group;
    for (int part = 0; !strcmp(hierarchy, "cpuset") && part < 2; part++) {
        const char *file = part ? "cpuset.mems" : "cpuset.cpus";
        char value[256];
        int from = open(at("/sys/fs/cgroup/cpuset/%s%s", file, ""), O_RDONLY | O_CLOEXEC);
        int to = openat(group, file, O_WRONLY | O_CLOEXEC);
        ssize_t count = read(from, value, sizeof value);
        MUST(write(to, value, (size_t)count));
        close(from);
        close(to);
    }
    /* Who moves itself, and a thread alone, is spared the wait for all processors that a move of others takes. */
    int tasks = openat(group, "tasks", O_WRONLY | O_CLOEXEC);
    close(group);
    return tasks;
}

static void leave(const char *name) {
    for (size_t i = 0; i < COUNT(groups); i++)
        if (rmdir(at("/sys/fs/cgroup/%s/%s", groups[i], name)) == -1 && errno != ENOENT) fail("rmdir a control group");
}

static void devices(void) {
    MUST(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=64k"));
    for (size_t i = 0; i < COUNT(nodes); i++)
        MUST(mknod(at("dev/%s%s", nodes[i].name, ""), S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)));
    MUST(mkdir("dev/pts", 0755));
    MUST(mkdir("dev/shm", 0755));
    MUST(mkdir("dev/mqueue", 0755));
    MUST(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"));
    MUST(mount("shm", "dev/shm", "tmpfs", MS_NOSUID | MS_NOEXEC | MS_NODEV, "mode=1777,size=65536k"));
    MUST(mount("mqueue", "dev/mqueue", "mqueue", MS_NOSUID | MS_NOEXEC | MS_NODEV, ""));
    MUST(symlink("pts/ptmx", "dev/ptmx"));
    MUST(symlink("/proc/self/fd", "dev/fd"));
    MUST(symlink("/proc/self/fd/0", "dev/stdin"));
    MUST(symlink("/proc/self/fd/1", "dev/stdout"));
    MUST(symlink("/proc/self/fd/2", "dev/stderr"));
}

/* Nothing is there, or nothing can be changed there. Kernels do not have all of them. */
static void guard(void) {
    for (size_t i = 0; i < COUNT(masked); i++) {
        struct stat found;
        if (stat(masked[i], &found) == -1) continue;
        if (S_ISDIR(found.st_mode))
            MUST(mount("tmpfs", masked[i], "tmpfs", MS_RDONLY, "size=0"));
        else
            MUST(mount("dev/null", masked[i], NULL, MS_BIND, NULL));
    }
    for (size_t i = 0; i < COUNT(guarded); i++) {
        if (mount(guarded[i], guarded[i], NULL, MS_BIND | MS_REC, NULL) == -1) continue;
        MUST(mount(NULL, guarded[i], NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
    }
}

static void root(const char *folder, const char *name, const char *volume) {
    static char options[8192], place[4096];
    MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    snprintf(options, sizeof options, "lowerdir=%s/rootfs,upperdir=%s/%s/upper,workdir=%s/%s/work", folder, folder, name,
             folder, name);
    snprintf(place, sizeof place, "%s/%s/root", folder, name);
    MUST(mount("overlay", place, "overlay", 0, options));
    MUST(chdir(place));
    if (volume) MUST(mount(volume, "mnt", NULL, MS_BIND, NULL));
    MUST(mount("proc", "proc", "proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL));
    MUST(mount("sysfs", "sys", "sysfs", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, NULL));
    devices();
    guard();
    MUST(syscall(SYS_pivot_root, ".", "."));
    MUST(umount2(".", MNT_DETACH));
    MUST(chdir("/"));
}

static void loopback(void) {
    struct ifreq interface = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    MUST(ioctl(any, SIOCSIFFLAGS, &interface));
    close(any);
}

/* The fourteen that Docker leaves. */
static void confine(void) {
    const unsigned long long kept = 0xa80425fb;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[2] = {{kept, kept, 0}, {0, 0, 0}};
    for (int capability = 0; capability <= CAP_LAST_CAP; capability++)
        if (!(kept >> capability & 1)) MUST(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0));
    MUST(syscall(SYS_capset, &header, sets));
}

int main(int count, char **words) {
    const char *volume = NULL;
    if (count > 2 && !strcmp(words[1], "-v")) {
        volume = words[2];
        count -= 2;
        words += 2;
    }
    if (count < 4) {
        fprintf(stderr, "usage: floor [-v VOLUME] FOLDER NAME PROGRAM [ARGUMENT...]\n");
        return 125;
    }
    const char *folder = words[1], *name = words[2];
    const char *own = strdup(at("%s/%s", folder, name));
    MUST(mkdir(own, 0700));
    MUST(mkdir(at("%s/%s", own, "upper"), 0755));
    MUST(mkdir(at("%s/%s", own, "work"), 0755));
    MUST(mkdir(at("%s/%s", own, "root"), 0755));
    int open[COUNT(groups)];
    for (size_t i = 0; i < COUNT(groups); i++) open[i] = make(groups[i], name);
    const int unified = open[COUNT(groups) - 1];
    struct clone_args arguments = {
        .flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS,
        .exit_signal = SIGCHLD,
    };
    if (unified != -1) {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = (unsigned long long)unified;
    }
    pid_t child = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    MUST(child);
    if (child == 0) {
        for (size_t i = 0; i < COUNT(groups) - 1; i++)
            if (open[i] != -1) MUST(write(open[i], "0", 1));
        MUST(unshare(CLONE_NEWCGROUP));
        root(folder, name, volume);
        loopback();
        MUST(sethostname(name, strlen(name)));
        confine();
        char *environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
        execve(words[3], words + 3, environment);
        fail("execve");
    }
    int status;
    MUST(waitpid(child, &status, 0));
    leave(name);
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    /* Who has a volume has work that may write anywhere: the caller removes what it wrote. */
    if (volume) return code;
    static const char *const parts[] = {"work/work", "work", "upper", "root", ""};
    for (size_t i = 0; i < COUNT(parts); i++) MUST(rmdir(at("%s/%s", own, parts[i])));
    return code;
}
