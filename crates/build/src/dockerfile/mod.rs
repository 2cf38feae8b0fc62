//! The language: from the text of a Dockerfile to what it says, as BuildKit's reference 1.x has it.
//!
//! ```text
//! text ─> lines: directives, continuations, comments, heredocs ─> words, flags, lists ─> instructions ─> stages
//! ```
//!
//! Variables are not replaced here: what they stand for is known when a build begins ([`expand`]).

mod flags;
mod glob;
mod health;
mod instruction;
mod lines;
mod lint;
mod mount;
mod read;
mod variables;
mod words;

use crate::{Error, Result};

pub use instruction::{
    ArgSpec, Command, CopySources, Form, Healthcheck, Heredoc, Instruction, Pair, Probe, Run, Step, Transfer,
};
pub use lines::Directives;
pub use lint::{Warning, lint};
pub use mount::{Mount, MountKind, Sharing};
pub use read::{KEYWORDS, parse_instruction};
pub use variables::{Quotes, Variables, expand, expand_words};

/// Bytes of a Dockerfile.
pub const LARGEST: usize = 4 << 20;
/// Instructions of one.
const INSTRUCTIONS_MAX: usize = 16 << 10;

/// What a Dockerfile says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    pub directives: Directives,
    /// `ARG` before the first `FROM`.
    pub arguments: Vec<Instruction>,
    /// In the order of the file; there is one at least.
    pub stages: Vec<Stage>,
}

/// One `FROM` and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Of the `FROM`.
    pub line: u32,
    /// The `FROM` as it is written.
    pub text: String,
    /// An image, `scratch` or the name of an earlier stage; variables are not replaced.
    pub base: String,
    /// `AS`, in small letters.
    pub name: Option<String>,
    /// `--platform`; variables are not replaced.
    pub platform: Option<String>,
    pub instructions: Vec<Instruction>,
}

impl Dockerfile {
    /// Reads a Dockerfile.
    ///
    /// # Errors
    /// [`Error::Syntax`] with the line that is wrong.
    pub fn parse(text: &[u8]) -> Result<Self> {
        if text.len() > LARGEST {
            return Err(Error::at(1, format!("the Dockerfile is larger than {LARGEST} bytes")));
        }
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let text = String::from_utf8_lossy(text);
        let (directives, lines) = lines::split(&text)?;
        if lines.is_empty() {
            return Err(Error::at(1, "file with no instructions"));
        }
        if lines.len() > INSTRUCTIONS_MAX {
            return Err(Error::at(
                lines[INSTRUCTIONS_MAX].line,
                format!("more than {INSTRUCTIONS_MAX} instructions"),
            ));
        }
        let mut arguments = Vec::new();
        let mut stages: Vec<Stage> = Vec::new();
        for line in &lines {
            let line_number = line.line;
            match read::read(line, directives.escape)? {
                read::Read::From { base, name, platform } => {
                    stages.push(Stage {
                        line: line_number,
                        text: line.text.clone(),
                        base,
                        name,
                        platform,
                        instructions: Vec::new(),
                    });
                }
                read::Read::Other(instruction) => match stages.last_mut() {
                    Some(stage) => stage.instructions.push(instruction),
                    None if matches!(instruction.step, Step::Arg(_)) => arguments.push(instruction),
                    None => {
                        return Err(Error::at(
                            line_number,
                            "no build stage in current context: FROM comes first",
                        ));
                    }
                },
            }
        }
        if stages.is_empty() {
            return Err(Error::at(lines[0].line, "no build stage: a FROM is missing"));
        }
        check_names(&stages)?;
        Ok(Self { directives, arguments, stages })
    }

    /// The stage by name or number, as `--target` and `--from` give it.
    #[must_use]
    pub fn stage(&self, reference: &str) -> Option<usize> {
        let wanted = reference.to_ascii_lowercase();
        // The last one of a name counts.
        let named = self.stages.iter().rposition(|stage| stage.name.as_deref() == Some(wanted.as_str()));
        named.or_else(|| reference.parse().ok().filter(|number| *number < self.stages.len()))
    }
}

fn check_names(stages: &[Stage]) -> Result<()> {
    for (number, stage) in stages.iter().enumerate() {
        let Some(name) = &stage.name else { continue };
        if stages[..number].iter().any(|other| other.name.as_ref() == Some(name)) {
            return Err(Error::at(stage.line, format!("duplicate name {name:?} of a build stage")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
