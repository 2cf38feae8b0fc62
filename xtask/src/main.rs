//! Checks and chores of the repository: `cargo xtask layering`, `cargo xtask soak`, `cargo xtask kernel`.

mod graph;
mod kernel;
mod layering;
mod soak;
mod source;

use std::process::ExitCode;

use anyhow::Context;

const USAGE: &str = "usage: cargo xtask layering
       cargo xtask soak [--minutes N | --seconds N] [--seed N]
       cargo xtask kernel [--jobs N]

layering   holds the arrows between the crates, keeps tokio in the daemon and the CLI,
           and unsafe code in crates/sys and crates/vmm
soak       does a mix of everything, for 5 minutes if nothing else is said, and ends with a
           look for what is left and with what insulad and the monitors take: needs root
kernel     builds a small kernel for guests from Debian's source package, once for each version
           and configuration, and prints the folder that `insula kernel use` takes";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["layering"] => finish(check_layering()),
        ["soak", rest @ ..] => match soak::options(rest) {
            Ok(options) => soak::run(&options),
            Err(error) => {
                eprintln!("soak: {error:#}\n{USAGE}");
                ExitCode::from(2)
            }
        },
        ["kernel", rest @ ..] => match kernel::options(rest) {
            Ok(options) => kernel::run(&options),
            Err(error) => {
                eprintln!("kernel: {error:#}\n{USAGE}");
                ExitCode::from(2)
            }
        },
        ["--help" | "-h" | "help"] => {
            eprintln!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn check_layering() -> anyhow::Result<Vec<String>> {
    let workspace = graph::Workspace::of_cargo()?;
    let mut faults = layering::check(&workspace.packages);
    faults.extend(source::check(&workspace.root).context("read the sources")?);
    Ok(faults)
}

fn finish(faults: anyhow::Result<Vec<String>>) -> ExitCode {
    match faults {
        Ok(faults) if faults.is_empty() => {
            eprintln!("layering: the arrows hold");
            ExitCode::SUCCESS
        }
        Ok(faults) => {
            faults.iter().for_each(|fault| eprintln!("layering: {fault}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("layering: {error:#}");
            ExitCode::FAILURE
        }
    }
}
