//! A guest of a few instructions on `/dev/kvm`, Documentation/virt/kvm/api.rst of the kernel: enough to
//! see whether it runs them, and how fast.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};

const GET_API_VERSION: libc::c_ulong = 0xae00;
const CREATE_VM: libc::c_ulong = 0xae01;
const GET_VCPU_MMAP_SIZE: libc::c_ulong = 0xae04;
const CREATE_VCPU: libc::c_ulong = 0xae41;
const SET_USER_MEMORY_REGION: libc::c_ulong = 0x4020_ae46;
const SET_TSS_ADDR: libc::c_ulong = 0xae47;
const RUN: libc::c_ulong = 0xae80;
const SET_REGS: libc::c_ulong = 0x4090_ae82;
const GET_SREGS: libc::c_ulong = 0x8138_ae83;
const SET_SREGS: libc::c_ulong = 0x4138_ae84;

/// Bytes of the guest's memory, and where its parts are.
const MEMORY: usize = 0x6000;
const TABLES: [usize; 3] = [0x1000, 0x2000, 0x3000];
const CODE: usize = 0x4000;
/// Where the exit's reason is in what KVM shares of a processor.
const EXIT_REASON: usize = 8;
const EXIT_HLT: u32 = 5;

#[repr(C)]
#[derive(Default)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest: u64,
    size: u64,
    host: u64,
}

/// `kvm_regs`: general registers in KVM's order, the instruction pointer and the flags last.
#[repr(C)]
#[derive(Default)]
struct Registers {
    general: [u64; 16],
    rip: u64,
    rflags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    /// Type, present, dpl, db, s, l, g, avl, unusable, padding.
    bits: [u8; 10],
}

/// `kvm_sregs`.
#[repr(C)]
#[derive(Default)]
struct SystemRegisters {
    /// cs, ds, es, fs, gs, ss, tr, ldt.
    segments: [Segment; 8],
    tables: [u64; 4],
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
    apic_base: u64,
    interrupts: [u64; 4],
}

/// Runs `code` once in 64-bit mode of highest privilege, its memory mapped as it is, until it halts; returns
/// how long that took. An exit for another reason is an error that names it.
pub fn run(code: &[u8]) -> io::Result<Duration> {
    if code.len() > MEMORY - CODE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the guest's code is too long"));
    }
    let kvm = rustix::fs::open("/dev/kvm", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    if number(&kvm, GET_API_VERSION, 0)? != 12 {
        return Err(io::Error::other("/dev/kvm speaks another version than 12"));
    }
    let machine = descriptor(&kvm, CREATE_VM)?;
    // Intel's processors want a page for a task state; others do not mind.
    number(&machine, SET_TSS_ADDR, 0xfffb_d000)?;
    let memory = Mapping::anonymous(MEMORY)?;
    memory.write(0, &guest(code));
    let region = MemoryRegion { size: MEMORY as u64, host: memory.start as u64, ..MemoryRegion::default() };
    // SAFETY: KVM reads a region that lives past the call; the memory that it names outlives the machine,
    // which is closed before (fields are dropped in reverse order of their making).
    check(unsafe { libc::ioctl(machine.as_raw_fd(), SET_USER_MEMORY_REGION, &raw const region) })?;
    let processor = descriptor(&machine, CREATE_VCPU)?;
    prepare(&processor)?;
    let size = usize::try_from(number(&kvm, GET_VCPU_MMAP_SIZE, 0)?).unwrap_or(0);
    if size < EXIT_REASON + 4 {
        return Err(io::Error::other("/dev/kvm shares too little of a processor"));
    }
    let shared = Mapping::of(&processor, size)?;
    let began = Instant::now();
    number(&processor, RUN, 0)?;
    let took = began.elapsed();
    match shared.word(EXIT_REASON) {
        EXIT_HLT => Ok(took),
        reason => Err(io::Error::other(format!("the guest ended with exit {reason} instead of a halt"))),
    }
}

/// Page tables that map the first 2 MiB as they are, and the code.
fn guest(code: &[u8]) -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    let mut memory = vec![0; MEMORY];
    let entries =
        [TABLES[1] as u64 | PRESENT_WRITABLE, TABLES[2] as u64 | PRESENT_WRITABLE, LARGE | PRESENT_WRITABLE];
    for (table, entry) in TABLES.into_iter().zip(entries) {
        memory[table..table + 8].copy_from_slice(&entry.to_le_bytes());
    }
    memory[CODE..CODE + code.len()].copy_from_slice(code);
    memory
}

fn prepare(processor: &OwnedFd) -> io::Result<()> {
    let mut system = SystemRegisters::default();
    // SAFETY: KVM writes a `kvm_sregs`, whose layout this is, and which lives past the call.
    check(unsafe { libc::ioctl(processor.as_raw_fd(), GET_SREGS, &raw mut system) })?;
    let segment = |kind: u8, long: u8| Segment {
        limit: u32::MAX,
        selector: 8,
        bits: [kind, 1, 0, 1 - long, 1, long, 1, 0, 0, 0],
        ..Segment::default()
    };
    system.segments[0] = segment(11, 1);
    system.segments[1..6].fill(segment(3, 0));
    // Protection, numeric errors, paging; physical addresses of 64 bits, the state of SSE; long mode.
    system.cr0 = 0x8000_0031;
    system.cr3 = TABLES[0] as u64;
    system.cr4 = 0x620;
    system.efer = 0x500;
    // SAFETY: KVM reads a `kvm_sregs` that lives past the call.
    check(unsafe { libc::ioctl(processor.as_raw_fd(), SET_SREGS, &raw const system) })?;
    let registers = Registers { rip: CODE as u64, rflags: 2, ..Registers::default() };
    // SAFETY: KVM reads a `kvm_regs`, whose layout this is, and which lives past the call.
    check(unsafe { libc::ioctl(processor.as_raw_fd(), SET_REGS, &raw const registers) })
}

/// An ioctl that takes and returns a number.
fn number(file: &OwnedFd, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: these requests take an integer by value.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    check(result)?;
    Ok(result)
}

fn descriptor(file: &OwnedFd, request: libc::c_ulong) -> io::Result<OwnedFd> {
    let raw: RawFd = number(file, request, 0)?;
    // SAFETY: both requests return a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Memory that is unmapped in the end.
struct Mapping {
    start: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    fn anonymous(length: usize) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping wherever the kernel wants it.
        let start = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, protection, flags)? };
        Ok(Self { start, length })
    }

    fn of(file: &OwnedFd, length: usize) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping wherever the kernel wants it.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, flags, file, 0)? };
        Ok(Self { start, length })
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.length, "within the mapping");
        // SAFETY: the range is within the mapping, which is writable and which nobody else uses yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.cast::<u8>().add(at), bytes.len()) }
    }

    fn word(&self, at: usize) -> u32 {
        assert!(at + 4 <= self.length, "within the mapping");
        // SAFETY: the range is within the mapping; the kernel writes it only while the processor runs.
        unsafe { self.start.cast::<u8>().add(at).cast::<u32>().read_unaligned() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.start, self.length) };
    }
}
