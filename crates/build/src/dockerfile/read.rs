//! One instruction: its name, its flags, its arguments.

use super::flags::Flags;
use super::instruction::{ArgSpec, Command, CopySources, Form, Instruction, Pair, Run, Step, Transfer};
use super::lines::{Line, heredoc};
use super::{health, lines, mount, words};
use crate::nearest::hint;
use crate::{Error, Result};

/// Every instruction.
pub const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];
const COPY_FLAGS: [&str; 6] = ["from", "chown", "chmod", "link", "parents", "exclude"];
const ADD_FLAGS: [&str; 7] = ["chown", "chmod", "link", "exclude", "checksum", "keep-git-dir", "unpack"];
const RUN_FLAGS: [&str; 3] = ["mount", "network", "security"];

/// What a line is.
#[derive(Debug)]
pub(super) enum Read {
    From { base: String, name: Option<String>, platform: Option<String> },
    Other(Instruction),
}

/// Reads one instruction that is not a `FROM`: what an image has from `ONBUILD`, or `--change`.
///
/// # Errors
/// [`Error::Syntax`], lines counted in `text`.
pub fn parse_instruction(text: &str) -> Result<Instruction> {
    let (directives, lines) = lines::split(text)?;
    let [line] = lines.as_slice() else {
        return Err(Error::at(1, format!("{} instructions where one is expected", lines.len())));
    };
    match read(line, directives.escape)? {
        Read::Other(instruction) => Ok(instruction),
        Read::From { .. } => Err(Error::at(line.line, "FROM begins a stage and cannot stand here")),
    }
}

pub(super) fn read(line: &Line, escape: char) -> Result<Read> {
    let (keyword, rest) = words::keyword(&line.text);
    let number = line.line;
    let upper = keyword.to_ascii_uppercase();
    let Some(known) = KEYWORDS.into_iter().find(|known| *known == upper) else {
        let shown: String = keyword.chars().take(64).collect();
        return Err(Error::at(number, format!("unknown instruction: {shown}{}", hint(&shown, KEYWORDS))));
    };
    if rest.is_empty() && !matches!(known, "CMD" | "ENTRYPOINT") {
        return Err(Error::at(number, format!("{known} requires at least one argument")));
    }
    if known == "FROM" {
        return from(number, rest, escape);
    }
    let step = step(known, line, rest, escape)?;
    Ok(Read::Other(Instruction { line: number, text: line.text.clone(), step }))
}

fn step(keyword: &'static str, line: &Line, rest: &str, escape: char) -> Result<Step> {
    let number = line.line;
    Ok(match keyword {
        "ADD" => Step::Add(transfer(keyword, line, rest, escape, &ADD_FLAGS)?),
        "COPY" => Step::Copy(transfer(keyword, line, rest, escape, &COPY_FLAGS)?),
        "ARG" => Step::Arg(arguments(number, rest, escape)?),
        "CMD" => Step::Cmd(command(rest)),
        "ENTRYPOINT" => Step::Entrypoint(command(rest)),
        "ENV" => Step::Env(pairs(keyword, number, rest, escape)?),
        "LABEL" => Step::Label(pairs(keyword, number, rest, escape)?),
        "EXPOSE" => Step::Expose(words::shell_words(rest, escape)),
        "HEALTHCHECK" => Step::Healthcheck(health::read(number, rest, escape)?),
        "MAINTAINER" => Step::Maintainer(rest.to_owned()),
        "ONBUILD" => Step::Onbuild(onbuild(line, rest, escape)?),
        "RUN" => Step::Run(run(line, rest, escape)?),
        "SHELL" => Step::Shell(words::list(rest).filter(|list| !list.is_empty()).ok_or_else(|| {
            Error::at(number, "SHELL requires the arguments to be in JSON form, as in [\"/bin/sh\", \"-c\"]")
        })?),
        "STOPSIGNAL" => Step::Stopsignal(one(keyword, number, rest, escape)?),
        "USER" => Step::User(one(keyword, number, rest, escape)?),
        "VOLUME" => Step::Volume(volumes(number, rest, escape)?),
        // A path may have blanks.
        _ => Step::Workdir(rest.to_owned()),
    })
}

fn from(number: u32, rest: &str, escape: char) -> Result<Read> {
    let (flags, rest) = Flags::take("FROM", number, rest, escape, &["platform"])?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let (base, name) = match words.as_slice() {
        [base] => (*base, None),
        [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
            (*base, Some(stage_name(number, name)?))
        }
        _ => {
            return Err(Error::at(
                number,
                "FROM requires either one or three arguments: FROM IMAGE [AS NAME]",
            ));
        }
    };
    Ok(Read::From { base: base.to_owned(), name, platform: flags.value("platform")? })
}

fn stage_name(number: u32, name: &str) -> Result<String> {
    let name = name.to_ascii_lowercase();
    let valid = name.starts_with(|sign: char| sign.is_ascii_lowercase())
        && name.chars().all(|sign| sign.is_ascii_alphanumeric() || matches!(sign, '-' | '_' | '.'));
    if !valid || matches!(name.as_str(), "context" | "scratch") {
        return Err(Error::at(
            number,
            format!(
                "invalid name for build stage: {name:?}, a letter and then letters, digits, -, _ and . are expected"
            ),
        ));
    }
    Ok(name)
}

fn one(keyword: &str, number: u32, rest: &str, escape: char) -> Result<String> {
    match words::shell_words(rest, escape).as_slice() {
        [word] => Ok(word.clone()),
        _ => Err(Error::at(number, format!("{keyword} requires exactly one argument"))),
    }
}

