//! Machines of containers that have a kernel of their own: insula's addition, below `/insula`.

use crate::lenient::document;

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
        /// Milliseconds from its start to the agent's first word.
        boot_milliseconds: u64,
    }
}
