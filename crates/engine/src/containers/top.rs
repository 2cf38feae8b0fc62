//! The processes of a container as ps(1) lists them, read from `/proc` of the host
//! (proc_pid_stat(5)). Which processes is the container's affair, so the options of ps(1) that select some
//! (`-e`, `-A`, `a`, `x`, …) say no more than the form of the list, as `x` does; of those for a form `f`, `F`,
//! `j`, `u`, `Z` and `o` are known, `o` with the columns below, their titles changed with `=`.

use std::collections::HashMap;
use std::fs;

use insula_models::TopResponse;
use insula_proto::{ProcessText, Processes};

use crate::{Error, Result};

/// Ticks a second of the times in `/proc/PID/stat`: fixed for programs on every Linux in use.
const TICKS: u64 = 100;

/// What a column shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    User,
    Uid,
    Gid,
    Pid,
    Ppid,
    Cpu,
    Memory,
    Virtual,
    Resident,
    Tty,
    State,
    Started,
    Elapsed,
    Time,
    ShortTime,
    Group,
    Session,
    Pages,
    Processor,
    Nice,
    Threads,
    Name,
    Command,
    Label,
}

/// Names that `-o` knows, with their titles.
const COLUMNS: [(&str, &str, Column); 46] = [
    ("user", "USER", Column::User),
    ("uname", "USER", Column::User),
    ("uid", "UID", Column::Uid),
    ("gid", "GID", Column::Gid),
    ("pid", "PID", Column::Pid),
    ("ppid", "PPID", Column::Ppid),
    ("c", "C", Column::Cpu),
    ("pcpu", "%CPU", Column::Cpu),
    ("%cpu", "%CPU", Column::Cpu),
    ("pmem", "%MEM", Column::Memory),
    ("%mem", "%MEM", Column::Memory),
    ("vsz", "VSZ", Column::Virtual),
    ("rss", "RSS", Column::Resident),
    ("tty", "TT", Column::Tty),
    ("tt", "TT", Column::Tty),
    ("stat", "STAT", Column::State),
    ("s", "S", Column::State),
    ("state", "S", Column::State),
    ("stime", "STIME", Column::Started),
    ("start", "STARTED", Column::Started),
    ("etime", "ELAPSED", Column::Elapsed),
    ("time", "TIME", Column::Time),
    ("ni", "NI", Column::Nice),
    ("nlwp", "NLWP", Column::Threads),
    ("comm", "COMMAND", Column::Name),
    ("args", "COMMAND", Column::Command),
    ("cmd", "CMD", Column::Command),
    ("command", "COMMAND", Column::Command),
    ("ucmd", "CMD", Column::Name),
    ("ucomm", "COMMAND", Column::Name),
    ("euser", "EUSER", Column::User),
    ("euid", "EUID", Column::Uid),
    ("egid", "EGID", Column::Gid),
    ("pgid", "PGID", Column::Group),
    ("pgrp", "PGRP", Column::Group),
    ("sid", "SID", Column::Session),
    ("sess", "SESS", Column::Session),
    ("psr", "PSR", Column::Processor),
    ("sz", "SZ", Column::Pages),
    ("tname", "TTY", Column::Tty),
    ("cputime", "TIME", Column::Time),
    ("vsize", "VSZ", Column::Virtual),
    ("rssize", "RSS", Column::Resident),
    ("thcount", "THCNT", Column::Threads),
    ("label", "LABEL", Column::Label),
    ("context", "CONTEXT", Column::Label),
];

/// Lists processes. One that ends meanwhile is left out, and so is what another kernel says that is none.
pub(crate) fn listing(found: &Processes, arguments: Option<&str>) -> Result<TopResponse> {
    let columns = columns(arguments.unwrap_or("-ef"))?;
    let mut host = Host::read();
    let read: Vec<Process> = match &found.elsewhere {
        None => found.pids.iter().filter_map(|pid| Process::read(*pid)).collect(),
        Some(elsewhere) => {
            (host.memory, host.uptime) = (elsewhere.memory, elsewhere.uptime);
            let parse =
                |text: &ProcessText| Process::parse(text.pid, &text.stat, &text.status, &text.command);
            elsewhere.processes.iter().filter_map(parse).collect()
        }
    };
    let processes = read
        .into_iter()
        .map(|process| columns.iter().map(|(_, column)| process.show(*column, &host)).collect())
        .collect();
    Ok(TopResponse { titles: columns.into_iter().map(|(title, _)| title).collect(), processes })
}

type Titled = (String, Column);

/// How a list looks by default: what the letters of its options say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Bsd,
    Full,
    Extra,
    Jobs,
    Usage,
}

