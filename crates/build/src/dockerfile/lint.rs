//! `build --check`: what is allowed and probably not meant. Names and words of the rules are those of
//! BuildKit's build checks.

use super::Dockerfile;
use super::instruction::{Form, Step};

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub rule: &'static str,
    pub line: u32,
    pub message: String,
}

type Rule = fn(&Dockerfile, &mut Vec<Warning>);

const RULES: [Rule; 8] =
    [from_as_casing, casing, maintainer, several, shell_form, workdir, legacy_pairs, secrets];

/// Everything that is found, in the order of the lines; rules that the directive `check` skips are not.
#[must_use]
pub fn lint(file: &Dockerfile) -> Vec<Warning> {
    let skipped = skipped(file.directives.check.as_deref().unwrap_or_default());
    let mut found = Vec::new();
    for rule in RULES {
        rule(file, &mut found);
    }
    found.retain(|warning| {
        !skipped.iter().any(|rule| rule == "all" || rule.eq_ignore_ascii_case(warning.rule))
    });
    found.sort_by_key(|warning| warning.line);
    found
}

impl Dockerfile {
    /// Whether a finding is to fail the build: `# check=error=true`.
    #[must_use]
    pub fn fails_on_warnings(&self) -> bool {
        let options = self.directives.check.as_deref().unwrap_or_default();
        options.split(';').any(|option| option.trim().eq_ignore_ascii_case("error=true"))
    }
}

