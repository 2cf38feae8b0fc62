//! `user[:group]` against the container's `/etc/passwd` and `/etc/group`, passwd(5) and group(5).
//! The files are the image's: bounded, and every line may be wrong.

use std::ops::RangeInclusive;

use crate::error::{Error, Result};

/// Bytes of either file that are looked at.
pub(crate) const LARGEST: usize = 1 << 20;

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups; `gid` is one of them, as in Docker.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Resolves `user` (empty is root) and the groups beside those of the user.
pub(crate) fn resolve(user: &str, extra: &[String], passwd: &str, group: &str) -> Result<Identity> {
    let (user, asked_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = accounts(passwd)
        .find(|a| a.name == user)
        .or_else(|| accounts(passwd).find(|a| user.parse() == Ok(a.uid)));
    let uid = match (&entry, id(user)) {
        (Some(entry), _) => entry.uid,
        (None, Some(uid)) => uid,
        (None, None) => {
            return Err(Error::Invalid(format!(
                "unable to find user {user}: no matching entries in passwd file"
            )));
        }
    };
    let mut groups = Vec::new();
    let gid = match asked_group {
        Some(name) => group_id(name, group)?,
        None => {
            if let Some(entry) = &entry {
                groups.extend(memberships(entry.name, group));
            }
            entry.as_ref().map_or(0, |entry| entry.gid)
        }
    };
    for name in extra {
        groups.push(group_id(name, group)?);
    }
    // Who is in a group and drops the process' own one would else escape what that group is denied.
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    let home = entry.map_or("/", |e| if e.home.is_empty() { "/" } else { e.home }).to_owned();
    Ok(Identity { uid, gid, groups, home })
}

/// Where the user with this id is at home; `/` for a stranger.
pub(crate) fn home_of(uid: u32, passwd: &str) -> &str {
    accounts(passwd).find(|account| account.uid == uid && !account.home.is_empty()).map_or("/", |a| a.home)
}

/// The ids that a user namespace has by its `uid_map` or `gid_map`, user_namespaces(7).
pub(crate) fn mapped(map: &str) -> Vec<RangeInclusive<u32>> {
    let range = |line: &str| {
        let numbers: Vec<u32> =
            line.split_whitespace().map(|number| number.parse().ok()).collect::<Option<_>>()?;
        let [first, _, count] = numbers[..] else { return None };
        Some(first..=first.checked_add(count.checked_sub(1)?)?)
    };
    map.lines().filter_map(range).collect()
}

/// Says which id is not among those that are there, and which are. Where none are known nothing is said.
pub(crate) fn check_mapped<'a>(
    of: &str,
    ids: impl IntoIterator<Item = &'a u32>,
    ranges: &[RangeInclusive<u32>],
) -> Result<()> {
    let missing = |id: &&u32| !ranges.is_empty() && !ranges.iter().any(|range| range.contains(*id));
    let Some(id) = ids.into_iter().find(missing) else { return Ok(()) };
    let has: Vec<String> =
        ranges.iter().map(|range| format!("{} to {}", range.start(), range.end())).collect();
    let has = has.join(", ");
    Err(Error::Invalid(format!(
        "{of} {id} is not among the ids of the container's user namespace: it has {has}"
    )))
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        Some(Account { name, uid: id(uid)?, gid: id(gid)?, home })
    })
}

fn group_lines(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, gid, members, ..] = fields[..] else { return None };
        Some((name, id(gid)?, members))
    })
}

fn group_id(name: &str, group: &str) -> Result<u32> {
    group_lines(group)
        .find(|(known, ..)| *known == name)
        .map(|(_, gid, _)| gid)
        .or_else(|| id(name))
        .ok_or_else(|| {
            Error::Invalid(format!("unable to find group {name}: no matching entries in group file"))
        })
}

fn memberships<'a>(user: &'a str, group: &'a str) -> impl Iterator<Item = u32> + 'a {
    group_lines(group)
        .filter(move |(_, _, members)| members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
}

/// An id that the kernel accepts: the largest value means "none" there.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id <= i32::MAX as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/srv:/bin/false\n12:x:77:78::/odd:\n";
    const GROUP: &str = "root:x:0:\nlogs:x:4:web,other\nbad:x:zz:web\nweb:x:34:\nvideo:x:44:root,web\n";

    fn identity(user: &str) -> Identity {
        resolve(user, &[], PASSWD, GROUP).unwrap()
    }

    #[test]
    fn names_numbers_and_groups() {
        assert_eq!(identity(""), Identity { uid: 0, gid: 0, groups: vec![0, 44], home: "/root".into() });
        assert_eq!(
            identity("web"),
            Identity { uid: 33, gid: 34, groups: vec![4, 34, 44], home: "/srv".into() }
        );
        assert_eq!(identity("33"), identity("web"));
        assert_eq!(identity("web:logs"), Identity { uid: 33, gid: 4, groups: vec![4], home: "/srv".into() });
        assert_eq!(identity("500:600"), Identity { uid: 500, gid: 600, groups: vec![600], home: "/".into() });
        assert_eq!(identity("500").gid, 0);
        // A name that looks like a number wins over the number, as in Docker.
        assert_eq!(identity("12").uid, 77);
    }

    #[test]
    fn homes_are_found_by_number_alone() {
        assert_eq!((home_of(33, PASSWD), home_of(12, PASSWD), home_of(77, PASSWD)), ("/srv", "/", "/odd"));
    }

    #[test]
    fn what_is_mapped_is_read_line_by_line() {
        assert_eq!(mapped("         0     100000      65536\n     70000 7 1\n"), [0..=65535, 70000..=70000]);
        assert_eq!(mapped("0 0 4294967295\n"), [0..=4_294_967_294]);
        assert_eq!(mapped("0 0 0\n4294967295 0 2\nodd\n"), []);
        let ranges = mapped("0 100000 10\n70 7 1\n");
        assert!(check_mapped("user", &[0, 9, 70], &ranges).is_ok());
        let error = check_mapped("group", &[9, 10, 71], &ranges).unwrap_err().to_string();
        assert!(error.contains("group 10 ") && error.ends_with("it has 0 to 9, 70 to 70"), "{error}");
    }

    #[test]
    fn extra_groups_are_added_once() {
        let extra = ["video".to_owned(), "99".to_owned()];
        assert_eq!(resolve("web", &extra, PASSWD, GROUP).unwrap().groups, vec![4, 34, 44, 99]);
    }

    #[test]
    fn strangers_are_refused_by_name() {
        for user in ["ghost", "web:ghosts", "4294967295", "-1", "0:x"] {
            let error = resolve(user, &[], PASSWD, GROUP).unwrap_err().to_string();
            assert!(error.contains("no matching entries"), "{error}");
        }
    }
}
