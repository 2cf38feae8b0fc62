//! Which images a list or a removal is about.

use insula_spec::reference::Reference;
use insula_store::{Image, ImageKind, Images};
use jiff::Timestamp;

use super::describe::created;
use crate::Result;
use crate::filters::{Filters, check_names, has_label, one_bool, parse_moment};

const LIST: [&str; 7] = ["before", "dangling", "label", "label!", "reference", "since", "until"];
const PRUNE: [&str; 4] = ["dangling", "label", "label!", "until"];

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
    let mut unused = Vec::new();
    for image in images.list()? {
        let stored = !matches!(image.kind, ImageKind::Host { .. });
        if stored && conditions.hold(&image) && images.users(&image.id)?.is_empty() {
            unused.push(image);
        }
    }
    Ok(unused)
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
        self.dangling
            .is_none_or(|dangling| dangling != image.references.iter().any(|name| name.tag().is_some()))
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
    use super::*;

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
