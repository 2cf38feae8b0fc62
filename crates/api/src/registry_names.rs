//! Paths and ranges of registries. Names of repositories hold slashes, so what follows them is taken from the end.

/// What a path below `/v2/` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    Catalog,
    Tags { name: &'a str },
    Manifest { name: &'a str, reference: &'a str },
    Blob { name: &'a str, digest: &'a str },
    Uploads { name: &'a str },
    Upload { name: &'a str, id: &'a str },
    Referrers { name: &'a str, digest: &'a str },
}

/// Bytes of a name of a repository (distribution specification, "Pulling manifests").
const NAME_MAX: usize = 255;

impl<'a> Target<'a> {
    pub(crate) fn of(rest: &'a str) -> Option<Self> {
        if rest == "_catalog" {
            return Some(Self::Catalog);
        }
        let target = if let Some(name) = rest.strip_suffix("/tags/list") {
            Self::Tags { name }
        } else if let Some(name) =
            rest.strip_suffix("/blobs/uploads").or(rest.strip_suffix("/blobs/uploads/"))
        {
            Self::Uploads { name }
        } else {
            let (before, last) = rest.rsplit_once('/')?;
            if let Some(name) = before.strip_suffix("/blobs/uploads") {
                Self::Upload { name, id: last }
            } else if let Some(name) = before.strip_suffix("/manifests") {
                Self::Manifest { name, reference: last }
            } else if let Some(name) = before.strip_suffix("/referrers") {
                Self::Referrers { name, digest: last }
            } else {
                Self::Blob { name: before.strip_suffix("/blobs")?, digest: last }
            }
        };
        (1..=NAME_MAX).contains(&target.name().len()).then_some(target)
    }

    fn name(self) -> &'a str {
        match self {
            Self::Catalog => "_catalog",
            Self::Tags { name }
            | Self::Manifest { name, .. }
            | Self::Blob { name, .. }
            | Self::Uploads { name }
            | Self::Upload { name, .. }
            | Self::Referrers { name, .. } => name,
        }
    }
}

/// What `Range` asks for (RFC 9110 section 14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    /// Another unit, several ranges, or nothing that can be read: as if nothing had been asked.
    Whole,
    Part {
        first: u64,
        last: u64,
    },
    Outside,
}

pub(crate) fn range(asked: &str, size: u64) -> Range {
    let Some((first, last)) = asked.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Range::Whole;
    };
    let end = size.saturating_sub(1);
    let part = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.min(end)),
        (Ok(first), Err(_)) if last.is_empty() => (first, end),
        (Err(_), Ok(count)) if first.is_empty() && count > 0 => (size.saturating_sub(count), end),
        _ => return Range::Whole,
    };
    if part.0 >= size { Range::Outside } else { Range::Part { first: part.0, last: part.1 } }
}

/// Where a piece of an upload begins, of `Content-Range: FIRST-LAST`.
pub(crate) fn starts_at(range: &str) -> Option<u64> {
    let range = range.trim().trim_start_matches("bytes ").trim_start_matches("bytes=");
    range.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_from_the_end() {
        let name = "team/manifests/app";
        assert_eq!(Target::of("_catalog"), Some(Target::Catalog));
        assert_eq!(Target::of("team/manifests/app/tags/list"), Some(Target::Tags { name }));
        assert_eq!(
            Target::of("team/manifests/app/manifests/1"),
            Some(Target::Manifest { name, reference: "1" })
        );
        assert_eq!(Target::of("a/blobs/sha256:12"), Some(Target::Blob { name: "a", digest: "sha256:12" }));
        assert_eq!(Target::of("a/blobs/uploads/"), Some(Target::Uploads { name: "a" }));
        assert_eq!(Target::of("a/blobs/uploads/7"), Some(Target::Upload { name: "a", id: "7" }));
        assert_eq!(
            Target::of("a/b/referrers/sha256:12"),
            Some(Target::Referrers { name: "a/b", digest: "sha256:12" })
        );
        for nothing in ["", "a", "a/b", "/manifests/1", "/tags/list", "manifests/1", "a/manifest/1"] {
            assert_eq!(Target::of(nothing), None, "{nothing}");
        }
        assert_eq!(Target::of(&format!("{}/tags/list", "a".repeat(300))), None);
    }

    #[test]
    fn ranges_are_within_the_blob() {
        let part = |first, last| Range::Part { first, last };
        assert_eq!(range("bytes=0-", 10), part(0, 9));
        assert_eq!(range("bytes=3-5", 10), part(3, 5));
        assert_eq!(range("bytes=3-500", 10), part(3, 9));
        assert_eq!(range("bytes=-4", 10), part(6, 9));
        assert_eq!(range("bytes=-40", 10), part(0, 9));
        for outside in ["bytes=10-", "bytes=10-12"] {
            assert_eq!(range(outside, 10), Range::Outside);
        }
        assert_eq!(range("bytes=0-", 0), Range::Outside);
        for whole in
            ["", "bytes", "bytes=-", "bytes=5-3", "bytes=0-1,3-4", "lines=1-2", "bytes=-0", "bytes=x-"]
        {
            assert_eq!(range(whole, 10), Range::Whole, "{whole}");
        }
        assert_eq!(starts_at("5-9"), Some(5));
        assert_eq!(starts_at("bytes 5-9/*"), Some(5));
        assert_eq!(starts_at("9"), None);
    }
}
