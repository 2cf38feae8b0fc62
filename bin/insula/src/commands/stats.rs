//! `stats`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use insula_client::{Client, ListOptions};
use insula_models::StatsResponse;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::format::table::{self, Columns, Row};
use crate::format::{binary_size, decimal_size, short_id};
use crate::printer;

/// Show what containers use, once a second
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula stats
  insula stats --no-stream --format '{{.Name}} {{.MemUsage}}' web")]
pub(crate) struct StatsArgs {
    /// Containers that do not run, too
    #[arg(short, long)]
    all: bool,
    /// Go template, 'table' and a template, or 'json'
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Show it once
    #[arg(long)]
    no_stream: bool,
    /// Do not cut ids
    #[arg(long)]
    no_trunc: bool,
    /// Names or ids [default: all that run]
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

const HEADERS: &[(&str, &str)] = &[
    ("ID", "CONTAINER ID"),
    ("Container", "CONTAINER"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];

/// The last sample of each container by the name it was asked for; `None` before the first.
type Samples = Arc<Mutex<BTreeMap<String, Option<StatsResponse>>>>;

impl Run for StatsArgs {
    async fn run(self, context: Context) -> Outcome {
        let client = Arc::new(context.client().await?);
        for name in &self.containers {
            // A name that does not exist is said before anything is shown.
            client.inspect_container(name).await?;
        }
        if self.no_stream { self.once(&client).await } else { self.stream(&client).await }
    }
}

impl StatsArgs {
    async fn names(&self, client: &Client) -> anyhow::Result<Vec<String>> {
        if !self.containers.is_empty() {
            return Ok(self.containers.clone());
        }
        let options = ListOptions { all: self.all, ..ListOptions::default() };
        Ok(client.list_containers(&options).await?.into_iter().map(|container| container.id).collect())
    }

    async fn once(&self, client: &Arc<Client>) -> Outcome {
        // Each answer takes as long as two samples are apart: they are awaited together.
        let mut tasks = Vec::new();
        for name in self.names(client).await? {
            let client = Arc::clone(client);
            tasks.push(tokio::spawn(async move {
                let sample = match client.stats(&name, false).await {
                    Ok(mut stats) => stats.next().await,
                    Err(error) => Err(error),
                };
                (name, sample)
            }));
        }
        let mut rows = Vec::new();
        for task in tasks {
            let (name, sample) = task.await?;
            match sample {
                Ok(sample) => rows.push(self.row(&name, sample.as_ref())),
                // It has gone since the list was made.
                Err(error) if error.status() == Some(404) => {}
                Err(error) => return Err(error.into()),
            }
        }
        table::print(&columns(), &rows, &self.format)?;
        Ok(0)
    }

    async fn stream(&self, client: &Arc<Client>) -> Outcome {
        let samples: Samples = Arc::default();
        let mut readers: BTreeMap<String, tokio::task::JoinHandle<()>> = BTreeMap::new();
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        let mut shown = 0u64;
        loop {
            tick.tick().await;
            if shown.is_multiple_of(2) {
                let names = self.names(client).await?;
                follow(client, &names, &samples, &mut readers);
            }
            shown += 1;
            let rows: Vec<Row> = {
                let samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
                samples.iter().map(|(name, sample)| self.row(name, sample.as_ref())).collect()
            };
            let text = table::render(&columns(), &rows, &self.format)?;
            // Home, every line erased to its end, the rest of the screen erased.
            let erased: String = text.lines().map(|line| format!("{line}\x1b[K\n")).collect();
            let clear = if shown == 1 { "\x1b[2J" } else { "" };
            printer::text(&format!("{clear}\x1b[H{erased}\x1b[J"))?;
        }
    }

    fn row(&self, name: &str, sample: Option<&StatsResponse>) -> Row {
        let shown = if self.no_trunc { name } else { short_id(name) };
        let container = if self.containers.is_empty() { shown } else { name };
        let Some(sample) = sample.filter(|sample| !sample.id.is_empty()) else {
            let mut cells = vec![("ID", shown.to_owned()), ("Container", container.to_owned())];
            cells.extend(HEADERS.iter().skip(2).map(|(cell, _)| (*cell, "--".to_owned())));
            return Row { cells, ..Row::default() };
        };
        let memory = used_memory(sample) as f64;
        let limit = sample.memory_stats.limit as f64;
        let (received, sent) = sample.networks.values().fold((0u64, 0u64), |sum, network| {
            (sum.0.saturating_add(network.rx_bytes), sum.1.saturating_add(network.tx_bytes))
        });
        let (read, written) = block_io(sample);
        let pair = |a: u64, b: u64| format!("{} / {}", decimal_size(a as f64), decimal_size(b as f64));
        let id = if self.no_trunc { &sample.id } else { short_id(&sample.id) };
        let percent = if limit > 0.0 { memory / limit * 100.0 } else { 0.0 };
        Row {
            cells: vec![
                ("ID", id.to_owned()),
                ("Container", container.to_owned()),
                ("Name", sample.name.trim_start_matches('/').to_owned()),
                ("CPUPerc", format!("{:.2}%", cpu_percent(sample))),
                ("MemUsage", format!("{} / {}", binary_size(memory), binary_size(limit))),
                ("MemPerc", format!("{percent:.2}%")),
                ("NetIO", pair(received, sent)),
                ("BlockIO", pair(read, written)),
                ("PIDs", sample.pids_stats.current.to_string()),
            ],
            ..Row::default()
        }
    }
}

/// Starts a reader for each new container and drops what is gone.
fn follow(
    client: &Arc<Client>,
    names: &[String],
    samples: &Samples,
    readers: &mut BTreeMap<String, tokio::task::JoinHandle<()>>,
) {
    let mut last = samples.lock().unwrap_or_else(PoisonError::into_inner);
    readers.retain(|name, reader| {
        let stays = names.contains(name);
        if !stays {
            reader.abort();
            last.remove(name);
        }
        stays
    });
    for name in names {
        if readers.get(name).is_some_and(|reader| !reader.is_finished()) {
            continue;
        }
        last.entry(name.clone()).or_default();
        let (client, samples, key) = (Arc::clone(client), Arc::clone(samples), name.clone());
        readers.insert(
            name.clone(),
            tokio::spawn(async move {
                // A stream that breaks shows as dashes and is opened again while the container is listed.
                if let Ok(mut stats) = client.stats(&key, true).await {
                    while let Ok(Some(sample)) = stats.next().await {
                        samples
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .insert(key.clone(), Some(sample));
                    }
                }
                samples
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(key)
                    .and_modify(|last| *last = None);
            }),
        );
    }
}

fn columns() -> Columns {
    let shown = vec!["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"];
    Columns { headers: HEADERS, shown }
}

/// Of one CPU: two busy CPUs are 200 %.
fn cpu_percent(sample: &StatsResponse) -> f64 {
    let (now, before) = (&sample.cpu_stats, &sample.precpu_stats);
    let used = now.cpu_usage.total_usage as f64 - before.cpu_usage.total_usage as f64;
    let all = now.system_cpu_usage as f64 - before.system_cpu_usage as f64;
    let cpus = match now.online_cpus {
        0 => now.cpu_usage.percpu_usage.len() as f64,
        online => f64::from(online),
    };
    if used > 0.0 && all > 0.0 { used / all * cpus * 100.0 } else { 0.0 }
}

/// Without the page cache that can be given back.
fn used_memory(sample: &StatsResponse) -> u64 {
    let memory = &sample.memory_stats;
    let cache = ["total_inactive_file", "inactive_file"].iter().find_map(|name| memory.stats.get(*name));
    match cache {
        Some(cache) if *cache < memory.usage => memory.usage - cache,
        _ => memory.usage,
    }
}

fn block_io(sample: &StatsResponse) -> (u64, u64) {
    let mut sum = (0u64, 0u64);
    for entry in &sample.blkio_stats.io_service_bytes_recursive {
        match entry.op.to_ascii_lowercase().as_str() {
            "read" => sum.0 = sum.0.saturating_add(entry.value),
            "write" => sum.1 = sum.1.saturating_add(entry.value),
            _ => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_becomes_a_row() {
        let text = r#"{"id":"8f1c0a3b5d7e8f1c","name":"/web",
            "cpu_stats":{"cpu_usage":{"total_usage":300},"system_cpu_usage":2000,"online_cpus":2},
            "precpu_stats":{"cpu_usage":{"total_usage":200},"system_cpu_usage":1000},
            "memory_stats":{"usage":3145728,"limit":1073741824,"stats":{"total_inactive_file":1048576}},
            "networks":{"eth0":{"rx_bytes":1450,"tx_bytes":90}},
            "blkio_stats":{"io_service_bytes_recursive":[{"op":"Read","value":4096},{"op":"Write","value":0}]},
            "pids_stats":{"current":3}}"#;
        let sample: StatsResponse = insula_models::from_json(text.as_bytes()).unwrap();
        let arguments = StatsArgs {
            all: false,
            format: String::new(),
            no_stream: true,
            no_trunc: false,
            containers: vec!["web".to_owned()],
        };
        let rows = [arguments.row("web", Some(&sample)), arguments.row("gone", None)];
        insta::assert_snapshot!(table::render(&columns(), &rows, "").unwrap());
    }
}
