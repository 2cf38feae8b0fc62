//! `--change`: instructions of a Dockerfile that set the configuration of an image.

use insula_base::parse_duration;
use insula_spec::image::{Healthcheck, RunConfig};

use crate::{Error, Result};

/// What runs a command that is not a list.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// Applies one instruction (`CMD ["nginx"]`, `ENV A=1`).
pub(super) fn apply(config: &mut RunConfig, instruction: &str) -> Result<()> {
    let text = instruction.trim();
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    let bad = |why: &str| Error::InvalidArgument(format!("change {instruction:?}: {why}"));
    if rest.is_empty() && !name.eq_ignore_ascii_case("cmd") {
        return Err(bad("the instruction has no argument"));
    }
    match name.to_ascii_uppercase().as_str() {
        "CMD" => config.cmd = command(config, rest),
        "ENTRYPOINT" => config.entrypoint = command(config, rest),
        "SHELL" => config.shell = list(rest).ok_or_else(|| bad("a JSON list is expected"))?,
        "ENV" => {
            for (key, value) in pairs(rest).ok_or_else(|| bad("NAME=VALUE is expected"))? {
                config.env.retain(|entry| entry.split('=').next() != Some(key.as_str()));
                config.env.push(format!("{key}={value}"));
            }
        }
        "LABEL" => config.labels.extend(pairs(rest).ok_or_else(|| bad("NAME=VALUE is expected"))?),
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                config
                    .exposed_ports
                    .insert(port_of(port).ok_or_else(|| bad("PORT[/tcp|/udp|/sctp] is expected"))?);
            }
        }
        "VOLUME" => config.volumes.extend(list(rest).unwrap_or_else(|| words(rest).unwrap_or_default())),
        "USER" => config.user = rest.to_owned(),
        "WORKDIR" if rest.starts_with('/') => config.working_dir = rest.to_owned(),
        "WORKDIR" => return Err(bad("an absolute path is expected")),
        "STOPSIGNAL" => config.stop_signal = rest.to_owned(),
        "ONBUILD" => config.on_build.push(rest.to_owned()),
        "HEALTHCHECK" => config.healthcheck = Some(health(config, rest).ok_or_else(|| {
            bad("[--interval= --timeout= --start-period= --start-interval= --retries=] CMD … or NONE is expected")
        })?),
        _ => {
            return Err(bad(
                "CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME or WORKDIR is expected",
            ));
        }
    }
    Ok(())
}

fn command(config: &RunConfig, text: &str) -> Vec<String> {
    if text.is_empty() {
        return Vec::new();
    }
    list(text).unwrap_or_else(|| {
        let shell: Vec<String> =
            if config.shell.is_empty() { SHELL.map(str::to_owned).to_vec() } else { config.shell.clone() };
        shell.into_iter().chain([text.to_owned()]).collect()
    })
}

fn health(config: &RunConfig, text: &str) -> Option<Healthcheck> {
    let mut health = Healthcheck::default();
    let mut rest = text;
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, after) = flag.split_once(char::is_whitespace)?;
        let (name, value) = flag.split_once('=')?;
        match name {
            "interval" => health.interval = span(value)?,
            "timeout" => health.timeout = span(value)?,
            "start-period" => health.start_period = span(value)?,
            "start-interval" => health.start_interval = span(value)?,
            "retries" => health.retries = value.parse().ok().filter(|count| *count >= 0)?,
            _ => return None,
        }
        rest = after.trim_start();
    }
    let (kind, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let rest = rest.trim();
    health.test = match kind.to_ascii_uppercase().as_str() {
        "NONE" if rest.is_empty() => vec!["NONE".to_owned()],
        "CMD" if !rest.is_empty() => match list(rest) {
            Some(words) => std::iter::once("CMD".to_owned()).chain(words).collect(),
            None if config.shell.is_empty() => vec!["CMD-SHELL".to_owned(), rest.to_owned()],
            None => ["CMD".to_owned()].into_iter().chain(command(config, rest)).collect(),
        },
        _ => return None,
    };
    Some(health)
}

/// Nanoseconds of a span that does not go back.
fn span(text: &str) -> Option<i64> {
    parse_duration(text).ok().filter(|nanoseconds| *nanoseconds >= 0)
}

fn list(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

fn port_of(text: &str) -> Option<String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number: u16 = number.parse().ok()?;
    matches!(protocol, "tcp" | "udp" | "sctp").then(|| format!("{number}/{protocol}"))
}

/// `A=1 B="two words"`, or the old `A one value`.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let words = words(text)?;
    if !words.first()?.contains('=') {
        let (name, value) = text.split_once(char::is_whitespace)?;
        return Some(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    words
        .into_iter()
        .map(|word| {
            let (name, value) = word.split_once('=')?;
            (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Words with quotes and backslashes as in a shell; `None` if a quote stays open.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut signs = text.chars();
    while let Some(sign) = signs.next() {
        match (quote, sign) {
            (Some(open), _) if sign == open => quote = None,
            (Some('\''), _) => word.get_or_insert_default().push(sign),
            (_, '\\') => word.get_or_insert_default().push(signs.next()?),
            (None, '"' | '\'') => {
                quote = Some(sign);
                word.get_or_insert_default();
            }
            (None, _) if sign.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(sign),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(instructions: &[&str]) -> RunConfig {
        let mut config = RunConfig::default();
        for instruction in instructions {
            apply(&mut config, instruction).unwrap();
        }
        config
    }

    #[test]
    fn instructions_set_the_configuration() {
        let config = changed(&[
            r#"CMD ["nginx", "-g"]"#,
            "entrypoint echo $A",
            r#"ENV A=1 B="two words" C=a\ b"#,
            "ENV A three four",
            "EXPOSE 80 53/udp",
            "VOLUME /a /b",
            r#"VOLUME ["/c d"]"#,
            "LABEL x='y z'",
            "USER 1:2",
            "WORKDIR /srv",
            "STOPSIGNAL SIGQUIT",
            "HEALTHCHECK --interval=1m30s --retries=2 CMD curl -f http://localhost/",
        ]);
        let health = config.healthcheck.as_ref().unwrap();
        assert_eq!(health.test, ["CMD-SHELL", "curl -f http://localhost/"]);
        assert_eq!((health.interval, health.retries), (90_000_000_000, 2));
        assert_eq!(config.cmd, ["nginx", "-g"]);
        assert_eq!(config.entrypoint, ["/bin/sh", "-c", "echo $A"]);
        assert_eq!(config.env, ["B=two words", "C=a b", "A=three four"]);
        assert!(config.exposed_ports.iter().eq(["53/udp", "80/tcp"]));
        assert!(config.volumes.iter().eq(["/a", "/b", "/c d"]));
        assert_eq!(config.labels["x"], "y z");
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("1:2", "/srv"));
    }

    #[test]
    fn others_are_refused() {
        for bad in [
            "",
            "RUN ls",
            "ENV",
            "ENV =x",
            "ENV A=\"",
            "EXPOSE http",
            "WORKDIR srv",
            "SHELL sh",
            "HEALTHCHECK CMD",
            "HEALTHCHECK --retries=x NONE",
        ] {
            assert!(apply(&mut RunConfig::default(), bad).is_err(), "{bad}");
        }
    }
}
