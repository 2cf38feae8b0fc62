//! Named folders that outlive containers.
//!
//! ```text
//! <root>/volumes/<name>/_data        what is mounted; owned by ids inside containers
//! <root>/volumes/.removed-<digits>   on its way out; swept at open
//! ```
//! The row is written before the folder is made, and the folder is made again wherever it is
//! missing, so that a crash in between leaves nothing half made.

use insula_sys::failpoint::failpoint;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use insula_models::{
    Labels, Volume, VolumeCreateRequest, VolumeListResponse, VolumeUsage, VolumesPruneResponse,
};
use insula_store::{Collection, Error as StoreError, Record, Store, Transaction};
use jiff::Timestamp;

use crate::containers::copyup::take_back;
use crate::events::{EventType, Events};
use crate::filters::{Filters, check_names, has_label, one_bool};
use crate::{Error, Result, blocking};

/// Label of volumes that nobody named, which prune removes.
pub const ANONYMOUS: &str = "com.docker.volume.anonymous";
const DRIVER: &str = "local";
const DATA: &str = "_data";
const REMOVED: &str = ".removed-";

/// The volumes of one engine.
#[derive(Debug, Clone)]
pub struct Volumes {
    store: Arc<Store>,
    events: Arc<Events>,
}

/// Which containers, by id, use which volume, by name.
pub type Users = BTreeMap<String, Vec<String>>;

