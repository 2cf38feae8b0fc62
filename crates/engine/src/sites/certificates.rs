//! The folder of certificates.
//!
//! ```text
//! NAME.crt or NAME.pem with NAME.key      a chain and its key; a .pem may have both
//! NAME/fullchain.pem with NAME/privkey.pem   as certbot keeps them
//! NAME/tls.crt with NAME/tls.key
//! ```
//!
//! Which host names a certificate is for stands in it; the files may be called as one likes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use insula_spec::sites::Certificate;

/// Of one file.
const LARGEST: u64 = 256 << 10;
const MOST: usize = 2048;
/// What a folder of one certificate has.
const PAIRS: [(&str, &str); 2] = [("fullchain.pem", "privkey.pem"), ("tls.crt", "tls.key")];

/// What was read last.
#[derive(Debug, Clone, Default)]
pub(super) struct Folder {
    /// The same ones until something has changed.
    pub(super) certificates: Arc<Vec<Certificate>>,
    seen: Arc<Vec<Seen>>,
}

/// How a pair of files can be told from its next version: by the file behind links, its size and its time of change.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    chain: PathBuf,
    key: PathBuf,
    state: [(u64, u64, i64, i64); 2],
}

impl Folder {
    /// Itself where nothing has changed.
    pub(super) fn read_again(self, path: &Path) -> Self {
        let found = look(path);
        if found == *self.seen {
            return self;
        }
        let mut certificates = Vec::new();
        for seen in &found {
            match certificate(seen) {
                Ok(certificate) => certificates.push(certificate),
                Err(error) => {
                    let error = insula_base::chain(&error);
                    tracing::warn!(chain = %seen.chain.display(), error, "a certificate is not used");
                }
            }
        }
        tracing::info!(count = certificates.len(), folder = %path.display(), "certificates were read");
        Self { certificates: Arc::new(certificates), seen: Arc::new(found) }
    }
}

/// The pairs, in the order of their names.
fn look(path: &Path) -> Vec<Seen> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten().take(2 * MOST) {
        let path = entry.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let key = path.with_extension("key");
        let pairs = match extension {
            _ if path.is_dir() => PAIRS.map(|(chain, key)| (path.join(chain), path.join(key))).to_vec(),
            Some("crt") => vec![(path, key)],
            Some("pem") if key.is_file() => vec![(path, key)],
            Some("pem") => vec![(path.clone(), path)],
            _ => continue,
        };
        found.extend(pairs.into_iter().filter_map(|(chain, key)| {
            let state = [state(&chain)?, state(&key)?];
            Some(Seen { chain, key, state })
        }));
    }
    found.sort_by(|a, b| a.chain.cmp(&b.chain));
    if found.len() > MOST {
        tracing::warn!(count = found.len(), most = MOST, "too many certificates: the last ones are not used");
        found.truncate(MOST);
    }
    found
}

fn state(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some((metadata.ino(), metadata.size(), metadata.ctime(), metadata.ctime_nsec()))
}

fn certificate(seen: &Seen) -> io::Result<Certificate> {
    Ok(Certificate {
        source: seen.chain.display().to_string(),
        chain: text(&seen.chain)?,
        key: text(&seen.key)?,
    })
}

fn text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_found_and_read_again_when_they_change() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            insula_base::replace(&path, text.as_bytes(), 0o600, insula_base::Durability::Process).unwrap();
        };
        for (name, text) in [
            ("a.crt", "A"),
            ("a.key", "a"),
            ("b.pem", "B"),
            ("c/fullchain.pem", "C"),
            ("c/privkey.pem", "c"),
            ("alone.crt", "no key"),
            ("readme", "x"),
        ] {
            write(name, text);
        }
        let first = Folder::default().read_again(folder.path());
        let texts = |folder: &Folder| {
            let texts = folder.certificates.iter().map(|found| format!("{}{}", found.chain, found.key));
            texts.collect::<Vec<_>>()
        };
        assert_eq!(texts(&first), ["Aa", "BB", "Cc"]);
        write("c/privkey.pem", "d");
        let second = first.read_again(folder.path());
        assert_eq!(texts(&second), ["Aa", "BB", "Cd"]);
        assert!(Folder::default().read_again(&folder.path().join("no")).certificates.is_empty());
    }
}
