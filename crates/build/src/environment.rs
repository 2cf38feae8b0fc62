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
    /// Bytes of each argument's value.
    declared: std::collections::BTreeMap<String, usize>,
    /// Names and values of the environment and of all arguments, hidden ones too.
    size: usize,
}

impl Environment {
    /// The variables of a configuration, which gets a `PATH`, and what the stage below declared.
    pub(crate) fn new(env: &mut Vec<String>, inherited: &[(String, String)]) -> Self {
        let mut own = Self {
            variables: Variables::new(),
            places: std::collections::BTreeMap::new(),
            arguments: inherited.to_vec(),
            declared: inherited.iter().map(|(name, value)| (name.clone(), value.len())).collect(),
            size: 0,
        };
        if !env.iter().any(|entry| name(entry) == "PATH") {
            env.push(format!("PATH={PATH}"));
        }
        own.variables.extend(inherited.iter().cloned());
        for (place, entry) in env.iter().enumerate() {
            own.places.entry(name(entry).to_owned()).or_insert(place);
            if let Some((name, value)) = entry.split_once('=') {
                own.variables.insert(name.to_owned(), value.to_owned());
            }
        }
        let arguments = inherited.iter().map(|(name, value)| name.len() + value.len());
        own.size = arguments.chain(env.iter().map(String::len)).sum();
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
        let entry = format!("{name}={value}");
        let place = self.places.get(name).copied();
        let old = place.and_then(|place| env.get(place)).map_or(0, String::len);
        self.resize(name, old, entry.len())?;
        match place.and_then(|place| env.get_mut(place)) {
            Some(old) => *old = entry,
            None => {
                self.places.insert(name.to_owned(), env.len());
                env.push(entry);
            }
        }
        self.variables.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// `ARG`.
    pub(crate) fn declare(&mut self, name: &str, value: String) -> Result<(), String> {
        let old = self.declared.get(name).map(|old| name.len() + old);
        self.resize(name, old.unwrap_or_default(), name.len() + value.len())?;
        // The list is not gone through for each.
        if old.is_some() {
            self.arguments.retain(|(other, _)| other != name);
        }
        self.declared.insert(name.to_owned(), value.len());
        if !self.has(name) {
            self.variables.insert(name.to_owned(), value.clone());
        }
        self.arguments.push((name.to_owned(), value));
        Ok(())
    }

    /// So many bytes become so many.
    fn resize(&mut self, name: &str, old: usize, new: usize) -> Result<(), String> {
        let size = self.size - old + new;
        if size > ENVIRONMENT_MAX {
            return Err(format!(
                "the stage's environment and arguments would take more than {ENVIRONMENT_MAX} bytes with {name}"
            ));
        }
        self.size = size;
        Ok(())
    }
}

/// The name in `NAME=value` and in `NAME`.
fn name(entry: &str) -> &str {
    entry.split('=').next().unwrap_or_default()
}