impl Volumes {
    /// Those of `store`; sweeps what a removal left.
    pub fn open(store: Arc<Store>, events: Arc<Events>) -> Result<Self> {
        let folder = store.volumes_dir();
        make_folder(&folder)?;
        for entry in fs::read_dir(&folder).map_err(|e| Error::io("readdir", &folder, e))? {
            let entry = entry.map_err(|e| Error::io("readdir", &folder, e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(name) = name.strip_prefix(REMOVED) {
                let records = store.state().records(Collection::Volumes);
                if !folder.join(name).exists() && records.get(name)?.is_some() {
                    records.remove(name)?;
                }
                remove_tree(&entry.path())?;
            }
        }
        let volumes = Self { store, events };
        // One whose create was cut off is empty; one whose removal was is as it would be then.
        for volume in volumes.all()? {
            let data = volumes.data(&volume.name)?;
            make_data(&data)?;
            take_back(&data)?;
        }
        Ok(volumes)
    }

    /// Makes a volume that nobody named, with the name that was chosen for it.
    pub(crate) fn create_anonymous(&self, name: &str, mut labels: Labels) -> Result<Volume> {
        labels.insert(ANONYMOUS.to_owned(), String::new());
        self.create(VolumeCreateRequest { name: name.to_owned(), labels, ..VolumeCreateRequest::default() })
    }

    /// Makes a volume, or returns the one of this name. Without a name it gets 64 random digits.
    pub fn create(&self, request: VolumeCreateRequest) -> Result<Volume> {
        check(&request)?;
        let VolumeCreateRequest { mut name, mut labels, driver_opts, .. } = request;
        if name.is_empty() {
            name = insula_base::random_hex(32);
            labels.insert(ANONYMOUS.to_owned(), String::new());
        }
        let data = self.data(&name)?;
        if let Some(volume) = self.find(&name)? {
            make_data(&data)?;
            return Ok(volume);
        }
        let request = VolumeCreateRequest { name: name.clone(), labels, driver_opts, ..Default::default() };
        let volume = new(request, &data);
        let record = record(&volume)?;
        match self.store.state().records(Collection::Volumes).insert(&record) {
            // Somebody else was faster, which is as good.
            Err(StoreError::IdTaken { .. } | StoreError::NameTaken { .. }) => {}
            result => result?,
        }
        failpoint("volume.row");
        make_data(&data)?;
        self.publish("create", &name);
        Ok(volume)
    }

    /// Makes a volume that has content from the beginning: `fill` is called with its folder. There must be none
    /// of this name. What a crash leaves of the folder is swept at open; `note` is in one commit with the row.
    pub(crate) fn restore(
        &self,
        name: &str,
        labels: Labels,
        fill: impl FnOnce(&Path) -> Result<()>,
        note: impl FnOnce(&Transaction<'_>) -> Result<()>,
    ) -> Result<()> {
        let request = VolumeCreateRequest { name: name.to_owned(), labels, ..VolumeCreateRequest::default() };
        check(&request)?;
        let data = self.data(name)?;
        let staged = self.store.volumes_dir().join(format!("{REMOVED}{}", insula_base::random_hex(8)));
        let made = make_data(&staged.join(DATA)).and_then(|()| fill(&staged.join(DATA))).and_then(|()| {
            let record = record(&new(request, &data))?;
            let inserted = self.store.state().transaction(|tx| {
                tx.records(Collection::Volumes).insert(&record)?;
                note(tx)
            });
            match inserted {
                Err(Error::Store(StoreError::IdTaken { .. } | StoreError::NameTaken { .. })) => {
                    return Err(Error::Conflict(format!("a volume {name} is there already")));
                }
                result => result?,
            }
            let folder = data.parent().unwrap_or(&data);
            // Before the row nobody knew it.
            remove_tree(folder)?;
            fs::rename(&staged, folder).map_err(|e| Error::io("rename", folder, e))
        });
        if made.is_err() {
            remove_tree(&staged)?;
        }
        made?;
        self.publish("create", name);
        Ok(())
    }

    /// The volume of this name.
    pub fn inspect(&self, name: &str) -> Result<Volume> {
        self.find(name)?.ok_or_else(|| Error::NotFound(format!("get {name}: no such volume")))
    }

    /// The folder of the host that a volume stands for; `None` of one that has its own, or that there is not.
    pub(crate) fn folder(&self, name: &str) -> Result<Option<PathBuf>> {
        // One without a name is made later.
        let found = if name.is_empty() { None } else { self.find(name)? };
        found.map_or(Ok(None), |volume| device(&volume.name, &volume.options))
    }

    /// The volumes that pass the filters, by name.
    pub fn list(&self, filters: &Filters, users: &Users) -> Result<VolumeListResponse> {
        check_names(filters, &["dangling", "driver", "label", "name"])?;
        let dangling = one_bool(filters, "dangling")?;
        let values = |name: &str| filters.get(name).map_or(&[][..], Vec::as_slice);
        let any = |wanted: &[String], holds: &dyn Fn(&String) -> bool| {
            wanted.is_empty() || wanted.iter().any(holds)
        };
        let mut volumes = self.all()?;
        volumes.retain(|volume| {
            dangling.is_none_or(|dangling| dangling != users.contains_key(&volume.name))
                && any(values("driver"), &|driver| *driver == volume.driver)
                && any(values("name"), &|part| volume.name.contains(part.as_str()))
                && values("label").iter().all(|label| has_label(&volume.labels, label))
        });
        Ok(VolumeListResponse { volumes, warnings: Vec::new() })
    }

    /// Removes a volume that no container uses. With `force` one that is not there is no error.
    pub async fn remove(&self, name: &str, force: bool, users: &Users) -> Result<()> {
        if self.find(name)?.is_none() {
            return if force { Ok(()) } else { Err(Error::NotFound(format!("get {name}: no such volume"))) };
        }
        if let Some(users) = users.get(name) {
            return Err(Error::Conflict(format!("remove {name}: volume is in use - [{}]", users.join(", "))));
        }
        let (this, name) = (self.clone(), name.to_owned());
        blocking(move || this.discard(&name)).await
    }

    /// Removes the volumes that no container uses: those that nobody named, or all with `all=true`.
    pub async fn prune(&self, filters: Filters, users: Users) -> Result<VolumesPruneResponse> {
        check_names(&filters, &["all", "label", "label!"])?;
        let all = one_bool(&filters, "all")?.unwrap_or(false);
        let values = |name: &str| filters.get(name).cloned().unwrap_or_default();
        let (with, without) = (values("label"), values("label!"));
        let mut unused = self.all()?;
        unused.retain(|volume| {
            !users.contains_key(&volume.name)
                && (all || volume.labels.contains_key(ANONYMOUS))
                && with.iter().all(|label| has_label(&volume.labels, label))
                && !without.iter().any(|label| has_label(&volume.labels, label))
        });
        let this = self.clone();
        blocking(move || {
            let mut answer = VolumesPruneResponse::default();
            for volume in unused {
                answer.space_reclaimed += disk_use(Path::new(&volume.mountpoint))?;
                this.discard(&volume.name)?;
                answer.volumes_deleted.push(volume.name);
            }
            this.events.pruned(EventType::Volume, answer.space_reclaimed);
            Ok(answer)
        })
        .await
    }

    /// Every volume with what it takes and how many use it.
    pub async fn usage(&self, users: Users) -> Result<Vec<Volume>> {
        let mut volumes = self.all()?;
        blocking(move || {
            for volume in &mut volumes {
                let size = disk_use(Path::new(&volume.mountpoint))?;
                volume.usage_data = Some(VolumeUsage {
                    ref_count: users
                        .get(&volume.name)
                        .map_or(0, |users| i64::try_from(users.len()).unwrap_or(i64::MAX)),
                    size: i64::try_from(size).unwrap_or(i64::MAX),
                });
            }
            Ok(volumes)
        })
        .await
    }

    /// Tells listeners that a container got or lost the volume: `mount`, `unmount`.
    pub fn publish_mount(&self, action: &str, name: &str, container: &str, attributes: Labels) {
        let mut attributes = attributes;
        attributes.insert("driver".to_owned(), DRIVER.to_owned());
        attributes.insert("container".to_owned(), container.to_owned());
        self.events.publish(EventType::Volume, action, name, attributes);
    }

    /// Names of all that have a row.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        Ok(self.all()?.into_iter().map(|volume| volume.name).collect())
    }

    /// Names of all that have a folder, those on their way out aside.
    pub(crate) fn folders(&self) -> Result<Vec<String>> {
        let folder = self.store.volumes_dir();
        let entries = fs::read_dir(&folder).map_err(|e| Error::io("readdir", &folder, e))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter(|name| self.data(name).is_ok_and(|data| data.is_dir())).collect())
    }

    /// Makes the row or the folder of a volume of which one is gone; what there is stays as it is.
    pub(crate) fn adopt(&self, name: &str) -> Result<()> {
        let request = VolumeCreateRequest { name: name.to_owned(), ..VolumeCreateRequest::default() };
        self.create(request).map(drop)
    }

    fn all(&self) -> Result<Vec<Volume>> {
        let records = self.store.state().records(Collection::Volumes).all()?;
        let mut volumes: Vec<Volume> = records.iter().map(read).collect::<Result<_>>()?;
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    fn find(&self, name: &str) -> Result<Option<Volume>> {
        self.store.state().records(Collection::Volumes).get(name)?.as_ref().map(read).transpose()
    }

    fn data(&self, name: &str) -> Result<PathBuf> {
        self.store.volume_data(name).map_err(|_| {
            Error::InvalidArgument(format!(
                "{name:?} includes invalid characters for a local volume name, only \
                 \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, \
                 use absolute path"
            ))
        })
    }

    /// The folder vanishes by a rename, then the row, then the bytes.
    pub(crate) fn discard(&self, name: &str) -> Result<()> {
        let folder = self.store.volumes_dir().join(name);
        let removed = self.store.volumes_dir().join(format!("{REMOVED}{name}"));
        if removed.exists() {
            remove_tree(&removed)?;
        }
        // From here on it is gone: whoever finds the renamed folder goes on.
        match fs::rename(&folder, &removed) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("rename", &folder, error)),
        }
        failpoint("volume.renamed");
        self.store.state().records(Collection::Volumes).remove(name)?;
        failpoint("volume.forgotten");
        self.publish("destroy", name);
        remove_tree(&removed)
    }

