//! `events`.

use clap::Args;
use insula_client::{Address, EventsOptions, JsonStream};
use insula_models::EventMessage;
use jiff::Timestamp;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::filters;
use crate::follow::{self, Place};
use crate::format::ago;
use crate::format::template::Compiled;
use crate::format::typed;
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
        let mut options = EventsOptions {
            since: ago::moment(&self.since)?,
            until: ago::moment(&self.until)?,
            filters: filters::parse(&self.filter)?,
        };
        let (mut place, began) = (Place::default(), Timestamp::now());
        let client = context.client().await?;
        let mut events = client.events(&options).await?;
        loop {
            match events.next().await {
                Ok(Some(event)) => {
                    if place.passes(time(&event)) {
                        printer::line(&self.shown(&event, template.as_ref())?)?;
                    }
                    continue;
                }
                Ok(None) if !options.until.is_empty() => return Ok(0),
                // Without an end it is told to whoever has fallen too far behind.
                Ok(None) => {}
                Err(error) if follow::is_lost(&error) => {}
                Err(error) => return Err(error.into()),
            }
            match place.resume() {
                Some(latest) => options.since = latest.to_string(),
                None if options.since.is_empty() => options.since = began.to_string(),
                None => {}
            }
            events = asked_again(client.address(), &options).await?;
        }
    }
}

/// What the next daemon tells, or this one once more.
async fn asked_again(address: &Address, options: &EventsOptions) -> anyhow::Result<JsonStream<EventMessage>> {
    loop {
        match follow::next_daemon(address).await?.events(options).await {
            Err(error) if follow::is_lost(&error) => {}
            other => return Ok(other?),
        }
    }
}

fn time(event: &EventMessage) -> Timestamp {
    let nanoseconds = match event.time_nano {
        0 => i128::from(event.time) * 1_000_000_000,
        nanoseconds => i128::from(nanoseconds),
    };
    Timestamp::from_nanosecond(nanoseconds).unwrap_or_default()
}

impl EventsArgs {
    fn shown(&self, event: &EventMessage, template: Option<&Compiled>) -> anyhow::Result<String> {
        Ok(match template {
            Some(template) => template.render(&typed::document(&named(event)))?,
            None if self.format.is_empty() => line(event),
            None => serde_json::to_string(event)?,
        })
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
    let local = time(event).to_zoned(jiff::tz::TimeZone::system());
    let time = local.strftime("%Y-%m-%dT%H:%M:%S.%9f%:z").to_string();
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
        assert_eq!(template.render(&typed::document(&named(&event))).unwrap(), "web 1700000000000000005");
    }
}
