//! A stage as it is built: what its variables stand for, what its configuration has become, and what an
//! instruction asks for then.

use std::collections::BTreeMap;

use insula_spec::image::{Healthcheck, RunConfig};

use crate::dockerfile::{
    Command, Form, Heredoc, Mount, Pair, Probe, Quotes, Run, Step, Transfer, Variables, expand, expand_words,
};
use crate::environment::{ENVIRONMENT_MAX, Environment};
use crate::plan::PROXIES;

/// What runs a command that is not a list.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// What is to be done with the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Only the configuration changed.
    Nothing,
    Run(RunOp),
    Copy(CopyOp),
    /// The folder has to be there.
    Folder(String),
}

/// A command to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOp {
    pub words: Vec<String>,
    /// `NAME=value`, arguments included.
    pub env: Vec<String>,
    /// Those that are not part of what is cached.
    pub proxies: Vec<String>,
    pub user: String,
    pub working_dir: String,
    /// Targets are absolute.
    pub mounts: Vec<Mount>,
    pub network: Option<String>,
    pub insecure: bool,
    /// A program that is written in the Dockerfile, which the words execute.
    pub script: Option<Script>,
}

/// A file that one command sees and no layer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Absolute.
    pub path: String,
    pub content: String,
}

/// Files to be copied; all variables are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOp {
    /// `ADD`.
    pub add: bool,
    pub transfer: Transfer,
    /// Absolute; a slash at the end is kept.
    pub destination: String,
}

/// The state of one stage.
#[derive(Debug, Clone)]
pub struct Scope {
    pub config: RunConfig,
    pub author: Option<String>,
    environment: Environment,
    globals: Variables,
    given: BTreeMap<String, Option<String>>,
    escape: char,
    /// Bytes of the labels, names and values.
    labelled: usize,
    /// Whether `CMD` stands in this file: `ENTRYPOINT` resets one that does not.
    own_command: bool,
}

impl Scope {
    /// A stage that begins with a configuration, and with the arguments of the stage that it was made by.
    #[must_use]
    pub fn new(
        mut config: RunConfig,
        author: Option<String>,
        inherited: &[(String, String)],
        globals: &Variables,
        given: &BTreeMap<String, Option<String>>,
        escape: char,
    ) -> Self {
        let (globals, given) = (globals.clone(), given.clone());
        let environment = Environment::new(&mut config.env, inherited);
        let labelled = config.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        Self { config, author, environment, globals, given, escape, labelled, own_command: false }
    }

    /// What was declared so far, for the stages that begin with this one.
    #[must_use]
    pub fn arguments(&self) -> &[(String, String)] {
        self.environment.arguments()
    }

    /// Applies an instruction to the configuration; what is left to do.
    ///
    /// # Errors
    /// What is wrong with it, without its line.
    pub fn apply(&mut self, step: &Step) -> Result<Op, String> {
        match step {
            Step::Add(transfer) => return self.copy(transfer, true),
            Step::Copy(transfer) => return self.copy(transfer, false),
            Step::Run(run) => return self.run(run),
            Step::Workdir(path) => return self.working_dir(path),
            Step::Arg(specs) => {
                for spec in specs {
                    self.argument(&spec.name, spec.default.as_deref())?;
                }
            }
            Step::Cmd(command) => {
                self.config.cmd = self.command(command);
                self.config.args_escaped = command.form == Form::Shell;
                self.own_command = true;
            }
            Step::Entrypoint(command) => {
                self.config.entrypoint = self.command(command);
                if !self.own_command {
                    self.config.cmd.clear();
                }
            }
            Step::Env(pairs) => {
                for (name, value) in self.pairs(pairs)? {
                    self.environment.set(&mut self.config.env, &name, &value)?;
                }
            }
            Step::Label(pairs) => self.label(pairs)?,
            Step::Expose(ports) => {
                for port in self.words(ports)? {
                    self.config.exposed_ports.extend(port_range(&port)?);
                }
            }
            Step::Healthcheck(health) => self.config.healthcheck = Some(self.health(health)),
            Step::Maintainer(author) => self.author = Some(self.expand(author)?),
            Step::Onbuild(text) => self.config.on_build.push(text.clone()),
            Step::Shell(words) => self.config.shell.clone_from(words),
            Step::Stopsignal(signal) => self.config.stop_signal = self.expand(signal)?,
            Step::User(user) => self.config.user = self.expand(user)?,
            Step::Volume(volumes) => {
                for volume in volumes {
                    let volume = self.expand(volume)?;
                    self.config.volumes.insert(volume);
                }
            }
        }
        Ok(Op::Nothing)
    }