    fn publish(&self, action: &str, name: &str) {
        let attributes = Labels::from([("driver".to_owned(), DRIVER.to_owned())]);
        self.events.publish(EventType::Volume, action, name, attributes);
    }
}

fn check(request: &VolumeCreateRequest) -> Result<()> {
    if !matches!(request.driver.as_str(), "" | DRIVER) {
        return Err(Error::NotFound(format!(
            "create {}: driver {:?}: plugin not found: only the driver \"local\" is built in",
            request.name, request.driver
        )));
    }
    if request.cluster_volume_spec.is_some() {
        return Err(Error::Unsupported(
            "ClusterVolumeSpec of volumes belongs to swarm mode, which there is not".to_owned(),
        ));
    }
    device(&request.name, &request.driver_opts)?;
    if request.name.len() == 1 {
        return Err(Error::InvalidArgument(
            "volume name is too short, names should be at least two alphanumeric characters".to_owned(),
        ));
    }
    Ok(())
}

/// What the options of Docker's driver `local` name: with `type=none,o=bind,device=/FOLDER` a folder of the host.
fn device(name: &str, options: &Labels) -> Result<Option<PathBuf>> {
    if options.is_empty() {
        return Ok(None);
    }
    let not = |what: String| {
        Error::Unsupported(format!(
            "create {name}: {what} of the driver \"local\" is not available in this version: type=none with o=bind \
             and device=/FOLDER is"
        ))
    };
    if let Some(option) = options.keys().find(|option| !["type", "o", "device"].contains(&option.as_str())) {
        return Err(not(format!("option {option:?}")));
    }
    let option = |name: &str| options.get(name).map_or("", String::as_str);
    if let Some(missing) = ["device", "type"].into_iter().find(|name| option(name).is_empty()) {
        return Err(Error::InvalidArgument(format!("create {name}: missing required option: {missing:?}")));
    }
    if !matches!(option("type"), "none" | "bind") {
        return Err(not(format!("type {:?}", option("type"))));
    }
    let words = || option("o").split(',').map(str::trim).filter(|word| !word.is_empty());
    if let Some(word) = words().find(|word| !matches!(*word, "bind" | "rbind" | "rw")) {
        return Err(not(format!("o={word:?}")));
    }
    if !words().any(|word| word.ends_with("bind")) {
        return Err(not(format!("type {:?} without o=bind", option("type"))));
    }
    let folder = PathBuf::from(option("device"));
    let plain = folder.is_absolute() && !folder.components().any(|part| part == Component::ParentDir);
    if !plain || option("device").contains('\0') {
        let device = option("device");
        return Err(Error::InvalidArgument(format!("create {name}: device {device:?} is no absolute path")));
    }
    Ok(Some(folder))
}

