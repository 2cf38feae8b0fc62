//! Packages, from the files that package systems keep about what they have installed.
//!
//! ```text
//! Debian   var/lib/dpkg/status, status.d/*     paragraphs (deb-control(5)); only what is installed
//! Alpine   lib/apk/db/installed                P:, V:, A:, L:, m: and an empty line
//! Python   *.dist-info/METADATA, *.egg-info    headers as in mail (core metadata)
//! Node     node_modules/NAME/package.json      JSON
//! ```
//!
//! What is in them is foreign: what cannot be read is no package, and there are bounds.

use std::collections::BTreeMap;

use serde_json::Value;

use super::encoded;
use super::licence::expression;

/// Signs of a name or a version.
const TEXT_MAX: usize = 256;

/// Who installed a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ecosystem {
    Debian,
    Alpine,
    Python,
    Node,
}

/// A file that lists packages, by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackageFile {
    /// Many of them, or one for each file of `status.d`.
    Dpkg,
    Apk,
    Python,
    Node,
}

/// What the image is, by `os-release(5)`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distribution {
    /// `debian`
    pub id: String,
    /// `12`
    pub version: String,
}

/// Something that is installed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    pub ecosystem: Ecosystem,
    pub name: String,
    pub version: String,
    pub architecture: String,
    /// Who made the package: `NAME <ADDRESS>`.
    pub maintainer: String,
    /// An expression of SPDX, if what the package says is one.
    pub licence: Option<String>,
    /// The file that says so, from the root.
    pub path: String,
}

/// What the file at a path from the root lists.
#[must_use]
pub fn package_file(path: &str) -> Option<PackageFile> {
    let (folder, name) = path.rsplit_once('/')?;
    let holder = folder.rsplit('/').next().unwrap_or_default();
    match (folder, name) {
        ("/var/lib/dpkg", "status") => Some(PackageFile::Dpkg),
        ("/var/lib/dpkg/status.d", name) if !name.ends_with(".md5sums") => Some(PackageFile::Dpkg),
        ("/lib/apk/db" | "/usr/lib/apk/db", "installed") => Some(PackageFile::Apk),
        (_, "METADATA") if holder.ends_with(".dist-info") => Some(PackageFile::Python),
        (_, "PKG-INFO") if holder.ends_with(".egg-info") => Some(PackageFile::Python),
        (_, name) if name.ends_with(".egg-info") => Some(PackageFile::Python),
        (folder, "package.json") => is_module(folder).then_some(PackageFile::Node),
        _ => None,
    }
}

/// `…/node_modules/NAME` or `…/node_modules/@SCOPE/NAME`.
fn is_module(folder: &str) -> bool {
    let mut names = folder.rsplit('/').skip(1);
    match names.next() {
        Some("node_modules") => true,
        Some(scope) if scope.starts_with('@') => names.next() == Some("node_modules"),
        _ => false,
    }
}

impl Distribution {
    /// Reads `os-release`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let value = |wanted: &str| {
            let mut lines = text.lines().filter_map(|line| line.trim().split_once('='));
            let value = lines.find(|(name, _)| *name == wanted).map(|(_, value)| value);
            short(value.unwrap_or_default().trim_matches(['"', '\'']))
        };
        Self { id: value("ID"), version: value("VERSION_ID") }
    }
}

impl PackageFile {
    /// The packages that a file lists, no more than `most`.
    #[must_use]
    pub fn read(self, path: &str, text: &str, most: usize) -> Vec<Package> {
        match self {
            Self::Dpkg => paragraphs(text).filter_map(|fields| debian(&fields, path)).take(most).collect(),
            Self::Apk => paragraphs(text).filter_map(|fields| alpine(&fields, path)).take(most).collect(),
            Self::Python => {
                paragraphs(text).next().and_then(|fields| python(&fields, path)).into_iter().collect()
            }
            Self::Node => node(text, path).into_iter().collect(),
        }
    }
}

/// Fields that somebody looks at below: of a file that has millions no others are kept.
const WANTED: [&str; 13] = [
    "A",
    "Architecture",
    "L",
    "License",
    "License-Expression",
    "Maintainer",
    "Name",
    "P",
    "Package",
    "Status",
    "V",
    "Version",
    "m",
];

