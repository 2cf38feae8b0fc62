//! What variables stand for in a stage: its environment, and its arguments where that has no such name.

use crate::dockerfile::Variables;

/// Names and values together: a program is given no more than 2 MB of them and of its words.
pub(crate) const ENVIRONMENT_MAX: usize = 1 << 20;

/// What a program finds without a `PATH` of the image's; Docker's builders put it into every image.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The variables of one stage. A file of many thousand lines asks for them in each, so they are kept
/// as they are asked for.
#[derive(Debug, Clone)]
pub(crate) struct Environment {
    variables: Variables,
    /// Where in the configuration's list each of its names is.
    places: std::collections::BTreeMap<String, usize>,
    /// Arguments that were declared, in order; those that the environment hides, too.
    arguments: Vec<(String, String)>,
    /// Names and values of the variables.
    size: usize,
}

impl Environment {
    /// The variables of a configuration, which gets a `PATH`, and what the stage below declared.
    pub(crate) fn new(env: &mut Vec<String>, inherited: &[(String, String)]) -> Self {
        let mut own = Self {
            variables: Variables::new(),
            places: std::collections::BTreeMap::new(),
            arguments: inherited.to_vec(),
            size: 0,
        };
        if !env.iter().any(|entry| name(entry) == "PATH") {
            env.push(format!("PATH={PATH}"));
        }
        for (name, value) in inherited {
            own.put(name, value);
        }
        for (place, entry) in env.iter().enumerate() {
            own.places.entry(name(entry).to_owned()).or_insert(place);
            if let Some((name, value)) = entry.split_once('=') {
                own.put(name, value);
            }
        }
        own
    }

    pub(crate) fn variables(&self) -> &Variables {
        &self.variables
    }

    pub(crate) fn arguments(&self) -> &[(String, String)] {
        &self.arguments
    }

    /// Whether the configuration says what it is, or that there is none.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// `ENV`: at the place where the name was.
    pub(crate) fn set(&mut self, env: &mut Vec<String>, name: &str, value: &str) -> Result<(), String> {
        self.check(name, value)?;
        let entry = format!("{name}={value}");
        match self.places.get(name).and_then(|place| env.get_mut(*place)) {
            Some(old) => *old = entry,
            None => {
                self.places.insert(name.to_owned(), env.len());
                env.push(entry);
            }
        }
        self.put(name, value);
        Ok(())
    }

    /// `ARG`.
    pub(crate) fn declare(&mut self, name: &str, value: String) -> Result<(), String> {
        self.check(name, &value)?;
        // Only what is known can have been declared before: the list is not gone through for each.
        if self.variables.contains_key(name) || self.has(name) {
            self.arguments.retain(|(other, _)| other != name);
        }
        if !self.has(name) {
            self.put(name, &value);
        }
        self.arguments.push((name.to_owned(), value));
        Ok(())
    }

    fn check(&self, name: &str, value: &str) -> Result<(), String> {
        let old = self.variables.get(name).map_or(0, |old| name.len() + old.len());
        if self.size - old + name.len() + value.len() > ENVIRONMENT_MAX {
            return Err(format!(
                "the stage's environment and arguments would take more than {ENVIRONMENT_MAX} bytes with {name}"
            ));
        }
        Ok(())
    }

    fn put(&mut self, name: &str, value: &str) {
        self.size += name.len() + value.len();
        if let Some(old) = self.variables.insert(name.to_owned(), value.to_owned()) {
            self.size -= name.len() + old.len();
        }
    }
}

/// The name in `NAME=value` and in `NAME`.
fn name(entry: &str) -> &str {
    entry.split('=').next().unwrap_or_default()
}