    fn expand(&self, text: &str) -> Result<String, String> {
        expand(text, self.environment.variables(), self.escape, Quotes::Remove)
    }

    /// The words of one instruction, which are no more than one environment may be.
    fn expand_all<'a>(&self, texts: impl IntoIterator<Item = &'a String>) -> Result<Vec<String>, String> {
        let mut size = 0;
        let expanded = texts.into_iter().map(|text| {
            let text = self.expand(text)?;
            size += text.len();
            within(size)?;
            Ok(text)
        });
        expanded.collect()
    }

    fn words(&self, texts: &[String]) -> Result<Vec<String>, String> {
        let mut words = Vec::new();
        let mut size = 0;
        for text in texts {
            let more = expand_words(text, self.environment.variables(), self.escape)?;
            size += more.iter().map(String::len).sum::<usize>();
            within(size)?;
            words.extend(more);
        }
        Ok(words)
    }

    /// `LABEL`: all of them together take no more than the environment may.
    fn label(&mut self, pairs: &[Pair]) -> Result<(), String> {
        for (name, value) in self.pairs(pairs)? {
            let old = self.config.labels.get(&name).map_or(0, |old| name.len() + old.len());
            let size = self.labelled - old + name.len() + value.len();
            if size > ENVIRONMENT_MAX {
                return Err(format!("the labels would take more than {ENVIRONMENT_MAX} bytes with {name}"));
            }
            self.labelled = size;
            self.config.labels.insert(name, value);
        }
        Ok(())
    }

    /// All values of one instruction see what was there before it.
    fn pairs(&self, pairs: &[Pair]) -> Result<Vec<(String, String)>, String> {
        let expanded = self.expand_all(pairs.iter().flat_map(|pair| [&pair.name, &pair.value]))?;
        let mut expanded = expanded.into_iter();
        Ok(std::iter::from_fn(|| Some((expanded.next()?, expanded.next()?))).collect())
    }

    fn argument(&mut self, name: &str, default: Option<&str>) -> Result<(), String> {
        let given = self.given.get(name).cloned().flatten();
        let value = match (given, default) {
            (Some(value), _) => Some(value),
            (None, Some(default)) => Some(self.expand(default)?),
            (None, None) => self.globals.get(name).cloned(),
        };
        if let Some(value) = value {
            self.environment.declare(name, value)?;
        }
        Ok(())
    }

    fn shell(&self) -> Vec<String> {
        match self.config.shell.as_slice() {
            [] => SHELL.map(str::to_owned).to_vec(),
            shell => shell.to_vec(),
        }
    }

    fn command(&self, command: &Command) -> Vec<String> {
        match command.form {
            Form::Exec => command.words.clone(),
            Form::Shell => self.shell().into_iter().chain(command.words.iter().cloned()).collect(),
        }
    }

    fn health(&self, health: &crate::dockerfile::Healthcheck) -> Healthcheck {
        let test = match &health.probe {
            Probe::None => vec!["NONE".to_owned()],
            Probe::Command(command) if command.form == Form::Exec => {
                ["CMD".to_owned()].into_iter().chain(command.words.iter().cloned()).collect()
            }
            Probe::Command(command) => {
                ["CMD-SHELL".to_owned()].into_iter().chain(command.words.iter().cloned()).collect()
            }
        };
        Healthcheck {
            test,
            interval: health.interval.unwrap_or(0),
            timeout: health.timeout.unwrap_or(0),
            start_period: health.start_period.unwrap_or(0),
            start_interval: health.start_interval.unwrap_or(0),
            retries: health.retries.unwrap_or(0),
        }
    }

    fn working_dir(&mut self, path: &str) -> Result<Op, String> {
        let path = self.expand(path)?;
        self.config.working_dir = clean(&self.absolute(&path));
        Ok(Op::Folder(self.config.working_dir.clone()))
    }

    fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') {
            return path.to_owned();
        }
        format!("{}/{path}", self.config.working_dir)
    }

    fn copy(&self, transfer: &Transfer, add: bool) -> Result<Op, String> {
        let mut transfer = transfer.clone();
        transfer.sources.paths = self.expand_all(&transfer.sources.paths)?;
        transfer.exclude = self.expand_all(&transfer.exclude)?;
        for field in [&mut transfer.chown, &mut transfer.chmod, &mut transfer.from, &mut transfer.checksum] {
            *field = field.as_deref().map(|text| self.expand(text)).transpose()?;
        }
        for heredoc in &mut transfer.sources.heredocs {
            if heredoc.expand {
                let variables = self.environment.variables();
                heredoc.content = expand(&heredoc.content, variables, self.escape, Quotes::Keep)?;
            }
        }
        transfer.destination = self.expand(&transfer.destination)?;
        let destination = self.absolute(&transfer.destination);
        let folder = destination.ends_with('/') || destination.ends_with("/.");
        let mut destination = clean(&destination);
        if folder && destination != "/" {
            destination.push('/');
        }
        Ok(Op::Copy(CopyOp { add, transfer, destination }))
    }

    fn run(&self, run: &Run) -> Result<Op, String> {
        let mut words = self.command(&run.command);
        let mut program = None;
        if !run.heredocs.is_empty() {
            words.pop();
            program = own_program(&run.command, &run.heredocs);
            words.push(match &program {
                Some(script) => script.path.clone(),
                None => script(&run.command, &run.heredocs),
            });
        }
        let environment = |name: &str| self.environment.has(name);
        let mut env = self.config.env.clone();
        for (name, value) in self.arguments().iter().filter(|(name, _)| !environment(name)) {
            env.push(format!("{name}={value}"));
        }
        let proxies = PROXIES.iter().filter_map(|name| {
            let value = self.given.get(*name).cloned().flatten()?;
            (!environment(name)).then(|| format!("{name}={value}"))
        });
        let mut mounts = run.mounts.clone();
        for mount in &mut mounts {
            for field in [&mut mount.target, &mut mount.source, &mut mount.id, &mut mount.from] {
                *field = field.as_deref().map(|text| self.expand(text)).transpose()?;
            }
            if let Some(target) = &mut mount.target {
                *target = clean(&self.absolute(target));
                if target == "/" {
                    return Err("a mount cannot be at /".to_owned());
                }
            }
        }
        Ok(Op::Run(RunOp {
            words,
            env: env.into_iter().filter(|entry| !is_proxy_argument(entry, &self.config.env)).collect(),
            proxies: proxies.collect(),
            user: self.config.user.clone(),
            working_dir: self.config.working_dir.clone(),
            mounts,
            network: run.network.clone(),
            insecure: run.security.as_deref() == Some("insecure"),
            script: program,
        }))
    }
}

