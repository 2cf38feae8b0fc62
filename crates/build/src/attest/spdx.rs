//! A list of parts as SPDX 2.3 has it, in JSON.

use std::collections::BTreeSet;

use serde::{Serialize, Serializer};

use super::licence::NOASSERTION;
use super::packages::{Distribution, Ecosystem, Package};
use super::{Subject, image_url};

const DOCUMENT: &str = "SPDXRef-DOCUMENT";
const IMAGE: &str = "SPDXRef-Image";
const SYSTEM: &str = "SPDXRef-OperatingSystem";
/// Where documents are called that have no place of their own (SPDX 2.3, 6.5).
const NAMESPACE: &str = "https://spdx.org/spdxdocs/insula-";

/// What is in an image.
#[derive(Debug, Clone, Default)]
pub struct Bom {
    pub distribution: Distribution,
    pub packages: BTreeSet<Package>,
    /// What was not looked into, in words.
    pub left_out: Vec<String>,
    /// `2026-01-02T03:04:05Z`
    pub created: String,
    /// The program that lists them, with its version: `insula-1.0`.
    pub tool: String,
}

/// A list whose members are made as they are written: all at once would be many times what is known of them.
struct Each<F>(F);

impl<F, I> Serialize for Each<F>
where
    F: Fn() -> I,
    I: IntoIterator<Item: Serialize>,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0())
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a, P: Serialize, R: Serialize> {
    spdx_version: &'a str,
    data_license: &'a str,
    #[serde(rename = "SPDXID")]
    id: &'a str,
    name: String,
    document_namespace: String,
    creation_info: CreationInfo,
    #[serde(skip_serializing_if = "String::is_empty")]
    comment: String,
    packages: P,
    relationships: R,
}