/// Groups of `Name: value` lines with empty ones in between; continued lines are of no interest. Names are as they
/// are in apk, whose case counts.
fn paragraphs(text: &str) -> impl Iterator<Item = BTreeMap<&str, &str>> {
    let mut lines = text.lines().peekable();
    std::iter::from_fn(move || {
        while lines.peek().is_some_and(|line| line.trim().is_empty()) {
            lines.next();
        }
        lines.peek()?;
        let mut fields = BTreeMap::new();
        for line in lines.by_ref().take_while(|line| !line.trim().is_empty()) {
            if line.starts_with([' ', '\t']) {
                continue;
            }
            if let Some((name, value)) = line.split_once(':')
                && WANTED.contains(&name)
            {
                fields.entry(name).or_insert(value.trim());
            }
        }
        Some(fields)
    })
}

fn debian(fields: &BTreeMap<&str, &str>, path: &str) -> Option<Package> {
    // Files of `status.d` say no state: who unpacked them did not use dpkg.
    let installed = fields.get("Status").is_none_or(|state| state.ends_with(" installed"));
    let package = package(Ecosystem::Debian, fields.get("Package")?, fields.get("Version")?, path)?;
    let text = |name: &str| short(fields.get(name).copied().unwrap_or_default());
    installed.then(|| Package {
        architecture: text("Architecture"),
        maintainer: text("Maintainer"),
        ..package
    })
}

fn alpine(fields: &BTreeMap<&str, &str>, path: &str) -> Option<Package> {
    let package = package(Ecosystem::Alpine, fields.get("P")?, fields.get("V")?, path)?;
    let text = |name: &str| short(fields.get(name).copied().unwrap_or_default());
    let licence = fields.get("L").and_then(|text| expression(text));
    Some(Package { architecture: text("A"), maintainer: text("m"), licence, ..package })
}

fn python(fields: &BTreeMap<&str, &str>, path: &str) -> Option<Package> {
    let package = package(Ecosystem::Python, fields.get("Name")?, fields.get("Version")?, path)?;
    let licence = ["License-Expression", "License"].iter().find_map(|name| expression(fields.get(name)?));
    Some(Package { licence, ..package })
}

fn node(text: &str, path: &str) -> Option<Package> {
    let document: Value = serde_json::from_str(text).ok()?;
    let package = package(Ecosystem::Node, document["name"].as_str()?, document["version"].as_str()?, path)?;
    Some(Package { licence: document["license"].as_str().and_then(expression), ..package })
}

fn package(ecosystem: Ecosystem, name: &str, version: &str, path: &str) -> Option<Package> {
    let (name, version) = (short(name), short(version));
    (!name.is_empty() && !version.is_empty()).then(|| Package {
        ecosystem,
        name,
        version,
        architecture: String::new(),
        maintainer: String::new(),
        licence: None,
        path: path.to_owned(),
    })
}

fn short(text: &str) -> String {
    text.trim().chars().filter(|sign| !sign.is_control()).take(TEXT_MAX).collect()
}

impl Package {
    /// Bytes of all that is said of it.
    #[must_use]
    pub fn said(&self) -> usize {
        let texts = [&self.name, &self.version, &self.architecture, &self.maintainer, &self.path];
        texts.into_iter().chain(&self.licence).map(String::len).sum()
    }

    /// The package URL.
    #[must_use]
    pub fn url(&self, distribution: &Distribution) -> String {
        let version = encoded(&self.version);
        let name = encoded(&self.name);
        match self.ecosystem {
            Ecosystem::Debian => self.system_url("deb", "debian", distribution),
            Ecosystem::Alpine => self.system_url("apk", "alpine", distribution),
            Ecosystem::Python => {
                format!("pkg:pypi/{}@{version}", encoded(&self.name.to_lowercase().replace('_', "-")))
            }
            Ecosystem::Node => match self.name.split_once('/') {
                Some((scope, name)) => format!("pkg:npm/{}/{}@{version}", encoded(scope), encoded(name)),
                None => format!("pkg:npm/{name}@{version}"),
            },
        }
    }

