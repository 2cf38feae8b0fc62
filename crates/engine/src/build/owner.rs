//! `--chown`: names are those of the image's own passwd(5) and group(5).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::tree::{Last, Tree};
use crate::{Error, Result};

/// Bytes of passwd or group that are looked at.
const FILE_MAX: u64 = 4 << 20;

/// `USER[:GROUP]`, names or numbers. A user without a group has the one of its number, or its own.
pub(super) fn parse(text: &str, tree: &Tree) -> Result<(u32, u32)> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let (uid, own_group) = match user.parse::<u32>() {
        Ok(uid) => (uid, uid),
        Err(_) => {
            let fields = look(tree, "/etc/passwd", user)?;
            let id = |number: usize| fields.get(number).and_then(|field| field.parse().ok());
            let unknown = || unknown("user", user);
            (id(2).ok_or_else(unknown)?, id(3).ok_or_else(unknown)?)
        }
    };
    let gid = match group.filter(|group| !group.is_empty()) {
        None => own_group,
        Some(group) => match group.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => {
                let fields = look(tree, "/etc/group", group)?;
                fields.get(2).and_then(|field| field.parse().ok()).ok_or_else(|| unknown("group", group))?
            }
        },
    };
    Ok((uid, gid))
}

fn unknown(kind: &str, name: &str) -> Error {
    Error::InvalidArgument(format!("--chown: the image has no {kind} {name:?}"))
}

/// The fields of the line that begins with a name; none if there is no such line.
fn look(tree: &Tree, path: &str, name: &str) -> Result<Vec<String>> {
    let Ok(place) = tree.resolve(Path::new(path), Last::Follow) else { return Ok(Vec::new()) };
    let (Some(dir), Some(entry)) = (place.parent(), &place.entry) else { return Ok(Vec::new()) };
    let fail = |error| Error::io("read", Path::new(path), error);
    let file = File::from(dir.open(&place.name, entry).map_err(|e| fail(e.into()))?);
    if !file.metadata().map_err(fail)?.is_file() {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes).map_err(fail)?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    Ok(line.map(|line| line.split(':').map(str::to_owned).collect()).unwrap_or_default())
}
