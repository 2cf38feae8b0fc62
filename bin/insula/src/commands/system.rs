//! `info version`.

use std::path::PathBuf;

use clap::Args;
use insula_models::{ApiVersion, SystemInfo, Version};
use serde_json::json;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::format::binary_size;
use crate::format::template::Compiled;
use crate::format::typed;
use crate::{failure, printer};

/// Show the versions of insula and of the daemon
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula version
  insula version -f '{{.Server.Version}}'")]
pub(crate) struct VersionArgs {
    /// Go template, or 'json'
    #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
}

impl Run for VersionArgs {
    async fn run(self, context: Context) -> Outcome {
        // A daemon is not started only to ask for its version.
        let mut spoken = ApiVersion::MAX;
        let server = match context.running_client().await {
            Ok(client) => {
                let answer = client.version().await;
                spoken = client.version_spoken();
                answer.map_err(anyhow::Error::from)
            }
            Err(error) => Err(error),
        };
        let client = json!({
            "Version": env!("CARGO_PKG_VERSION"),
            "ApiVersion": spoken.to_string(),
            "DefaultAPIVersion": ApiVersion::MAX.to_string(),
            "Os": std::env::consts::OS,
            "Arch": architecture(),
        });
        if !self.format.is_empty() {
            let document = json!({"Client": client, "Server": server.as_ref().ok()});
            print_formatted(&document, &self.format)?;
        } else {
            printer::text(&client_text(spoken))?;
            if let Ok(version) = &server {
                printer::text(&server_text(version))?;
            }
        }
        match server {
            Ok(_) => Ok(0),
            Err(error) => {
                printer::error(&failure::describe(&error));
                Ok(1)
            }
        }
    }
}

/// As Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn client_text(spoken: ApiVersion) -> String {
    let version = match spoken {
        ApiVersion::MAX => spoken.to_string(),
        older => format!("{older} (downgraded from {})", ApiVersion::MAX),
    };
    format!(
        "Client: insula\n Version:           {}\n API version:       {}\n OS/Arch:           {}/{}\n",
        env!("CARGO_PKG_VERSION"),
        version,
        std::env::consts::OS,
        architecture()
    )
}

fn server_text(version: &Version) -> String {
    let mut text = format!(
        "\nServer: {}\n Engine:\n  Version:          {}\n  API version:      {} (minimum version {})\n  OS/Arch:          {}/{}\n  Kernel:           {}\n",
        version.platform.name,
        version.version,
        version.api_version,
        version.min_api_version,
        version.os,
        version.arch,
        version.kernel_version,
    );
    if !version.git_commit.is_empty() {
        text.push_str(&format!("  Git commit:       {}\n", version.git_commit));
    }
    for component in version.components.iter().filter(|component| component.name != "Engine") {
        text.push_str(&format!(" {}:\n  Version:          {}\n", component.name, component.version));
    }
    text
}

fn print_formatted(document: &serde_json::Value, format: &str) -> anyhow::Result<()> {
    let text = match format {
        "json" => document.to_string(),
        template => Compiled::new(template)?.render(&typed::document(document))?,
    };
    Ok(printer::line(&text)?)
}

/// Show the state of the daemon and of its host
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula info
  insula info -f '{{.CgroupVersion}}'
  insula system info --diagnose=fault.tar.gz")]
pub(crate) struct InfoArgs {
    /// Write all that helps to find a fault to a new file [default: insula-diagnosis.tar.gz]; variables, labels,
    /// command lines and credentials are left out
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "insula-diagnosis.tar.gz",
        conflicts_with = "format"
    )]
    diagnose: Option<PathBuf>,
    /// Go template, or 'json'
    #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
}

impl Run for InfoArgs {
    async fn run(self, context: Context) -> Outcome {
        if let Some(path) = &self.diagnose {
            return super::diagnose::write(context, path).await;
        }
        let info = context.client().await?.info().await?;
        if !self.format.is_empty() {
            print_formatted(&serde_json::to_value(&info)?, &self.format)?;
            return Ok(0);
        }
        printer::text(&info_text(&info))?;
        for warning in &info.warnings {
            printer::error(warning);
        }
        Ok(0)
    }
}

fn info_text(info: &SystemInfo) -> String {
    let mut text = format!("Client: insula\n Version: {}\n\nServer:\n", env!("CARGO_PKG_VERSION"));
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!(" {name}: {value}\n"));
        }
    };
    line("Containers", &info.containers.to_string());
    line(" Running", &info.containers_running.to_string());
    line(" Paused", &info.containers_paused.to_string());
    line(" Stopped", &info.containers_stopped.to_string());
    line("Images", &info.images.to_string());
    line("Server Version", &info.server_version);
    line("Storage Driver", &info.driver);
    for (name, value) in &info.driver_status {
        line(&format!(" {name}"), value);
    }
    line("Logging Driver", &info.logging_driver);
    line("Cgroup Driver", &info.cgroup_driver);
    line("Cgroup Version", &info.cgroup_version);
    line("Default Isolation", &info.isolation);
    if let Some(machines) = &info.machines {
        let why = Some(&machines.why).filter(|why| !why.is_empty()).map(|why| format!(" ({why})"));
        line("VM Backend", &format!("{}{}", machines.backend, why.unwrap_or_default()));
        line("VM Kernel", if machines.kernel.is_empty() { "none found" } else { &machines.kernel });
    }
    if !info.security_options.is_empty() {
        line("Security Options", &info.security_options.join(" "));
    }
    line("Kernel Version", &info.kernel_version);
    line("Operating System", &info.operating_system);
    line("OSType", &info.os_type);
    line("Architecture", &info.architecture);
    line("CPUs", &info.n_cpu.to_string());
    line("Total Memory", &binary_size(info.mem_total as f64));
    line("Name", &info.name);
    line("ID", &info.id);
    line("Insula Root Dir", &info.docker_root_dir);
    line("Debug Mode", if info.debug { "true" } else { "false" });
    text
}
