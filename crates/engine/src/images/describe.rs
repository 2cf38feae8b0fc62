//! Images as the API shows them.

use insula_models::{
    ContainerConfig, Empty, GraphDriver, HealthConfig, HistoryItem, ImageInspect, ImageMetadata,
    ImageSummary, RootFs,
};
use insula_spec::image::RunConfig;
use insula_spec::reference::Reference;
use insula_store::Image;
use jiff::Timestamp;

/// What clients print for a layer whose image is not known.
const NO_IMAGE: &str = "<missing>";

pub(super) fn summary(image: &Image) -> ImageSummary {
    ImageSummary {
        containers: -1,
        created: created(image).map_or(0, Timestamp::as_second),
        id: image.id.to_string(),
        labels: image.config.config.labels.clone(),
        parent_id: String::new(),
        repo_digests: repo_digests(image),
        repo_tags: repo_tags(image),
        shared_size: -1,
        size: signed(image.size),
    }
}

pub(super) fn inspect(image: &Image) -> ImageInspect {
    let config = &image.config;
    ImageInspect {
        id: image.id.to_string(),
        repo_tags: repo_tags(image),
        repo_digests: repo_digests(image),
        parent: String::new(),
        comment: config.comment.clone().unwrap_or_default(),
        created: config.created.clone().unwrap_or_default(),
        docker_version: config.docker_version.clone(),
        author: config.author.clone().unwrap_or_default(),
        config: container_config(&config.config),
        architecture: config.architecture.clone(),
        variant: config.variant.clone().unwrap_or_default(),
        os: config.os.clone(),
        os_version: config.os_version.clone().unwrap_or_default(),
        size: signed(image.size),
        graph_driver: GraphDriver { name: "overlay".to_owned(), data: Default::default() },
        root_fs: RootFs {
            r#type: config.rootfs.kind.clone(),
            layers: config.rootfs.diff_ids.iter().map(ToString::to_string).collect(),
        },
        metadata: ImageMetadata { last_tag_time: "0001-01-01T00:00:00Z".to_owned() },
    }
}

/// The steps of the history with the sizes of their layers, the last first. Images that carry no
/// history have a step for each layer.
pub(super) fn history(image: &Image) -> Vec<HistoryItem> {
    let mut layers = image.layers.iter();
    let unknown = HistoryItem { id: NO_IMAGE.to_owned(), ..HistoryItem::default() };
    // What has no history was there before what has one.
    let below = layers.by_ref().take(without_history(image));
    let mut items: Vec<HistoryItem> =
        below.map(|layer| HistoryItem { size: signed(layer.size), ..unknown.clone() }).collect();
    items.extend(image.config.history.iter().map(|step| HistoryItem {
        id: NO_IMAGE.to_owned(),
        created: step.created.as_deref().and_then(parse_time).map_or(0, Timestamp::as_second),
        created_by: step.created_by.clone(),
        size: if step.empty_layer { 0 } else { layers.next().map_or(0, |layer| signed(layer.size)) },
        comment: step.comment.clone(),
        ..HistoryItem::default()
    }));
    items.reverse();
    if let Some(last) = items.first_mut() {
        last.id = image.id.to_string();
        last.tags = repo_tags(image);
    }
    items
}

/// What made each layer, lowest first, as far as the history says.
pub(super) fn steps(image: &Image) -> Vec<String> {
    let made = image.config.history.iter().filter(|step| !step.empty_layer);
    let below = std::iter::repeat_n(String::new(), without_history(image));
    below.chain(made.map(|step| step.created_by.clone())).collect()
}

/// The lowest layers of an image that says of fewer how they were made.
fn without_history(image: &Image) -> usize {
    let made = image.config.history.iter().filter(|step| !step.empty_layer).count();
    image.layers.len().saturating_sub(made)
}

