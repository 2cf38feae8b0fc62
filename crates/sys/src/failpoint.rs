//! Places at which a test kills the process that comes by: between any two of them nothing may be lost and
//! nothing may leak. Only in builds for development; in others a failpoint is no instruction at all.

/// Every failpoint: the operation and the step, and what has just been done there.
pub const ALL: &[(&str, &str)] = &[
    ("create.row", "the row with its ids and its hold on the image is written"),
    ("create.volumes", "the sources of its mounts are there"),
    ("create.disk", "the disk of its writable layer is mounted and empty"),
    ("create.folders", "its folders are there, nobody was told"),
    ("start.intent", "the row says that it is being started"),
    ("start.endpoint", "address, ports and rules are given"),
    ("start.launch", "the sandbox's folder has its launch record"),
    ("start.names", "hosts, hostname and resolv.conf are there"),
    ("start.answered", "the monitor has started it, the row does not say so yet"),
    ("start.confirmed", "the row says that it runs, nobody was told"),
    ("exit.heard", "the monitor has said how it ended"),
    ("exit.released", "address and ports are free again"),
    ("exit.row", "the row has the exit code"),
    ("exit.folder", "the sandbox's folder is gone"),
    ("stop.marked", "the row says that a user stopped it"),
    ("stop.signalled", "it has its signal"),
    ("stop.ended", "it has ended, nobody was told"),
    ("kill.marked", "the row says that a user stopped it"),
    ("kill.signalled", "it has its signal"),
    ("remove.tombstone", "the row says that it is being removed"),
    ("remove.released", "it has no address any more"),
    ("remove.volumes", "volumes that were its own are gone"),
    ("remove.row", "the row, its ids and its hold on the image are gone"),
    ("remove.disk", "the disk of its writable layer is not mounted any more, its file is there"),
    ("remove.folders", "its folders are gone, nobody was told"),
    ("exec.created", "an exec is known"),
    ("exec.answered", "the monitor has started it"),
    ("connect.given", "a running container has its address in another network"),
    ("connect.wired", "its interface is there, its row does not say so yet"),
    ("disconnect.unplugged", "an interface of a running container is gone, its address is not free"),
    ("disconnect.freed", "its address is free, its row does not say so yet"),
    ("commit.paused", "the container is held still, nothing was read"),
    ("commit.staged", "what a container changed is archived, nothing is in its place"),
    ("commit.made", "the image is there, nobody was told"),
    ("pull.fetched", "the layers are fetched, nothing is in its place"),
    ("pull.made", "the image is there, nobody was told"),
    ("push.layers", "the registry has the layers"),
    ("push.manifest", "the registry has the image, the engine does not know its digest"),
    ("build.context", "the context is unpacked"),
    ("build.ran", "a step's container has ended, its changes are in no layer"),
    ("build.layer", "a step's layer is in its place, without a row"),
    ("build.step", "a step's layer is kept in the cache, its container is there"),
    ("build.made", "the image is there, nobody was told"),
    ("load.layer", "a layer is in its place, without a row"),
    ("load.placed", "all layers and blobs are in place, without rows"),
    ("load.rows", "the image is there, nobody was told"),
    ("bundle.paused", "the containers are held still, nothing was read"),
    ("unbundle.images", "the images of a workload are there"),
    ("unbundle.networks", "its networks are there too"),
    ("unbundle.volumes", "its volumes are there too"),
    ("unbundle.containers", "its containers are there too, it is still marked as unfinished"),
    ("unbundle.made", "all of it is there, nobody was told"),
    ("volume.row", "a volume's row is written, it has no folder"),
    ("volume.renamed", "a volume's folder is on its way out, its row is there"),
    ("volume.forgotten", "a volume's row is gone, its bytes are not"),
    ("tenant.spawned", "who is to own a tenant's machine is started, nothing names it"),
    ("tenant.ordered", "it has its order and begins"),
    ("owner.started", "a tenant's machine boots, nobody can call its owner"),
    ("owner.stands", "a tenant's machine stands, the daemon was not told"),
    ("daemon.opened", "the store is open, nothing was looked at"),
    ("daemon.adopted", "what runs is taken over"),
    ("daemon.networks", "addresses, ports and rules are as the rows say"),
    ("daemon.freed", "what belongs to nobody is gone"),
    ("daemon.followed", "ends that nobody saw are applied"),
    ("monitor.create.listens", "the monitor listens, nothing is built"),
    ("monitor.create.built", "the container runs, the daemon was not told"),
    ("monitor.exec.built", "a process runs in the container, the daemon was not told"),
    ("monitor.exit.drained", "the container has ended, its log is complete"),
    ("monitor.exit.recorded", "the record is there, the daemon was not told"),
    ("monitor.exit.told", "the daemon was told, the mounts and control groups are there yet"),
    ("monitor.exit.freed", "the mounts and control groups are gone"),
];

/// Passes a failpoint.
///
/// # Panics
/// In builds for development, when there is no such failpoint.
#[inline(always)]
pub fn failpoint(name: &'static str) {
    if cfg!(debug_assertions) {
        armed::pass(name);
    }
}

mod armed {
    use std::path::PathBuf;
    use std::sync::OnceLock;

    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();

    /// Whoever comes by the failpoint that the file names is killed; the file goes first, so that it
    /// happens once.
    pub(super) fn pass(name: &'static str) {
        assert!(super::ALL.iter().any(|(known, _)| *known == name), "there is no failpoint {name}");
        let file = FILE.get_or_init(|| std::env::var_os(insula_base::env::FAILPOINT).map(PathBuf::from));
        let Some(file) = file else { return };
        if std::fs::read_to_string(file).is_ok_and(|armed| armed.trim() == name)
            && std::fs::remove_file(file).is_ok()
        {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}
