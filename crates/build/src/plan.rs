//! Which stages are built, and what they need of each other.

use std::collections::{BTreeMap, BTreeSet};

use insula_spec::reference::Reference;

use crate::dockerfile::{Dockerfile, Quotes, Stage, Step, Variables, expand};
use crate::environment::ENVIRONMENT_MAX;
use crate::nearest::hint;
use crate::{Error, Result};

/// What a build is told beside its Dockerfile.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// `--build-arg`; without a value it is as if it were not given.
    pub arguments: BTreeMap<String, Option<String>>,
    /// `--target`; the last stage without it.
    pub target: Option<String>,
    /// `linux/amd64` of the host, and of the image.
    pub build_platform: String,
    pub target_platform: String,
    /// `--build-context`: names that mean what came along, whatever else is called so.
    pub contexts: BTreeSet<String>,
}

impl Given {
    /// The context that a name in `FROM`, `--from` or `from=` means.
    #[must_use]
    pub fn context(&self, reference: &str) -> Option<&str> {
        let wanted = reference.to_ascii_lowercase();
        let whole = |text: &str| Reference::parse(text).ok().map(|reference| reference.to_string());
        let same = |name: &&String| {
            name.to_ascii_lowercase() == wanted || (whole(name).is_some() && whole(name) == whole(reference))
        };
        self.contexts.iter().find(same).map(String::as_str)
    }
}

/// What a stage begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    Scratch,
    /// The number of an earlier stage.
    Stage(usize),
    Image(String),
    /// What came along under this name.
    Context(String),
}

/// One stage that is needed.
#[derive(Debug, Clone)]
pub struct PlannedStage {
    /// Its number in the file.
    pub number: usize,
    pub base: Base,
    /// Variables are replaced.
    pub platform: Option<String>,
    /// Stages whose files it takes, the base included.
    pub needs: BTreeSet<usize>,
}

/// The stages that are needed, each after those that it needs.
#[derive(Debug, Clone)]
pub struct Plan {
    pub stages: Vec<PlannedStage>,
    /// What `ARG` before the first `FROM` gives, platforms included.
    pub globals: Variables,
    /// Build arguments that nothing declares.
    pub unused: Vec<String>,
}

/// Arguments that need no declaration to be given, and leave no trace in history or cache.
pub(crate) const PROXIES: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

impl Plan {
    /// Plans a build.
    ///
    /// # Errors
    /// When there is no such target, or a `FROM` cannot be understood.
    pub fn new(file: &Dockerfile, given: &Given) -> Result<Self> {
        let globals = globals(file, given)?;
        let target = match given.target.as_deref().filter(|target| !target.is_empty()) {
            None => file.stages.len() - 1,
            Some(target) => file.stage(target).ok_or_else(|| {
                let names = file.stages.iter().filter_map(|stage| stage.name.as_deref());
                Error::Target(format!("target stage {target:?} could not be found{}", hint(target, names)))
            })?,
        };
        let mut planned: BTreeMap<usize, PlannedStage> = BTreeMap::new();
        let mut wanted = vec![target];
        while let Some(number) = wanted.pop() {
            if planned.contains_key(&number) {
                continue;
            }
            let stage = planned_stage(file, number, &globals, given)?;
            // Stages need earlier ones only.
            wanted.extend(stage.needs.iter().copied());
            planned.insert(number, stage);
        }
        Ok(Self { stages: planned.into_values().collect(), globals, unused: unused(file, given) })
    }
}

/// Platforms and what `ARG` before `FROM` says.
fn globals(file: &Dockerfile, given: &Given) -> Result<Variables> {
    let mut globals = Variables::new();
    for (prefix, platform) in [("BUILD", &given.build_platform), ("TARGET", &given.target_platform)] {
        let mut parts = platform.split('/');
        globals.insert(format!("{prefix}PLATFORM"), platform.clone());
        for name in ["OS", "ARCH", "VARIANT"] {
            globals.insert(format!("{prefix}{name}"), parts.next().unwrap_or_default().to_owned());
        }
    }
    globals.insert("TARGETSTAGE".to_owned(), given.target.clone().unwrap_or_else(|| "default".to_owned()));
    let mut size = 0;
    for instruction in &file.arguments {
        let Step::Arg(specs) = &instruction.step else { continue };
        for spec in specs {
            let fail = |why: String| Error::at(instruction.line, why);
            let default = spec.default.as_ref();
            let default = default
                .map(|text| expand(text, &globals, file.directives.escape, Quotes::Remove))
                .transpose()
                .map_err(fail)?;
            let given = given.arguments.get(&spec.name).cloned().flatten();
            if let Some(value) = given.or(default) {
                size += spec.name.len() + value.len();
                if size > ENVIRONMENT_MAX {
                    return Err(fail(format!(
                        "the arguments before the first FROM take more than {ENVIRONMENT_MAX} bytes"
                    )));
                }
                globals.insert(spec.name.clone(), value);
            }
        }
    }
    Ok(globals)
}

fn planned_stage(
    file: &Dockerfile,
    number: usize,
    globals: &Variables,
    given: &Given,
) -> Result<PlannedStage> {
    let stage = &file.stages[number];
    let expanded = |text: &str| {
        expand(text, globals, file.directives.escape, Quotes::Remove)
            .map_err(|why| Error::at(stage.line, why))
    };
    let name = expanded(&stage.base)?;
    if name.is_empty() {
        return Err(Error::at(stage.line, format!("base name ({}) should not be blank", stage.base)));
    }
    let mut needs = BTreeSet::new();
    let base = match (given.context(&name), earlier(file, number, &name, false)) {
        (Some(context), _) => Base::Context(context.to_owned()),
        (None, Some(other)) => {
            needs.insert(other);
            Base::Stage(other)
        }
        (None, None) if name == "scratch" => Base::Scratch,
        (None, None) => Base::Image(name),
    };
    let taken = taken_from(stage).filter(|from| given.context(from).is_none());
    needs.extend(taken.filter_map(|from| earlier(file, number, from, true)));
    let platform = stage.platform.as_deref().map(expanded).transpose()?.filter(|text| !text.is_empty());
    Ok(PlannedStage { number, base, platform, needs })
}

