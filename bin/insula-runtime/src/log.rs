//! Messages: to standard error, and as engines read them to a file.

use std::fs::File;
use std::io::Write;

use anyhow::Context;

use crate::args::{Global, LogFormat};

pub(crate) struct Log {
    file: Option<File>,
    format: LogFormat,
}

impl Log {
    pub(crate) fn open(global: &Global) -> anyhow::Result<Self> {
        let open = |path| File::options().append(true).create(true).open(path);
        let file =
            global.log.as_ref().map(|path| open(path).with_context(|| format!("open {}", path.display())));
        Ok(Self { file: file.transpose()?, format: global.log_format })
    }

    pub(crate) fn error(&self, error: &anyhow::Error) {
        self.write("error", &format!("{error:#}"));
        stderr(error);
    }

    pub(crate) fn warn(&self, warnings: &[String]) {
        warnings.iter().for_each(|warning| self.write("warning", warning));
    }

    fn write(&self, level: &str, message: &str) {
        let Some(mut file) = self.file.as_ref() else { return };
        let time = jiff::Timestamp::now();
        let line = match self.format {
            LogFormat::Json => {
                serde_json::json!({ "level": level, "msg": message, "time": time.to_string() }).to_string()
            }
            LogFormat::Text => format!("time=\"{time}\" level={level} msg={message:?}"),
        };
        // A log that cannot be written has nowhere to say so.
        let _ = writeln!(file, "{line}");
    }
}

pub(crate) fn stderr(error: &anyhow::Error) {
    // Nobody may listen any more.
    let _ = writeln!(std::io::stderr(), "insula-runtime: {error:#}");
}
