//! Acting on file systems as another user without giving up capabilities.

use std::io;

use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

/// setfsuid(2), setfsgid(2): what the calling thread makes from now on belongs to `uid` and `gid`. The
/// capabilities that the kernel drops from the effective set with it are taken back. Meant for a
/// thread that ends with its task: there is no way back that cannot fail.
pub fn make_files_as(uid: u32, gid: u32) -> io::Result<()> {
    let before = capabilities(None)?;
    // SAFETY: both calls take a number and change credentials of the calling thread alone. They return
    // the previous id and no error, so the result is looked at by a second call with an id that is none.
    let now = unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX))
    };
    if now != (uid.cast_signed(), gid.cast_signed()) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("setfsuid to {uid}:{gid} was refused"),
        ));
    }
    set_capabilities(None, CapabilitySets { effective: before.effective, ..before })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn files_belong_to_the_other_user() {
        if !rustix::process::geteuid().is_root() {
            let required = std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default();
            assert!(!required.contains("root"), "needs root");
            eprintln!("skipped: needs root");
            return;
        }
        let path = std::env::temp_dir().join(format!("insula-test-fsid-{}", std::process::id()));
        let at = path.clone();
        let made = std::thread::spawn(move || {
            make_files_as(123_456, 123_457)?;
            std::fs::create_dir(&at)?;
            // Only with the capabilities kept may it go on to give files away.
            std::os::unix::fs::chown(&at, Some(99), None)
        });
        let result = made.join().unwrap();
        let owner = std::fs::metadata(&path).map(|meta| (meta.uid(), meta.gid()));
        std::fs::remove_dir(&path).unwrap();
        result.unwrap();
        assert_eq!(owner.unwrap(), (99, 123_457));
    }
}