fn columns(arguments: &str) -> Result<Vec<Titled>> {
    let mut chosen = Vec::new();
    let (mut form, mut labels) = (None, false);
    let mut words = arguments.split_whitespace();
    while let Some(word) = words.next() {
        let (bsd, letters) = word.strip_prefix('-').map_or((true, word), |letters| (false, letters));
        let mut rest = letters.chars();
        while let Some(letter) = rest.next() {
            if letter == 'o' {
                let list = if rest.as_str().is_empty() { words.next() } else { Some(rest.as_str()) };
                chosen.extend(chosen_columns(list.ok_or_else(|| unknown(arguments))?)?);
                break;
            }
            if letter == 'Z' {
                labels = true;
                continue;
            }
            form = wanted(letter, bsd, form).ok_or_else(|| unknown(arguments))?;
        }
    }
    let mut shown = if chosen.is_empty() { form_columns(form.unwrap_or(Form::Plain)) } else { chosen };
    if arguments.trim().is_empty() {
        shown = form_columns(Form::Full);
    }
    if labels {
        shown.insert(0, ("LABEL".to_owned(), Column::Label));
    }
    Ok(shown)
}

/// The form after one more letter; none for a letter that is not known.
fn wanted(letter: char, bsd: bool, form: Option<Form>) -> Option<Option<Form>> {
    match (letter, bsd) {
        ('e' | 'A' | 'a' | 'd' | 'w', false) | ('w', true) => Some(form),
        ('a', true) | ('x', _) => Some(form.or(Some(Form::Bsd))),
        ('f', false) => Some(if form == Some(Form::Extra) { form } else { Some(Form::Full) }),
        ('F', false) => Some(Some(Form::Extra)),
        ('j', false) => Some(Some(Form::Jobs)),
        ('u', true) => Some(Some(Form::Usage)),
        _ => None,
    }
}

fn unknown(arguments: &str) -> Error {
    Error::Unsupported(format!(
        "ps arguments {arguments:?}: -e, -A, -a, -d, -x, a, x and w, the forms -f, -F, -j and u, -Z, and -o with \
         a list of columns are known"
    ))
}

/// `pid,comm=NAME`: what follows `=` is the column's title.
fn chosen_columns(list: &str) -> Result<Vec<Titled>> {
    let found: Vec<_> = list
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| match name.split_once('=') {
            Some((name, title)) => Ok((title.to_owned(), column(name)?.1)),
            None => column(name),
        })
        .collect::<Result<_>>()?;
    match found.is_empty() {
        true => Err(Error::InvalidArgument("ps -o: a list of columns is expected".to_owned())),
        false => Ok(found),
    }
}

fn column(name: &str) -> Result<Titled> {
    let found = COLUMNS.iter().find(|(known, ..)| *known == name);
    found.map(|(_, title, column)| ((*title).to_owned(), *column)).ok_or_else(|| {
        let known: Vec<_> = COLUMNS.iter().map(|(name, ..)| *name).collect();
        Error::InvalidArgument(format!("ps column {name:?} is not known: {} are", known.join(", ")))
    })
}

fn form_columns(form: Form) -> Vec<Titled> {
    let columns: &[(&str, Column)] = match form {
        Form::Plain => &PLAIN,
        Form::Bsd => &BSD,
        Form::Full => &FULL,
        Form::Extra => &EXTRA,
        Form::Jobs => &JOBS,
        Form::Usage => &USAGE,
    };
    columns.iter().map(|(title, column)| ((*title).to_owned(), *column)).collect()
}

const PLAIN: [(&str, Column); 4] =
    [("PID", Column::Pid), ("TTY", Column::Tty), ("TIME", Column::Time), ("CMD", Column::Name)];

const BSD: [(&str, Column); 5] = [
    ("PID", Column::Pid),
    ("TTY", Column::Tty),
    ("STAT", Column::State),
    ("TIME", Column::ShortTime),
    ("COMMAND", Column::Command),
];

const EXTRA: [(&str, Column); 11] = [
    ("UID", Column::User),
    ("PID", Column::Pid),
    ("PPID", Column::Ppid),
    ("C", Column::Cpu),
    ("SZ", Column::Pages),
    ("RSS", Column::Resident),
    ("PSR", Column::Processor),
    ("STIME", Column::Started),
    ("TTY", Column::Tty),
    ("TIME", Column::Time),
    ("CMD", Column::Command),
];

const JOBS: [(&str, Column); 6] = [
    ("PID", Column::Pid),
    ("PGID", Column::Group),
    ("SID", Column::Session),
    ("TTY", Column::Tty),
    ("TIME", Column::Time),
    ("CMD", Column::Name),
];

const FULL: [(&str, Column); 8] = [
    ("UID", Column::User),
    ("PID", Column::Pid),
    ("PPID", Column::Ppid),
    ("C", Column::Cpu),
    ("STIME", Column::Started),
    ("TTY", Column::Tty),
    ("TIME", Column::Time),
    ("CMD", Column::Command),
];

