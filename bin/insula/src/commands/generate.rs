//! `completion man`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use clap_complete::Shell;

use crate::arguments::{self, Run};
use crate::context::Context;
use crate::failure::Outcome;
use crate::printer;

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula completion bash > /etc/bash_completion.d/insula
  insula completion zsh > ~/.zfunc/_insula
  insula completion fish > ~/.config/fish/completions/insula.fish")]
pub(crate) struct CompletionArgs {
    /// The shell
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

impl Run for CompletionArgs {
    async fn run(self, _: Context) -> Outcome {
        let shell = match self.shell.as_str() {
            "bash" => Shell::Bash,
            "zsh" => Shell::Zsh,
            _ => Shell::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut arguments::tree(), "insula", &mut script);
        printer::bytes(&script)?;
        Ok(0)
    }
}

/// Write the manual pages into a folder
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Folder to write to; made if absent
    folder: PathBuf,
}

impl Run for ManArgs {
    async fn run(self, _: Context) -> Outcome {
        std::fs::create_dir_all(&self.folder).with_context(|| format!("make {}", self.folder.display()))?;
        clap_mangen::generate_to(arguments::tree(), &self.folder)
            .with_context(|| format!("write the manual pages to {}", self.folder.display()))?;
        Ok(0)
    }
}
