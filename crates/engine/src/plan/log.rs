//! Where output is kept: Docker's `LogConfig` to the plan's.

mod receivers;

use std::collections::BTreeMap;
use std::path::Path;

use insula_models::{ContainerConfig, LogConfig};
use insula_spec::plan::LogPlan;

use crate::containers::row::Row;
use crate::{Error, Result};

/// Logs are bounded unless asked otherwise: two files of ten MiB.
const MAX_SIZE: &str = "10m";
const MAX_FILES: &str = "2";
/// The driver `local`, Docker's own bounds.
const LOCAL_SIZE: u64 = 20_000_000;
const LOCAL_FILES: u32 = 5;

/// Drivers that there are.
pub(crate) const DRIVERS: [&str; 5] = ["journald", "json-file", "local", "none", "syslog"];

/// What a log is named and described by.
pub(crate) struct Subject<'a> {
    pub(crate) id: &'a str,
    pub(crate) name: &'a str,
    pub(crate) image: &'a str,
    pub(crate) image_id: &'a str,
    pub(crate) config: &'a ContainerConfig,
}

impl<'a> Subject<'a> {
    pub(crate) fn of(row: &'a Row) -> Self {
        Self {
            id: row.id.as_str(),
            name: &row.name,
            image: &row.image.reference,
            image_id: row.image.id.as_str(),
            config: &row.config,
        }
    }
}

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
    let nobody = ContainerConfig::default();
    let subject = Subject { id: "", name: "", image: "", image_id: "", config: &nobody };
    plan(config, Path::new("/"), &subject).map(drop)
}

/// The log of a container whose logs are below `folder`.
pub(crate) fn plan(config: &LogConfig, folder: &Path, subject: &Subject<'_>) -> Result<LogPlan> {
    let driver = Some(config.r#type.as_str()).filter(|driver| !driver.is_empty()).unwrap_or("json-file");
    let mut options = Options { driver, left: config.config.clone() };
    options.mode()?;
    let plan = match driver {
        "none" => LogPlan::None,
        "json-file" => json_file(&mut options, folder, subject)?,
        "local" => local(&mut options, folder, "")?,
        "syslog" => receivers::syslog(&mut options, folder, subject)?,
        "journald" => receivers::journald(&mut options, folder, subject)?,
        other => {
            return Err(Error::InvalidArgument(format!(
                "logger: no log driver named '{other}' is registered: {} are",
                DRIVERS.join(", ")
            )));
        }
    };
    options.none_left()?;
    Ok(plan)
}

/// Where a log can be read again.
pub(crate) fn readable(plan: &LogPlan) -> Option<&LogPlan> {
    match plan {
        LogPlan::None => None,
        LogPlan::JsonFile { .. } | LogPlan::Local { .. } => Some(plan),
        LogPlan::Syslog { cache, .. } | LogPlan::Journald { cache, .. } => cache.as_deref(),
    }
}

fn json_file(options: &mut Options<'_>, folder: &Path, subject: &Subject<'_>) -> Result<LogPlan> {
    let bounded = options.left.contains_key("max-size");
    let max_size = options.size("max-size", 0)?;
    let max_files = options.count("max-file", 1)?;
    let compress = options.truth("compress", false)?;
    if !bounded && max_files > 1 {
        return Err(Error::InvalidArgument("max-file cannot be set without max-size".to_owned()));
    }
    if compress && (max_files < 2 || max_size == 0) {
        return Err(Error::InvalidArgument(
            "compress cannot be true when max-file is less than 2 or max-size is not set".to_owned(),
        ));
    }
    let mut attributes = options.attributes(subject)?;
    if let Some(tag) = options.left.remove("tag").filter(|tag| !tag.is_empty()) {
        attributes.insert("tag".to_owned(), render(&tag, subject)?);
    }
    Ok(LogPlan::JsonFile { path: folder.join("json.log"), max_size, max_files, compress, attributes })
}

/// The driver `local`, and what other drivers keep to be read again (`prefix` is `cache-` for them).
fn local(options: &mut Options<'_>, folder: &Path, prefix: &str) -> Result<LogPlan> {
    let max_size = options.size(&format!("{prefix}max-size"), LOCAL_SIZE)?;
    let max_files = options.count(&format!("{prefix}max-file"), LOCAL_FILES)?;
    let compress = options.truth(&format!("{prefix}compress"), true)?;
    Ok(LogPlan::Local { path: folder.join("container.log"), max_size, max_files, compress })
}

/// Options that nobody has taken yet.
struct Options<'a> {
    driver: &'a str,
    left: BTreeMap<String, String>,
}

