//! Which command was called. Only the branch of the tree that was called is built: building all
//! of it takes longer than the rest of a start.

use std::ffi::OsString;
use std::pin::Pin;

use clap::{ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::context::{Context, Globals};
use crate::failure::{self, Failure, Outcome};
use crate::{commands, printer, usage};

/// A command: how its arguments are parsed and what then runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verb {
    pub(crate) name: &'static str,
    augment: fn(Command) -> Command,
    call: Call,
}

type Call = fn(&ArgMatches, Context) -> Pin<Box<dyn Future<Output = Outcome>>>;

/// What a command's arguments must be able to do.
pub(crate) trait Run: Args {
    /// Runs the command; the number is the exit code.
    async fn run(self, context: Context) -> Outcome;
}

impl Verb {
    pub(crate) const fn new<T: Run + 'static>(name: &'static str) -> Self {
        Self {
            name,
            augment: |command| T::augment_args(command),
            call: |matches, context| {
                let parsed = T::from_arg_matches(matches);
                Box::pin(async move { parsed?.run(context).await })
            },
        }
    }

    fn command(&self, spelled_booleans: bool) -> Command {
        let command = (self.augment)(Command::new(self.name)).args_override_self(true);
        if spelled_booleans { command.mut_args(accept_boolean) } else { command }
    }
}

/// Lets a switch be spelled out, as Go's flags may be: `--rm=true`.
fn accept_boolean(argument: clap::Arg) -> clap::Arg {
    if !matches!(argument.get_action(), ArgAction::SetTrue) {
        return argument;
    }
    argument
        .action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .value_parser(clap::builder::BoolishValueParser::new())
        .default_missing_value("true")
        .default_value("false")
}

/// Commands below a noun: `insula container ls`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) verbs: &'static [Verb],
}

impl Group {
    fn command(&self, word: Option<&str>, spelled_booleans: bool) -> Command {
        let called = self.verbs.iter().filter(|verb| word == Some(verb.name));
        let mut command = Command::new(self.name)
            .about(self.about)
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommands(called.map(|verb| verb.command(spelled_booleans)));
        if command.get_subcommands().next().is_none() {
            command = command.subcommands(self.verbs.iter().map(|verb| verb.command(spelled_booleans)));
        }
        command
    }
}

const EXAMPLES: &str = "Examples:
  insula run --rm -it host bash          a shell in a copy of this host, which may be ruined
  insula load -i busybox.tar             an image from a file
  insula run -d --name web -p 8080:80 nginx
  insula ps

'insula COMMAND --help' tells more about a command.";