const USAGE: [(&str, Column); 11] = [
    ("USER", Column::User),
    ("PID", Column::Pid),
    ("%CPU", Column::Cpu),
    ("%MEM", Column::Memory),
    ("VSZ", Column::Virtual),
    ("RSS", Column::Resident),
    ("TTY", Column::Tty),
    ("STAT", Column::State),
    ("START", Column::Started),
    ("TIME", Column::ShortTime),
    ("COMMAND", Column::Command),
];

/// What the columns need to know of the host.
#[derive(Debug, Default)]
struct Host {
    users: HashMap<u32, String>,
    /// KiB.
    memory: u64,
    /// Seconds since the boot.
    uptime: u64,
}

impl Host {
    fn read() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let users = text("/etc/passwd")
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?;
                Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
            })
            .collect();
        let memory = text("/proc/meminfo")
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
            .unwrap_or(0);
        let uptime = text("/proc/uptime").split('.').next().and_then(|word| word.parse().ok()).unwrap_or(0);
        Self { users, memory, uptime }
    }
}

/// One process; times in ticks.
#[derive(Debug)]
struct Process {
    pid: i32,
    uid: u32,
    gid: u32,
    name: String,
    command: String,
    /// Of a security module; `-` without one.
    label: String,
    state: String,
    ppid: i32,
    group: i32,
    session: i32,
    processor: u64,
    tty: u64,
    time: u64,
    nice: i64,
    threads: u64,
    started: u64,
    /// Bytes and pages.
    size: u64,
    resident: u64,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let process = Self::parse(pid, &stat, &status, &command)?;
        // attr(5) of a process: not there, or not to be read, without a security module that labels.
        let label = fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap_or_default();
        let label = label.trim_end_matches(['\0', '\n']).to_owned();
        Some(if label.is_empty() { process } else { Self { label, ..process } })
    }

    fn parse(pid: i32, stat: &str, status: &str, command: &[u8]) -> Option<Self> {
        // The name in brackets may hold anything, brackets too.
        let (before, after) = stat.rsplit_once(')')?;
        let name = before.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = after.split_whitespace().collect();
        // Numbers of proc_pid_stat(5); the first of these fields is its third.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let id = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        let words: Vec<_> = command
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(String::from_utf8_lossy)
            .collect();
        Some(Self {
            pid,
            uid: id("Uid:")?,
            gid: id("Gid:")?,
            command: if words.is_empty() { format!("[{name}]") } else { words.join(" ") },
            name,
            label: "-".to_owned(),
            state: (*fields.first()?).to_owned(),
            ppid: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            processor: number(39).unwrap_or(0),
            tty: number(7)?,
            time: number(14)? + number(15)?,
            nice: fields.get(19 - 3)?.parse().ok()?,
            threads: number(20)?,
            started: number(22)?,
            size: number(23)?,
            resident: number(24)?,
        })
    }

    fn show(&self, column: Column, host: &Host) -> String {
        let elapsed = host.uptime.saturating_sub(self.started / TICKS);
        match column {
            Column::User => host.users.get(&self.uid).cloned().unwrap_or_else(|| self.uid.to_string()),
            Column::Uid => self.uid.to_string(),
            Column::Gid => self.gid.to_string(),
            Column::Pid => self.pid.to_string(),
            Column::Ppid => self.ppid.to_string(),
            Column::Cpu => (self.time * 100 / TICKS / elapsed.max(1)).to_string(),
            Column::Memory => {
                format!("{:.1}", self.resident as f64 * 4.0 * 100.0 / host.memory.max(1) as f64)
            }
            Column::Virtual => (self.size / 1024).to_string(),
            Column::Resident => (self.resident * 4).to_string(),
            Column::Tty => tty(self.tty),
            Column::State => self.state.clone(),
            Column::Started => started(elapsed),
            Column::Elapsed => clock(elapsed),
            Column::Time => {
                let seconds = self.time / TICKS;
                format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
            }
            Column::ShortTime => {
                let seconds = self.time / TICKS;
                format!("{}:{:02}", seconds / 60, seconds % 60)
            }
            Column::Group => self.group.to_string(),
            Column::Session => self.session.to_string(),
            Column::Pages => (self.size / 4096).to_string(),
            Column::Processor => self.processor.to_string(),
            Column::Nice => self.nice.to_string(),
            Column::Threads => self.threads.to_string(),
            Column::Name => self.name.clone(),
            Column::Command => self.command.clone(),
            Column::Label => self.label.clone(),
        }
    }
}

/// `pts/0`; the numbers of the device are mixed in `tty_nr`.
fn tty(number: u64) -> String {
    let (major, minor) = (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xfff00);
    match major {
        136..=143 => format!("pts/{}", minor + (major - 136) * 256),
        4 if minor < 64 => format!("tty{minor}"),
        _ => "?".to_owned(),
    }
}

