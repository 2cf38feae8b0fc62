//! Machines of containers that have a kernel of their own: insula's addition, below `/insula`.

use crate::lenient::{document, is_zero};

document! {
    /// A kernel for guests: an element of `GET /insula/kernels`.
    Kernel {
        release: String,
        /// The bootable file.
        image: String,
        /// The folder of its modules.
        modules: String,
        /// Machines boot it from now on.
        current: bool,
    }
}

document! {
    /// What containers with a kernel of their own run on, in `GET /info`.
    MachinesInfo {
        /// `kvm` or `qemu`.
        backend: String,
        /// Why it is that one, if somebody has to be told.
        why: String,
        /// Release of the kernel that they boot; empty where there is none.
        kernel: String,
    }
}

document! {
    /// Body of `POST /insula/kernels/use`.
    KernelUseRequest {
        /// A bootable file, or a folder with one as a package unpacks it; absolute, on the daemon's host.
        path: String,
    }
}

document! {
    /// The machine of a container, in its description.
    Machine {
        /// `kvm` or `qemu`.
        backend: String,
        program: String,
        pid: i64,
        cpus: u32,
        /// Bytes.
        memory: u64,
        /// Release of the kernel that it runs.
        kernel: String,
        /// Milliseconds from its start until it was ready for its container.
        boot_milliseconds: u64,
        /// It is a copy of a template, and has not booted.
        template: bool,
        /// How it has its container's root: `mapped` into its memory from an image (virtio-pmem with DAX), or `served`
        /// by virtiofs. Not of a tenant's machine itself.
        #[serde(skip_serializing_if = "is_zero")]
        root: String,
        /// A Unix socket: who connects there, says `CONNECT port` and a line's end and is answered `OK`, has a stream
        /// to a program of the guest's that listens at that port of AF_VSOCK. Who listens at this path with `_port`
        /// behind it is reached by programs of the guest's as port of CID 2. Not there without `--device /dev/vsock`.
        #[serde(skip_serializing_if = "is_zero")]
        vsock: String,
    }
}

document! {
    /// Containers that share a machine: an element of `GET /insula/tenants`.
    Tenant {
        name: String,
        /// Seconds since 1970.
        created: i64,
        /// Billionths of a processor.
        nano_cpus: i64,
        /// Bytes that its containers have together.
        memory: u64,
        /// Network cards that its containers have together.
        cards: u64,
        /// Its machine stays when its last container has ended.
        keep: bool,
        /// Names of its containers, whether they run or not.
        containers: Vec<String>,
        /// Its machine, as long as it runs.
        machine: Option<Machine>,
    }
}

document! {
    /// Body of `POST /insula/tenants`.
    TenantCreateRequest {
        name: String,
        /// Billionths of a processor; 0 for one processor.
        nano_cpus: i64,
        /// Bytes that its containers have together; 0 for 512 MiB.
        memory: i64,
        /// Network cards that its containers have together; 8 where nothing is said, and at most 16.
        cards: Option<u64>,
        /// Its machine stays when its last container has ended.
        keep: bool,
    }
}

document! {
    /// How much of its memory a machine's guest has written: `GET /insula/containers/{id}/dirty-rate`.
    DirtyRate {
        /// `kvm` or `qemu`.
        backend: String,
        /// Bytes of memory that the machine has.
        memory: u64,
        /// How long it was measured.
        milliseconds: u64,
        /// Pages of 4096 bytes that were written in that time, each counted once.
        pages: u64,
        /// The same in bytes.
        bytes: u64,
        pages_per_second: u64,
        bytes_per_second: u64,
        /// An estimate from samples, of whole MiB a second, and no count.
        sampled: bool,
    }
}

document! {
    /// A machine that was saved right before it took a container: an element of `GET /insula/templates`.
    Template {
        id: String,
        /// `kvm` or `qemu`.
        backend: String,
        /// Release of the kernel that runs in it.
        kernel: String,
        cpus: u32,
        /// Bytes.
        memory: u64,
        /// How many network interfaces it has.
        interfaces: u64,
        /// It is for machines of tenants: the interfaces are all cards of theirs.
        tenant: bool,
        /// It is for containers with sockets to the host.
        vsock: bool,
        /// Bytes on disk.
        size: u64,
        /// Seconds since 1970.
        created: i64,
        /// Milliseconds that its boot took.
        boot_milliseconds: u64,
        /// No new machine is a copy of it: kernel, agent or backend are others by now, or it is damaged.
        stale: bool,
    }
}

document! {
    /// Body of `POST /insula/templates`: limits of the containers that it is for.
    TemplateRequest {
        /// 0 for one processor.
        nano_cpus: i64,
        /// Bytes; 0 for a container without a limit.
        memory: i64,
        /// How many networks they are connected to.
        interfaces: u64,
        /// They have sockets to the host: `--device /dev/vsock`.
        vsock: bool,
        /// Name of the tenant whose machine it is for; the other fields are not looked at then.
        tenant: String,
    }
}

document! {
    /// Answer to `POST /insula/templates/prune`.
    TemplatesPruned {
        templates_deleted: Vec<String>,
        /// Bytes.
        space_reclaimed: u64,
    }
}
