//! What a pull or a push shows: bars for the layers on a terminal, lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use insula_client::JsonStream;
use insula_models::ProgressMessage;

use crate::failure::Failure;
use crate::printer::{self, Sink};

/// Shows a transfer until it ends; its failure ends the command with this code.
pub(crate) async fn show(
    stream: &mut JsonStream<ProgressMessage>,
    sink: Sink,
    code: u8,
) -> anyhow::Result<()> {
    let mut shown = Shown::new(sink);
    while let Some(message) = stream.next().await? {
        if let Some(why) = failure(&message) {
            shown.leave();
            return Err(Failure { code, message: why }.into());
        }
        shown.message(&message)?;
    }
    shown.leave();
    Ok(())
}

/// Waits for a transfer without a word.
pub(crate) async fn wait(stream: &mut JsonStream<ProgressMessage>, code: u8) -> anyhow::Result<()> {
    while let Some(message) = stream.next().await? {
        if let Some(why) = failure(&message) {
            return Err(Failure { code, message: why }.into());
        }
    }
    Ok(())
}

fn failure(message: &ProgressMessage) -> Option<String> {
    let detail = message.error_detail.as_ref().map(|detail| detail.message.as_str());
    let text = detail.filter(|text| !text.is_empty()).unwrap_or(&message.error);
    (!text.is_empty()).then(|| text.to_owned())
}

struct Shown {
    sink: Sink,
    /// The bars, while there are any.
    bars: Option<(MultiProgress, HashMap<String, ProgressBar>)>,
    terminal: bool,
}

impl Shown {
    fn new(sink: Sink) -> Self {
        let terminal = match sink {
            Sink::Stdout => std::io::stdout().is_terminal(),
            Sink::Stderr => std::io::stderr().is_terminal(),
        };
        Self { sink, bars: None, terminal }
    }

    fn message(&mut self, message: &ProgressMessage) -> anyhow::Result<()> {
        let layer = message.progress_detail.is_some() || message.status == "Already exists";
        if self.terminal && layer && !message.id.is_empty() {
            self.bar(message);
            return Ok(());
        }
        let moving = message.progress_detail.as_ref().is_some_and(|detail| detail.current > 0);
        if moving {
            // Numbers that change are for terminals.
            return Ok(());
        }
        if message.aux.is_some() && message.status.is_empty() && message.stream.is_empty() {
            // It is for programs.
            return Ok(());
        }
        self.leave();
        let text = match message.id.as_str() {
            "" => format!("{}{}", message.status, message.stream),
            id => format!("{id}: {}", message.status),
        };
        self.line(text.trim_end())
    }

    fn line(&self, text: &str) -> anyhow::Result<()> {
        match self.sink {
            Sink::Stdout => printer::line(text)?,
            Sink::Stderr => printer::error(text),
        }
        Ok(())
    }

    fn bar(&mut self, message: &ProgressMessage) {
        let sink = self.sink;
        let (all, bars) = self.bars.get_or_insert_with(|| {
            let target = match sink {
                Sink::Stdout => ProgressDrawTarget::stdout(),
                Sink::Stderr => ProgressDrawTarget::stderr(),
            };
            (MultiProgress::with_draw_target(target), HashMap::new())
        });
        let bar = bars.entry(message.id.clone()).or_insert_with(|| {
            let bar = all.add(ProgressBar::new(0));
            bar.set_style(idle());
            bar.set_prefix(message.id.clone());
            bar
        });
        let amount = |number: i64| u64::try_from(number).unwrap_or(0);
        match &message.progress_detail {
            Some(detail) if detail.current > 0 => {
                bar.set_style(moving());
                bar.set_length(amount(detail.total));
                bar.set_position(amount(detail.current));
            }
            _ => bar.set_style(idle()),
        }
        bar.set_message(message.status.clone());
        bar.tick();
    }

    /// What follows goes below the bars, which stay as they are.
    fn leave(&mut self) {
        if let Some((_, bars)) = self.bars.take() {
            bars.values().for_each(ProgressBar::abandon);
        }
    }
}

fn idle() -> ProgressStyle {
    style("{prefix}: {msg}")
}

fn moving() -> ProgressStyle {
    style("{prefix}: {msg:<12} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec}").progress_chars("=> ")
}

fn style(template: &str) -> ProgressStyle {
    // A template of this program is valid; without it bars look different.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