/// The stage before `number` that a name, or where they count a number, means.
fn earlier(file: &Dockerfile, number: usize, reference: &str, numbers: bool) -> Option<usize> {
    let wanted = reference.to_ascii_lowercase();
    let named =
        file.stages[..number].iter().rposition(|stage| stage.name.as_deref() == Some(wanted.as_str()));
    named.or_else(|| reference.parse().ok().filter(|other| numbers && *other < number))
}

impl PlannedStage {
    /// The stage that `--from` or `from=` means in this one; another name is an image's.
    #[must_use]
    pub fn source(&self, file: &Dockerfile, from: &str) -> Option<usize> {
        earlier(file, self.number, from, true)
    }
}

fn taken_from(stage: &Stage) -> impl Iterator<Item = &str> {
    stage.instructions.iter().flat_map(|instruction| {
        let (copied, mounted) = match &instruction.step {
            Step::Copy(copy) => (copy.from.as_deref(), &[][..]),
            Step::Run(run) => (None, run.mounts.as_slice()),
            _ => (None, &[][..]),
        };
        copied.into_iter().chain(mounted.iter().filter_map(|mount| mount.from.as_deref()))
    })
}

fn unused(file: &Dockerfile, given: &Given) -> Vec<String> {
    let instructions = file.arguments.iter().chain(file.stages.iter().flat_map(|stage| &stage.instructions));
    let declared: BTreeSet<&str> = instructions
        .filter_map(|instruction| match &instruction.step {
            Step::Arg(specs) => Some(specs.iter().map(|spec| spec.name.as_str())),
            _ => None,
        })
        .flatten()
        .collect();
    let known =
        |name: &str| declared.contains(name) || PROXIES.contains(&name) || name == "SOURCE_DATE_EPOCH";
    given.arguments.keys().filter(|name| !known(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str, target: Option<&str>, arguments: &[(&str, &str)]) -> Result<Plan> {
        let file = Dockerfile::parse(text.as_bytes()).unwrap();
        let arguments =
            arguments.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned()))).collect();
        let platform = "linux/amd64".to_owned();
        Plan::new(
            &file,
            &Given {
                arguments,
                target: target.map(str::to_owned),
                build_platform: platform.clone(),
                target_platform: platform,
                contexts: BTreeSet::new(),
            },
        )
    }

    const STAGES: &str = "ARG TAG=1\nFROM a:$TAG AS one\nFROM one AS two\nRUN --mount=from=0,target=/x true\n\
                          FROM b AS dead\nFROM scratch\nCOPY --from=two a b\nCOPY --from=image a b\n";

    #[test]
    fn what_nobody_needs_is_not_built() {
        let numbers = |plan: Plan| plan.stages.iter().map(|stage| stage.number).collect::<Vec<_>>();
        assert_eq!(numbers(plan(STAGES, None, &[]).unwrap()), [0, 1, 3]);
        assert_eq!(numbers(plan(STAGES, Some("Dead"), &[]).unwrap()), [2]);
        assert_eq!(numbers(plan(STAGES, Some("0"), &[]).unwrap()), [0]);
        let why = plan(STAGES, Some("daed"), &[]).unwrap_err().to_string();
        assert_eq!(why, "target stage \"daed\" could not be found (did you mean dead?)");
    }

    #[test]
    fn contexts_stand_for_stages_and_images() {
        let file = Dockerfile::parse(STAGES.as_bytes()).unwrap();
        let given = |names: &[&str]| Given {
            contexts: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Given::default()
        };
        let plan = Plan::new(&file, &given(&["Two"])).unwrap();
        let numbers: Vec<_> = plan.stages.iter().map(|stage| stage.number).collect();
        assert_eq!(numbers, [3]);
        // An image however it is spelled.
        let plan = Plan::new(&file, &given(&["docker.io/library/a:1"])).unwrap();
        assert_eq!(plan.stages[0].base, Base::Context("docker.io/library/a:1".to_owned()));
        assert_eq!(given(&["b"]).context("b:latest"), Some("b"));
        assert_eq!(given(&["b"]).context("b:1"), None);
    }

    #[test]
    fn bases_know_arguments_and_earlier_stages() {
        let bases = |plan: Plan| plan.stages.into_iter().map(|stage| stage.base).collect::<Vec<_>>();
        assert_eq!(
            bases(plan(STAGES, None, &[("TAG", "2")]).unwrap()),
            [Base::Image("a:2".to_owned()), Base::Stage(0), Base::Scratch]
        );
        let platforms = plan("FROM --platform=$BUILDPLATFORM a-$TARGETARCH", None, &[]).unwrap();
        assert_eq!(platforms.stages[0].base, Base::Image("a-amd64".to_owned()));
        assert_eq!(platforms.stages[0].platform.as_deref(), Some("linux/amd64"));
        assert!(plan("ARG A\nFROM $A", None, &[]).is_err());
    }

    #[test]
    fn arguments_that_nothing_declares_are_told() {
        let given = [("TAG", "1"), ("TGA", "1"), ("HTTP_PROXY", "x")];
        assert_eq!(plan(STAGES, None, &given).unwrap().unused, ["TGA"]);
    }
}
