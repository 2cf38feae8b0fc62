//! Which images a list or a removal is about.

use std::collections::{BTreeMap, HashSet};

use insula_base::Digest;
use insula_spec::reference::Reference;
use insula_store::{Image, ImageKind, Images};
use jiff::Timestamp;

use super::describe::created;
use crate::filters::{Filters, check_names, has_label, one_bool, parse_moment};
use crate::{Error, Result};

const LIST: [&str; 7] = ["before", "dangling", "label", "label!", "reference", "since", "until"];
const PRUNE: [&str; 6] = ["dangling", "keep", "label", "label!", "reference", "until"];

/// Conditions on an image, ready to be tried.
struct Conditions {
    dangling: Option<bool>,
    labels: Vec<String>,
    without_labels: Vec<String>,
    references: Vec<String>,
    /// Made before all of these.
    before: Vec<Timestamp>,
    /// Made after all of these.
    after: Vec<Timestamp>,
}

/// Those of `all` that pass; who asks for names sees those names only.
pub(super) fn choose(images: &Images, mut all: Vec<Image>, filters: &Filters) -> Result<Vec<Image>> {
    let conditions = Conditions::read(images, filters, &LIST)?;
    all.retain(|image| conditions.hold(image));
    if !conditions.references.is_empty() {
        let asked = |name: &Reference| conditions.references.iter().any(|pattern| fits(name, pattern));
        all.iter_mut().for_each(|image| image.references.retain(asked));
    }
    Ok(all)
}

/// Those that nothing uses.
pub(super) fn prunable(images: &Images, filters: &Filters) -> Result<Vec<Image>> {
    let mut conditions = Conditions::read(images, filters, &PRUNE)?;
    // Docker prunes images without a name unless `dangling=false` asks for all.
    conditions.dangling = if conditions.dangling == Some(false) { None } else { Some(true) };
    let all = images.list()?;
    let (kept, parts) = (newest(&all, keep(filters)?), images.parts_of_indexes()?);
    let mut unused = Vec::new();
    for image in all {
        let stored = !matches!(image.kind, ImageKind::Host { .. });
        // With the name of an index goes all of it, and not before.
        let part = !is_tagged(&image) && image.manifest.as_ref().is_some_and(|digest| parts.contains(digest));
        let free = stored && !part && !kept.contains(&image.id);
        if free && conditions.hold(&image) && images.users(&image.id)?.is_empty() {
            unused.push(image);
        }
    }
    Ok(unused)
}

/// How many images of each repository stay: insula's own.
fn keep(filters: &Filters) -> Result<usize> {
    match filters.get("keep").map(Vec::as_slice) {
        None => Ok(0),
        Some([count]) if count.parse::<usize>().is_ok() => Ok(count.parse().unwrap_or_default()),
        Some(values) => Err(Error::InvalidArgument(format!(
            "invalid filter 'keep={}': how many images of each repository stay (keep=3) is expected",
            values.join(",")
        ))),
    }
}

/// Those that were made last, so many of each repository. Builds that can be repeated say the same moment of all:
/// then those with the last tags.
fn newest(all: &[Image], count: usize) -> HashSet<Digest> {
    let mut repositories: BTreeMap<String, BTreeMap<&Digest, _>> = BTreeMap::new();
    for image in all {
        for name in &image.references {
            let Some(tag) = name.tag() else { continue };
            let images = repositories.entry(name.name().to_string()).or_default();
            let age = (created(image), tag);
            let last = images.entry(&image.id).or_insert(age);
            *last = age.max(*last);
        }
    }
    let mut kept = HashSet::new();
    for images in repositories.into_values() {
        let mut images: Vec<_> = images.into_iter().map(|(id, age)| (age, id)).collect();
        images.sort_by(|one, other| other.cmp(one));
        kept.extend(images.into_iter().take(count).map(|(_, id)| id.clone()));
    }
    kept
}

fn is_tagged(image: &Image) -> bool {
    image.references.iter().any(|name| name.tag().is_some())
}

