//! Loads image archives into a root and says how long each took: the store alone, for profiling.
//! `cargo run --release -p insula-store --example load -- [--apart] ROOT ARCHIVE…`; with `--apart` files that are
//! the same in several layers are stored as often.

#![allow(clippy::print_stdout, reason = "a program's output")]

use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let apart = arguments.next_if(|first| first == "--apart").is_some();
    let root = PathBuf::from(arguments.next().ok_or("a root is expected")?);
    let store = insula_store::Store::open(&root)?;
    store.layers().share_files(!apart);
    for archive in arguments {
        let started = Instant::now();
        let loaded = store.images().load(File::open(&archive)?, &mut |_| {})?;
        println!("{} ms {loaded:?}", started.elapsed().as_millis());
    }
    let started = Instant::now();
    store.images().wait_synced();
    println!("{} ms to flush", started.elapsed().as_millis());
    println!("{} MB of layers", store.usage()?.layers / 1_000_000);
    Ok(())
}
