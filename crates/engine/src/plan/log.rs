//! Where output is kept: Docker's `LogConfig` to the plan's.

use std::path::Path;

use insula_models::LogConfig;
use insula_spec::plan::LogPlan;

use crate::{Error, Result};

/// Logs are bounded unless asked otherwise: two files of ten MiB.
const MAX_SIZE: &str = "10m";
const MAX_FILES: &str = "2";

/// Fills in what was left open, so that inspection shows it.
pub(crate) fn complete(config: &mut LogConfig) {
    if config.r#type.is_empty() {
        config.r#type = "json-file".to_owned();
    }
    if config.r#type == "json-file" && !config.config.contains_key("max-size") {
        config.config.insert("max-size".to_owned(), MAX_SIZE.to_owned());
        config.config.entry("max-file".to_owned()).or_insert_with(|| MAX_FILES.to_owned());
    }
}

/// Fails for drivers and options that there are not.
pub(crate) fn check(config: &LogConfig) -> Result<()> {
    plan(config, Path::new("/")).map(drop)
}

/// The log of a container whose logs are below `folder`.
pub(crate) fn plan(config: &LogConfig, folder: &Path) -> Result<LogPlan> {
    match config.r#type.as_str() {
        "none" => match config.config.keys().next() {
            None => Ok(LogPlan::None),
            Some(option) => Err(unknown(option, "none")),
        },
        "" | "json-file" => json_file(config, folder),
        other => Err(Error::InvalidArgument(format!(
            "logger: no log driver named '{other}' is registered: json-file and none are"
        ))),
    }
}

fn json_file(config: &LogConfig, folder: &Path) -> Result<LogPlan> {
    let (mut max_size, mut max_files) = (0, 1);
    for (option, value) in &config.config {
        let wrong = || Error::InvalidArgument(format!("invalid value for log option {option}: {value:?}"));
        match option.as_str() {
            "max-size" if value == "-1" => {}
            "max-size" => {
                max_size = insula_base::parse_bytes(value).map_err(|_| wrong())?;
                if max_size == 0 {
                    return Err(wrong());
                }
            }
            "max-file" => {
                max_files =
                    value.parse().ok().filter(|count| (1..=1000).contains(count)).ok_or_else(wrong)?;
            }
            "mode" if value == "blocking" => {}
            other => return Err(unknown(other, "json-file")),
        }
    }
    if max_files > 1 && max_size == 0 && !config.config.contains_key("max-size") {
        return Err(Error::InvalidArgument("max-file cannot be set without max-size".to_owned()));
    }
    Ok(LogPlan::JsonFile { path: folder.join("json.log"), max_size, max_files })
}

fn unknown(option: &str, driver: &str) -> Error {
    Error::InvalidArgument(format!("unknown log opt '{option}' for {driver} log driver"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(driver: &str, options: &[(&str, &str)]) -> LogConfig {
        LogConfig {
            r#type: driver.to_owned(),
            config: options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    fn size(mut config: LogConfig) -> Result<(u64, u32)> {
        complete(&mut config);
        match plan(&config, Path::new("/l"))? {
            LogPlan::JsonFile { max_size, max_files, .. } => Ok((max_size, max_files)),
            LogPlan::None => Ok((0, 0)),
        }
    }

    #[test]
    fn logs_are_bounded_unless_asked_otherwise() {
        assert_eq!(size(config("", &[])).unwrap(), (10 << 20, 2));
        assert_eq!(size(config("json-file", &[("max-size", "1k")])).unwrap(), (1 << 10, 1));
        assert_eq!(size(config("json-file", &[("max-file", "5")])).unwrap(), (10 << 20, 5));
        assert_eq!(size(config("json-file", &[("max-size", "-1")])).unwrap(), (0, 1));
        assert_eq!(size(config("none", &[])).unwrap(), (0, 0));
    }

    #[test]
    fn other_drivers_and_options_are_refused() {
        for bad in [
            config("syslog", &[]),
            config("none", &[("max-size", "1k")]),
            config("json-file", &[("labels", "x")]),
            config("json-file", &[("max-size", "0")]),
            config("json-file", &[("max-file", "0")]),
        ] {
            assert!(size(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