impl Conditions {
    fn read(images: &Images, filters: &Filters, known: &[&str]) -> Result<Self> {
        check_names(filters, known)?;
        let values = |name: &str| filters.get(name).cloned().unwrap_or_default();
        let moments = |name: &str| -> Result<Vec<Timestamp>> {
            values(name)
                .iter()
                .map(|image| Ok(created(&images.resolve(image)?).unwrap_or(Timestamp::UNIX_EPOCH)))
                .collect()
        };
        let mut before = moments("before")?;
        for text in values("until") {
            before.push(parse_moment(&text)?);
        }
        Ok(Self {
            dangling: one_bool(filters, "dangling")?,
            labels: values("label"),
            without_labels: values("label!"),
            references: values("reference"),
            before,
            after: moments("since")?,
        })
    }

    fn hold(&self, image: &Image) -> bool {
        let made = created(image).unwrap_or(Timestamp::UNIX_EPOCH);
        let labels = &image.config.config.labels;
        self.dangling.is_none_or(|dangling| dangling != is_tagged(image))
            && self.labels.iter().all(|label| has_label(labels, label))
            && !self.without_labels.iter().any(|label| has_label(labels, label))
            && self.before.iter().all(|moment| made < *moment)
            && self.after.iter().all(|moment| made > *moment)
            && (self.references.is_empty()
                || self.references.iter().any(|p| image.references.iter().any(|name| fits(name, p))))
    }
}

/// A pattern of path.Match on the name with or without its tag.
fn fits(name: &Reference, pattern: &str) -> bool {
    glob(pattern, &name.familiar()) || glob(pattern, &name.familiar_name())
}

/// `*` is anything but a slash, `?` one sign but a slash.
fn glob(pattern: &str, text: &str) -> bool {
    fn matches(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                let reach = text.iter().position(|b| *b == b'/').unwrap_or(text.len());
                (0..=reach).any(|skipped| matches(rest, &text[skipped..]))
            }
            (Some((b'?', rest)), Some((sign, text))) => *sign != b'/' && matches(rest, text),
            (Some((wanted, rest)), Some((sign, text))) => wanted == sign && matches(rest, text),
            _ => false,
        }
    }
    // Each star multiplies the work; names are short and so are honest patterns.
    pattern.len() <= 300
        && pattern.bytes().filter(|b| *b == b'*').count() <= 4
        && matches(pattern.as_bytes(), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use insula_spec::image::ImageConfig;

    use super::*;

    fn image(number: u8, created: Option<&str>, names: &[&str]) -> Image {
        Image {
            id: Digest::from_sha256(&[number; 32]),
            kind: ImageKind::Stored,
            references: names.iter().map(|name| name.parse().unwrap()).collect(),
            config: ImageConfig { created: created.map(str::to_owned), ..ImageConfig::default() },
            layers: Vec::new(),
            size: 0,
            manifest: None,
        }
    }

    #[test]
    fn the_newest_of_a_repository_were_made_last() {
        let all = [
            image(1, Some("2024-01-03T00:00:00Z"), &["web:a", "other:1"]),
            image(2, Some("2024-01-01T00:00:00Z"), &["web:c", "web:z"]),
            image(3, Some("2024-01-02T00:00:00+01:00"), &["web:b"]),
            image(4, None, &["db:1"]),
            image(5, None, &["db:2"]),
            image(6, Some("2024-01-09T00:00:00Z"), &[]),
        ];
        let kept = |count| {
            let kept = newest(&all, count);
            let at = |image: &Image| all.iter().position(|one| one.id == image.id).unwrap() + 1;
            all.iter().filter(|image| kept.contains(&image.id)).map(at).collect::<Vec<_>>()
        };
        assert_eq!(kept(0), Vec::<usize>::new());
        assert_eq!(kept(1), [1, 5]);
        assert_eq!(kept(2), [1, 3, 4, 5]);
        assert_eq!(kept(3), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn patterns_stay_within_a_component() {
        for (pattern, text, expected) in [
            ("busybox", "busybox", true),
            ("busy*", "busybox:latest", true),
            ("*", "user/app", false),
            ("*/*", "user/app", true),
            ("app:?", "app:1", true),
            ("app:?", "app:12", false),
            ("", "app", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }
}
