//! `inspect`.

use anyhow::bail;
use clap::Args;
use insula_client::{Client, Error};

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::{Failure, Outcome, OutputError};
use crate::format::json;
use crate::format::template::Compiled;
use crate::format::typed;
use crate::{failure, printer};

/// Show everything about containers, images, volumes or networks
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula inspect web
  insula inspect -f '{{.State.Pid}}' web
  insula inspect --type image nginx -f '{{json .Config.Env}}'")]
pub(crate) struct InspectArgs {
    /// Go template, or 'json'
    #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// With the sizes of containers
    #[arg(short, long)]
    size: bool,
    /// Only objects of this kind
    #[arg(long, value_name = "KIND")]
    r#type: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Run for InspectArgs {
    async fn run(self, context: Context) -> Outcome {
        let kinds = match self.r#type.as_deref() {
            // A name that several kinds know is shown of the first, as Docker has them.
            None => &[Kind::Container, Kind::Image, Kind::Network, Kind::Volume][..],
            Some("container") => &[Kind::Container],
            Some("image") => &[Kind::Image],
            Some("volume") => &[Kind::Volume],
            Some("network") => &[Kind::Network],
            Some(other) => bail!(
                "unknown type: {other:?}: must be one of \"container\", \"image\", \"network\", \"volume\""
            ),
        };
        inspect(&context, &Request { kinds, size: self.size, format: self.format, names: self.names }).await
    }
}

/// Show everything about containers
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula container inspect -f '{{.State.Status}}' web")]
pub(crate) struct InspectContainerArgs {
    /// Go template, or 'json'
    #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// With sizes
    #[arg(short, long)]
    size: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

impl Run for InspectContainerArgs {
    async fn run(self, context: Context) -> Outcome {
        let request =
            Request { kinds: &[Kind::Container], size: self.size, format: self.format, names: self.names };
        inspect(&context, &request).await
    }
}

/// Show everything about images
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula image inspect -f '{{join .RepoTags \", \"}}' nginx")]
pub(crate) struct InspectImageArgs {
    /// Go template, or 'json'
    #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    names: Vec<String>,
}

impl Run for InspectImageArgs {
    async fn run(self, context: Context) -> Outcome {
        let request = Request { kinds: &[Kind::Image], size: false, format: self.format, names: self.names };
        inspect(&context, &request).await
    }
}

/// What can be inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Container,
    Image,
    Volume,
    Network,
    Tenant,
}

/// What to show, and of which kinds; the first kind that knows a name is shown.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) kinds: &'static [Kind],
    pub(crate) size: bool,
    pub(crate) format: String,
    pub(crate) names: Vec<String>,
}

/// Shows what is found; what is not found is said and makes the exit code 1.
pub(crate) async fn inspect(context: &Context, request: &Request) -> Outcome {
    let template = match request.format.as_str() {
        "" | "json" => None,
        text => Some(Compiled::new(text).map_err(|error| Failure { code: 64, message: error.to_string() })?),
    };
    let client = context.client().await?;
    let mut found = Vec::new();
    let mut failures = Vec::new();
    for name in &request.names {
        match find(&client, request, name).await {
            Ok(Some(text)) => found.push(text),
            Ok(None) => failures.push(format!("Error: No such object: {name}")),
            Err(error) => failures.push(failure::describe_client(&error)),
        }
    }
    match &template {
        Some(template) => {
            for text in &found {
                let document: serde_json::Value = serde_json::from_str(text)?;
                printer::line(&template.render(&typed::document(&document))?)?;
            }
        }
        None if request.format == "json" => printer::line(&format!("[{}]", found.join(",")))?,
        None => print_documents(&found)?,
    }
    for failure in &failures {
        printer::error(failure);
    }
    Ok(u8::from(!failures.is_empty()))
}

fn print_documents(found: &[String]) -> Result<(), OutputError> {
    if found.is_empty() {
        return printer::line("[]");
    }
    let documents: Vec<String> = found.iter().map(|text| format!("    {}", json::indent(text, 1))).collect();
    printer::line(&format!("[\n{}\n]", documents.join(",\n")))
}

async fn find(client: &Client, request: &Request, name: &str) -> Result<Option<String>, Error> {
    for kind in request.kinds {
        let answer = match kind {
            Kind::Container => client.inspect_container_json(name, request.size).await,
            Kind::Image => client.inspect_image_json(name).await,
            Kind::Volume => client.inspect_volume_json(name).await,
            Kind::Network => client.inspect_network_json(name).await,
            Kind::Tenant => client.inspect_tenant_json(name).await,
        };
        match answer {
            Ok(text) => return Ok(Some(text)),
            Err(Error::Daemon { status: 404, .. }) if request.kinds.len() > 1 => {}
            // Kinds of objects that this daemon does not have, and names that a kind cannot have.
            Err(Error::Daemon { status: 400 | 501, .. }) if request.kinds.len() > 1 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