impl Options<'_> {
    fn take<T>(&mut self, name: &str, default: T, read: impl Fn(&str) -> Option<T>) -> Result<T> {
        let Some(value) = self.left.remove(name) else { return Ok(default) };
        read(&value)
            .ok_or_else(|| Error::InvalidArgument(format!("invalid value for log option {name}: {value:?}")))
    }

    /// Bytes; 0 is no bound.
    fn size(&mut self, name: &str, default: u64) -> Result<u64> {
        self.take(name, default, |text| match text {
            "-1" => Some(0),
            text => insula_base::parse_bytes(text).ok().filter(|bytes| *bytes > 0),
        })
    }

    fn count(&mut self, name: &str, default: u32) -> Result<u32> {
        self.take(name, default, |text| text.parse().ok().filter(|count| (1..=1000).contains(count)))
    }

    fn truth(&mut self, name: &str, default: bool) -> Result<bool> {
        self.take(name, default, |text| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        })
    }

    /// Output is never waited for beyond a bounded buffer, whatever the mode; the bound is ours.
    fn mode(&mut self) -> Result<()> {
        let mode = self.take("mode", "blocking".to_owned(), |text| {
            matches!(text, "blocking" | "non-blocking").then(|| text.to_owned())
        })?;
        if mode == "blocking" && self.left.contains_key("max-buffer-size") {
            return Err(Error::InvalidArgument(
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'".to_owned(),
            ));
        }
        if self.left.contains_key("max-buffer-size") {
            return Err(Error::Unsupported(
                "log option max-buffer-size is not available in this version: 1 MiB waits for a receiver that is \
                 slow, files are written at once"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// What `labels`, `labels-regex`, `env` and `env-regex` choose.
    fn attributes(&mut self, subject: &Subject<'_>) -> Result<BTreeMap<String, String>> {
        for name in ["labels-regex", "env-regex"] {
            if self.left.contains_key(name) {
                return Err(Error::Unsupported(format!(
                    "log option {name} is not available in this version: name them in {}",
                    name.trim_end_matches("-regex")
                )));
            }
        }
        let mut attributes = BTreeMap::new();
        let environment: BTreeMap<&str, &str> =
            subject.config.env.iter().filter_map(|line| line.split_once('=')).collect();
        let labels = self.left.remove("labels").unwrap_or_default();
        for name in labels.split(',').filter(|name| !name.is_empty()) {
            if let Some(value) = subject.config.labels.get(name) {
                attributes.insert(name.to_owned(), value.clone());
            }
        }
        let env = self.left.remove("env").unwrap_or_default();
        for name in env.split(',').filter(|name| !name.is_empty()) {
            if let Some(value) = environment.get(name) {
                attributes.insert(name.to_owned(), (*value).to_owned());
            }
        }
        Ok(attributes)
    }

    fn none_left(&self) -> Result<()> {
        match self.left.keys().next() {
            Some(option) => Err(Error::InvalidArgument(format!(
                "unknown log opt '{option}' for {} log driver",
                self.driver
            ))),
            None => Ok(()),
        }
    }
}

/// A tag: text with `{{.ID}}` and so on.
fn render(template: &str, subject: &Subject<'_>) -> Result<String> {
    let short = |id: &str| id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        text.push_str(before);
        let (field, after) = after.split_once("}}").ok_or_else(|| wrong_tag(template))?;
        text.push_str(&match field.trim() {
            ".ID" => short(subject.id),
            ".FullID" => subject.id.to_owned(),
            ".Name" => subject.name.to_owned(),
            ".ImageID" => short(subject.image_id),
            ".ImageFullID" => subject.image_id.to_owned(),
            ".ImageName" => subject.image.to_owned(),
            ".DaemonName" => "insula".to_owned(),
            _ => return Err(wrong_tag(template)),
        });
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

fn wrong_tag(template: &str) -> Error {
    Error::InvalidArgument(format!(
        "invalid log tag {template:?}: .ID, .FullID, .Name, .ImageID, .ImageFullID, .ImageName and .DaemonName \
         are known"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use insula_spec::plan::{SyslogAddress, SyslogFormat};

    fn config(driver: &str, options: &[(&str, &str)]) -> LogConfig {
        LogConfig {
            r#type: driver.to_owned(),
            config: options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    fn of(mut config: LogConfig) -> Result<LogPlan> {
        complete(&mut config);
        let row = crate::containers::row::tests::row();
        plan(&config, Path::new("/l"), &Subject::of(&row))
    }

    fn size(config: LogConfig) -> Result<(u64, u32)> {
        match of(config)? {
            LogPlan::JsonFile { max_size, max_files, .. } | LogPlan::Local { max_size, max_files, .. } => {
                Ok((max_size, max_files))
            }
            _ => Ok((0, 0)),
        }
    }

    #[test]
    fn logs_are_bounded_unless_asked_otherwise() {
        assert_eq!(size(config("", &[])).unwrap(), (10 << 20, 2));
        assert_eq!(size(config("json-file", &[("max-size", "1k")])).unwrap(), (1 << 10, 1));
        assert_eq!(size(config("json-file", &[("max-file", "5")])).unwrap(), (10 << 20, 5));
        assert_eq!(size(config("json-file", &[("max-size", "-1")])).unwrap(), (0, 1));
        assert_eq!(size(config("local", &[])).unwrap(), (LOCAL_SIZE, 5));
        assert_eq!(size(config("none", &[])).unwrap(), (0, 0));
    }

    #[test]
    fn other_drivers_and_options_are_refused() {
        for bad in [
            config("gelf", &[]),
            config("none", &[("max-size", "1k")]),
            config("json-file", &[("nosuch", "x")]),
            config("json-file", &[("max-size", "0")]),
            config("json-file", &[("max-file", "0")]),
            config("json-file", &[("max-size", "1k"), ("compress", "true")]),
            config("json-file", &[("labels-regex", "x")]),
            config("json-file", &[("tag", "{{.Nope}}")]),
            config("local", &[("tag", "x")]),
            config("local", &[("compress", "maybe")]),
            config("json-file", &[("mode", "sometimes")]),
            config("syslog", &[("syslog-address", "ftp://x")]),
            config("syslog", &[("syslog-address", "tcp+tls://1.2.3.4:5")]),
            config("syslog", &[("syslog-facility", "nope")]),
            config("syslog", &[("syslog-format", "nope")]),
        ] {
            assert!(of(bad.clone()).is_err(), "{bad:?}");
        }
        let error = check(&config("", &[("nosuch", "x")])).unwrap_err();
        assert_eq!(error.to_string(), "unknown log opt 'nosuch' for json-file log driver");
    }

    #[test]
    fn receivers_are_described() {
        let asked = config(
            "syslog",
            &[
                ("syslog-address", "udp://127.0.0.1"),
                ("syslog-facility", "local0"),
                ("tag", "{{.Name}}/{{.ID}}"),
            ],
        );
        let LogPlan::Syslog { syslog, cache } = of(asked).unwrap() else { panic!("syslog is planned") };
        assert_eq!(syslog.address, SyslogAddress::Udp { address: ([127, 0, 0, 1], 514).into() });
        assert_eq!((syslog.facility, syslog.tag.as_str()), (16, "web/abababababab"));
        assert_eq!(syslog.format, SyslogFormat::Rfc3164);
        assert!(matches!(cache.as_deref(), Some(LogPlan::Local { .. })));
        let LogPlan::Journald { fields, cache } =
            of(config("journald", &[("cache-disabled", "true")])).unwrap()
        else {
            panic!("the journal is planned")
        };
        assert_eq!((fields["CONTAINER_NAME"].as_str(), cache), ("web", None));
    }
}