/// A proxy that was declared by `ARG`: it goes with the others.
fn is_proxy_argument(entry: &str, environment: &[String]) -> bool {
    let name = entry.split('=').next().unwrap_or_default();
    PROXIES.contains(&name) && !environment.iter().any(|own| own == entry)
}

/// The one body that is all there is to a command.
fn only<'a>(command: &Command, heredocs: &'a [Heredoc]) -> Option<&'a Heredoc> {
    let text = command.words.first().map(String::as_str).unwrap_or_default();
    match heredocs {
        [heredoc] if text.trim().starts_with("<<") && text.split_whitespace().count() == 1 => Some(heredoc),
        _ => None,
    }
}

/// A body that names its own program in its first line.
fn own_program(command: &Command, heredocs: &[Heredoc]) -> Option<Script> {
    let heredoc = only(command, heredocs).filter(|heredoc| heredoc.content.starts_with("#!"))?;
    let name = heredoc.name.replace('/', "_");
    Some(Script { path: format!("/dev/pipes/{name}"), content: heredoc.content.clone() })
}

/// What the shell is given when bodies follow the command.
fn script(command: &Command, heredocs: &[Heredoc]) -> String {
    let text = command.words.first().map(String::as_str).unwrap_or_default();
    if let Some(heredoc) = only(command, heredocs) {
        return heredoc.content.clone();
    }
    let mut script = text.to_owned();
    for heredoc in heredocs {
        script.push('\n');
        script.push_str(&heredoc.content);
        script.push_str(&heredoc.name);
    }
    script
}

/// Whether what variables made of one instruction is not too long.
fn within(size: usize) -> Result<(), String> {
    if size > ENVIRONMENT_MAX {
        return Err(format!("variables make more than {ENVIRONMENT_MAX} bytes of it"));
    }
    Ok(())
}

