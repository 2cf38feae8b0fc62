//! `commit`: an image of what a container changed of its own.

use insula_models::ContainerConfig;
use insula_spec::image::{Healthcheck, RunConfig};
use insula_spec::reference::Reference;
use insula_store::CommitOptions;
use insula_store::layers::DiffOf;
use insula_sys::failpoint::failpoint;

use super::change;
use crate::archive::made_by_engine;
use crate::{Engine, Result, blocking};

/// `POST /commit`.
#[derive(Debug, Clone, Default)]
pub struct CommitRequest {
    /// `NAME` or `NAME:TAG`; without it the image has no name.
    pub reference: Option<String>,
    pub author: String,
    pub message: String,
    /// Instructions of a Dockerfile that set the configuration, one each.
    pub changes: Vec<String>,
    /// Hold the container still while its files are read.
    pub pause: bool,
    /// What it says goes before the container's own configuration.
    pub config: Option<ContainerConfig>,
}

impl Engine {
    /// Makes an image of the container's image and what it changed; returns its id.
    pub async fn commit_container(&self, reference: &str, request: CommitRequest) -> Result<String> {
        let container = self.find(reference)?;
        let row = container.row();
        let target = request.reference.as_deref().map(Reference::parse).transpose();
        let target = target.map_err(insula_store::Error::from)?;
        let mut config = run_config(&row.config);
        if let Some(own) = &request.config {
            config = over(run_config(own), config);
        }
        for instruction in &request.changes {
            change::apply(&mut config, instruction)?;
        }
        let files = self.container_files(reference)?;
        let ignored = made_by_engine(&files);
        let of = DiffOf { upper: files.upper, lower: files.layers, ignored, latest: None };
        let (store, parent) = (self.store().clone(), row.image.id.clone());
        let of_it: &[_] = if request.pause { std::slice::from_ref(&container) } else { &[] };
        let held = self.hold_still(of_it).await?;
        failpoint("commit.paused");
        let staged = blocking(move || Ok(store.images().stage_diff(&parent, &of)?)).await;
        self.let_go(held).await;
        let staged = staged?;
        failpoint("commit.staged");
        let options = CommitOptions {
            config,
            author: request.author,
            message: request.message.clone(),
            created_by: row.config.cmd.clone().unwrap_or_default().join(" "),
            reference: target.clone(),
        };
        let store = self.store().clone();
        let image = blocking(move || Ok(store.images().commit_diff(staged, options)?)).await?;
        failpoint("commit.made");
        let name = target.map(|name| name.familiar()).unwrap_or_default();
        if !name.is_empty() {
            self.images().publish("tag", &image, &name);
        }
        let more = [("comment", request.message.as_str()), ("imageID", image.as_str()), ("imageRef", &name)];
        self.publish(&row, "commit", &more);
        Ok(image.to_string())
    }
}

/// A configuration that is given, with what it leaves out from the container's; variables, labels, ports and
/// volumes are those of both.
fn over(given: RunConfig, own: RunConfig) -> RunConfig {
    let text = |given: String, own: String| if given.is_empty() { own } else { given };
    let list = |given: Vec<String>, own: Vec<String>| if given.is_empty() { own } else { given };
    let mut env = own.env;
    crate::containers::merge::overlay(&mut env, &given.env);
    // An entrypoint comes with its own command.
    let cmd = if given.entrypoint.is_empty() { list(given.cmd, own.cmd) } else { given.cmd };
    RunConfig {
        user: text(given.user, own.user),
        exposed_ports: own.exposed_ports.into_iter().chain(given.exposed_ports).collect(),
        env,
        entrypoint: list(given.entrypoint, own.entrypoint),
        cmd,
        volumes: own.volumes.into_iter().chain(given.volumes).collect(),
        working_dir: text(given.working_dir, own.working_dir),
        labels: own.labels.into_iter().chain(given.labels).collect(),
        stop_signal: text(given.stop_signal, own.stop_signal),
        stop_timeout: given.stop_timeout.or(own.stop_timeout),
        healthcheck: given.healthcheck.or(own.healthcheck),
        shell: list(given.shell, own.shell),
        on_build: list(given.on_build, own.on_build),
        args_escaped: given.args_escaped || own.args_escaped,
    }
}

/// What an image says of how its containers run.
fn run_config(config: &ContainerConfig) -> RunConfig {
    RunConfig {
        user: config.user.clone(),
        exposed_ports: config.exposed_ports.keys().cloned().collect(),
        env: config.env.clone(),
        entrypoint: config.entrypoint.clone().unwrap_or_default(),
        cmd: config.cmd.clone().unwrap_or_default(),
        volumes: config.volumes.keys().cloned().collect(),
        working_dir: config.working_dir.clone(),
        labels: config.labels.clone(),
        stop_signal: config.stop_signal.clone(),
        stop_timeout: config.stop_timeout,
        healthcheck: config.healthcheck.as_ref().map(|health| Healthcheck {
            test: health.test.clone(),
            interval: health.interval,
            timeout: health.timeout,
            start_period: health.start_period,
            start_interval: health.start_interval,
            retries: health.retries,
        }),
        shell: config.shell.clone().unwrap_or_default(),
        on_build: config.on_build.clone(),
        args_escaped: config.args_escaped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_goes_before_the_containers_own() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let own = RunConfig {
            user: "1".to_owned(),
            env: words(&["A=1", "B=2"]),
            cmd: words(&["sh"]),
            labels: [("a".to_owned(), "own".to_owned())].into(),
            ..RunConfig::default()
        };
        assert_eq!(over(RunConfig::default(), own.clone()), own);
        let given = RunConfig {
            env: words(&["B=3"]),
            entrypoint: words(&["run"]),
            labels: [("b".to_owned(), "given".to_owned())].into(),
            ..RunConfig::default()
        };
        let both = over(given, own);
        assert_eq!((both.user.as_str(), both.env, both.cmd), ("1", words(&["A=1", "B=3"]), vec![]));
        assert_eq!((both.entrypoint, both.labels.len()), (words(&["run"]), 2));
    }

    #[test]
    fn a_configuration_goes_to_the_container_and_back() {
        let config = RunConfig {
            user: "1:2".to_owned(),
            exposed_ports: ["80/tcp".to_owned()].into(),
            env: vec!["A=1".to_owned()],
            cmd: vec!["sh".to_owned()],
            volumes: ["/data".to_owned()].into(),
            healthcheck: Some(Healthcheck {
                test: vec!["CMD".to_owned(), "x".to_owned()],
                retries: 3,
                ..Default::default()
            }),
            on_build: vec!["RUN x".to_owned()],
            stop_timeout: Some(3),
            ..RunConfig::default()
        };
        assert_eq!(run_config(&super::super::describe::container_config(&config)), config);
    }
}
