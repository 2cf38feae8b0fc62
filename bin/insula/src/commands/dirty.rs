//! `vm-dirty-rate`: how much of its memory a machine's guest writes.

use clap::Args;
use insula_models::DirtyRate;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::format::binary_size;
use crate::format::table::{self, Columns, Row};
use crate::printer;

const NANOSECONDS_PER_MILLISECOND: i64 = 1_000_000;

/// Measure how much of its memory a machine writes
///
/// Pages of 4 KiB that the guest writes in the period count once each. insula's own machine counts them exactly, and
/// is slower for that time; an emulated one is looked at by samples, in whole seconds and MiB.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula vm-dirty-rate box
  insula vm-dirty-rate --period 10s --format json box
  insula vm-dirty-rate --tenant acme")]
pub(crate) struct DirtyRateArgs {
    /// Go template, 'table' and a template, or 'json'
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// How long writes are counted: 100ms to 60s
    #[arg(long, value_name = "DURATION", value_parser = milliseconds, default_value = "1s")]
    period: u64,
    /// Measure the machine of this tenant, with all its containers
    #[arg(long, value_name = "TENANT", conflicts_with = "container")]
    tenant: Option<String>,
    /// A container with --isolation vm
    #[arg(value_name = "CONTAINER")]
    container: Option<String>,
}

fn milliseconds(text: &str) -> Result<u64, String> {
    let invalid = |_| format!("invalid duration {text:?}");
    let nanoseconds = insula_base::parse_duration(text).map_err(|_| format!("invalid duration {text:?}"))?;
    u64::try_from(nanoseconds / NANOSECONDS_PER_MILLISECOND).map_err(invalid)
}

const HEADERS: &[(&str, &str)] = &[
    ("Name", "MACHINE OF"),
    ("Backend", "BACKEND"),
    ("Milliseconds", "PERIOD"),
    ("Pages", "PAGES"),
    ("Bytes", "WRITTEN"),
    ("PagesPerSecond", "PAGES/S"),
    ("BytesPerSecond", "RATE"),
    ("Memory", "MEMORY"),
    ("Sampled", "SAMPLED"),
];

impl Run for DirtyRateArgs {
    async fn run(self, context: Context) -> Outcome {
        let Some(name) = self.container.as_ref().or(self.tenant.as_ref()) else {
            anyhow::bail!("'insula vm-dirty-rate' needs a container, or --tenant");
        };
        let client = context.client().await?;
        let rate = match self.tenant {
            Some(_) => client.tenant_dirty_rate(name, self.period).await?,
            None => client.container_dirty_rate(name, self.period).await?,
        };
        if self.format == "json" {
            printer::line(&serde_json::to_string(&rate)?)?;
            return Ok(0);
        }
        let shown = vec!["Name", "Milliseconds", "Pages", "Bytes", "BytesPerSecond", "Memory", "Sampled"];
        table::print(&Columns { headers: HEADERS, shown }, &[row(name, &rate)], &self.format)?;
        Ok(0)
    }
}

fn row(name: &str, rate: &DirtyRate) -> Row {
    Row {
        cells: vec![
            ("Name", name.to_owned()),
            ("Backend", rate.backend.clone()),
            ("Milliseconds", format!("{}ms", rate.milliseconds)),
            ("Pages", rate.pages.to_string()),
            ("Bytes", binary_size(rate.bytes as f64)),
            ("PagesPerSecond", rate.pages_per_second.to_string()),
            ("BytesPerSecond", format!("{}/s", binary_size(rate.bytes_per_second as f64))),
            ("Memory", binary_size(rate.memory as f64)),
            ("Sampled", rate.sampled.to_string()),
        ],
        labels: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_durations() {
        assert_eq!(milliseconds("1s"), Ok(1000));
        assert_eq!(milliseconds("1m"), Ok(60_000));
        for invalid in ["", "second", "-1s", "5"] {
            assert!(milliseconds(invalid).is_err(), "{invalid}");
        }
    }
}
