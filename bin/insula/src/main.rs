//! `insula`: the command line. Arguments are parsed (`arguments`, one struct a command), resolved
//! into a request (`options`, `run::resolve`), and run against the daemon's API.

mod arguments;
mod commands;
mod context;
mod copy;
mod daemon;
mod failure;
mod filters;
mod follow;
mod format;
mod options;
mod printer;
mod registry;
mod run;
mod serve;
mod streams;
mod terminal;
mod usage;

use std::ffi::OsString;

fn main() {
    let words: Vec<OsString> = std::env::args_os().collect();
    let code = match arguments::parse(&words) {
        Ok(parsed) => parsed.run(),
        Err(code) => code,
    };
    // Threads that read standard input or write to the daemon may be blocked for ever.
    std::process::exit(i32::from(code));
}
