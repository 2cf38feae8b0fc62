//! The commands, a module each or a few that belong together, and the table of them all.

mod attach;
mod build;
mod bundle;
mod check;
mod cp;
mod df;
mod diagnose;
mod dirty;
mod events;
mod exec;
mod generate;
mod images;
mod inspect;
mod kernel;
mod lifecycle;
mod load;
mod login;
mod logs;
mod network;
mod prune;
mod ps;
mod save;
mod search;
mod stats;
mod system;
mod template;
mod tenant;
mod top;
pub(crate) mod transfer;
mod tree;
mod unbundle;
mod volume;

use crate::arguments::{Group, Verb};
use crate::daemon::DaemonArgs;
use crate::run::create::CreateArgs;
use crate::run::start::RunArgs;
use crate::serve::ServeArgs;

/// Commands that stand alone, in the order of the help.
pub(crate) const VERBS: &[Verb] = &[
    Verb::new::<RunArgs>("run"),
    Verb::new::<CreateArgs>("create"),
    Verb::new::<lifecycle::StartArgs>("start"),
    Verb::new::<lifecycle::StopArgs>("stop"),
    Verb::new::<lifecycle::RestartArgs>("restart"),
    Verb::new::<lifecycle::KillArgs>("kill"),
    Verb::new::<lifecycle::RmArgs>("rm"),
    Verb::new::<ps::PsArgs>("ps"),
    Verb::new::<logs::LogsArgs>("logs"),
    Verb::new::<exec::ExecArgs>("exec"),
    Verb::new::<attach::AttachArgs>("attach"),
    Verb::new::<lifecycle::WaitArgs>("wait"),
    Verb::new::<inspect::InspectArgs>("inspect"),
    Verb::new::<lifecycle::RenameArgs>("rename"),
    Verb::new::<lifecycle::PauseArgs>("pause"),
    Verb::new::<lifecycle::UnpauseArgs>("unpause"),
    Verb::new::<top::TopArgs>("top"),
    Verb::new::<stats::StatsArgs>("stats"),
    Verb::new::<cp::CpArgs>("cp"),
    Verb::new::<top::DiffArgs>("diff"),
    Verb::new::<top::UpdateArgs>("update"),
    Verb::new::<top::PortArgs>("port"),
    Verb::new::<save::CommitArgs>("commit"),
    Verb::new::<save::ExportArgs>("export"),
    Verb::new::<load::LoadArgs>("load"),
    Verb::new::<save::SaveArgs>("save"),
    Verb::new::<load::ImportArgs>("import"),
    Verb::new::<bundle::BundleArgs>("bundle"),
    Verb::new::<unbundle::UnbundleArgs>("unbundle"),
    Verb::new::<build::BuildArgs>("build"),
    Verb::new::<transfer::PullArgs>("pull"),
    Verb::new::<transfer::PushArgs>("push"),
    Verb::new::<ServeArgs>("serve-images"),
    Verb::new::<login::LoginArgs>("login"),
    Verb::new::<login::LogoutArgs>("logout"),
    Verb::new::<search::SearchArgs>("search"),
    Verb::new::<images::ImagesArgs>("images"),
    Verb::new::<save::HistoryArgs>("history"),
    Verb::new::<images::RmiArgs>("rmi"),
    Verb::new::<images::TagArgs>("tag"),
    Verb::new::<system::InfoArgs>("info"),
    Verb::new::<system::VersionArgs>("version"),
    Verb::new::<events::EventsArgs>("events"),
    Verb::new::<template::WarmArgs>("warm"),
    Verb::new::<dirty::DirtyRateArgs>("vm-dirty-rate"),
    Verb::new::<DaemonArgs>("daemon"),
    Verb::new::<generate::CompletionArgs>("completion"),
    Verb::new::<generate::ManArgs>("man"),
];

