//! What is said about a command line that cannot be run, in Docker's words and with its exit codes.

use std::error::Error as _;

use clap::error::{ContextKind, ErrorKind};
use clap::{ArgAction, Command};

use crate::arguments::{branch, called};
use crate::failure::Failure;
use crate::{commands, printer};

/// Prints what clap has to say: exit code 125 for a wrong flag, 1 for a wrong number of arguments or an
/// unknown command, 0 for help.
pub(crate) fn report(error: &clap::Error, words: &[String]) -> u8 {
    let kind = error.kind();
    if matches!(kind, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Help into a closed pipe is no failure.
        let _ = printer::text(&error.render().to_string());
        return 0;
    }
    match in_dockers_words(error, words) {
        Some(message) => printer::error(&message),
        None => printer::error_text(&error.render().to_string()),
    }
    match kind {
        // A noun alone is a question, not a mistake.
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => 0,
        ErrorKind::UnknownArgument if !of_a_flag(error) => 1,
        ErrorKind::MissingRequiredArgument | ErrorKind::TooFewValues | ErrorKind::InvalidSubcommand => 1,
        _ => 125,
    }
}

/// A value that a flag (`--memory`) does not take.
pub(crate) fn bad_flag(flag: &str, value: &str, why: impl std::fmt::Display) -> anyhow::Error {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let usage = Usage::of(&words);
    let message =
        format!("invalid argument {value:?} for {:?} flag: {why}\n\n{}", usage.flag(flag), usage.full());
    Failure { code: 125, message }.into()
}

/// A flag that a command does not have, found by the command itself.
pub(crate) fn unknown_flag(flag: &str) -> anyhow::Error {
    let words: Vec<String> = std::env::args().skip(1).collect();
    Failure { code: 125, message: format!("unknown flag: {flag}\n\n{}", Usage::of(&words).full()) }.into()
}

/// The message for what Docker has words for too; it ends with where to read more.
fn in_dockers_words(error: &clap::Error, words: &[String]) -> Option<String> {
    let text = |kind| error.get(kind).map(ToString::to_string);
    let usage = Usage::of(words);
    match error.kind() {
        ErrorKind::UnknownArgument if of_a_flag(error) => {
            let near = text(ContextKind::SuggestedArg).map(|flag| format!("; did you mean {flag}?"));
            let given = text(ContextKind::InvalidArg)?;
            Some(format!("unknown flag: {given}{}\n\n{}", near.unwrap_or_default(), usage.full()))
        }
        ErrorKind::InvalidValue if text(ContextKind::InvalidValue).is_none_or(|given| given.is_empty()) => {
            let flag = text(ContextKind::InvalidArg)?;
            let flag = flag.split(' ').next().unwrap_or_default();
            Some(format!("flag needs an argument: {flag}\n\n{}", usage.full()))
        }
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let (flag, given) = (text(ContextKind::InvalidArg)?, text(ContextKind::InvalidValue)?);
            let why = match (error.source(), text(ContextKind::ValidValue)) {
                (Some(why), _) if why.to_string().contains("invalid digit") => "invalid syntax".to_owned(),
                (Some(why), _) => why.to_string(),
                (None, Some(known)) => format!("must be one of {known}"),
                (None, None) => "invalid value".to_owned(),
            };
            Some(format!(
                "invalid argument {given:?} for {:?} flag: {why}\n\n{}",
                usage.flag(&flag),
                usage.full()
            ))
        }
        ErrorKind::InvalidSubcommand => {
            let given = text(ContextKind::InvalidSubcommand)?;
            let near = text(ContextKind::SuggestedSubcommand).map(|name| format!("; did you mean {name}?"));
            let near = near.unwrap_or_default();
            let group = usage.name.strip_suffix(&format!(" {given}")).unwrap_or(&usage.name);
            Some(format!(
                "insula: unknown command: {group} {given}{near}\n\nRun '{group} --help' for more information"
            ))
        }
        ErrorKind::UnknownArgument | ErrorKind::MissingRequiredArgument | ErrorKind::TooFewValues => {
            Some(usage.wrong_count())
        }
        _ => None,
    }
}

