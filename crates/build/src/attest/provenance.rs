//! How an image was built: SLSA provenance, version 1.0.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// What a build of a Dockerfile is called, and says of itself.
const BUILD_TYPE: &str =
    "https://github.com/insula-engine/insula/blob/main/docs/design/build.md#attestations";
/// Arguments that hold credentials often enough to be nobody's business; commands have them, and no cache key.
const PROXIES: [&str; 6] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy", "socks_proxy"];

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Neither arguments nor the Dockerfile.
    Min,
    /// These too; of secrets and agents what they are called.
    Max,
}

/// Something that came from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Material {
    /// A package URL, or an address without anything secret.
    pub uri: String,
    /// By their algorithms: `sha256`, `gitCommit`.
    pub digest: BTreeMap<String, String>,
}

/// A build that was done. Values of secrets have no place in it.
#[derive(Debug, Clone)]
pub struct Provenance {
    pub detail: Detail,
    /// Who built, as whoever asked for the build says.
    pub builder: String,
    /// The version of the engine.
    pub version: String,
    /// Tells this build from all others.
    pub invocation: String,
    /// RFC 3339.
    pub started: String,
    pub finished: String,
    /// The address of a context that was fetched, without anything secret.
    pub source: Option<Material>,
    /// The Dockerfile's path in its context.
    pub dockerfile: String,
    /// What is in it, in Base64.
    pub text: String,
    pub platform: String,
    pub target: String,
    pub arguments: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// What else came along, by name.
    pub contexts: BTreeSet<String>,
    /// By their ids.
    pub secrets: BTreeSet<String>,
    pub agents: BTreeSet<String>,
    pub materials: BTreeSet<Material>,
}

impl Provenance {
    /// What the predicate of its statement is.
    pub const PREDICATE_TYPE: &'static str = "https://slsa.dev/provenance/v1";

    /// The predicate.
    #[must_use]
    pub fn predicate(&self) -> Value {
        let mut source = Map::from_iter([("path".to_owned(), json!(self.dockerfile))]);
        if let Some(Material { uri, digest }) = &self.source {
            source.insert("uri".to_owned(), json!(uri));
            source.insert("digest".to_owned(), json!(digest));
        }
        let mut run = json!({
            "builder": {"id": self.builder, "version": {"insula": self.version}},
            "metadata": {
                "invocationId": self.invocation,
                "startedOn": self.started,
                "finishedOn": self.finished,
            },
        });
        if self.detail == Detail::Max {
            run["byproducts"] =
                json!([{"name": self.dockerfile, "mediaType": "text/x-dockerfile", "content": self.text}]);
        }
        let materials: Vec<Value> = self.materials.iter().map(material).collect();
        json!({
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"configSource": source, "request": self.request()},
                "internalParameters": {"builderPlatform": self.platform},
                "resolvedDependencies": materials,
            },
            "runDetails": run,
        })
    }

    fn request(&self) -> Value {
        let locals: Vec<Value> = match self.source {
            Some(_) => Vec::new(),
            None => ["context", "dockerfile"].iter().map(|name| json!({"name": name})).collect(),
        };
        let mut request = json!({"frontend": "dockerfile.v0", "locals": locals});
        if self.detail == Detail::Min {
            return request;
        }
        let mut arguments = Map::new();
        let given = self.arguments.iter().filter(|(name, _)| !is_proxy(name));
        arguments.extend(given.map(|(name, value)| (format!("build-arg:{name}"), json!(value))));
        arguments.extend(self.labels.iter().map(|(name, value)| (format!("label:{name}"), json!(value))));
        arguments.extend(self.contexts.iter().map(|name| (format!("context:{name}"), json!(""))));
        if !self.target.is_empty() {
            arguments.insert("target".to_owned(), json!(self.target));
        }
        let ids = |ids: &BTreeSet<String>| ids.iter().map(|id| json!({"id": id})).collect::<Vec<_>>();
        request["args"] = Value::Object(arguments);
        request["secrets"] = json!(ids(&self.secrets));
        request["ssh"] = json!(ids(&self.agents));
        request
    }
}

fn is_proxy(name: &str) -> bool {
    PROXIES.contains(&name.to_lowercase().as_str())
}

fn material(material: &Material) -> Value {
    let mut value = json!({"uri": material.uri});
    if !material.digest.is_empty() {
        value["digest"] = json!(material.digest);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance(detail: Detail) -> Provenance {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Provenance {
            detail,
            builder: "https://ci.example.org".to_owned(),
            version: "1.0".to_owned(),
            invocation: "abc".to_owned(),
            started: "2026-01-02T03:04:05Z".to_owned(),
            finished: "2026-01-02T03:04:06Z".to_owned(),
            source: None,
            dockerfile: "Dockerfile".to_owned(),
            text: "RlJPTSB4".to_owned(),
            platform: "linux/amd64".to_owned(),
            target: "last".to_owned(),
            arguments: [pair("A", "argument"), pair("HTTP_PROXY", "http://me:hidden@proxy")].into(),
            labels: [pair("l", "label")].into(),
            contexts: ["sources".to_owned()].into(),
            secrets: ["token".to_owned()].into(),
            agents: ["default".to_owned()].into(),
            materials: [Material { uri: "pkg:docker/a@1".to_owned(), digest: [pair("sha256", "00")].into() }]
                .into(),
        }
    }

    #[test]
    fn min_says_nothing_that_was_given() {
        let text = provenance(Detail::Min).predicate().to_string();
        for word in ["argument", "hidden", "label", "sources", "token", "RlJPTSB4", "last"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
        assert!(text.contains("pkg:docker/a@1") && text.contains("https://ci.example.org"), "{text}");
    }

    #[test]
    fn max_says_what_was_asked_for() {
        let document = provenance(Detail::Max).predicate();
        let parameters = &document["buildDefinition"]["externalParameters"];
        let arguments =
            json!({"build-arg:A": "argument", "label:l": "label", "context:sources": "", "target": "last"});
        assert_eq!(parameters["request"]["args"], arguments);
        assert_eq!(parameters["request"]["secrets"], json!([{"id": "token"}]));
        assert_eq!(document["runDetails"]["byproducts"][0]["content"], "RlJPTSB4");
        assert!(!document.to_string().contains("hidden"), "{document}");
        let source = Material { uri: "https://host/a.git".to_owned(), digest: BTreeMap::new() };
        let fetched = Provenance { source: Some(source), ..provenance(Detail::Min) }.predicate();
        let parameters = &fetched["buildDefinition"]["externalParameters"];
        assert_eq!(parameters["configSource"]["uri"], "https://host/a.git");
        assert_eq!(parameters["request"]["locals"], json!([]));
    }
}