/// `skip=RULE,RULE;error=true`.
fn skipped(options: &str) -> Vec<String> {
    let skip = options.split(';').filter_map(|option| option.trim().strip_prefix("skip="));
    skip.flat_map(|rules| rules.split(',')).map(|rule| rule.trim().to_owned()).collect()
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

fn is_lower(word: &str) -> bool {
    !word.chars().any(|sign| sign.is_ascii_uppercase())
}

fn is_upper(word: &str) -> bool {
    !word.chars().any(|sign| sign.is_ascii_lowercase())
}

fn from_as_casing(file: &Dockerfile, found: &mut Vec<Warning>) {
    for stage in &file.stages {
        let words: Vec<&str> = stage.text.split_whitespace().collect();
        let Some(keyword) = words.iter().rev().nth(1).filter(|word| word.eq_ignore_ascii_case("as")) else {
            continue;
        };
        if is_upper(first_word(&stage.text)) != is_upper(keyword) {
            found.push(Warning {
                rule: "FromAsCasing",
                line: stage.line,
                message: format!(
                    "'{keyword}' and '{}' keywords' casing do not match",
                    first_word(&stage.text)
                ),
            });
        }
    }
}

/// All instructions: line and text.
fn texts(file: &Dockerfile) -> impl Iterator<Item = (u32, &str)> {
    let stages = file.stages.iter().flat_map(|stage| {
        std::iter::once((stage.line, stage.text.as_str()))
            .chain(stage.instructions.iter().map(|one| (one.line, one.text.as_str())))
    });
    file.arguments.iter().map(|one| (one.line, one.text.as_str())).chain(stages)
}

fn casing(file: &Dockerfile, found: &mut Vec<Warning>) {
    let words: Vec<(u32, &str)> = texts(file).map(|(line, text)| (line, first_word(text))).collect();
    let lower = words.iter().filter(|(_, word)| is_lower(word)).count();
    let upper = words.iter().filter(|(_, word)| is_upper(word)).count();
    let (name, right): (_, fn(&str) -> bool) =
        if lower > upper { ("lowercase", is_lower) } else { ("uppercase", is_upper) };
    for (line, word) in words.into_iter().filter(|(_, word)| !right(word)) {
        found.push(Warning {
            rule: "ConsistentInstructionCasing",
            line,
            message: format!("Command '{word}' should match the case of the command majority ({name})"),
        });
    }
}

fn steps(file: &Dockerfile) -> impl Iterator<Item = (u32, &str, &Step)> {
    let stages = file.stages.iter().flat_map(|stage| &stage.instructions);
    stages.map(|one| (one.line, one.text.as_str(), &one.step))
}

fn maintainer(file: &Dockerfile, found: &mut Vec<Warning>) {
    for (line, _, step) in steps(file) {
        if matches!(step, Step::Maintainer(_)) {
            found.push(Warning {
                rule: "MaintainerDeprecated",
                line,
                message: "Maintainer instruction is deprecated in favor of using label".to_owned(),
            });
        }
    }
}

/// Of `CMD`, `ENTRYPOINT` and `HEALTHCHECK` the last one of a stage counts.
fn several(file: &Dockerfile, found: &mut Vec<Warning>) {
    for stage in &file.stages {
        for name in ["CMD", "ENTRYPOINT", "HEALTHCHECK"] {
            let of_it = |step: &Step| match step {
                Step::Cmd(_) => name == "CMD",
                Step::Entrypoint(_) => name == "ENTRYPOINT",
                Step::Healthcheck(_) => name == "HEALTHCHECK",
                _ => false,
            };
            let lines: Vec<u32> =
                stage.instructions.iter().filter(|one| of_it(&one.step)).map(|one| one.line).collect();
            for line in lines.iter().rev().skip(1) {
                found.push(Warning {
                    rule: "MultipleInstructionsDisallowed",
                    line: *line,
                    message: format!(
                        "Multiple {name} instructions should not be used in the same stage because only the last one will be used"
                    ),
                });
            }
        }
    }
}

fn shell_form(file: &Dockerfile, found: &mut Vec<Warning>) {
    for stage in &file.stages {
        let own_shell = stage.instructions.iter().any(|one| matches!(one.step, Step::Shell(_)));
        for one in &stage.instructions {
            let (name, command) = match &one.step {
                Step::Cmd(command) => ("CMD", command),
                Step::Entrypoint(command) => ("ENTRYPOINT", command),
                _ => continue,
            };
            if command.form == Form::Shell && !own_shell {
                found.push(Warning {
                    rule: "JSONArgsRecommended",
                    line: one.line,
                    message: format!(
                        "JSON arguments recommended for {name} to prevent unintended behavior related to OS signals"
                    ),
                });
            }
        }
    }
}

fn workdir(file: &Dockerfile, found: &mut Vec<Warning>) {
    for stage in &file.stages {
        let mut absolute = file.stage(&stage.base).is_some();
        for one in &stage.instructions {
            let Step::Workdir(path) = &one.step else { continue };
            if !absolute && !path.starts_with(['/', '$', '"', '\'']) {
                found.push(Warning {
                    rule: "WorkdirRelativePath",
                    line: one.line,
                    message: format!(
                        "Relative workdir {path:?} can have unexpected results if the base image has a WORKDIR"
                    ),
                });
            }
            absolute = true;
        }
    }
}

fn legacy_pairs(file: &Dockerfile, found: &mut Vec<Warning>) {
    for (line, text, step) in steps(file) {
        let (name, pairs) = match step {
            Step::Env(pairs) => ("ENV", pairs),
            Step::Label(pairs) => ("LABEL", pairs),
            _ => continue,
        };
        if let [pair] = pairs.as_slice()
            && !text.contains(&format!("{}=", pair.name))
        {
            found.push(Warning {
                rule: "LegacyKeyValueFormat",
                line,
                message: format!(
                    "\"{name} key=value\" should be used instead of legacy \"{name} key value\" format"
                ),
            });
        }
    }
}

fn secrets(file: &Dockerfile, found: &mut Vec<Warning>) {
    const WORDS: [&str; 10] = [
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "password",
        "pword",
        "passwd",
        "secret",
        "token",
    ];
    let looks_secret = |name: &str| {
        let name = name.to_ascii_lowercase();
        !name.contains("public") && name.split(['_', '-', '.']).any(|part| WORDS.contains(&part))
    };
    let arguments = file.arguments.iter().map(|one| (one.line, &one.step));
    for (line, step) in arguments.chain(steps(file).map(|(line, _, step)| (line, step))) {
        let (keyword, names): (_, Vec<&str>) = match step {
            Step::Arg(specs) => ("ARG", specs.iter().map(|spec| spec.name.as_str()).collect()),
            Step::Env(pairs) => ("ENV", pairs.iter().map(|pair| pair.name.as_str()).collect()),
            _ => continue,
        };
        for name in names.into_iter().filter(|name| looks_secret(name)) {
            found.push(Warning {
                rule: "SecretsUsedInArgOrEnv",
                line,
                message: format!(
                    "Do not use ARG or ENV instructions for sensitive data ({keyword} {name:?})"
                ),
            });
        }
    }
}
