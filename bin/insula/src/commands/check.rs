//! `system check`.

use clap::Args;
use insula_models::{CheckFinding, CheckLine};

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::printer;

/// Find what is damaged or left over, on the disk and on the host
///
/// Layers and images that are not what their digests say; monitors, control groups, mounts, interfaces, rules of
/// the firewall, addresses and folders that belong to no container, and those that a container should have.
/// Reads everything and changes nothing, unless --repair is given: then what belongs to nobody is taken away,
/// what is missing is made again, damaged layers are unpacked again or fetched from the registries that they came
/// from. The exit code is 1 if something is wrong and stays so.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula system check
  insula system check --repair
  insula system check --format json")]
pub(crate) struct CheckArgs {
    /// 'json': one document for each thing that is found
    #[arg(long, value_name = "FORMAT", value_parser = ["json"])]
    format: Option<String>,
    /// Repair what is found, as far as that can be done
    #[arg(long)]
    repair: bool,
}

impl Run for CheckArgs {
    async fn run(self, context: Context) -> Outcome {
        let mut lines = context.client().await?.check(self.repair).await?;
        let (mut found, mut left, mut done) = (0u64, 0u64, None);
        while let Some(line) = lines.next().await? {
            let CheckLine { finding, checked, error } = line;
            if !error.is_empty() {
                let message = format!("Error response from daemon: {error}");
                return Err(Failure { code: 1, message }.into());
            }
            if let Some(finding) = finding {
                found += 1;
                left += u64::from(finding.repaired.is_empty());
                self.show(&finding)?;
            }
            done = done.or(checked);
        }
        let Some(checked) = done else {
            return Err(
                Failure { code: 1, message: "the daemon ended before the check did".to_owned() }.into()
            );
        };
        if self.format.is_none() {
            let list: Vec<String> = checked.iter().map(|(kind, count)| counted(*count, kind)).collect();
            let list = if list.is_empty() { "nothing".to_owned() } else { list.join(", ") };
            printer::line(&format!("Checked {list}: {}", summary(found, left, self.repair)))?;
        }
        Ok(u8::from(left > 0))
    }
}

impl CheckArgs {
    fn show(&self, finding: &CheckFinding) -> anyhow::Result<()> {
        if self.format.is_some() {
            return Ok(printer::line(&serde_json::to_string(finding)?)?);
        }
        Ok(printer::text(&text(finding))?)
    }
}

fn text(finding: &CheckFinding) -> String {
    let mut text = format!("{} {}: {}\n", finding.kind, finding.subject, finding.problem);
    if !finding.used_by.is_empty() {
        text.push_str(&format!("  used by:  {}\n", finding.used_by.join(", ")));
    }
    if !finding.repaired.is_empty() {
        text.push_str(&format!("  repaired: {}\n", finding.repaired));
    }
    if !finding.failure.is_empty() {
        text.push_str(&format!("  not repaired: {}\n", finding.failure));
    }
    text
}

fn summary(found: u64, left: u64, repair: bool) -> String {
    match (found, left) {
        (0, _) => "nothing is wrong".to_owned(),
        (found, _) if !repair => format!("{found} wrong; --repair repairs what can be"),
        (found, 0) => format!("{found} wrong, all repaired"),
        (found, left) => format!("{found} wrong, {left} not repaired"),
    }
}

fn counted(count: u64, kind: &str) -> String {
    format!("{count} {kind}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_and_the_end_are_said() {
        let finding = CheckFinding {
            kind: "layer".to_owned(),
            subject: "sha256:12".to_owned(),
            problem: "its content has the digest sha256:34".to_owned(),
            used_by: vec!["web:1".to_owned()],
            repaired: "unpacked again".to_owned(),
            failure: String::new(),
        };
        let lost =
            CheckFinding { repaired: String::new(), failure: "nobody has it".to_owned(), ..finding.clone() };
        let ends = [(0, 0, true), (2, 2, false), (2, 0, true), (2, 1, true)];
        let ends = ends.map(|(found, left, repair)| summary(found, left, repair)).join("\n");
        insta::assert_snapshot!(format!("{}{}{ends}\n{}", text(&finding), text(&lost), counted(3, "layer")));
    }
}
