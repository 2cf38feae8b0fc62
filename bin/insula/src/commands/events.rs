//! `events`.

use clap::Args;
use insula_client::EventsOptions;
use insula_models::EventMessage;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::filters;
use crate::format::ago;
use crate::format::template::{self, Compiled};
use crate::printer;

/// Show what happens, as it happens
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula events
  insula events --since 1h --until 0s -f container=web -f event=die
  insula events --format '{{.Type}} {{.Action}}'")]
pub(crate) struct EventsArgs {
    /// Only: container=web, image=nginx, event=die, type=volume, label=tier=db, …
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Go template, or 'json'
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// From this moment: RFC 3339, Unix seconds or an age (10m)
    #[arg(long, value_name = "TIME", default_value = "", hide_default_value = true)]
    since: String,
    /// To this moment, then end
    #[arg(long, value_name = "TIME", default_value = "", hide_default_value = true)]
    until: String,
}

impl Run for EventsArgs {
    async fn run(self, context: Context) -> Outcome {
        let template = match self.format.as_str() {
            "" | "json" | "{{json .}}" => None,
            text => Some(Compiled::new(text)?),
        };
        let options = EventsOptions {
            since: ago::moment(&self.since)?,
            until: ago::moment(&self.until)?,
            filters: filters::parse(&self.filter)?,
        };
        let mut events = context.client().await?.events(&options).await?;
        while let Some(event) = events.next().await? {
            printer::line(&match &template {
                Some(template) => template.render(&template::value(&named(&event)))?,
                None if self.format.is_empty() => line(&event),
                None => serde_json::to_string(&event)?,
            })?;
        }
        Ok(0)
    }
}

/// Fields by the names that Go templates have for them.
fn named(event: &EventMessage) -> serde_json::Value {
    serde_json::json!({
        "Type": event.r#type,
        "Action": event.action,
        "Actor": {"ID": event.actor.id, "Attributes": event.actor.attributes},
        "Scope": event.scope,
        "Time": event.time,
        "TimeNano": event.time_nano,
        "Status": event.status,
        "ID": event.id,
        "From": event.from,
    })
}

/// `TIME TYPE ACTION ID (name=value, …)`.
fn line(event: &EventMessage) -> String {
    let nanoseconds = if event.time_nano != 0 {
        i128::from(event.time_nano)
    } else {
        i128::from(event.time) * 1_000_000_000
    };
    let time = jiff::Timestamp::from_nanosecond(nanoseconds).map_or_else(
        |_| String::new(),
        |time| time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S.%9f%:z").to_string(),
    );
    let mut text =
        format!("{} {} {} {}", time.replace("+00:00", "Z"), event.r#type, event.action, event.actor.id);
    if !event.actor.attributes.is_empty() {
        let attributes: Vec<String> =
            event.actor.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
        text.push_str(&format!(" ({})", attributes.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_dockers() {
        let text = r#"{"Type":"container","Action":"die","Actor":{"ID":"abc","Attributes":
            {"name":"web","image":"nginx","exitCode":"0"}},"time":1700000000,"timeNano":1700000000000000005}"#;
        let event: EventMessage = insula_models::from_json(text.as_bytes()).unwrap();
        let line = line(&event);
        assert!(line.ends_with(" container die abc (exitCode=0, image=nginx, name=web)"), "{line}");
        assert!(line.contains(".000000005"), "{line}");
        let template = Compiled::new("{{.Actor.Attributes.name}} {{.TimeNano}}").unwrap();
        assert_eq!(template.render(&template::value(&named(&event))).unwrap(), "web 1700000000000000005");
    }
}
