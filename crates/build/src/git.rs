//! References to git repositories: `https://host/repo.git#REF:FOLDER`.

/// A repository, and what of it is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitReference {
    /// As git takes it.
    pub url: String,
    /// A branch, tag or commit; what the repository's HEAD is if it is empty.
    pub reference: String,
    /// Below the root; all of it if it is empty.
    pub folder: String,
}

/// Bytes of a reference's parts: they become arguments of a program.
const PART_MAX: usize = 1024;

impl GitReference {
    /// Whether a source is a repository: by its scheme, or by the end of its path.
    #[must_use]
    pub fn is_one(source: &str) -> bool {
        let path = source.split(['#', '?']).next().unwrap_or_default();
        ["git@", "git://", "ssh://"].iter().any(|scheme| source.starts_with(scheme))
            || (source.starts_with("http") && path.ends_with(".git"))
    }

    /// Takes a reference apart.
    ///
    /// # Errors
    /// What is wrong with it, or cannot be fetched from here.
    pub fn parse(source: &str) -> Result<Self, String> {
        let (url, fragment) = source.split_once('#').unwrap_or((source, ""));
        let (reference, folder) = fragment.split_once(':').unwrap_or((fragment, ""));
        if ["git@", "ssh://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err("repositories by ssh are not fetched in this version: https is expected".to_owned());
        }
        if url.contains('?') {
            return Err("what is behind ? is not understood: #REF:FOLDER is expected".to_owned());
        }
        Self::check_url(url)?;
        if reference.starts_with('-') || reference.contains(['^', '~', '\\', '*', '[', '{', ' ', '+', ':']) {
            return Err(format!("{reference:?} is no branch, tag or commit"));
        }
        for part in [url, reference, folder] {
            if part.len() > PART_MAX || part.chars().any(char::is_control) {
                return Err("it has a part that is too long or has signs that no name has".to_owned());
            }
        }
        Ok(Self { url: url.to_owned(), reference: reference.to_owned(), folder: folder.to_owned() })
    }

    /// Whether git may be told to fetch from there: nothing of this host, and no option.
    fn check_url(url: &str) -> Result<(), String> {
        let rest = ["https://", "http://", "git://"].iter().find_map(|scheme| url.strip_prefix(scheme));
        match rest {
            Some(host) if !host.is_empty() && !host.starts_with(['-', '/']) && !host.contains("::") => Ok(()),
            _ => Err(format!("{url} is not an address of https, http or git")),
        }
    }

    /// What a submodule's address means in a repository: those that begin with dots are relative to its own.
    ///
    /// # Errors
    /// When it is none that may be fetched.
    pub fn submodule(&self, address: &str) -> Result<String, String> {
        if address.len() > PART_MAX || address.chars().any(char::is_control) {
            return Err("the address of a submodule is too long or has signs that no address has".to_owned());
        }
        let mut url = address.to_owned();
        if address.starts_with("./") || address.starts_with("../") {
            let (scheme, path) = self.url.split_once("://").unwrap_or_default();
            let mut parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
            for part in address.split('/') {
                match part {
                    "." | "" => {}
                    // The host stays.
                    ".." if parts.len() > 1 => drop(parts.pop()),
                    ".." => return Err(format!("the submodule {address} leads above {}", self.url)),
                    name => parts.push(name),
                }
            }
            url = format!("{scheme}://{}", parts.join("/"));
        }
        Self::check_url(&url)?;
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_three_parts() {
        let parsed = GitReference::parse("https://host/a/b.git#v1.2:sub/folder").unwrap();
        let parts = [parsed.url.as_str(), &parsed.reference, &parsed.folder];
        assert_eq!(parts, ["https://host/a/b.git", "v1.2", "sub/folder"]);
        let parsed = GitReference::parse("git://host/a#:sub").unwrap();
        assert_eq!([parsed.reference.as_str(), &parsed.folder], ["", "sub"]);
        for wrong in [
            "git@host:a",
            "ssh://host/a",
            "https://",
            "https://-host/a.git",
            "https://host/a.git#--upload-pack=x",
            "https://host/a.git#a b",
            "https://host/a.git?tag=1",
            "ext::sh -c x.git",
            "file:///a.git",
            "/a.git",
        ] {
            assert!(GitReference::parse(wrong).is_err(), "{wrong}");
        }
        assert!(GitReference::is_one("https://host/a.git#x") && !GitReference::is_one("https://host/a.tar"));
    }

    #[test]
    fn submodules_are_relative_to_their_repository() {
        let parent = GitReference::parse("https://host/team/app.git").unwrap();
        let found = |address: &str| parent.submodule(address);
        assert_eq!(found("../lib.git").unwrap(), "https://host/team/lib.git");
        assert_eq!(found("./x").unwrap(), "https://host/team/app.git/x");
        assert_eq!(found("http://other/lib").unwrap(), "http://other/lib");
        for wrong in ["../../../../x", "/etc", "file:///x", "ext::sh", "-x", "git@host:x", "https:///x"] {
            assert!(found(wrong).is_err(), "{wrong}");
        }
    }
}