#[derive(Serialize)]
struct CreationInfo {
    created: String,
    creators: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    #[serde(rename = "SPDXID")]
    id: String,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    version_info: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    supplier: String,
    download_location: &'static str,
    files_analyzed: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    source_info: String,
    license_concluded: &'static str,
    license_declared: String,
    copyright_text: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    external_refs: Vec<ExternalRef>,
    primary_package_purpose: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExternalRef {
    reference_category: &'static str,
    reference_type: &'static str,
    reference_locator: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Relationship {
    spdx_element_id: &'static str,
    relationship_type: &'static str,
    related_spdx_element: String,
}

impl Part {
    fn new(id: String, name: &str, version: &str, purpose: &'static str) -> Self {
        Self {
            id,
            name: name.to_owned(),
            version_info: version.to_owned(),
            supplier: String::new(),
            download_location: NOASSERTION,
            files_analyzed: false,
            source_info: String::new(),
            license_concluded: NOASSERTION,
            license_declared: NOASSERTION.to_owned(),
            copyright_text: NOASSERTION,
            external_refs: Vec::new(),
            primary_package_purpose: purpose,
        }
    }

    fn found_by(mut self, url: String) -> Self {
        self.external_refs.push(ExternalRef {
            reference_category: "PACKAGE-MANAGER",
            reference_type: "purl",
            reference_locator: url,
        });
        self
    }
}

impl Bom {
    /// What the predicate of its statement is.
    pub const PREDICATE_TYPE: &'static str = "https://spdx.dev/Document";

    /// The document. The same parts of the same image at the same time are the same document.
    #[must_use]
    pub fn predicate(&self, subject: &Subject) -> impl Serialize {
        let name = subject.names.first().cloned().unwrap_or_else(|| format!("sha256:{}", subject.sha256));
        Document {
            spdx_version: "SPDX-2.3",
            data_license: "CC0-1.0",
            id: DOCUMENT,
            name: name.clone(),
            document_namespace: format!("{NAMESPACE}{}", subject.sha256),
            creation_info: CreationInfo {
                created: self.created.clone(),
                creators: vec![format!("Tool: {}", self.tool)],
            },
            comment: self.left_out.join("\n"),
            packages: Each(move || {
                let digest = format!("sha256:{}", subject.sha256);
                let url = image_url(&name, &subject.platform, Some(&digest));
                let image = Part::new(IMAGE.to_owned(), &name, &digest, "CONTAINER").found_by(url);
                std::iter::once(image)
                    .chain(self.system())
                    .chain(self.numbered().map(move |one| self.part(one)))
            }),
            relationships: Each(|| {
                let described = related(DOCUMENT, "DESCRIBES", IMAGE.to_owned());
                let system = self.system().map(|part| part.id);
                let parts = system.into_iter().chain(self.numbered().map(id));
                std::iter::once(described).chain(parts.map(|id| related(IMAGE, "CONTAINS", id)))
            }),
        }
    }

    fn system(&self) -> Option<Part> {
        let Distribution { id, version } = &self.distribution;
        (!id.is_empty()).then(|| Part::new(SYSTEM.to_owned(), id, version, "OPERATING-SYSTEM"))
    }

    fn numbered(&self) -> impl Iterator<Item = (usize, &Package)> {
        self.packages.iter().enumerate()
    }

    fn part(&self, numbered: (usize, &Package)) -> Part {
        let (_, package) = numbered;
        let part = Part::new(id(numbered), &package.name, &package.version, "LIBRARY");
        Part {
            supplier: supplier(&package.maintainer),
            source_info: format!("listed in {}", package.path),
            license_declared: package.licence.clone().unwrap_or_else(|| NOASSERTION.to_owned()),
            ..part.found_by(package.url(&self.distribution))
        }
    }
}

/// What a package is called in the document.
fn id((number, package): (usize, &Package)) -> String {
    let name: String = package.name.chars().map(|sign| if is_of_id(sign) { sign } else { '-' }).collect();
    format!("SPDXRef-Package-{}-{name}-{number}", kind(package.ecosystem))
}

fn is_of_id(sign: char) -> bool {
    sign.is_ascii_alphanumeric() || matches!(sign, '.' | '-')
}

fn kind(ecosystem: Ecosystem) -> &'static str {
    match ecosystem {
        Ecosystem::Debian => "deb",
        Ecosystem::Alpine => "apk",
        Ecosystem::Python => "pypi",
        Ecosystem::Node => "npm",
    }
}

/// `NAME <ADDRESS>` as SPDX has it: `Person: NAME (ADDRESS)`.
fn supplier(maintainer: &str) -> String {
    if maintainer.is_empty() {
        return NOASSERTION.to_owned();
    }
    let (name, address) = match maintainer.split_once('<') {
        Some((name, address)) => (name.trim(), address.trim_end_matches('>').trim()),
        None => (maintainer, ""),
    };
    let of_many = ["team", "maintainers", "developers", "group", "project"];
    let lower = name.to_lowercase();
    let who = if of_many.iter().any(|word| lower.contains(word)) { "Organization" } else { "Person" };
    match (name, address) {
        ("", address) => format!("{who}: {address}"),
        (name, "") => format!("{who}: {name}"),
        (name, address) => format!("{who}: {name} ({address})"),
    }
}

fn related(one: &'static str, how: &'static str, other: String) -> Relationship {
    Relationship { spdx_element_id: one, relationship_type: how, related_spdx_element: other }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::packages::PackageFile;
    use super::*;

    fn document(bom: &Bom, subject: &Subject) -> Value {
        serde_json::to_value(bom.predicate(subject)).unwrap()
    }

    fn bom() -> Bom {
        let dpkg =
            "Package: libstdc++6\nVersion: 1:12-1\nArchitecture: amd64\nMaintainer: A Team <a@b.org>\n";
        let apk = "P:musl\nV:1\nL:MIT\nm:Somebody <s@b.org>\n";
        let node = r#"{"name": "@a/b_c", "version": "1", "license": "my own"}"#;
        let mut packages = BTreeSet::new();
        packages.extend(PackageFile::Dpkg.read("/var/lib/dpkg/status", dpkg, 9));
        packages.extend(PackageFile::Apk.read("/lib/apk/db/installed", apk, 9));
        packages.extend(PackageFile::Node.read("/node_modules/@a/b_c/package.json", node, 9));
        Bom {
            distribution: Distribution { id: "debian".to_owned(), version: "12".to_owned() },
            packages,
            left_out: Vec::new(),
            created: "2026-01-02T03:04:05Z".to_owned(),
            tool: "insula-1.0".to_owned(),
        }
    }

    fn subject() -> Subject {
        Subject {
            names: vec!["app:1".to_owned()],
            platform: "linux/amd64".to_owned(),
            sha256: "ab".repeat(32),
        }
    }

    fn text<'a>(value: &'a Value, key: &str) -> &'a str {
        value[key].as_str().unwrap_or_else(|| panic!("{key} of {value}"))
    }

    /// The rules of the specification's JSON schema for what is written here.
    fn check(document: &Value) {
        assert_eq!(text(document, "spdxVersion"), "SPDX-2.3");
        assert_eq!(text(document, "dataLicense"), "CC0-1.0");
        assert_eq!(text(document, "SPDXID"), DOCUMENT);
        assert!(!text(document, "name").is_empty());
        let namespace = text(document, "documentNamespace");
        assert!(namespace.starts_with("https://") && !namespace.contains('#'));
        let created = text(&document["creationInfo"], "created");
        assert!(created.len() == 20 && created.ends_with('Z') && created.parse::<String>().is_ok());
        for creator in document["creationInfo"]["creators"].as_array().unwrap() {
            assert!(creator.as_str().unwrap().starts_with("Tool: "));
        }
        let mut ids = BTreeSet::from([DOCUMENT]);
        for package in document["packages"].as_array().unwrap() {
            let id = text(package, "SPDXID");
            assert!(id.strip_prefix("SPDXRef-").unwrap().chars().all(is_of_id), "{id}");
            assert!(ids.insert(id), "{id} is there twice");
            for required in ["name", "downloadLocation", "licenseConcluded", "copyrightText"] {
                assert!(!text(package, required).is_empty(), "{required}");
            }
            assert_eq!(package["filesAnalyzed"], false);
            let licence = text(package, "licenseDeclared");
            assert!(licence == NOASSERTION || spdx::Expression::parse(licence).is_ok(), "{licence}");
            let supplier = package["supplier"].as_str().unwrap_or(NOASSERTION);
            let known = ["Person: ", "Organization: "].iter().any(|begin| supplier.starts_with(begin));
            assert!(known || supplier == NOASSERTION, "{supplier}");
            assert!(
                ["CONTAINER", "LIBRARY", "OPERATING-SYSTEM"]
                    .contains(&text(package, "primaryPackagePurpose"))
            );
            for reference in package["externalRefs"].as_array().into_iter().flatten() {
                assert_eq!(text(reference, "referenceCategory"), "PACKAGE-MANAGER");
                assert_eq!(text(reference, "referenceType"), "purl");
                assert!(text(reference, "referenceLocator").starts_with("pkg:"));
            }
        }
        for relationship in document["relationships"].as_array().unwrap() {
            for end in ["spdxElementId", "relatedSpdxElement"] {
                assert!(ids.contains(text(relationship, end)), "{relationship}");
            }
            assert!(["DESCRIBES", "CONTAINS"].contains(&text(relationship, "relationshipType")));
        }
    }

    #[test]
    fn documents_keep_the_rules_of_spdx() {
        let (bom, subject) = (bom(), subject());
        let document = document(&bom, &subject);
        check(&document);
        let packages = document["packages"].as_array().unwrap();
        let seen: Vec<_> = packages
            .iter()
            .map(|package| [text(package, "name"), text(package, "licenseDeclared")])
            .collect();
        let expected = [
            ["app:1", NOASSERTION],
            ["debian", NOASSERTION],
            ["libstdc++6", NOASSERTION],
            ["musl", "MIT"],
            ["@a/b_c", NOASSERTION],
        ];
        assert_eq!(seen, expected);
        assert_eq!(text(&packages[2], "supplier"), "Organization: A Team (a@b.org)");
        assert_eq!(text(&packages[3], "supplier"), "Person: Somebody (s@b.org)");
        assert_eq!(document, super::tests::document(&bom, &subject), "the same is the same");
    }

    #[test]
    fn an_image_of_nothing_has_a_document() {
        let bom = Bom { left_out: vec!["rpm".to_owned()], ..Bom { packages: BTreeSet::new(), ..bom() } };
        let bom = Bom { distribution: Distribution::default(), ..bom };
        let document = document(&bom, &Subject { names: Vec::new(), ..subject() });
        check(&document);
        assert_eq!(document["packages"].as_array().unwrap().len(), 1);
        assert_eq!(document["comment"], "rpm");
    }
}