/// The configuration in the form that containers have it.
pub(crate) fn container_config(config: &RunConfig) -> ContainerConfig {
    let listed = |words: &[String]| (!words.is_empty()).then(|| words.to_vec());
    let set =
        |names: &std::collections::BTreeSet<String>| names.iter().map(|n| (n.clone(), Empty {})).collect();
    ContainerConfig {
        user: config.user.clone(),
        exposed_ports: set(&config.exposed_ports),
        env: config.env.clone(),
        cmd: listed(&config.cmd),
        healthcheck: config.healthcheck.as_ref().map(|health| HealthConfig {
            test: health.test.clone(),
            interval: health.interval,
            timeout: health.timeout,
            start_period: health.start_period,
            start_interval: health.start_interval,
            retries: health.retries,
        }),
        args_escaped: config.args_escaped,
        volumes: set(&config.volumes),
        working_dir: config.working_dir.clone(),
        entrypoint: listed(&config.entrypoint),
        on_build: config.on_build.clone(),
        labels: config.labels.clone(),
        stop_signal: config.stop_signal.clone(),
        stop_timeout: config.stop_timeout,
        shell: listed(&config.shell),
        ..ContainerConfig::default()
    }
}

pub(super) fn created(image: &Image) -> Option<Timestamp> {
    image.config.created.as_deref().and_then(parse_time)
}

fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

fn repo_tags(image: &Image) -> Vec<String> {
    image.references.iter().filter(|reference| reference.tag().is_some()).map(Reference::familiar).collect()
}

/// Those that it was pulled or pushed by; of an image from an archive that of its manifest, if it has one.
fn repo_digests(image: &Image) -> Vec<String> {
    let by_digest = image.references.iter().filter(|name| name.digest().is_some());
    let pulled: Vec<String> =
        by_digest.filter_map(|name| Some(format!("{}@{}", name.familiar_name(), name.digest()?))).collect();
    if !pulled.is_empty() {
        return pulled;
    }
    let Some(manifest) = &image.manifest else { return Vec::new() };
    let mut digests: Vec<String> = image
        .references
        .iter()
        .map(|reference| format!("{}@{manifest}", reference.familiar_name()))
        .collect();
    digests.dedup();
    digests
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use insula_base::{ChainId, DiffId};
    use insula_spec::image::{History, ImageConfig};
    use insula_store::{ImageKind, Layer};

    fn digest(digit: char) -> insula_base::Digest {
        format!("sha256:{}", digit.to_string().repeat(64)).parse().unwrap()
    }

    fn layer(digit: char, size: u64) -> Layer {
        Layer { diff_id: DiffId(digest(digit)), chain_id: ChainId(digest(digit)), path: "/l".into(), size }
    }

    fn step(by: &str, empty_layer: bool) -> History {
        let created = Some("2026-01-02T03:04:05Z".to_owned());
        History { created, created_by: by.to_owned(), empty_layer, ..History::default() }
    }

    fn image(history: Vec<History>) -> Image {
        Image {
            id: digest('a'),
            kind: ImageKind::Stored,
            references: vec!["app:1".parse().unwrap(), "app:2".parse().unwrap()],
            config: ImageConfig {
                history,
                created: Some("2026-01-02T03:04:05.5Z".to_owned()),
                ..Default::default()
            },
            layers: vec![layer('1', 100), layer('2', 200)],
            size: 300,
            manifest: Some(digest('c')),
        }
    }

    #[test]
    fn steps_get_the_sizes_of_their_layers() {
        let items = history(&image(vec![step("one", false), step("env", true), step("two", false)]));
        let seen: Vec<_> = items.iter().map(|item| (item.created_by.as_str(), item.size)).collect();
        assert_eq!(seen, [("two", 200), ("env", 0), ("one", 100)]);
        assert_eq!(items[0].id, digest('a').to_string());
        assert_eq!(items[0].tags, ["app:1", "app:2"]);
        assert_eq!(items[2].id, NO_IMAGE);
        assert_eq!(history(&image(Vec::new())).len(), 2);
    }

    #[test]
    fn one_digest_for_many_tags() {
        let summary = summary(&image(Vec::new()));
        assert_eq!(summary.repo_tags, ["app:1", "app:2"]);
        assert_eq!(summary.repo_digests, [format!("app@{}", digest('c'))]);
        assert_eq!(summary.created, 1_767_323_045);
    }
}
