//! `top diff port update`: what a container is doing, has changed, publishes and may use.

use clap::Args;
use insula_models::ContainerUpdateRequest;
use insula_spec::sites::Site;

use crate::arguments::{Run, first_word};
use crate::context::Context;
use crate::failure::{self, Failure, Outcome};
use crate::format::{ports, table};
use crate::options::{self, limits};
use crate::printer;
use crate::usage::bad_flag;

/// Width of a column of `top`, as Docker has it.
const TOP_COLUMN: usize = 20;

/// List the processes of a container
#[derive(Debug, Args)]
#[command(
    override_usage = "insula top CONTAINER [PS OPTIONS]",
    after_help = "Examples:
  insula top web
  insula top web -o pid,rss,args"
)]
pub(crate) struct TopArgs {
    /// Container, and options of ps(1)
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CONTAINER")]
    words: Vec<String>,
}

impl Run for TopArgs {
    async fn run(self, context: Context) -> Outcome {
        let (container, options) = first_word(&self.words, "a container")?;
        let top = context.client().await?.top(container, &options.join(" ")).await?;
        let mut lines: Vec<Vec<&str>> = vec![top.titles.iter().map(String::as_str).collect()];
        lines.extend(top.processes.iter().map(|process| process.iter().map(String::as_str).collect()));
        printer::text(&table::align_at_least(&lines, TOP_COLUMN))?;
        Ok(0)
    }
}

/// List what a container has changed in its files
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula diff web                A added, C changed, D deleted
  insula diff nginx:1 nginx:2    what the second image has otherwise than the first")]
pub(crate) struct DiffArgs {
    /// Name or id; with a second one, an image
    container: String,
    /// Image that is compared with the first, by contents, owners and modes
    image: Option<String>,
}

impl Run for DiffArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = context.client().await?;
        let changes = match &self.image {
            Some(image) => client.compare_images(&self.container, image).await?,
            None => client.changes(&self.container).await?,
        };
        for change in changes {
            let kind = match change.kind {
                0 => 'C',
                1 => 'A',
                2 => 'D',
                other => {
                    anyhow::bail!("the daemon reports a change of unknown kind {other} of {}", change.path)
                }
            };
            printer::line(&format!("{kind} {}", change.path))?;
        }
        Ok(0)
    }
}

/// List the published ports of a container
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula port web
  insula port web 80             where port 80 is published
  insula port web 80/http        names that lead to it (--publish-host)")]
pub(crate) struct PortArgs {
    /// Name or id
    container: String,
    /// Only this port: PORT[/PROTOCOL]; host names have the protocols http, h2c and tls
    port: Option<String>,
}

impl Run for PortArgs {
    async fn run(self, context: Context) -> Outcome {
        let container = context.client().await?.inspect_container(&self.container).await?;
        let wanted = self
            .port
            .as_deref()
            .map(|port| if port.contains('/') { port.to_owned() } else { format!("{port}/tcp") });
        let mut found = false;
        for (port, bindings) in &container.network_settings.ports {
            if wanted.as_ref().is_some_and(|wanted| wanted != port) {
                continue;
            }
            for binding in bindings.iter().flatten() {
                found = true;
                let ip = match binding.host_ip.as_str() {
                    ip if ip.contains(':') => format!("[{ip}]"),
                    ip => ip.to_owned(),
                };
                let target = format!("{ip}:{}", binding.host_port);
                printer::line(&if wanted.is_some() { target } else { format!("{port} -> {target}") })?;
            }
        }
        let sites = container.network_settings.host_names.iter().filter_map(|name| name.parse::<Site>().ok());
        for site in sites {
            let port = ports::at(&site);
            if wanted.as_ref().is_none_or(|wanted| *wanted == port) {
                found = true;
                let name = site.name.as_str();
                printer::line(&if wanted.is_some() { name.to_owned() } else { format!("{port} -> {name}") })?;
            }
        }
        match wanted {
            Some(port) if !found => {
                let message = format!("Error: No public port '{port}' published for {}", self.container);
                Err(Failure { code: 1, message }.into())
            }
            _ => Ok(0),
        }
    }
}

