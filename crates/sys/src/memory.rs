//! The allocator of the C library.

use std::io;

/// mallopt(3): lets threads share `count` arenas. By default glibc gives each of many threads one of
/// its own, tens of MiB of address space and what each keeps for itself.
pub fn limit_arenas(count: i32) -> io::Result<()> {
    // SAFETY: mallopt takes two integers and changes parameters of the allocator under its own lock.
    let accepted = unsafe { libc::mallopt(libc::M_ARENA_MAX, count) };
    if accepted == 1 {
        Ok(())
    } else {
        Err(io::Error::other(format!("mallopt: M_ARENA_MAX {count} was refused")))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn arenas_can_be_limited() {
        super::limit_arenas(2).unwrap();
    }
}
