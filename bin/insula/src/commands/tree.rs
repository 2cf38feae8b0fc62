//! `images --tree`: what is in which layer, and how much of it nobody sees.

use insula_base::format_decimal;
use insula_client::Client;
use insula_models::{ImageLayer, ImageSummary};

use crate::failure::Outcome;
use crate::format::short_id;
use crate::printer;

/// Signs of a command that are shown.
const COMMAND_MAX: usize = 60;

/// Prints each image with its layers below it, the lowest first.
pub(crate) async fn print(client: &Client, images: &[ImageSummary], no_trunc: bool) -> Outcome {
    for image in images.iter().filter(|image| !is_builtin(image)) {
        let layers = client.image_layers(&image.id).await?;
        printer::text(&text(image, &layers, no_trunc))?;
    }
    Ok(0)
}

/// The host's own files have no layers.
fn is_builtin(image: &ImageSummary) -> bool {
    image.repo_tags.iter().any(|tag| tag == "host:latest" || tag == "host:full")
}

fn text(image: &ImageSummary, layers: &[ImageLayer], no_trunc: bool) -> String {
    let names = match image.repo_tags.as_slice() {
        [] => "<none>".to_owned(),
        names => names.join(", "),
    };
    let wasted: u64 = layers.iter().map(|layer| layer.wasted).sum();
    let id = if no_trunc { image.id.as_str() } else { short_id(&image.id) };
    let size = format_decimal(u64::try_from(image.size).unwrap_or_default());
    let mut text = format!("{names}  {id}  {size}{}\n", of_waste(wasted));
    for (at, layer) in layers.iter().enumerate() {
        let (branch, stem) = if at + 1 == layers.len() { ("└─", "  ") } else { ("├─", "│ ") };
        let id = if no_trunc { layer.diff_id.as_str() } else { short_id(&layer.diff_id) };
        let by = layer.created_by.replace(['\t', '\n'], " ");
        let by = if no_trunc { by } else { cut(&by) };
        let line = format!("{branch} {id}  {}{}  {by}", format_decimal(layer.size), of_waste(layer.wasted));
        text.push_str(line.trim_end());
        text.push('\n');
        if !layer.shared_by.is_empty() {
            text.push_str(&format!("{stem}   shared with {}\n", layer.shared_by.join(", ")));
        }
    }
    text
}

fn of_waste(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { format!(" ({} wasted)", format_decimal(bytes)) }
}

fn cut(text: &str) -> String {
    if text.chars().count() <= COMMAND_MAX {
        return text.to_owned();
    }
    text.chars().take(COMMAND_MAX - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_stand_below_their_image() {
        let layer = |hex: &str, size, wasted, by: &str, shared: &[&str]| ImageLayer {
            diff_id: format!("sha256:{}", hex.repeat(64)),
            created_by: by.to_owned(),
            size,
            wasted,
            shared_by: shared.iter().map(|&name| name.to_owned()).collect(),
        };
        let image = ImageSummary {
            id: format!("sha256:{}", "a".repeat(64)),
            repo_tags: vec!["web:1".to_owned(), "web:latest".to_owned()],
            size: 4_261_550,
            ..ImageSummary::default()
        };
        let layers = [
            layer("b", 4_000_000, 1_500, "ADD rootfs.tar /", &["db:1", "app:2"]),
            layer("c", 261_550, 0, "RUN one && two && three && four && five && six && seven && eight", &[]),
        ];
        let bare = ImageSummary { id: "sha256:b".to_owned(), ..ImageSummary::default() };
        insta::assert_snapshot!(format!("{}{}", text(&image, &layers, false), text(&bare, &[], true)));
    }
}