    fn system_url(&self, kind: &str, vendor: &str, distribution: &Distribution) -> String {
        let vendor = if distribution.id.is_empty() { vendor } else { &distribution.id };
        let (name, version) = (encoded(&self.name.to_lowercase()), encoded(&self.version));
        let mut url = format!("pkg:{kind}/{}/{name}@{version}", encoded(&vendor.to_lowercase()));
        let release = match distribution.version.as_str() {
            "" => String::new(),
            version => format!("{vendor}-{version}"),
        };
        let known = [("arch", &self.architecture), ("distro", &release)];
        for (at, (key, value)) in known.iter().filter(|(_, value)| !value.is_empty()).enumerate() {
            let sign = if at == 0 { '?' } else { '&' };
            url.push_str(&format!("{sign}{key}={}", encoded(value)));
        }
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DPKG: &str = "\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10
Maintainer: GNU Libc Maintainers <debian-glibc@lists.debian.org>
Description: library
 with a line: that is continued

Package: gone
Status: deinstall ok config-files
Version: 1

Package: broken
Status: install ok installed
";
    const APK: &str = "C:Q1x\nP:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\nm:A B <a@b.org>\nF:lib\n\n\
                       P:odd\nV:1\nL:my own\n";

    #[test]
    fn files_are_known_by_their_paths() {
        let known = [
            ("/var/lib/dpkg/status", Some(PackageFile::Dpkg)),
            ("/var/lib/dpkg/status.d/base", Some(PackageFile::Dpkg)),
            ("/var/lib/dpkg/status.d/base.md5sums", None),
            ("/opt/var/lib/dpkg/status", None),
            ("/lib/apk/db/installed", Some(PackageFile::Apk)),
            ("/usr/lib/python3/dist-packages/six-1.16.0.egg-info", Some(PackageFile::Python)),
            ("/venv/lib/six-1.16.dist-info/METADATA", Some(PackageFile::Python)),
            ("/venv/METADATA", None),
            ("/app/node_modules/left-pad/package.json", Some(PackageFile::Node)),
            ("/app/node_modules/@a/b/package.json", Some(PackageFile::Node)),
            ("/app/node_modules/a/lib/package.json", None),
            ("/app/package.json", None),
        ];
        for (path, file) in known {
            assert_eq!(package_file(path), file, "{path}");
        }
    }

    #[test]
    fn installed_packages_are_listed() {
        let bookworm = Distribution::parse("NAME=x\nID=debian\nVERSION_ID=\"12\"\n");
        assert_eq!(bookworm, Distribution { id: "debian".to_owned(), version: "12".to_owned() });
        let [libc] = &PackageFile::Dpkg.read("/var/lib/dpkg/status", DPKG, 9)[..] else {
            panic!("one is installed")
        };
        assert_eq!(libc.name, "libc6");
        assert_eq!(libc.url(&bookworm), "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12");
        let apk = PackageFile::Apk.read("/lib/apk/db/installed", APK, 9);
        let seen: Vec<_> = apk.iter().map(|one| (one.name.as_str(), one.licence.as_deref())).collect();
        assert_eq!(seen, [("musl", Some("MIT")), ("odd", None)]);
        assert_eq!(apk[0].url(&Distribution::default()), "pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64");
    }

    #[test]
    fn libraries_are_listed() {
        let python =
            "Metadata-Version: 2.1\nName: Typing_Extensions\nVersion: 4.12\nLicense: PSF\n\nName: text\n";
        let [typing] = &PackageFile::Python.read("/x/METADATA", python, 9)[..] else { panic!() };
        assert_eq!(typing.url(&Distribution::default()), "pkg:pypi/typing-extensions@4.12");
        assert_eq!(typing.licence, None);
        let node = r#"{"name": "@a/b", "version": "1.0.0", "license": "ISC"}"#;
        let [module] = &PackageFile::Node.read("/x/package.json", node, 9)[..] else { panic!() };
        assert_eq!(module.url(&Distribution::default()), "pkg:npm/%40a/b@1.0.0");
        assert_eq!(module.licence.as_deref(), Some("ISC"));
        for wrong in ["", "{", "[]", r#"{"name": 1}"#, r#"{"name": "", "version": "1"}"#] {
            assert_eq!(PackageFile::Node.read("/x/package.json", wrong, 9), [], "{wrong}");
        }
    }
}
