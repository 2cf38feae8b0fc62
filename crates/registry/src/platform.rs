//! Which of an index's images is wanted (OCI image specification, "Image Index"; names as Go has
//! them, and as people write them).

use std::fmt;
use std::str::FromStr;

use insula_base::{Kind, Kinded};
use insula_spec::image::{Descriptor, Platform};

/// A platform that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    #[error("platform {0:?}: OS/ARCHITECTURE[/VARIANT] is expected")]
    Malformed(String),
    #[error("platform {0:?}: unknown operating system or architecture")]
    Unknown(String),
}

/// Those of Go, which a name that stands alone has to be one of.
const SYSTEMS: [&str; 15] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "illumos",
    "ios",
    "js",
    "linux",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "wasip1",
    "windows",
];
const ARCHITECTURES: [&str; 15] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le",
    "riscv64", "s390x", "sparc64", "wasm",
];

impl Kinded for PlatformError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

/// A platform that was asked for, or this host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    os: String,
    architecture: String,
    variant: Option<String>,
    /// Somebody asked, rather than took what comes.
    pub explicit: bool,
}

impl Wanted {
    /// What this host runs.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = normal(std::env::consts::ARCH, None);
        Self { os: "linux".to_owned(), architecture, variant, explicit: false }
    }

    /// What `--platform` says; the host's if it is empty.
    pub fn parse(text: &str) -> Result<Self, PlatformError> {
        if text.is_empty() { Ok(Self::host()) } else { text.parse() }
    }

    /// The best entry of an index.
    #[must_use]
    pub fn choose<'a>(&self, entries: &'a [Descriptor]) -> Option<&'a Descriptor> {
        let ranked = entries.iter().filter_map(|entry| {
            let rank = match &entry.platform {
                Some(platform) => self.rank(platform)?,
                // What says nothing may be anything, and is worse than anything that says so.
                None if !self.explicit => 0,
                None => return None,
            };
            Some((rank, entry))
        });
        // Of equals the first.
        ranked
            .fold(None, |best: Option<(u32, &Descriptor)>, next| match best {
                Some(best) if best.0 >= next.0 => Some(best),
                _ => Some(next),
            })
            .map(|(_, entry)| entry)
    }

    /// Whether an image's configuration is for this.
    #[must_use]
    pub fn accepts(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        let platform = Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(ToOwned::to_owned),
        };
        self.rank(&platform).is_some()
    }

    /// How well a platform serves; higher is better.
    fn rank(&self, platform: &Platform) -> Option<u32> {
        let (architecture, variant) = normal(&platform.architecture, platform.variant.as_deref());
        if platform.os != self.os || architecture != self.architecture {
            return None;
        }
        let has = level(&architecture, variant.as_deref());
        match &self.variant {
            Some(_) if variant == self.variant => Some(1000),
            // Older ones run on newer processors.
            Some(wanted) => (has <= level(&architecture, Some(wanted))).then_some(has),
            // Without a word the one that runs everywhere.
            None => Some(999u32.saturating_sub(has)),
        }
    }
}

fn level(architecture: &str, variant: Option<&str>) -> u32 {
    let lowest = match architecture {
        "arm" => 5,
        "arm64" => 8,
        _ => 1,
    };
    variant.and_then(|v| v.strip_prefix('v')).and_then(|v| v.parse().ok()).unwrap_or(lowest).clamp(1, 998)
}

/// Go's names.
fn normal(architecture: &str, variant: Option<&str>) -> (String, Option<String>) {
    let (name, implied) = match architecture {
        "x86_64" | "x86-64" => ("amd64", None),
        "aarch64" => ("arm64", None),
        "armhf" => ("arm", Some("v7")),
        "armel" => ("arm", Some("v6")),
        "i386" | "i686" | "x86" => ("386", None),
        "powerpc64le" => ("ppc64le", None),
        other => (other, None),
    };
    let variant = variant.filter(|variant| !variant.is_empty()).or(implied);
    let variant = match (name, variant) {
        ("arm64", Some("8" | "v8")) | ("amd64", Some("v1")) => None,
        ("arm", Some(digit @ ("5" | "6" | "7" | "8"))) => Some(format!("v{digit}")),
        (_, variant) => variant.map(ToOwned::to_owned),
    };
    (name.to_owned(), variant)
}

