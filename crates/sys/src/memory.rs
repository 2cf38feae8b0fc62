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

/// Drops the pages of the program's own text and read-only data from this process; they come back
/// from the page cache when they are used again. Only file-backed read-only mappings are touched.
pub fn drop_text() {
    // SAFETY: the symbols are provided by the linker and mark the text segment; MADV_DONTNEED on a private,
    // clean, file-backed mapping only unmaps pages that are read again from the file on access.
    unsafe {
        unsafe extern "C" {
            static __executable_start: u8;
            static etext: u8;
        }
        let page = 4096;
        let start = (&raw const __executable_start) as usize & !(page - 1);
        let end = (&raw const etext) as usize & !(page - 1);
        if end > start {
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn arenas_can_be_limited() {
        super::limit_arenas(2).unwrap();
    }
}