/// The same below nouns, and what exists there only.
pub(crate) const GROUPS: &[Group] = &[
    Group {
        name: "container",
        about: "Commands on containers",
        verbs: &[
            Verb::new::<RunArgs>("run"),
            Verb::new::<CreateArgs>("create"),
            Verb::new::<lifecycle::StartArgs>("start"),
            Verb::new::<lifecycle::StopArgs>("stop"),
            Verb::new::<lifecycle::RestartArgs>("restart"),
            Verb::new::<lifecycle::KillArgs>("kill"),
            Verb::new::<lifecycle::RmArgs>("rm"),
            Verb::new::<ps::PsArgs>("ls"),
            Verb::new::<logs::LogsArgs>("logs"),
            Verb::new::<exec::ExecArgs>("exec"),
            Verb::new::<attach::AttachArgs>("attach"),
            Verb::new::<lifecycle::WaitArgs>("wait"),
            Verb::new::<inspect::InspectContainerArgs>("inspect"),
            Verb::new::<lifecycle::RenameArgs>("rename"),
            Verb::new::<lifecycle::PauseArgs>("pause"),
            Verb::new::<lifecycle::UnpauseArgs>("unpause"),
            Verb::new::<top::TopArgs>("top"),
            Verb::new::<stats::StatsArgs>("stats"),
            Verb::new::<cp::CpArgs>("cp"),
            Verb::new::<top::DiffArgs>("diff"),
            Verb::new::<top::UpdateArgs>("update"),
            Verb::new::<top::PortArgs>("port"),
            Verb::new::<save::CommitArgs>("commit"),
            Verb::new::<save::ExportArgs>("export"),
            Verb::new::<prune::PruneContainersArgs>("prune"),
        ],
    },
    Group {
        name: "image",
        about: "Commands on images",
        verbs: &[
            Verb::new::<build::BuildArgs>("build"),
            Verb::new::<images::ImagesArgs>("ls"),
            Verb::new::<transfer::PullArgs>("pull"),
            Verb::new::<transfer::PushArgs>("push"),
            Verb::new::<load::LoadArgs>("load"),
            Verb::new::<save::SaveArgs>("save"),
            Verb::new::<save::HistoryArgs>("history"),
            Verb::new::<load::ImportArgs>("import"),
            Verb::new::<inspect::InspectImageArgs>("inspect"),
            Verb::new::<images::RmiArgs>("rm"),
            Verb::new::<images::TagArgs>("tag"),
            Verb::new::<prune::PruneImagesArgs>("prune"),
        ],
    },
    Group {
        name: "builder",
        about: "Commands on builds",
        verbs: &[Verb::new::<build::BuildArgs>("build"), Verb::new::<build::PruneBuilderArgs>("prune")],
    },
    Group {
        name: "manifest",
        about: "Commands on manifests in registries",
        verbs: &[Verb::new::<search::InspectManifestArgs>("inspect")],
    },
    Group {
        name: "volume",
        about: "Commands on volumes",
        verbs: &[
            Verb::new::<volume::CreateVolumeArgs>("create"),
            Verb::new::<volume::ListVolumesArgs>("ls"),
            Verb::new::<volume::InspectVolumeArgs>("inspect"),
            Verb::new::<volume::RemoveVolumesArgs>("rm"),
            Verb::new::<volume::PruneVolumesArgs>("prune"),
        ],
    },
    Group {
        name: "network",
        about: "Commands on networks",
        verbs: &[
            Verb::new::<network::CreateNetworkArgs>("create"),
            Verb::new::<network::ListNetworksArgs>("ls"),
            Verb::new::<network::InspectNetworkArgs>("inspect"),
            Verb::new::<network::RemoveNetworksArgs>("rm"),
            Verb::new::<network::PruneNetworksArgs>("prune"),
            Verb::new::<network::ConnectArgs>("connect"),
            Verb::new::<network::DisconnectArgs>("disconnect"),
        ],
    },
    Group {
        name: "kernel",
        about: "Commands on kernels of containers that have their own",
        verbs: &[Verb::new::<kernel::ListKernelsArgs>("ls"), Verb::new::<kernel::UseKernelArgs>("use")],
    },
    Group {
        name: "vm-template",
        about: "Commands on machines that were booted before containers need them",
        verbs: &[
            Verb::new::<template::ListTemplatesArgs>("ls"),
            Verb::new::<template::RemoveTemplatesArgs>("rm"),
            Verb::new::<template::PruneTemplatesArgs>("prune"),
        ],
    },
    Group {
        name: "tenant",
        about: "Commands on tenants, whose containers share a machine",
        verbs: &[
            Verb::new::<tenant::CreateTenantArgs>("create"),
            Verb::new::<tenant::ListTenantsArgs>("ls"),
            Verb::new::<tenant::InspectTenantArgs>("inspect"),
            Verb::new::<tenant::RemoveTenantsArgs>("rm"),
        ],
    },
    Group {
        name: "system",
        about: "Commands on the engine itself",
        verbs: &[
            Verb::new::<df::DiskArgs>("df"),
            Verb::new::<check::CheckArgs>("check"),
            Verb::new::<system::InfoArgs>("info"),
            Verb::new::<events::EventsArgs>("events"),
            Verb::new::<df::PruneArgs>("prune"),
        ],
    },
];

/// Runs `act` on every name; failures are printed and make the exit code 1, successes print the name.
pub(crate) async fn each<F>(names: &[String], mut act: impl FnMut(String) -> F) -> crate::failure::Outcome
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut code = 0;
    for name in names {
        match act(name.clone()).await {
            Ok(()) => crate::printer::line(name)?,
            Err(error) if error.is::<crate::failure::OutputError>() => return Err(error),
            Err(error) => {
                crate::printer::error(&crate::failure::describe(&error));
                code = 1;
            }
        }
    }
    Ok(code)
}