fn new(request: VolumeCreateRequest, data: &Path) -> Volume {
    Volume {
        created_at: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        driver: DRIVER.to_owned(),
        labels: request.labels,
        options: request.driver_opts,
        mountpoint: data.to_string_lossy().into_owned(),
        name: request.name,
        scope: "local".to_owned(),
        ..Volume::default()
    }
}

fn record(volume: &Volume) -> Result<Record> {
    let name = volume.name.clone();
    let doc = serde_json::to_vec(volume).map_err(|e| Error::Internal(format!("write volume {name}: {e}")))?;
    Ok(Record { id: name.clone(), name: Some(name), doc })
}

fn read(record: &Record) -> Result<Volume> {
    serde_json::from_slice(&record.doc)
        .map_err(|error| Error::Internal(format!("the row of volume {} is damaged: {error}", record.id)))
}

fn make_folder(path: &Path) -> Result<()> {
    // Containers reach the data by mounts. Others must not: ids in there are those inside.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| Error::io("mkdir", path, e))
}

fn make_data(path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    match fs::create_dir(path) {
        // Whatever the umask: the mode is what containers see.
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .map_err(|e| Error::io("chmod", path, e)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::io("mkdir", path, error)),
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Bytes of the files below `path`, holes left out and a file with several names counted once. Folders do not
/// count, as in Docker: an untouched container takes nothing.
pub(crate) fn disk_use(path: &Path) -> Result<u64> {
    let mut total = 0;
    let mut linked = std::collections::BTreeSet::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // What is in use changes while it is counted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("readdir", &folder, error)),
        };
        for entry in entries {
            let Ok(entry) = entry else { break };
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.nlink() < 2 || linked.insert((meta.dev(), meta.ino())) {
                total += meta.len().min(meta.blocks() * 512);
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes() -> (tempfile::TempDir, Volumes) {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(folder.path()).unwrap());
        (folder, Volumes::open(store, Arc::new(Events::default())).unwrap())
    }

    fn request(name: &str) -> VolumeCreateRequest {
        VolumeCreateRequest { name: name.to_owned(), ..VolumeCreateRequest::default() }
    }

    fn names(volumes: &Volumes, filters: &[(&str, &str)], users: &Users) -> Vec<String> {
        let filters = filters.iter().map(|(k, v)| ((*k).to_owned(), vec![(*v).to_owned()])).collect();
        volumes.list(&filters, users).unwrap().volumes.into_iter().map(|volume| volume.name).collect()
    }

    #[tokio::test]
    async fn a_volume_lives_until_it_is_removed() {
        let (_folder, volumes) = volumes();
        let made = volumes.create(request("data")).unwrap();
        assert!(Path::new(&made.mountpoint).is_dir());
        assert_eq!(volumes.create(request("data")).unwrap(), made);
        assert_eq!(volumes.inspect("data").unwrap(), made);
        let users = Users::from([("data".to_owned(), vec!["c1".to_owned()])]);
        let error = volumes.remove("data", true, &users).await.unwrap_err();
        assert_eq!(error.to_string(), "remove data: volume is in use - [c1]");
        volumes.remove("data", false, &Users::new()).await.unwrap();
        assert!(!Path::new(&made.mountpoint).exists());
        assert_eq!(fs::read_dir(volumes.store.volumes_dir()).unwrap().count(), 0);
        let error = volumes.remove("data", false, &Users::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "get data: no such volume");
        volumes.remove("data", true, &Users::new()).await.unwrap();
    }

    #[tokio::test]
    async fn prune_takes_what_nobody_named_or_uses() {
        let (_folder, volumes) = volumes();
        volumes.create(request("named")).unwrap();
        let used = volumes.create(request("")).unwrap().name;
        let unused = volumes.create(request("")).unwrap();
        fs::write(Path::new(&unused.mountpoint).join("f"), vec![1; 10_000]).unwrap();
        assert_eq!(used.len(), 64);
        let users = Users::from([(used.clone(), vec!["c1".to_owned()])]);
        let pruned = volumes.prune(Filters::new(), users.clone()).await.unwrap();
        assert_eq!(pruned.volumes_deleted, [unused.name]);
        assert!(pruned.space_reclaimed >= 10_000);
        let all = Filters::from([("all".to_owned(), vec!["true".to_owned()])]);
        assert_eq!(volumes.prune(all, users.clone()).await.unwrap().volumes_deleted, ["named"]);
        assert_eq!(names(&volumes, &[], &users), [used]);
    }

    #[test]
    fn lists_are_filtered() {
        let (_folder, volumes) = volumes();
        let labels = Labels::from([("tier".to_owned(), "db".to_owned())]);
        volumes.create(VolumeCreateRequest { labels, ..request("blue") }).unwrap();
        volumes.create(request("blueish")).unwrap();
        let users = Users::from([("blue".to_owned(), vec!["c1".to_owned()])]);
        assert_eq!(names(&volumes, &[("name", "blue")], &users), ["blue", "blueish"]);
        assert_eq!(names(&volumes, &[("label", "tier=db")], &users), ["blue"]);
        assert_eq!(names(&volumes, &[("dangling", "true")], &users), ["blueish"]);
        assert!(volumes.list(&Filters::from([("size".to_owned(), Vec::new())]), &users).is_err());
    }

    #[test]
    fn options_may_name_a_folder_of_the_host() {
        let (_folder, volumes) = volumes();
        let of = |text: &str| -> Labels {
            let pairs = text.split_whitespace().filter_map(|word| word.split_once('='));
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        let driver_opts = of("type=none o=bind,rw device=/srv/data");
        let made = volumes
            .create(VolumeCreateRequest { driver_opts: driver_opts.clone(), ..request("data") })
            .unwrap();
        assert_eq!((made.options, made.mountpoint.ends_with("/data/_data")), (driver_opts, true));
        assert_eq!(volumes.folder("data").unwrap(), Some("/srv/data".into()));
        volumes.create(request("plain")).unwrap();
        for none in ["plain", "nobody", ""] {
            assert_eq!(volumes.folder(none).unwrap(), None, "{none}");
        }
        for (text, word) in [
            ("type=none o=bind", "missing required option: \"device\""),
            ("o=bind device=/srv", "missing required option: \"type\""),
            ("type=tmpfs device=tmpfs", "type \"tmpfs\""),
            ("type=nfs o=addr=10.0.0.1 device=:/x", "type \"nfs\""),
            ("type=none device=/srv", "without o=bind"),
            ("type=none o=bind,ro device=/srv", "o=\"ro\""),
            ("type=none o=bind device=srv", "no absolute path"),
            ("type=none o=bind device=/srv/../etc", "no absolute path"),
            ("type=none o=bind device=/srv size=1g", "option \"size\""),
        ] {
            let error = device("data", &of(text)).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn bad_requests_make_nothing() {
        let (_folder, volumes) = volumes();
        for name in ["../x", "a/b", ".x", "x", "-a"] {
            assert!(volumes.create(request(name)).is_err(), "{name}");
        }
        assert!(volumes.create(VolumeCreateRequest { driver: "nfs".to_owned(), ..request("ok") }).is_err());
        let driver_opts = Labels::from([("type".to_owned(), "nfs".to_owned())]);
        assert!(volumes.create(VolumeCreateRequest { driver_opts, ..request("ok") }).is_err());
        assert_eq!(fs::read_dir(volumes.store.volumes_dir()).unwrap().count(), 0);
    }
}