impl FromStr for Wanted {
    type Err = PlatformError;
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError::Malformed(text.chars().take(100).collect());
        let word = |part: &str| {
            !part.is_empty()
                && part.len() <= 32
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        };
        let lower = text.to_ascii_lowercase();
        let parts: Vec<&str> = lower.split('/').collect();
        if !parts.iter().all(|part| word(part)) {
            return Err(wrong());
        }
        let (os, architecture, variant) = match parts.as_slice() {
            [os] if SYSTEMS.contains(os) => {
                let host = Self::host();
                return Ok(Self { os: (*os).to_owned(), explicit: true, ..host });
            }
            [architecture] => {
                if !ARCHITECTURES.contains(&normal(architecture, None).0.as_str()) {
                    return Err(PlatformError::Unknown((*architecture).to_owned()));
                }
                ("linux", *architecture, None)
            }
            [os, architecture] => (*os, *architecture, None),
            [os, architecture, variant] => (*os, *architecture, Some(*variant)),
            _ => return Err(wrong()),
        };
        let (architecture, variant) = normal(architecture, variant);
        Ok(Self { os: os.to_owned(), architecture, variant, explicit: true })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64, platform: Option<(&str, &str, Option<&str>)>) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: format!("sha256:{number:064x}").parse().unwrap(),
            size: number,
            annotations: Default::default(),
            platform: platform.map(|(os, architecture, variant)| Platform {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: variant.map(ToOwned::to_owned),
            }),
        }
    }

    fn chosen(wanted: &str) -> Option<u64> {
        let entries = [
            entry(1, Some(("unknown", "unknown", None))),
            entry(2, Some(("linux", "amd64", Some("v3")))),
            entry(3, Some(("linux", "amd64", None))),
            entry(4, Some(("linux", "arm", Some("v6")))),
            entry(5, Some(("linux", "arm", Some("v7")))),
            entry(6, Some(("linux", "arm64", Some("v8")))),
            entry(7, Some(("windows", "amd64", None))),
        ];
        wanted.parse::<Wanted>().unwrap().choose(&entries).map(|entry| entry.size)
    }

    #[test]
    fn the_best_entry_is_chosen() {
        assert_eq!(chosen("linux/amd64"), Some(3));
        assert_eq!(chosen("x86_64"), Some(3));
        assert_eq!(chosen("linux/amd64/v3"), Some(2));
        assert_eq!(chosen("linux/amd64/v2"), Some(3));
        assert_eq!(chosen("linux/arm/v7"), Some(5));
        assert_eq!(chosen("linux/arm/v8"), Some(5));
        assert_eq!(chosen("linux/arm/v6"), Some(4));
        assert_eq!(chosen("linux/arm/v5"), None);
        assert_eq!(chosen("armhf"), Some(5));
        assert_eq!(chosen("aarch64"), Some(6));
        assert_eq!(chosen("linux/arm64/v8"), Some(6));
        assert_eq!(chosen("windows/amd64"), Some(7));
        assert_eq!(chosen("linux/riscv64"), None);
    }

    #[test]
    fn entries_without_a_platform_serve_who_did_not_ask() {
        let entries = [entry(1, None)];
        assert!(Wanted::host().choose(&entries).is_some());
        assert!("linux/amd64".parse::<Wanted>().unwrap().choose(&entries).is_none());
    }

    #[test]
    fn malformed_platforms_are_refused() {
        for unknown in ["foo", "linus", "9"] {
            assert_eq!(unknown.parse::<Wanted>(), Err(PlatformError::Unknown(unknown.to_owned())));
        }
        for bad in ["/", "linux/", "a/b/c/d", "linux/a b", "linux//v7", "\u{e9}"] {
            assert!(bad.parse::<Wanted>().is_err(), "{bad}");
        }
        assert_eq!(Wanted::parse("").unwrap(), Wanted::host());
    }
}
