//! An ordinary user of a host of a test's own.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::{Daemon, Lan, Outcome, program, skip};

const USER: u32 = 61_184;
/// Their range of ids, far above those of others.
const FIRST: u32 = 1_879_048_192;
const COUNT: u32 = 65_536;

/// A user without any rights on a [`Lan`]'s host.
#[derive(Debug)]
pub struct Ordinary {
    pub lan: Lan,
    programs: PathBuf,
}

/// What the user has in the way of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// A range of subuid(5).
    Many,
    /// The user's own.
    One,
}

impl Ordinary {
    /// A user; nobody, with a word why, where the kernel or another guard of this machine lets users make no
    /// namespaces, or programs are missing.
    #[must_use]
    pub fn new(ids: Ids) -> Option<Self> {
        if !crate::is_root() {
            skip("root", "it makes a user");
            return None;
        }
        if ids == Ids::Many && !Path::new("/usr/bin/newuidmap").exists() {
            skip("uidmap", "newuidmap is not there");
            return None;
        }
        let lan = Lan::new();
        std::fs::set_permissions(lan.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
        let programs = lan.path("programs");
        std::fs::create_dir(&programs).unwrap();
        let source = program("insulad").parent().unwrap().to_owned();
        lan.run(&["mount", "--bind", crate::text(&source), crate::text(&programs)]).exits(0);
        for (file, line) in [
            ("passwd", format!("insula-test:x:{USER}:{USER}::/:/bin/sh")),
            ("group", format!("insula-test:x:{USER}:")),
            ("subuid", format!("insula-test:{FIRST}:{COUNT}")),
            ("subgid", format!("insula-test:{FIRST}:{COUNT}")),
        ] {
            let (here, place) = (lan.path(file), format!("/etc/{file}"));
            if ids == Ids::One && file.starts_with("sub") {
                std::fs::write(&here, "").unwrap();
            } else {
                let text = std::fs::read_to_string(&place).unwrap_or_default();
                std::fs::write(&here, format!("{text}{line}\n")).unwrap();
            }
            if !Path::new(&place).exists() {
                skip("uidmap", &format!("{place} is not there"));
                return None;
            }
            lan.run(&["mount", "--bind", crate::text(&here), &place]).exits(0);
        }
        let user = Self { lan, programs };
        let tried =
            user.run(&["unshare", "-Urnmpf", "--mount-proc", "mount", "-t", "sysfs", "sysfs", "/sys"]);
        if tried.code != 0 {
            skip("userns", &format!("users can make no namespaces here: {}", tried.stderr));
            return None;
        }
        Some(user)
    }

    /// What precedes a command that is to be the user's.
    fn entrance(&self) -> Vec<String> {
        let (id, own) = (USER.to_string(), ["setpriv", "--reuid"]);
        let mut words = self.lan.entrance();
        words.extend(own.map(str::to_owned));
        words.extend([id.clone(), "--regid".to_owned(), id, "--clear-groups".to_owned()]);
        // Root's is none of theirs.
        words.extend(["env".to_owned(), format!("HOME={}", self.lan.path("nowhere").display())]);
        words
    }

    /// Runs a command as the user.
    pub fn run(&self, words: &[&str]) -> Outcome {
        let entrance = self.entrance();
        let mut command = std::process::Command::new(&entrance[0]);
        command.args(&entrance[1..]).args(words);
        for name in ["INSULA_HOST", "INSULA_ROOT", "INSULA_RUN", "DOCKER_HOST"] {
            command.env_remove(name);
        }
        Outcome::of(&mut command, b"")
    }

    /// The path of a program that the user can get to.
    #[must_use]
    pub fn program(&self, name: &str) -> String {
        crate::text(&self.programs.join(name)).to_owned()
    }

    /// A folder of the user's.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.lan.path(name);
        std::fs::create_dir_all(&path).unwrap();
        chown(&path, Some(USER), Some(USER)).unwrap();
        path
    }

    /// The user's daemon.
    #[must_use]
    pub fn daemon(&self) -> Daemon {
        let mut entrance = self.entrance();
        // The harness appends the program as everybody else finds it.
        let script = format!("shift; exec {} \"$@\"", self.program("insulad"));
        entrance.extend(["sh", "-c", &script, "sh"].map(str::to_owned));
        let daemon = Daemon::prepared(entrance);
        let folder = daemon.instance().root().parent().unwrap();
        chown(folder, Some(USER), Some(USER)).unwrap();
        daemon.began()
    }
}
