//! The allocator of the C library, and what a process that waits for years gives back.

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

/// Returns free heap pages to the kernel, malloc_trim(3).
pub fn trim_heap() {
    // SAFETY: takes no pointers; the allocator locks itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Maps all of the program's own text that the page cache has, so that what runs for the first time
/// does not stop at every page. Advice: a kernel before 5.14 does not take it.
pub fn map_text() {
    let (start, length) = text();
    // SAFETY: reading ahead in a file-backed mapping of this program changes nothing in it.
    unsafe {
        let _ = rustix::mm::madvise(start as *mut _, length, rustix::mm::Advice::LinuxPopulateRead);
    }
}

/// First page and length of the text segment.
#[inline]
fn text() -> (usize, usize) {
    // SAFETY: the linker provides the symbols; only their addresses are taken.
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    let (start, end) = (&raw const __executable_start as usize, &raw const etext as usize);
    let start = start & !(PAGE - 1);
    (start, (end & !(PAGE - 1)).saturating_sub(start))
}

const PAGE: usize = 4096;

/// Drops the pages of the program's own text and of the unused part of the stack from this process;
/// text comes back from the page cache when it is used again. Only file-backed read-only mappings and
/// stack below the caller's frame are touched.
#[inline]
pub fn drop_pages() {
    // What callees of the caller may still use of the stack, a red zone and more.
    const KEPT_STACK: usize = 2 * PAGE;
    const DROPPED_STACK: usize = 96 << 10;
    let marker = 0u8;
    let top = ((&raw const marker) as usize - KEPT_STACK) & !(PAGE - 1);
    let (start, length) = text();
    // SAFETY: MADV_DONTNEED on a private, clean, file-backed mapping only unmaps pages that are read
    // again on access, and on the stack it discards what lies below every live frame. Inlined system
    // calls: the pages of a C library's wrapper would come right back.
    unsafe {
        let drop = |start: usize, length: usize| {
            // A part that is not mapped is said and does no harm.
            let _ = rustix::mm::madvise(start as *mut _, length, rustix::mm::Advice::LinuxDontNeed);
        };
        drop(top - DROPPED_STACK, DROPPED_STACK);
        drop(start, length);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn arenas_can_be_limited() {
        super::limit_arenas(2).unwrap();
    }
}
