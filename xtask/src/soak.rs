//! Builds the programs and runs the soak test of `tests/soak`.

use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

/// What the user wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    seconds: u64,
    seed: Option<u64>,
}

pub(crate) fn options(arguments: &[&str]) -> anyhow::Result<Options> {
    let mut options = Options { seconds: 300, seed: None };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut number = || -> anyhow::Result<u64> {
            let text = rest.next().with_context(|| format!("{argument} takes a number"))?;
            text.parse().with_context(|| format!("{argument} {text}"))
        };
        match *argument {
            "--minutes" => options.seconds = number()?.saturating_mul(60),
            "--seconds" => options.seconds = number()?,
            "--seed" => options.seed = Some(number()?),
            other => bail!("unknown argument {other}"),
        }
    }
    Ok(options)
}

/// Its exit code is that of the test.
pub(crate) fn run(options: &Options) -> ExitCode {
    match attempt(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn attempt(options: &Options) -> anyhow::Result<bool> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut test = Command::new(&cargo);
    test.args([
        "test",
        "--locked",
        "--package",
        "insula-tests",
        "--test",
        "soak",
        "--",
        "--ignored",
        "--nocapture",
    ]);
    test.env("INSULA_TEST_SECONDS", options.seconds.to_string()).env("INSULA_TEST_REQUIRE", "root");
    if let Some(seed) = options.seed {
        test.env("INSULA_TEST_SEED", seed.to_string());
    }
    // Programs that were built otherwise, a release for one, are taken as they are.
    if std::env::var_os("INSULA_BIN_DIR").is_none() {
        let packages = ["insula", "insulad", "insula-monitor"].map(|name| ["--package", name]);
        let built = Command::new(&cargo).args(["build", "--locked"]).args(packages.as_flattened()).status();
        if !built.context("run cargo build")?.success() {
            bail!("the programs could not be built");
        }
    }
    Ok(test.status().context("run cargo test")?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_length_and_seed_are_said() {
        assert_eq!(options(&[]).unwrap(), Options { seconds: 300, seed: None });
        assert_eq!(
            options(&["--minutes", "2", "--seed", "7"]).unwrap(),
            Options { seconds: 120, seed: Some(7) }
        );
        assert_eq!(options(&["--seconds", "9"]).unwrap().seconds, 9);
        for wrong in [&["--minutes"][..], &["--seconds", "x"], &["--fast"]] {
            assert!(options(wrong).is_err(), "{wrong:?}");
        }
    }
}
