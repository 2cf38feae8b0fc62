//! Which ids of the host a user's namespace has: the user's own as 0, and behind it the ranges of subuid(5) and
//! subgid(5), which newuidmap(1) and newgidmap(1) may write.

use std::process::{Command, Stdio};

use super::error::{Context, Error};

/// The kernel's (user_namespaces(7)), less than which anybody may have.
const MOST_RANGES: usize = 32;

/// Writes the maps of the process; how many ids there are, and why it is only one.
pub(super) fn map(pid: i32) -> Result<(u32, String), Error> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let name = name_of(uid);
    let ranges = |path: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        ranges(&text, &name, uid)
    };
    let (users, groups) = (ranges("/etc/subuid"), ranges("/etc/subgid"));
    let lacking = [("/etc/subuid", &users), ("/etc/subgid", &groups)];
    if let Some((file, _)) = lacking.iter().find(|(_, ranges)| ranges.is_empty()) {
        map_one(pid, uid, gid)?;
        return Ok((1, format!("{file} has no line for {name}")));
    }
    for (program, own, ranges) in [("newuidmap", uid, &users), ("newgidmap", gid, &groups)] {
        if !written(program, pid, own, ranges)? {
            map_one(pid, uid, gid)?;
            return Ok((1, format!("{program} is not there (package uidmap)")));
        }
    }
    let count = |ranges: &[(u32, u32)]| ranges.iter().fold(1u32, |sum, range| sum.saturating_add(range.1));
    Ok((count(&users).min(count(&groups)), String::new()))
}

/// What follows from one id.
pub(super) fn missing(ids: u32, why: &str) -> Vec<String> {
    if ids > 1 {
        return Vec::new();
    }
    vec![format!(
        "only one id can be used ({why}): images with files of others than root are not to be had, and nothing runs as \
         another user. Ask root for lines in /etc/subuid and /etc/subgid, as usermod --add-subuids writes them"
    )]
}

/// What anybody may do without help: one id, and no say about groups.
fn map_one(pid: i32, uid: u32, gid: u32) -> Result<(), Error> {
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ] {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, text).context("write", path)?;
    }
    Ok(())
}

/// Whether the program was there.
fn written(program: &'static str, pid: i32, own: u32, ranges: &[(u32, u32)]) -> Result<bool, Error> {
    let mut command = Command::new(program);
    command.arg(pid.to_string()).args(["0".to_owned(), own.to_string(), "1".to_owned()]);
    let mut inside = 1u32;
    for (first, count) in ranges {
        command.args([inside, *first, *count].map(|number| number.to_string()));
        inside = inside.saturating_add(*count);
    }
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).context("execute", program),
    };
    if output.status.success() {
        return Ok(true);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Program { program, said })
}

/// The user's name, or the number where passwd(5) has none.
fn name_of(uid: u32) -> String {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let has = |line: &&str| line.split(':').nth(2).and_then(|field| field.parse().ok()) == Some(uid);
    let name = text.lines().find(has).and_then(|line| line.split(':').next());
    name.map_or_else(|| uid.to_string(), str::to_owned)
}

/// Ranges of this user: first id and count. Lines that say nothing sensible are no ranges.
fn ranges(text: &str, name: &str, uid: u32) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    let of_line = |line: &str| {
        let mut fields = line.trim().split(':');
        let whose = fields.next()?;
        let (first, count) = (fields.next()?.parse::<u32>().ok()?, fields.next()?.parse::<u32>().ok()?);
        let sane = count > 0 && first.checked_add(count).is_some();
        (sane && (whose == name || whose == number)).then_some((first, count))
    };
    text.lines().filter_map(of_line).take(MOST_RANGES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_the_users_own() {
        let text = "root:1:5\nme:100000:65536\nother:5:5\n1000:7:3\nme:x:4\nme:9:0\nme:4294967295:2\n\nme\n";
        assert_eq!(ranges(text, "me", 1000), [(100_000, 65_536), (7, 3)]);
        assert!(ranges(text, "nobody", 65_534).is_empty());
        assert_eq!(ranges(&"me:1:1\n".repeat(99), "me", 1).len(), MOST_RANGES);
    }

    #[test]
    fn one_id_is_said() {
        assert!(missing(65_537, "").is_empty());
        assert!(missing(1, "/etc/subuid has no line for me")[0].contains("has no line for me"));
    }
}