/// The tree, or the branch of it that the words call.
pub(crate) fn branch(words: &[String]) -> Command {
    let spelled_booleans = words.iter().any(|word| {
        matches!(word.rsplit_once('='), Some((flag, "true" | "false" | "1" | "0")) if flag.starts_with('-'))
    });
    let root = Globals::augment_args(Command::new("insula"))
        .about("Runs images behind the wall you choose")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .arg(
            clap::Arg::new("version")
                .short('v')
                .long("version")
                .action(ArgAction::Version)
                .help("Print version and end"),
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .after_help(EXAMPLES);
    let (word, next) = called(words);
    if let Some(verb) = commands::VERBS.iter().find(|verb| word == Some(verb.name)) {
        return root.subcommand(verb.command(spelled_booleans));
    }
    if let Some(group) = commands::GROUPS.iter().find(|group| word == Some(group.name)) {
        return root.subcommand(group.command(next, spelled_booleans));
    }
    whole(root)
}

/// With every command.
fn whole(root: Command) -> Command {
    root.subcommands(commands::VERBS.iter().map(|verb| verb.command(false)))
        .subcommands(commands::GROUPS.iter().map(|group| group.command(None, false)))
}

/// The whole tree, for completions and manuals.
pub(crate) fn tree() -> Command {
    branch(&[])
}

/// The first two words that are neither flags of the program nor their values.
pub(crate) fn called(words: &[String]) -> (Option<&str>, Option<&str>) {
    let plain = plain(words);
    let word = |at: usize| plain.get(at).map(|at| words[*at].as_str());
    (word(0), word(1))
}

/// Where they are.
fn plain(words: &[String]) -> Vec<usize> {
    let mut plain = Vec::with_capacity(2);
    let mut rest = words.iter().enumerate();
    while let Some((at, word)) = rest.next() {
        if plain.is_empty() && matches!(word.as_str(), "-H" | "--host" | "--root" | "--run") {
            rest.next();
        } else if !word.starts_with('-') {
            plain.push(at);
            if plain.len() == 2 {
                break;
            }
        }
    }
    plain
}

/// The words, with values that are attached to a flag of one letter (`-v/a:/b`) written as `--volume=/a:/b`: where
/// what follows may begin with a hyphen, clap takes them for the beginning of that.
fn spelled_out(root: &Command, words: &[OsString], lossy: &[String]) -> Vec<OsString> {
    let mut words = words.to_vec();
    let mut command = root;
    let mut at = 0;
    // The program's own name is not among `lossy`.
    for place in plain(lossy) {
        let Some(sub) = command.find_subcommand(&lossy[place]) else { break };
        (command, at) = (sub, place + 2);
    }
    if command.get_positionals().any(clap::Arg::is_allow_hyphen_values_set) {
        spell_out(command, &mut words, at);
    }
    words
}

/// From `at` on, up to the first word that is no flag and no value of one.
fn spell_out(command: &Command, words: &mut Vec<OsString>, mut at: usize) {
    while let Some(word) = words.get(at).and_then(|word| word.to_str()) {
        let takes = |flag: &clap::Arg| flag.get_num_args().is_some_and(|count| count.min_values() > 0);
        if let Some(long) = word.strip_prefix("--") {
            let is = |flag: &&clap::Arg| {
                flag.get_long() == Some(long)
                    || flag.get_all_aliases().is_some_and(|aliases| aliases.contains(&long))
            };
            let known = command.get_arguments().find(is);
            match (long, known) {
                ("", _) => return,
                (_, Some(flag)) if takes(flag) => at += 2,
                _ => at += 1,
            }
            continue;
        }
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else { return };
        let by_letter = |letter| command.get_arguments().find(|flag| flag.get_short() == Some(letter));
        let first = letters.char_indices().find_map(|(place, letter)| match by_letter(letter) {
            Some(flag) if !takes(flag) => None,
            flag => Some((place, letter, flag)),
        });
        // Switches alone; and what is not known is somebody else's to refuse.
        let Some((place, letter, Some(flag))) = first else {
            at += 1;
            continue;
        };
        let (switches, value) = (&letters[..place], &letters[place + letter.len_utf8()..]);
        let Some(long) = flag.get_long().filter(|_| !value.is_empty()) else {
            at += 2;
            continue;
        };
        let switches = Some(format!("-{switches}")).filter(|switches| switches.len() > 1);
        let flag = format!("--{long}={}", value.strip_prefix('=').unwrap_or(value));
        let spelled: Vec<OsString> = switches.into_iter().chain([flag]).map(OsString::from).collect();
        let count = spelled.len();
        words.splice(at..=at, spelled);
        at += count;
    }
}

/// A command line that can be run.
pub(crate) struct Parsed {
    globals: Globals,
    call: Call,
    matches: ArgMatches,
}

/// Parses the words; on failure says why and returns the exit code.
pub(crate) fn parse(words: &[OsString]) -> Result<Parsed, u8> {
    let lossy: Vec<String> = words.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let mut root = branch(&lossy);
    root.build();
    let words = spelled_out(&root, words, &lossy);
    let mut matches = root.try_get_matches_from(words).map_err(|error| usage::report(&error, &lossy))?;
    let globals = Globals::from_arg_matches(&matches).map_err(|error| usage::report(&error, &lossy))?;
    let (name, mut sub) = matches.remove_subcommand().ok_or(1)?;
    let mut verbs = commands::VERBS;
    let mut name = name;
    if let Some(group) = commands::GROUPS.iter().find(|group| group.name == name) {
        verbs = group.verbs;
        (name, sub) = sub.remove_subcommand().ok_or(1)?;
    }
    let verb = verbs.iter().find(|verb| verb.name == name).ok_or(1)?;
    Ok(Parsed { globals, call: verb.call, matches: sub })
}

/// The first of words that all may begin with a hyphen, since all but the first belong to a command.
pub(crate) fn first_word<'a>(words: &'a [String], noun: &str) -> anyhow::Result<(&'a str, &'a [String])> {
    match words.split_first() {
        Some((flag, _)) if flag.len() > 1 && flag.starts_with('-') => {
            Err(usage::unknown_flag(flag.split('=').next().unwrap_or(flag)))
        }
        Some((word, _)) if word.is_empty() || word == "-" => {
            Err(Failure { code: 125, message: format!("{word:?} is not the name of {noun}") }.into())
        }
        Some((word, rest)) => Ok((word, rest)),
        None => Err(Failure { code: 1, message: format!("{noun} is needed") }.into()),
    }
}

