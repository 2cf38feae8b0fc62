//! `-t`: a person at a terminal.

use insula_tests::{daemon, holds};

const SHELL: &[&str] = &["run", "--rm", "-it", "--network", "none", "--name", "box", "busybox", "sh"];

#[test]
fn a_shell_works_and_its_exit_code_is_ours() {
    let daemon = daemon!();
    let mut terminal = daemon.terminal(SHELL);
    terminal.expect("/ # ");
    terminal.send("tty; echo $((40 + 2))\n");
    terminal.expect("/dev/pts/0");
    terminal.expect("42");
    terminal.send("exit 6\n");
    assert_eq!(terminal.wait(), 6);
}

#[test]
fn the_window_has_the_size_of_ours() {
    let daemon = daemon!();
    let mut terminal = daemon.terminal(SHELL);
    terminal.expect("/ # ");
    terminal.expect_size("24 80");
    terminal.resize(101, 33);
    terminal.expect_size("33 101");
    terminal.send("exit\n");
    assert_eq!(terminal.wait(), 0);
}

#[test]
fn a_size_that_changes_while_no_daemon_runs_is_told_to_the_next() {
    let mut daemon = daemon!();
    let mut terminal = daemon.terminal(SHELL);
    terminal.expect("/ # ");
    daemon.kill();
    terminal.resize(103, 37);
    // The shell answers without a daemon; its size is the old one for as long as there is none.
    terminal.send("stty size; echo asked\n");
    terminal.expect("24 80");
    daemon.restart();
    terminal.expect_size("37 103");
    terminal.send("exit\n");
    assert_eq!(terminal.wait(), 0);
}

#[test]
fn keys_are_signals_inside() {
    let daemon = daemon!();
    let mut terminal = daemon.terminal(SHELL);
    terminal.expect("/ # ");
    terminal.send("sleep 1000\n");
    holds("sleep runs", || daemon.exec("box", "ps -o args").stdout.contains("sleep 1000"));
    terminal.send("\x03");
    terminal.send("echo code $?\n");
    // Before its prompt the shell's terminal reads whole lines, where this key is no character.
    holds("the next prompt", || {
        terminal.screen().split_once("code 130").is_some_and(|(_, rest)| rest.contains("/ # "))
    });
    terminal.send("\x04");
    terminal.wait();
}

#[test]
fn detach_keys_leave_it_running_and_attach_comes_back() {
    let daemon = daemon!();
    let mut terminal =
        daemon.terminal(&["run", "-it", "--network", "none", "--name", "box", "busybox", "sh"]);
    terminal.expect("/ # ");
    terminal.send("\x10\x11");
    assert_eq!(terminal.wait(), 0);
    assert_eq!(daemon.inspect("box", "/State/Status"), "running");
    let mut again = daemon.terminal(&["attach", "--detach-keys", "ctrl-x,x", "box"]);
    again.expect("/ # ");
    again.send("echo again $((1 + 1))\n");
    again.expect("again 2");
    again.send("\x18x");
    again.wait();
    assert_eq!(daemon.inspect("box", "/State/Status"), "running");
}

#[test]
fn exec_has_a_terminal_of_its_own() {
    let daemon = daemon!();
    let id = daemon.sleeper(&["--network", "none"]);
    let mut terminal = daemon.terminal(&["exec", "-it", &id, "sh"]);
    terminal.expect("/ # ");
    terminal.send("test -t 0 && echo is $((3 * 3))\n");
    terminal.expect("is 9");
    terminal.send("exit 8\n");
    assert_eq!(terminal.wait(), 8);
}

#[test]
fn a_terminal_is_refused_where_there_is_none() {
    let daemon = daemon!();
    daemon.insula(&["run", "--rm", "-it", "busybox", "true"]).fails(1, &["TTY"]);
}

#[test]
fn signals_to_the_command_reach_the_container() {
    let daemon = daemon!();
    let mut command = daemon.command(&[
        "run",
        "--rm",
        "--name",
        "box",
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        "trap 'exit 33' TERM; echo ready; while :; do sleep 0.05; done",
    ]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let output = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(33));
}