/// Exec form if it is a list, shell form otherwise.
pub(super) fn command(rest: &str) -> Command {
    match words::list(rest) {
        Some(words) => Command { form: Form::Exec, words },
        None if rest.is_empty() => Command { form: Form::Exec, words: Vec::new() },
        None => Command { form: Form::Shell, words: vec![rest.to_owned()] },
    }
}

fn arguments(number: u32, rest: &str, escape: char) -> Result<Vec<ArgSpec>> {
    let words = words::shell_words(rest, escape);
    words
        .into_iter()
        .map(|word| {
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name.to_owned(), Some(default.to_owned())),
                None => (word, None),
            };
            if name.is_empty() {
                return Err(Error::at(number, "ARG names can not be blank"));
            }
            Ok(ArgSpec { name, default })
        })
        .collect()
}

/// `A=1 B="two words"`, or the old `A one value`.
fn pairs(keyword: &str, number: u32, rest: &str, escape: char) -> Result<Vec<Pair>> {
    let words = words::shell_words(rest, escape);
    if !words.first().is_some_and(|word| word.contains('=')) {
        let (name, value) = words::keyword(rest);
        if value.is_empty() {
            return Err(Error::at(
                number,
                format!("{keyword} must have two arguments: {keyword} NAME=VALUE"),
            ));
        }
        return Ok(vec![Pair { name: name.to_owned(), value: value.to_owned() }]);
    }
    words
        .into_iter()
        .map(|word| {
            let (name, value) = word.split_once('=').ok_or_else(|| {
                Error::at(
                    number,
                    format!("Syntax error - can't find = in {word:?}. Must be of the form: name=value"),
                )
            })?;
            if name.is_empty() {
                return Err(Error::at(number, format!("{keyword} names can not be blank")));
            }
            Ok(Pair { name: name.to_owned(), value: value.to_owned() })
        })
        .collect()
}

fn volumes(number: u32, rest: &str, escape: char) -> Result<Vec<String>> {
    let volumes = words::list(rest).unwrap_or_else(|| words::shell_words(rest, escape));
    if volumes.is_empty() || volumes.iter().any(|volume| volume.trim().is_empty()) {
        return Err(Error::at(number, "VOLUME specified can not be an empty string"));
    }
    Ok(volumes)
}

/// The triggered instruction has to be one that may be triggered.
fn onbuild(line: &Line, rest: &str, escape: char) -> Result<String> {
    let (keyword, _) = words::keyword(rest);
    let upper = keyword.to_ascii_uppercase();
    if matches!(upper.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
        return Err(Error::at(line.line, format!("{upper} isn't allowed as an ONBUILD trigger")));
    }
    read(&Line { text: rest.to_owned(), ..line.clone() }, escape)?;
    let mut text = rest.to_owned();
    for heredoc in &line.heredocs {
        text.push('\n');
        text.push_str(&heredoc.content);
        text.push_str(&heredoc.name);
    }
    Ok(text)
}

fn run(line: &Line, rest: &str, escape: char) -> Result<Run> {
    let (flags, rest) = Flags::take("RUN", line.line, rest, escape, &RUN_FLAGS)?;
    if rest.is_empty() {
        return Err(Error::at(line.line, "RUN requires at least one argument"));
    }
    let mounts = flags.values("mount")?;
    let mounts = mounts.iter().map(|text| mount::read(&flags, text)).collect::<Result<_>>()?;
    let choice = |name: &str, known: &[&str]| -> Result<Option<String>> {
        let Some(value) = flags.value(name)? else { return Ok(None) };
        if known.contains(&value.as_str()) {
            return Ok(Some(value));
        }
        let hint = hint(&value, known.iter().copied());
        Err(flags.wrong(name, &format!("is one of {}, not {value:?}{hint}", known.join(", "))))
    };
    Ok(Run {
        command: command(rest),
        heredocs: line.heredocs.clone(),
        mounts,
        network: choice("network", &["default", "none", "host"])?,
        security: choice("security", &["sandbox", "insecure"])?,
    })
}

fn transfer(
    keyword: &'static str,
    line: &Line,
    rest: &str,
    escape: char,
    known: &[&str],
) -> Result<Transfer> {
    let (flags, rest) = Flags::take(keyword, line.line, rest, escape, known)?;
    let mut words = words::list(rest).unwrap_or_else(|| words::shell_words(rest, escape));
    if words.len() < 2 {
        return Err(Error::at(
            line.line,
            format!("{keyword} requires at least two arguments: {keyword} SOURCE... DESTINATION"),
        ));
    }
    let destination = words.pop().unwrap_or_default();
    if heredoc(&destination, escape).is_some() {
        return Err(Error::at(line.line, format!("{keyword} cannot accept a heredoc as destination")));
    }
    words.retain(|word| heredoc(word, escape).is_none());
    let from = if keyword == "COPY" { flags.value("from")? } else { None };
    let switch = |name: &str| Ok::<_, Error>(if known.contains(&name) { flags.switch(name)? } else { None });
    Ok(Transfer {
        sources: CopySources { paths: words, heredocs: line.heredocs.clone() },
        destination,
        from,
        chown: flags.value("chown")?,
        chmod: flags.value("chmod")?,
        link: switch("link")?.unwrap_or(false),
        parents: switch("parents")?.unwrap_or(false),
        exclude: flags.values("exclude")?,
        checksum: flags.value("checksum")?,
        keep_git_dir: switch("keep-git-dir")?.unwrap_or(false),
        unpack: switch("unpack")?,
    })
}