fn of_a_flag(error: &clap::Error) -> bool {
    error.get(ContextKind::InvalidArg).is_some_and(|given| given.to_string().starts_with('-'))
}

/// How the command that was called is used.
struct Usage {
    /// `insula exec`, `insula volume rm`.
    name: String,
    command: Command,
}

impl Usage {
    fn of(words: &[String]) -> Self {
        let (word, next) = called(words);
        let group = commands::GROUPS.iter().any(|group| word == Some(group.name));
        let path: Vec<&str> = word.into_iter().chain(next.filter(|_| group)).collect();
        let mut command = branch(words);
        for name in &path {
            if let Some(sub) = command.find_subcommand(name) {
                command = sub.clone();
            }
        }
        let name = ["insula"].into_iter().chain(path).collect::<Vec<_>>().join(" ");
        Self { command: command.bin_name(name.clone()), name }
    }

    /// `insula start [OPTIONS] CONTAINER [CONTAINER...]`
    fn line(&self) -> String {
        let text = self.command.clone().render_usage().to_string();
        let words = text.trim_start_matches("Usage:").split_whitespace().map(|word| {
            let plain = |word: &str| word.replace(['<', '>'], "");
            match (word.strip_suffix("..."), word.starts_with('<')) {
                (Some(many), true) => format!("{0} [{0}...]", plain(many)),
                (None, true) => plain(word),
                _ => word.to_owned(),
            }
        });
        words.collect::<Vec<_>>().join(" ")
    }

    fn more(&self) -> String {
        format!("Run '{} --help' for more information", self.name)
    }

    fn full(&self) -> String {
        format!("Usage:  {}\n\n{}", self.line(), self.more())
    }

    /// `-m, --memory` for `--memory` or `--memory <BYTES>`.
    fn flag(&self, flag: &str) -> String {
        let flag = flag.split(' ').next().unwrap_or_default();
        let long = flag.trim_start_matches('-');
        let known = self.command.get_arguments().find(|argument| argument.get_long() == Some(long));
        match known.and_then(clap::Arg::get_short) {
            Some(short) => format!("-{short}, {flag}"),
            None => flag.to_owned(),
        }
    }

    /// How many arguments it takes, and that these were not as many.
    fn wrong_count(&self) -> String {
        let count = self.count();
        let see = if count.starts_with("requires at least") { "See" } else { "Run" };
        let (name, line) = (&self.name, self.line());
        format!("insula: '{name}' {count}\n\nUsage:  {line}\n\n{see} '{name} --help' for more information")
    }

    fn count(&self) -> String {
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let positionals: Vec<_> = self.command.get_positionals().collect();
        let is_many = |argument: &&clap::Arg| matches!(argument.get_action(), ArgAction::Append);
        let many = positionals.iter().any(is_many);
        let least = self.least(&positionals);
        match (least, positionals.len() - positionals.iter().filter(|a| a.is_required_set()).count(), many) {
            (0, 0, false) => "accepts no arguments".to_owned(),
            (least, _, true) => format!("requires at least {least} argument{}", plural(least)),
            (least, 0, false) => format!("requires {least} argument{}", plural(least)),
            (0, most, false) => format!("requires at most {most} argument{}", plural(most)),
            (least, more, false) => {
                format!("requires at least {least} and at most {} arguments", least + more)
            }
        }
    }

    fn least(&self, positionals: &[&clap::Arg]) -> usize {
        let required = positionals.iter().filter(|argument| argument.is_required_set());
        required.map(|argument| argument.get_num_args().map_or(1, |range| range.min_values())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn said(line: &str) -> String {
        let words = words(line);
        let all = ["insula".to_owned()].into_iter().chain(words.clone());
        let error = branch(&words).try_get_matches_from(all).unwrap_err();
        in_dockers_words(&error, &words).unwrap()
    }

    #[test]
    fn wrong_words_are_named_with_the_way_out() {
        insta::assert_snapshot!(
            [
                "ps --nope",
                "volume rm",
                "volume nope",
                "stop --time x y",
                "run --memory",
                "rename a",
                "ps a",
                "images a b",
                "exec web",
                "run",
                "cp a",
                "foo",
                "tag a b c",
                "import",
                "top"
            ]
            .map(said)
            .join("\n----\n")
        );
    }
}
