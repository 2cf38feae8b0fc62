//! bpf(2), as far as the device filter of cgroup version 2 needs it.
//! Instructions: `Documentation/bpf/standardization/instruction-set.rst`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One instruction, `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper.
    registers: u8,
    offset: i16,
    value: i32,
}

impl Instruction {
    /// The instruction as a little-endian kernel has it in memory.
    #[must_use]
    pub fn bytes(self) -> [u8; 8] {
        let ([o0, o1], [v0, v1, v2, v3]) = (self.offset.to_le_bytes(), self.value.to_le_bytes());
        [self.code, self.registers, o0, o1, v0, v1, v2, v3]
    }
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, value }
}

/// `to = *(u32 *)(from + offset)`.
#[must_use]
pub const fn load_word(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x61, to, from, offset, 0)
}

/// `to = from`, 64 bits.
#[must_use]
pub const fn move_register(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

/// `to = value`.
#[must_use]
pub const fn move_value(to: u8, value: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, value)
}

/// `to &= value`.
#[must_use]
pub const fn and(to: u8, value: i32) -> Instruction {
    instruction(0x57, to, 0, 0, value)
}

/// `to >>= bits`, unsigned.
#[must_use]
pub const fn shift_right(to: u8, bits: i32) -> Instruction {
    instruction(0x77, to, 0, 0, bits)
}

/// Skips `distance` instructions unless the lower 32 bits of `register` are `value`.
#[must_use]
pub const fn jump_unless_equal(register: u8, value: i32, distance: i16) -> Instruction {
    instruction(0x56, register, 0, distance, value)
}

/// Skips `distance` instructions if the lower 32 bits of `register` are `value`.
#[must_use]
pub const fn jump_if_equal(register: u8, value: i32, distance: i16) -> Instruction {
    instruction(0x16, register, 0, distance, value)
}

/// Ends the program with r0 as its result.
#[must_use]
pub const fn exit() -> Instruction {
    instruction(0x95, 0, 0, 0, 0)
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
/// What the programs that are loaded here are called, by which they are known again.
const NAME: [u8; 16] = *b"insula_devices\0\0";
/// The kernel attaches no more to one group.
const MOST: usize = 64;

/// The first members of `union bpf_attr` for `BPF_PROG_LOAD`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Load {
    program_type: u32,
    length: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The first members of `union bpf_attr` for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// All members of `union bpf_attr` for `BPF_PROG_QUERY`. The kernel writes the last of them whatever size it was told.
#[derive(Clone, Copy)]
#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    reserved: u32,
    attach_flags_each: u64,
    links: u64,
    link_attach_flags: u64,
    revision: u64,
}

const _: () = assert!(size_of::<Query>() == 64 && std::mem::offset_of!(Query, revision) == 56);

/// What the kernel may write beyond what it knows a program to have: `union bpf_attr` is as long as its longest member.
const ROOM: usize = 160;

/// Attributes with room behind them.
#[repr(C)]
struct Roomy<T> {
    attributes: T,
    room: [u8; ROOM],
}

/// The same for `BPF_PROG_GET_FD_BY_ID`.
#[derive(Clone, Copy)]
#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// The same for `BPF_OBJ_GET_INFO_BY_FD`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Information {
    program: u32,
    length: u32,
    information: u64,
}

/// The first members of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInformation {
    /// Kind, number, digest, lengths, instructions, times and maps.
    before: [u64; 8],
    name: [u8; 16],
}

/// Loads a `BPF_PROG_TYPE_CGROUP_DEVICE` program. The descriptor is close-on-exec.
///
/// # Errors
/// `EPERM` without `CAP_BPF`/`CAP_SYS_ADMIN`, `EINVAL` or `EACCES` when the verifier refuses.
pub fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let length = u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut attributes = Load {
        program_type: PROG_TYPE_CGROUP_DEVICE,
        length,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: NAME,
    };
    descriptor(PROG_LOAD, &mut attributes)
}

/// Attaches a device program to a cgroup2 folder, beside programs that others attached. It lives as
/// long as the folder.
///
/// # Errors
/// `EBADF` when `cgroup` is not on cgroup2, `EPERM` when a parent's program forbids others.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    call(PROG_ATTACH, &mut attachment(cgroup, program, ALLOW_MULTI)).map(drop)
}

/// Takes a device program away from a cgroup2 folder again.
///
/// # Errors
/// `ENOENT` when it is not attached.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    call(PROG_DETACH, &mut attachment(cgroup, program, 0)).map(drop)
}

fn attachment(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>, flags: u32) -> Attach {
    Attach {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        flags,
    }
}

/// The device programs of [`load_device_program`] that are attached to this cgroup2 folder itself.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0_u32; MOST];
    let mut query = Query {
        target: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        reserved: 0,
        attach_flags_each: 0,
        links: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    call(PROG_QUERY, &mut query)?;
    let mut programs = Vec::new();
    for id in ids.into_iter().take(query.count as usize) {
        let program = descriptor(PROG_GET_FD_BY_ID, &mut ById { id, next: 0, flags: 0 })?;
        if name_of(&program)? == NAME {
            programs.push(program);
        }
    }
    Ok(programs)
}

fn name_of(program: &OwnedFd) -> io::Result<[u8; 16]> {
    let mut information = ProgramInformation::default();
    let mut attributes = Information {
        program: program.as_raw_fd().cast_unsigned(),
        length: size_of::<ProgramInformation>() as u32,
        information: std::ptr::from_mut(&mut information) as u64,
    };
    call(OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(information.name)
}

/// A call that makes a descriptor.
fn descriptor<T: Copy>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call<T: Copy>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    let mut roomy = Roomy { attributes: *attributes, room: [0; ROOM] };
    // SAFETY: `roomy` begins with a live, fully initialised prefix of `union bpf_attr` of the given size
    // (the kernel takes the rest as zero), of whose plain numbers the kernel may change some, and those that it adds
    // behind them find room; what pointers in it lead to outlives the call and has the length that stands beside them.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(&mut roomy), size_of::<T>()) };
    *attributes = roomy.attributes;
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