impl Parsed {
    /// Runs the command to its end; returns the exit code.
    pub(crate) fn run(self) -> u8 {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                printer::error(&format!("start the event loop: {error}"));
                return 125;
            }
        };
        let outcome = runtime.block_on((self.call)(&self.matches, Context::new(self.globals)));
        let code = match outcome {
            Ok(code) => code,
            Err(error) => failure::report(&error),
        };
        // Its threads may be blocked in reading standard input.
        runtime.shutdown_background();
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_whole_tree_is_sound() {
        tree().debug_assert();
    }

    #[test]
    fn only_the_called_branch_is_built() {
        let names = |text: &str| -> Vec<String> {
            branch(&words(text)).get_subcommands().map(|c| c.get_name().to_owned()).collect()
        };
        assert_eq!(names("-H unix:///x run --rm image"), ["run"]);
        assert_eq!(names("--debug ps"), ["ps"]);
        assert_eq!(names("--help").len(), commands::VERBS.len() + commands::GROUPS.len());
        let group = branch(&words("container ls"));
        assert_eq!(group.find_subcommand("container").unwrap().get_subcommands().count(), 1);
    }

    #[test]
    fn every_command_has_examples() {
        for command in tree().get_subcommands() {
            let leaves: Vec<&Command> = match command.get_subcommands().next() {
                Some(_) => command.get_subcommands().collect(),
                None => vec![command],
            };
            for leaf in leaves {
                let help = leaf.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.starts_with("Examples:\n"), "{} {}", command.get_name(), leaf.get_name());
                assert!(leaf.get_about().is_some(), "{}", leaf.get_name());
            }
        }
    }

    #[test]
    fn values_may_follow_a_letter() {
        let spelled = |text: &str| {
            let lossy = words(text);
            let given: Vec<OsString> =
                ["insula"].into_iter().chain(text.split_whitespace()).map(OsString::from).collect();
            let mut root = branch(&lossy);
            root.build();
            let words = spelled_out(&root, &given, &lossy);
            root.try_get_matches_from(&words).unwrap_or_else(|error| panic!("{text}: {error}"));
            words[1..].iter().map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
        };
        for (given, meant) in [
            ("run -v/a:/b image", "run --volume=/a:/b image"),
            ("run -p80:80 -eA=b -w/x -u0 image", "run --publish=80:80 --env=A=b --workdir=/x --user=0 image"),
            ("-H unix:///run run -itv/a:/b image", "-H unix:///run run -it --volume=/a:/b image"),
            ("container create -e=A=b -m100m image", "container create --env=A=b --memory=100m image"),
            ("run -e-x image", "run --env=-x image"),
            ("run --net blue -p80:80 image", "run --net blue --publish=80:80 image"),
            ("exec -u0 -eA=b box sh -c -u0", "exec --user=0 --env=A=b box sh -c -u0"),
            // Values of others, and words of the command.
            ("run -it --rm image -v/a:/b", "run -it --rm image -v/a:/b"),
            ("run -e A=b -v /a:/b image", "run -e A=b -v /a:/b image"),
        ] {
            assert_eq!(spelled(given), meant);
        }
    }

    #[test]
    fn booleans_may_be_spelled_out() {
        let matches = branch(&words("ps --all=true"));
        let matches = matches.try_get_matches_from(["insula", "ps", "--all=true", "-q"]).unwrap();
        let (_, ps) = matches.subcommand().unwrap();
        assert!(ps.get_flag("all") && ps.get_flag("quiet") && !ps.get_flag("latest"));
    }
}