/// Change the limits of containers, running ones too
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula update -m 512m --memory-swap 1g web
  insula update --restart unless-stopped web db")]
pub(crate) struct UpdateArgs {
    /// Weight of block I/O: 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Period of the CPU quota, microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<i64>,
    /// CPU quota in each period, microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// Period of real-time scheduling, microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_period: Option<i64>,
    /// Real-time scheduling in each period, microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_runtime: Option<i64>,
    /// Weight of CPU time
    #[arg(short, long, value_name = "SHARES")]
    cpu_shares: Option<i64>,
    /// CPUs: 1.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// CPUs that may be used: 0-2,4
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes that may be used
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Memory of the kernel's own
    #[arg(long, value_name = "BYTES")]
    kernel_memory: Option<String>,
    /// Memory
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// Soft limit of memory
    #[arg(long, value_name = "BYTES")]
    memory_reservation: Option<String>,
    /// Memory and swap together; -1 is unlimited
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    memory_swap: Option<String>,
    /// What each interface sends and what it receives: 10mbit; -1 is unlimited
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    network_rate: Option<String>,
    /// Processes and threads; -1 is unlimited
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// When to start the container again: no, on-failure[:N], unhealthy[:N], always, unless-stopped
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl UpdateArgs {
    fn request(&self) -> anyhow::Result<ContainerUpdateRequest> {
        if let Some(size) = &self.kernel_memory {
            return Err(bad_flag("--kernel-memory", size, options::NO_KERNEL_MEMORY));
        }
        let bytes = |flag, text: &Option<String>| match text {
            Some(text) => options::bytes(flag, text),
            None => Ok(0),
        };
        let request = ContainerUpdateRequest {
            blkio_weight: self.blkio_weight.unwrap_or_default(),
            cpu_period: self.cpu_period.unwrap_or_default(),
            cpu_quota: self.cpu_quota.unwrap_or_default(),
            cpu_shares: self.cpu_shares.unwrap_or_default(),
            nano_cpus: self.cpus.as_deref().map_or(Ok(0), limits::cpus)?,
            cpuset_cpus: self.cpuset_cpus.clone().unwrap_or_default(),
            cpuset_mems: self.cpuset_mems.clone().unwrap_or_default(),
            cpu_realtime_period: self.cpu_rt_period.unwrap_or_default(),
            cpu_realtime_runtime: self.cpu_rt_runtime.unwrap_or_default(),
            memory: bytes("memory", &self.memory)?,
            memory_reservation: bytes("memory-reservation", &self.memory_reservation)?,
            memory_swap: self.memory_swap.as_deref().map_or(Ok(0), limits::memory_swap)?,
            network_rate: match self.network_rate.as_deref() {
                None => 0,
                Some("-1") => -1,
                Some(text) => limits::network_rate(text)?,
            },
            pids_limit: self.pids_limit,
            restart_policy: self.restart.as_deref().map(limits::restart).transpose()?.unwrap_or_default(),
            ..ContainerUpdateRequest::default()
        };
        if request == ContainerUpdateRequest::default() {
            anyhow::bail!("you must provide one or more flags when using this command");
        }
        Ok(request)
    }
}

impl Run for UpdateArgs {
    async fn run(self, context: Context) -> Outcome {
        let request = self.request()?;
        let client = context.client().await?;
        let mut code = 0;
        for name in &self.containers {
            match client.update_container(name, &request).await {
                Ok(answer) => {
                    printer::line(name)?;
                    answer.warnings.iter().for_each(|warning| printer::warning(warning));
                }
                Err(error) => {
                    printer::error(&failure::describe_client(&error));
                    code = 1;
                }
            }
        }
        Ok(code)
    }
}
