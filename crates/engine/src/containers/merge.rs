//! A container's configuration: the user's, completed by the image's.

use insula_models::{ContainerConfig, Empty};
use insula_spec::image::RunConfig;

use crate::{Error, Result};

/// Docker's rules, field by field.
pub(super) fn merge(mut user: ContainerConfig, image: &RunConfig) -> Result<ContainerConfig> {
    fill(&mut user.user, &image.user);
    fill(&mut user.working_dir, &image.working_dir);
    fill(&mut user.stop_signal, &image.stop_signal);
    user.exposed_ports.extend(image.exposed_ports.iter().map(|port| (port.clone(), Empty {})));
    user.volumes.extend(image.volumes.iter().map(|path| (path.clone(), Empty {})));
    for (name, value) in &image.labels {
        user.labels.entry(name.clone()).or_insert_with(|| value.clone());
    }
    let inherited: Vec<String> = image
        .env
        .iter()
        .filter(|line| !user.env.iter().any(|own| name(own) == name(line)))
        .cloned()
        .collect();
    user.env.extend(inherited);
    merge_command(&mut user, image);
    if user.shell.is_none() && !image.shell.is_empty() {
        user.shell = Some(image.shell.clone());
    }
    merge_health(&mut user, image);
    if command(&user).next().is_none() {
        return Err(Error::InvalidArgument("No command specified".to_owned()));
    }
    Ok(user)
}

/// What the user left open is the image's.
fn merge_health(user: &mut ContainerConfig, image: &RunConfig) {
    let Some(image) = &image.healthcheck else { return };
    let own = user.healthcheck.get_or_insert_default();
    if own.test.is_empty() {
        own.test.clone_from(&image.test);
    }
    for (own, image) in [
        (&mut own.interval, image.interval),
        (&mut own.timeout, image.timeout),
        (&mut own.start_period, image.start_period),
        (&mut own.start_interval, image.start_interval),
        (&mut own.retries, image.retries),
    ] {
        if *own == 0 {
            *own = image;
        }
    }
}

/// An entrypoint of the user's own resets the image's command.
fn merge_command(user: &mut ContainerConfig, image: &RunConfig) {
    if user.entrypoint.as_ref().is_none_or(Vec::is_empty) {
        if user.cmd.as_ref().is_none_or(Vec::is_empty) && !image.cmd.is_empty() {
            user.cmd = Some(image.cmd.clone());
        }
        if user.entrypoint.is_none() && !image.entrypoint.is_empty() {
            user.entrypoint = Some(image.entrypoint.clone());
        }
    }
    if user.entrypoint.as_deref() == Some(&[String::new()]) {
        user.entrypoint = None;
    }
}

/// Program and arguments.
pub(crate) fn command(config: &ContainerConfig) -> impl Iterator<Item = &str> {
    config.entrypoint.iter().flatten().chain(config.cmd.iter().flatten()).map(String::as_str)
}

fn fill(field: &mut String, from: &str) {
    if field.is_empty() {
        from.clone_into(field);
    }
}

/// The name in `NAME=value` and in `NAME`.
fn name(line: &str) -> &str {
    line.split('=').next().unwrap_or_default()
}

/// What the program finds: the engine's own variables, overridden by the configuration's. A `NAME`
/// without a value is none.
pub(crate) fn environment(config: &ContainerConfig, hostname: &str) -> Vec<String> {
    const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut lines = vec![PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if config.tty {
        lines.push("TERM=xterm".to_owned());
    }
    overlay(&mut lines, &config.env);
    lines
}

/// Replaces, adds and removes variables.
pub(crate) fn overlay(lines: &mut Vec<String>, over: &[String]) {
    for line in over {
        let at = lines.iter().position(|have| name(have) == name(line));
        match (at, line.contains('=')) {
            (Some(at), true) => lines[at].clone_from(line),
            (Some(at), false) => drop(lines.remove(at)),
            (None, true) => lines.push(line.clone()),
            (None, false) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn image() -> RunConfig {
        RunConfig {
            entrypoint: words(&["/entry"]),
            cmd: words(&["serve"]),
            env: words(&["PATH=/bin", "LANG=C"]),
            user: "web".into(),
            ..RunConfig::default()
        }
    }

    fn run(entrypoint: Option<&[&str]>, cmd: Option<&[&str]>) -> Result<String> {
        let user = ContainerConfig {
            entrypoint: entrypoint.map(words),
            cmd: cmd.map(words),
            ..ContainerConfig::default()
        };
        Ok(command(&merge(user, &image())?).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn commands_and_entrypoints_are_dockers() {
        assert_eq!(run(None, None).unwrap(), "/entry serve");
        assert_eq!(run(None, Some(&["x"])).unwrap(), "/entry x");
        assert_eq!(run(Some(&["/own"]), None).unwrap(), "/own");
        assert_eq!(run(Some(&["/own"]), Some(&["x"])).unwrap(), "/own x");
        assert_eq!(run(Some(&[""]), Some(&["x"])).unwrap(), "x");
        assert_eq!(run(Some(&[""]), None).unwrap_err().to_string(), "No command specified");
    }

    #[test]
    fn the_user_wins_over_the_image() {
        let user = ContainerConfig {
            env: words(&["LANG=de", "NEW=1", "PATH"]),
            user: "root".into(),
            ..ContainerConfig::default()
        };
        let merged = merge(user, &image()).unwrap();
        assert_eq!(merged.user, "root");
        assert_eq!(merged.env, words(&["LANG=de", "NEW=1", "PATH"]));
        assert_eq!(environment(&merged, "box"), words(&["HOSTNAME=box", "LANG=de", "NEW=1"]));
        let merged = merge(ContainerConfig { tty: true, ..Default::default() }, &image()).unwrap();
        assert_eq!(merged.user, "web");
        assert_eq!(environment(&merged, "b"), words(&["PATH=/bin", "HOSTNAME=b", "TERM=xterm", "LANG=C"]));
    }
}
