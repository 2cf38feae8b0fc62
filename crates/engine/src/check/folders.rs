//! Folders and ids of containers, and volumes: rows without folders, folders without rows.

use std::collections::HashSet;

use insula_base::ContainerId;

use super::network::name;
use super::{Finding, Report, lasting};
use crate::containers::create::ID_POOL;
use crate::{Engine, Error, Result, blocking};

/// What is wrong with one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wrong {
    /// A container without its folders.
    NoFolder(ContainerId),
    /// Folders without a container.
    Folder(ContainerId),
    /// Ids of the host that are given to nobody.
    Ids {
        number: u64,
        owner: String,
    },
    NoVolume(String),
    /// A volume's folder without a row.
    Volume(String),
}

pub(super) async fn inspect(engine: &Engine, report: &mut Report) -> Result<()> {
    report.go_on()?;
    report.looked_at_many("container", engine.known().all.len());
    report.looked_at_many("volume", engine.volumes().names()?.len());
    let found = {
        let engine = engine.clone();
        lasting(move || look(&engine)).await?
    };
    for wrong in found {
        let finding = finding(engine, &wrong);
        let engine = engine.clone();
        let repair = blocking(move || repair(&engine, &wrong));
        report.found(finding, repair).await?;
    }
    Ok(())
}

/// Folders first and rows then: a row is there before its folders.
fn look(engine: &Engine) -> Result<Vec<Wrong>> {
    let folders = engine.store().container_dirs()?;
    let given = engine.store().state().allocations().all(ID_POOL)?;
    let volumes = engine.volumes().folders()?;
    let known = engine.known().all;
    let mut found = Vec::new();
    for id in &known {
        let container = engine.0.containers.get(id).map(|container| container.row());
        if container.is_some_and(|row| !engine.is_complete(&row)) {
            found.push(Wrong::NoFolder(id.clone()));
        }
    }
    found.extend(folders.into_iter().filter(|id| !known.contains(id)).map(Wrong::Folder));
    let tenants = engine.0.tenants.known()?;
    let owned = |owner: &str| {
        owner.parse::<ContainerId>().is_ok_and(|id| known.contains(&id))
            || tenants.iter().any(|tenant| tenant == owner)
    };
    let nobodys = given.into_iter().filter(|allocation| !owned(&allocation.owner));
    found.extend(nobodys.map(|allocation| Wrong::Ids { number: allocation.number, owner: allocation.owner }));
    let rows: HashSet<String> = engine.volumes().names()?.into_iter().collect();
    let there: HashSet<&String> = volumes.iter().collect();
    found.extend(rows.iter().filter(|name| !there.contains(name)).cloned().map(Wrong::NoVolume));
    found.extend(volumes.iter().filter(|name| !rows.contains(*name)).cloned().map(Wrong::Volume));
    Ok(found)
}

fn finding(engine: &Engine, wrong: &Wrong) -> Finding {
    let (kind, subject, problem, used_by) = match wrong {
        Wrong::NoFolder(id) => {
            ("container", id.short().to_owned(), "its folders are gone".to_owned(), vec![name(engine, id)])
        }
        Wrong::Folder(id) => {
            let folder = engine.store().container_dir(id);
            ("container", folder.path().display().to_string(), "no container has it".to_owned(), Vec::new())
        }
        Wrong::Ids { number, owner } => {
            ("ids", number.to_string(), format!("they are given to {owner}, which is gone"), Vec::new())
        }
        Wrong::NoVolume(name) => {
            ("volume", name.clone(), "its folder is gone, with what was in it".to_owned(), Vec::new())
        }
        Wrong::Volume(name) => {
            ("volume", name.clone(), "a folder is there, and no volume of its name".to_owned(), Vec::new())
        }
    };
    Finding { kind, subject, problem, used_by }
}

fn repair(engine: &Engine, wrong: &Wrong) -> Result<String> {
    let done = match wrong {
        Wrong::NoFolder(id) => {
            if engine.is_running(id.as_str()) {
                return Err(Error::Conflict(format!("container {} runs: stop it first", id.short())));
            }
            let row = engine.find(id.as_str())?.row();
            let size = engine.storage_size(&row.host, &row.image.layers)?;
            engine.store().create_container_dir(id, size)?;
            "made again, without what the container had changed"
        }
        Wrong::Folder(id) => {
            engine.store().remove_container_dir(id)?;
            "removed"
        }
        Wrong::Ids { number, .. } => {
            engine.store().state().allocations().release(ID_POOL, *number)?;
            "free again"
        }
        Wrong::NoVolume(name) => {
            engine.volumes().adopt(name)?;
            "made again, empty"
        }
        // It may be all that is left of somebody's data: who does not want it removes the volume.
        Wrong::Volume(name) => {
            engine.volumes().adopt(name)?;
            "a volume again, with what is in it"
        }
    };
    Ok(done.to_owned())
}