/// The hour of today, or the day, as ps shows it.
fn started(elapsed: u64) -> String {
    let now = jiff::Zoned::now();
    let then = now.saturating_sub(jiff::SignedDuration::from_secs(elapsed.cast_signed()));
    let format = if then.date() == now.date() { "%H:%M" } else { "%b%d" };
    then.strftime(format).to_string()
}

/// `[[days-]hours:]minutes:seconds`.
fn clock(seconds: u64) -> String {
    let (days, hours) = (seconds / 86400, seconds / 3600 % 24);
    let rest = format!("{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    match (days, hours) {
        (0, 0) => rest,
        (0, hours) => format!("{hours:02}:{rest}"),
        (days, hours) => format!("{days}-{hours:02}:{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_this_host_is_listed() {
        let pid = std::process::id().cast_signed();
        let found = Processes { pids: vec![pid, i32::MAX], elsewhere: None };
        let listing = listing(&found, Some("-o pid,comm,args")).unwrap();
        assert_eq!(listing.titles, ["PID", "COMMAND", "COMMAND"]);
        assert_eq!(listing.processes.len(), 1);
        assert_eq!(listing.processes[0][0], pid.to_string());
    }

    #[test]
    fn names_do_not_confuse() {
        let stat = "7 (a) S 1 (b) R 3 7 7 34817 7 4194304 1 2 3 4 150 50 0 0 20 -5 2 0 100 8192 3 18446744073709551615";
        let process =
            Process::parse(7, stat, "Uid:\t5\t6\t6\t6\nGid:\t7\t8\t8\t8\n", b"/bin/x\0y z\0").unwrap();
        let host = Host { users: HashMap::new(), memory: 120, uptime: 3 };
        let show = |column| process.show(column, &host);
        assert_eq!(show(Column::Name), "a) S 1 (b");
        assert_eq!(show(Column::Uid), "6");
        assert_eq!(show(Column::Tty), "pts/1");
        assert_eq!(show(Column::Time), "00:00:02");
        assert_eq!(show(Column::Cpu), "100");
        assert_eq!(show(Column::Memory), "10.0");
        assert_eq!(show(Column::Nice), "-5");
        assert_eq!(show(Column::Elapsed), "00:02");
        assert_eq!(show(Column::Command), "/bin/x y z");
    }

    #[test]
    fn formats_that_are_not_known_are_said() {
        for arguments in ["-ejH", "-o", "-o ,", "-o nothere", "--help; rm", "-p 1", "l"] {
            assert!(columns(arguments).is_err(), "{arguments}");
        }
    }

    #[test]
    fn options_of_ps_say_the_form() {
        let titles = |arguments: &str| {
            let columns = columns(arguments).unwrap();
            columns.into_iter().map(|(title, _)| title).collect::<Vec<_>>().join(" ")
        };
        for (arguments, expected) in [
            ("", "UID PID PPID C STIME TTY TIME CMD"),
            ("-ef", "UID PID PPID C STIME TTY TIME CMD"),
            ("-e -f", "UID PID PPID C STIME TTY TIME CMD"),
            ("-eF", "UID PID PPID C SZ RSS PSR STIME TTY TIME CMD"),
            ("aux", "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND"),
            ("-A", "PID TTY TIME CMD"),
            ("-x", "PID TTY STAT TIME COMMAND"),
            ("x", "PID TTY STAT TIME COMMAND"),
            ("-ej", "PID PGID SID TTY TIME CMD"),
            ("-eo pid,comm", "PID COMMAND"),
            ("-eZ", "LABEL PID TTY TIME CMD"),
            ("-efZ", "LABEL UID PID PPID C STIME TTY TIME CMD"),
            ("-o pid,label", "PID LABEL"),
            ("-o pid=A,comm -o args=WHAT", "A COMMAND WHAT"),
            ("axopid,rss", "PID RSS"),
        ] {
            assert_eq!(titles(arguments), expected, "{arguments}");
        }
    }

    #[test]
    fn what_another_kernel_says_is_taken_for_what_it_is() {
        let text = |pid, stat: &str| ProcessText {
            pid,
            stat: stat.to_owned(),
            status: "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n".to_owned(),
            command: b"httpd\0-f\0".to_vec(),
        };
        let stat = format!("7 (httpd) S 1 7 7 0{}", " 0".repeat(45));
        let elsewhere = insula_proto::Elsewhere {
            processes: vec![text(7, &stat), text(8, "no stat at all")],
            memory: 1 << 20,
            uptime: 5,
        };
        let found = Processes { pids: vec![7, 8], elsewhere: Some(elsewhere) };
        let listing = listing(&found, Some("-o pid,comm,args")).unwrap();
        assert_eq!(listing.processes, [["7", "httpd", "httpd -f"]]);
    }
}
