//! A person at a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::{eventually, holds};

/// A command with a pseudo terminal as its controlling terminal.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    child: Child,
    seen: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
    asked: u32,
}

impl Terminal {
    /// Starts `program` at a terminal of 80 columns and 24 rows.
    #[must_use]
    pub fn start(command: &Command) -> Self {
        let master =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave: OwnedFd = File::options().read(true).write(true).open(name).unwrap().into();
        set_size(&master, 80, 24);
        // setsid(1) makes the terminal the controlling one, which a test cannot do without unsafe code.
        let mut wrapped = Command::new("setsid");
        wrapped.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        wrapped.stdin(Stdio::from(slave.try_clone().unwrap()));
        wrapped.stdout(Stdio::from(slave.try_clone().unwrap())).stderr(Stdio::from(slave));
        let child = wrapped.spawn().unwrap();
        drop(wrapped);
        let master = File::from(master);
        let seen = Arc::new(Mutex::new(String::new()));
        let reader = read_all(master.try_clone().unwrap(), seen.clone());
        Self { master, child, seen, reader, asked: 0 }
    }

    /// Everything that has appeared so far.
    #[must_use]
    pub fn screen(&self) -> String {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until `text` has appeared.
    pub fn expect(&self, text: &str) {
        let mut last = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(text, || {
                last = self.screen();
                last.contains(text).then_some(())
            });
        }));
        assert!(found.is_ok(), "{text:?} did not appear in {last:?}");
    }

    /// Has the shell there tell the size of its window until it is `size`: asks again when it has answered, since a
    /// busy one would have more to read than a terminal keeps.
    pub fn expect_size(&mut self, size: &str) {
        holds(&format!("the size is {size}"), || {
            self.ask_size();
            self.screen().contains(size)
        });
    }

    /// Has the shell there tell the size of its window, and waits for the answer.
    pub fn ask_size(&mut self) {
        self.asked += 1;
        let asked = self.asked;
        self.send(&format!("stty size; echo asked $(({asked}))\n"));
        self.expect(&format!("asked {asked}"));
    }

    /// Types.
    pub fn send(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Changes the size of the window.
    pub fn resize(&self, columns: u16, rows: u16) {
        set_size(&self.master, columns, rows);
    }

    /// Waits for the end, and until all of its last words have appeared; the exit code.
    pub fn wait(&mut self) -> i32 {
        let child = &mut self.child;
        let status = eventually("the command at the terminal ends", || child.try_wait().unwrap());
        holds("nobody has the terminal any more", || self.reader.is_finished());
        status.code().unwrap_or(-1)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended in a test that passed; otherwise it must not outlive the test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(terminal: &impl std::os::fd::AsFd, columns: u16, rows: u16) {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).unwrap();
}

fn read_all(mut master: File, seen: Arc<Mutex<String>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        // The end is EIO, when the last holder of the other side is gone.
        while let Ok(count @ 1..) = master.read(&mut piece) {
            seen.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..count]));
        }
    })
}
