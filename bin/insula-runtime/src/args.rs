//! runc's command line.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// `5s`, `100ms`: more than nothing.
fn interval(text: &str) -> Result<std::time::Duration, String> {
    let nanoseconds = insula_base::parse_duration(text).map_err(|error| error.to_string())?;
    match u64::try_from(nanoseconds) {
        Ok(nanoseconds @ 1..) => Ok(std::time::Duration::from_nanos(nanoseconds)),
        _ => Err("it must be more than nothing".to_owned()),
    }
}

/// Where containers are without `--root`.
const ROOT: &str = "/run/insula-runtime";

/// Run bundles of the OCI runtime specification.
#[derive(Debug, Parser)]
#[command(name = "insula-runtime", disable_version_flag = true, version = concat!(env!("CARGO_PKG_VERSION"), "\nspec: 1.3.0"), after_help = "Example:
  mkdir -p bundle/rootfs/bin && cp /bin/busybox bundle/rootfs/bin/sh
  insula-runtime spec --bundle bundle     # then set process.terminal to false
  insula-runtime run --bundle bundle box")]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Folder of the containers' state
    #[arg(long, default_value = ROOT)]
    pub(crate) root: PathBuf,
    /// File that gets messages, besides standard error
    #[arg(long)]
    pub(crate) log: Option<PathBuf>,
    /// How messages are written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// Have systemd make the control groups: linux.cgroupsPath is slice:prefix:name
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Do without the control groups that an ordinary user may not make; `auto` is in a user namespace
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value = "auto")]
    pub(crate) rootless: String,
    /// Print the version
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a container, which waits for its start
    Create(Create),
    /// Execute the program of a created container
    Start { id: String },
    /// Create and start a container
    Run(Run),
    /// Print the state of a container
    State { id: String },
    /// Send a signal to a container's first process
    Kill {
        id: String,
        /// Name or number
        #[arg(default_value = "SIGTERM")]
        signal: String,
        /// Every process of the container
        #[arg(short, long)]
        all: bool,
    },
    /// Remove a container
    Delete {
        id: String,
        /// One that runs, too; and it need not exist
        #[arg(short, long)]
        force: bool,
    },
    /// Execute another program in a container
    Exec(Exec),
    /// Show the processes of a container
    Ps {
        id: String,
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// For ps(1), which prints the table
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// List containers
    List {
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// Names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Stop all processes of a container
    Pause { id: String },
    /// Let a paused container go on
    Resume { id: String },
    /// Change limits
    Update(Update),
    /// Print what a container uses and when it is out of memory, until it ends
    Events {
        id: String,
        /// How often
        #[arg(long, default_value = "5s", value_parser = interval)]
        interval: std::time::Duration,
        /// Once, not every few seconds
        #[arg(long)]
        stats: bool,
    },
    /// Write a running container to files, with the help of CRIU
    Checkpoint(Checkpoint),
    /// Make a container of the files that it was written to
    Restore(Restore),
    /// Write a config.json to begin with
    Spec {
        #[arg(short, long, default_value = ".")]
        bundle: PathBuf,
    },
    /// Print what this runtime can do
    Features,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    pub(crate) id: String,
    /// Folder with config.json
    #[arg(short, long, default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Unix socket that gets the terminal
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// File that gets the pid of the container's init
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Enter the root by chroot(2), where the host's root is its initial RAM disk
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Keep the session keyring of who calls
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Descriptors after the standard streams that the program gets
    #[arg(long, default_value_t = 0)]
    pub(crate) preserve_fds: u16,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) create: Create,
    /// Do not wait for the end
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Leave the container when it has ended
    #[arg(long)]
    pub(crate) keep: bool,
}

/// What goes along that is not the container's alone, and where the files are.
#[derive(Debug, Args)]
pub(crate) struct Images {
    /// Folder of the files
    #[arg(long, default_value = "checkpoint")]
    pub(crate) image_path: PathBuf,
    /// Folder of CRIU's log, where it is another one
    #[arg(long)]
    pub(crate) work_path: Option<PathBuf>,
    /// Connections of TCP that are established
    #[arg(long)]
    pub(crate) tcp_established: bool,
    /// Unix sockets whose other end is outside
    #[arg(long)]
    pub(crate) ext_unix_sk: bool,
    /// Locks of files
    #[arg(long)]
    pub(crate) file_locks: bool,
    /// Processes of a shell's session outside
    #[arg(long)]
    pub(crate) shell_job: bool,
    /// A namespace that is left empty: `network`
    #[arg(long, value_parser = ["network"])]
    pub(crate) empty_ns: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Checkpoint {
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) images: Images,
    /// The container goes on
    #[arg(long)]
    pub(crate) leave_running: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) images: Images,
    /// Folder with config.json
    #[arg(short, long, default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// File that gets the pid of the container's init
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Do not wait for the end
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Orphans of the container are not this process'
    #[arg(long)]
    pub(crate) no_subreaper: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    pub(crate) id: String,
    /// The program and its arguments, where --process does not say it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
    /// File with the process as in config.json
    #[arg(short, long)]
    pub(crate) process: Option<PathBuf>,
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Do not wait for the end
    #[arg(short, long)]
    pub(crate) detach: bool,
    #[arg(long)]
    pub(crate) cwd: Option<String>,
    /// NAME=value
    #[arg(short, long)]
    pub(crate) env: Vec<String>,
    /// On a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// UID[:GID]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    #[arg(short = 'g', long)]
    pub(crate) additional_gids: Vec<u32>,
    /// Capabilities beside the container's
    #[arg(short, long)]
    pub(crate) cap: Vec<String>,
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    #[arg(long, default_value_t = 0)]
    pub(crate) preserve_fds: u16,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    pub(crate) id: String,
    /// File with linux.resources, `-` for standard input; other options are not looked at then
    #[arg(short, long)]
    pub(crate) resources: Option<PathBuf>,
    /// Bytes
    #[arg(long)]
    pub(crate) memory: Option<i64>,
    #[arg(long)]
    pub(crate) memory_reservation: Option<i64>,
    /// Memory and swap together
    #[arg(long)]
    pub(crate) memory_swap: Option<i64>,
    /// Microseconds
    #[arg(long)]
    pub(crate) cpu_period: Option<u64>,
    #[arg(long)]
    pub(crate) cpu_quota: Option<i64>,
    #[arg(long)]
    pub(crate) cpu_share: Option<u64>,
    #[arg(long)]
    pub(crate) cpuset_cpus: Option<String>,
    #[arg(long)]
    pub(crate) cpuset_mems: Option<String>,
    #[arg(long)]
    pub(crate) pids_limit: Option<i64>,
    #[arg(long)]
    pub(crate) blkio_weight: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}