/// An absolute path without `.`, `..` and doubled slashes.
fn clean(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            _ => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

/// `80`, `53/udp`, `8000-8002/tcp`.
fn port_range(text: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("invalid containerPort: {text}: PORT[-PORT][/tcp|/udp|/sctp] is expected");
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(wrong());
    }
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(wrong());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::parse_instruction;

    fn scope(given: &[(&str, &str)]) -> Scope {
        let given =
            given.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned()))).collect();
        let globals = Variables::from([("TARGETARCH".to_owned(), "amd64".to_owned())]);
        let config = RunConfig {
            env: vec!["PATH=/bin".to_owned()],
            cmd: vec!["old".to_owned()],
            ..RunConfig::default()
        };
        Scope::new(config, None, &[], &globals, &given, '\\')
    }

    fn applied(scope: &mut Scope, text: &str) -> Result<Op, String> {
        scope.apply(&parse_instruction(text).unwrap().step)
    }

    #[test]
    fn arguments_are_seen_from_where_they_are_declared() {
        let mut scope = scope(&[("A", "given"), ("HTTP_PROXY", "http://p")]);
        let env = |op: Op| match op {
            Op::Run(run) => (run.env, run.proxies),
            other => panic!("{other:?}"),
        };
        let before = env(applied(&mut scope, "RUN x").unwrap());
        assert_eq!(before, (vec!["PATH=/bin".to_owned()], vec!["HTTP_PROXY=http://p".to_owned()]));
        for text in
            ["ARG A=default B=$A-b TARGETARCH", "ENV C=$A$B$TARGETARCH PATH=/x:$PATH", "ARG HTTP_PROXY"]
        {
            applied(&mut scope, text).unwrap();
        }
        let (env, proxies) = env(applied(&mut scope, "RUN x").unwrap());
        assert_eq!(env, ["PATH=/x:/bin", "C=givengiven-bamd64", "A=given", "B=given-b", "TARGETARCH=amd64"]);
        assert_eq!(proxies, ["HTTP_PROXY=http://p"]);
    }

    #[test]
    fn a_stage_has_a_path_whatever_it_begins_with() {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut bare = Scope::new(RunConfig::default(), None, &[], &Variables::new(), &BTreeMap::new(), '\\');
        assert_eq!(bare.config.env, [format!("PATH={path}")]);
        applied(&mut bare, "ENV A=1 PATH=$PATH:/x").unwrap();
        assert_eq!(bare.config.env, [format!("PATH={path}:/x"), "A=1".to_owned()]);
        assert_eq!(scope(&[]).config.env, ["PATH=/bin"]);
    }

    #[test]
    fn arguments_are_inherited_by_the_stages_that_begin_with_this_one() {
        let mut parent = scope(&[("W", "given")]);
        for text in ["ARG V=5 W=6 X=7", "ARG V=8", "ENV X=env"] {
            applied(&mut parent, text).unwrap();
        }
        let inherited = parent.arguments().to_vec();
        let given = BTreeMap::new();
        let mut child = Scope::new(parent.config.clone(), None, &inherited, &Variables::new(), &given, '\\');
        applied(&mut child, "ENV SEEN=$V$W$X").unwrap();
        let Op::Run(run) = applied(&mut child, "RUN x").unwrap() else { panic!() };
        assert_eq!(run.env, ["PATH=/bin", "X=env", "SEEN=8givenenv", "W=given", "V=8"]);
        applied(&mut child, "ARG V=own").unwrap();
        let Op::Run(run) = applied(&mut child, "RUN x").unwrap() else { panic!() };
        assert_eq!(run.env.last().unwrap(), "V=own");
    }

    #[test]
    fn many_variables_are_no_obstacle() {
        let mut scope = scope(&[]);
        // With a map that is made again for each word this takes minutes.
        for number in 0..20_000 {
            applied(&mut scope, &format!("ENV E{number}=$PATH")).unwrap();
            applied(&mut scope, &format!("ARG A{number}=$E{number}")).unwrap();
        }
        assert_eq!(scope.config.env.last().unwrap(), "E19999=/bin");
    }

    #[test]
    fn labels_do_not_grow_without_end() {
        let mut long = scope(&[]);
        let value = "x".repeat(100_000);
        // The same one again takes no more.
        for _ in 0..40 {
            applied(&mut long, &format!("LABEL same={value}")).unwrap();
        }
        let why = (0..40).find_map(|number| applied(&mut long, &format!("LABEL l{number}={value}")).err());
        assert!(why.is_some_and(|why| why.contains("labels would take more than 1048576 bytes")));
        assert_eq!(long.config.labels.len(), 10);
    }

    #[test]
    fn variables_do_not_grow_without_end() {
        let mut grown = scope(&[]);
        applied(&mut grown, "ENV E0=0123456789abcdef").unwrap();
        let why = (1..40).find_map(|number| {
            applied(&mut grown, &format!("ENV E{number}=${{E{0}}}${{E{0}}}", number - 1)).err()
        });
        assert!(why.as_ref().is_some_and(|why| why.contains("more than 1048576 bytes")), "{why:?}");
        assert!(grown.config.env.iter().map(String::len).sum::<usize>() <= ENVIRONMENT_MAX + 40);
        let mut long = scope(&[]);
        let why = (0..40)
            .find_map(|number| applied(&mut long, &format!("ARG A{number}={}", "x".repeat(100_000))).err());
        assert!(why.is_some_and(|why| why.contains("environment and arguments")));
        // Those that the environment hides count as well.
        let mut hidden = scope(&[]);
        let why = (0..40).find_map(|number| {
            applied(&mut hidden, &format!("ARG A{number}={}", "x".repeat(100_000))).err()?;
            applied(&mut hidden, &format!("ENV A{number}=1")).err()
        });
        let why = why.or_else(|| applied(&mut hidden, &format!("ARG Z={}", "x".repeat(100_000))).err());
        assert!(why.is_some_and(|why| why.contains("environment and arguments")));
        // What is set again does not add up.
        let mut again = scope(&[]);
        for _ in 0..20 {
            applied(&mut again, &format!("ARG A={}", "x".repeat(100_000))).unwrap();
            applied(&mut again, &format!("ENV A={}", "y".repeat(100_000))).unwrap();
        }
        let many = "$A1 ".repeat(30);
        for text in
            [format!("LABEL x={}", "$A1".repeat(30)), format!("EXPOSE {many}"), format!("COPY {many} /")]
        {
            let why = applied(&mut long, &text).unwrap_err();
            assert!(why.contains("bytes of it"), "{why}");
        }
    }

    #[test]
    fn the_configuration_is_docker_s() {
        let mut scope = scope(&[]);
        for text in [
            "ENTRYPOINT [\"/init\"]",
            "EXPOSE 80 8000-8001/udp",
            "USER 1:2",
            "WORKDIR /a",
            "WORKDIR b/../c",
            "VOLUME [\"/d e\"]",
            "LABEL x=\"y z\"",
            "HEALTHCHECK --retries=3 CMD curl x",
            "STOPSIGNAL SIGQUIT",
        ] {
            applied(&mut scope, text).unwrap();
        }
        assert!(scope.config.cmd.is_empty());
        assert!(scope.config.exposed_ports.iter().eq(["80/tcp", "8000/udp", "8001/udp"]));
        assert_eq!(scope.config.working_dir, "/a/c");
        assert_eq!(scope.config.healthcheck.as_ref().unwrap().test, ["CMD-SHELL", "curl x"]);
        applied(&mut scope, "SHELL [\"/bin/bash\", \"-c\"]").unwrap();
        applied(&mut scope, "CMD a b").unwrap();
        assert_eq!(scope.config.cmd, ["/bin/bash", "-c", "a b"]);
        for bad in ["EXPOSE x", "EXPOSE 3-2", "EXPOSE 80/icmp", "USER ${A:?who}"] {
            assert!(applied(&mut scope, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn destinations_and_scripts() {
        let mut scope = scope(&[]);
        applied(&mut scope, "WORKDIR /w").unwrap();
        let destination = |scope: &mut Scope, text: &str| match applied(scope, text).unwrap() {
            Op::Copy(copy) => copy.destination,
            other => panic!("{other:?}"),
        };
        assert_eq!(destination(&mut scope, "COPY a ."), "/w/");
        assert_eq!(destination(&mut scope, "COPY a b/"), "/w/b/");
        assert_eq!(destination(&mut scope, "COPY a /../c"), "/c");
        let words = |scope: &mut Scope, text: &str| match applied(scope, text).unwrap() {
            Op::Run(run) => run.words,
            other => panic!("{other:?}"),
        };
        assert_eq!(words(&mut scope, "RUN <<E\na\nb\nE\n"), ["/bin/sh", "-c", "a\nb\n"]);
        assert_eq!(words(&mut scope, "RUN cat <<E\na\nE\n"), ["/bin/sh", "-c", "cat <<E\na\nE"]);
        assert_eq!(words(&mut scope, "RUN [\"a\", \"$b\"]"), ["a", "$b"]);
        let Op::Run(run) = applied(&mut scope, "RUN <<E\n#!/bin/x\nE\n").unwrap() else { panic!() };
        assert_eq!(run.words, ["/bin/sh", "-c", "/dev/pipes/E"]);
        assert_eq!(run.script.unwrap().content, "#!/bin/x\n");
        let mounted = applied(&mut scope, "RUN --mount=type=cache,target=a/../b true").unwrap();
        let Op::Run(run) = mounted else { panic!() };
        assert_eq!(run.mounts[0].target.as_deref(), Some("/w/b"));
        assert!(applied(&mut scope, "RUN --mount=target=/ true").is_err());
    }
}
