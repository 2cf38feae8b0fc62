//! Start: intent, the endpoint, the monitor, confirmation.

use insula_sys::failpoint::failpoint;
use std::sync::{Arc, Weak};

use insula_base::{Kind, Lap, Laps};
use insula_proto::{Call, Create, Outcome, Started};
use insula_spec::machine::MachinePlan;
use jiff::Timestamp;

use super::container::{Container, Uptime};
use super::row::{Failure, Phase, Row};
use super::{Change, mounts};
use crate::measures::Operation;
use crate::monitor::{Asked, Connection, LaunchRecord, Patience, SandboxFolder, Task, end_monitor};
use crate::plan::{self, Inputs, Joined};
use crate::{Engine, Error, Result, blocking, descriptors, machines, tenants};

/// What a container has that is on another kernel.
#[derive(Debug, Default)]
struct MachineOf {
    plan: Option<MachinePlan>,
    /// Descriptors of its template.
    copy: Option<[std::os::fd::OwnedFd; 2]>,
    /// The template that it is a copy of, or would have been.
    wanted: Option<machines::Wanted>,
    /// The image that is to be made.
    image: Option<machines::WantedImage>,
    /// Its tenant's machine does not end as long as this is there.
    lease: Option<tenants::Lease>,
}

impl Engine {
    pub async fn start_container(&self, reference: &str) -> Result<Change> {
        self.start_container_timed(reference, &mut Laps::begin()).await
    }

    /// The same; says also what the time goes into.
    pub async fn start_container_timed(&self, reference: &str, laps: &mut Laps) -> Result<Change> {
        let container = self.find(reference)?;
        let _turn = container.turn.lock().await;
        if !container.row().running() {
            // Its policy counts anew.
            container.amend(|row| row.restarts = 0);
        }
        laps.lap("turn");
        self.start(&container, laps).await
    }

    /// For who has the container's turn.
    pub(super) async fn start(&self, container: &Arc<Container>, laps: &mut Laps) -> Result<Change> {
        self.events().measures().of(Operation::Start, self.start_in_turn(container, laps)).await
    }

    async fn start_in_turn(&self, container: &Arc<Container>, laps: &mut Laps) -> Result<Change> {
        let before = container.row();
        match &before.phase {
            Phase::Running { .. } if container.state().paused => {
                return Err(Error::Conflict(
                    "cannot start a paused container, try unpause instead".to_owned(),
                ));
            }
            Phase::Running { .. } => return Ok(Change::Nothing),
            Phase::Created | Phase::Starting | Phase::Exited { .. } if !container.state().goes => {}
            _ => {
                return Err(Error::Conflict(
                    "container is marked for removal and cannot be started".to_owned(),
                ));
            }
        }
        container.cancel_restart();
        container.put_down().await;
        let row = container.change(self.store(), |row| {
            row.phase = Phase::Starting;
            row.stopped = false;
            row.again = false;
            row.failure = None;
            row.health = None;
            row.boot.clone_from(&self.0.boot);
        })?;
        failpoint("start.intent");
        laps.lap("intent");
        match self.launch(container, &row, laps).await {
            Ok(()) => Ok(Change::Done),
            Err(error) => {
                self.take_back(container, &before, &error).await;
                if before.host.auto_remove {
                    self.remove_now(container, true).await?;
                }
                Err(error)
            }
        }
    }

    async fn launch(&self, container: &Arc<Container>, row: &Row, laps: &mut Laps) -> Result<()> {
        descriptors::leave_room()?;
        self.0.config.policy.check_again(&row.mounts)?;
        if !row.host.binds.is_empty() {
            // They may be on a file system that does not answer.
            let (host, mounts) = (row.host.clone(), row.mounts.clone());
            blocking(move || mounts::make_sources_again(&host, &mounts)).await?;
        }
        self.open_sites(row).await?;
        if self.0.spares.is_unsettled(&row.id) {
            let (spares, id) = (self.0.spares.clone(), row.id.clone());
            blocking(move || {
                spares.settle(&id);
                Ok(())
            })
            .await?;
        }
        let spare = self.0.spares.take(&row.id)?;
        let joined = self.joined(row)?;
        let endpoint = self.networks().prepare(&self.endpoint_request(row)?)?;
        failpoint("start.endpoint");
        laps.lap("endpoint");
        let cgroup = format!("{}/{}", self.instance().cgroup(), row.id);
        let sandbox = self.sandbox(row);
        sandbox.prepare(&LaunchRecord { monitor: spare.process, cgroup: cgroup.clone() })?;
        failpoint("start.launch");
        let names = self.write_names(row, &endpoint, &sandbox)?;
        failpoint("start.names");
        laps.lap("names");
        let folder = self.writable_dir(&row.id).await?;
        let MachineOf { plan: machine, copy, wanted, image, lease } =
            self.machine(row, &sandbox, endpoint.interfaces().len()).await?;
        let mut plan = plan::build(Inputs {
            row,
            folder: &folder,
            names: &names,
            cgroup,
            interfaces: endpoint.interfaces(),
            resolver: endpoint.named(),
            joined,
            volumes: &self.store().volumes_dir(),
            points: &self.store().points(),
            machine,
        })?;
        plan.process.env.extend(container.state().secrets.iter().cloned());
        let (attachments, mut descriptors): (_, Vec<_>) =
            std::mem::take(&mut container.state().attachments).into_iter().unzip();
        let template = copy.is_some();
        descriptors.extend(copy.into_iter().flatten());
        let call = Create {
            plan: serde_json::to_vec(&plan).map_err(|e| Error::Internal(format!("write a plan: {e}")))?,
            folder: sandbox.path().to_string_lossy().into_owned(),
            attachments,
            start: true,
            template,
        };
        let mut connection = Connection::new(spare.socket)?;
        laps.lap("plan");
        let asked = Asked::new(&row.name, Some(spare.process));
        match asked.within(Patience::START, connection.call(Call::Create(call), &descriptors)).await?? {
            Outcome::Started(mut started) => {
                let inside = std::mem::take(&mut started.laps).into_iter().map(Lap::from);
                laps.nest(inside, "monitor");
                self.confirm(container, (connection, asked), started)?;
                laps.lap("confirmed");
                drop(lease);
                self.announce_sites(row).await;
                if let Some(wanted) = wanted {
                    // Of one that has ended already nothing is known.
                    let refused = sandbox.machine().is_some_and(|machine| machine.refused);
                    self.after_machine(wanted, refused).await;
                }
                if let Some(wanted) = image {
                    self.make_image_soon(wanted);
                }
                Ok(())
            }
            other => Err(Error::Internal(format!("the monitor answered a start with {other:?}"))),
        }
    }

    /// The machine of a container that has a kernel of its own, with what its template consists of, or the
    /// template that it would have used.
    async fn machine(&self, row: &Row, sandbox: &SandboxFolder, interfaces: usize) -> Result<MachineOf> {
        if !machines::wanted(&row.host.isolation) {
            return Ok(MachineOf::default());
        }
        if let Some(tenant) = tenants::of(&row.host.isolation) {
            let (plan, lease) = self.tenant_machine(tenant, row, sandbox.path().to_owned()).await?;
            return Ok(MachineOf { plan: Some(plan), lease: Some(lease), ..MachineOf::default() });
        }
        let (engine, row, folder) = (self.clone(), row.clone(), sandbox.path().to_owned());
        blocking(move || {
            let machines = &engine.0.machines;
            let mut plan = machines.plan(&row, &folder)?;
            let mut wanted = machines::Wanted::by_container(&plan, row.host.privileged, interfaces)?;
            // The kernel's digests are of the layers' files.
            let image = match engine.store().layers().verifies_files() {
                true => None,
                false => machines.use_image(&mut plan, &row)?,
            };
            let copy = machines.use_template(&mut plan, &mut wanted);
            Ok(MachineOf { plan: Some(plan), copy, wanted: Some(wanted), image, lease: None })
        })
        .await
    }

    /// Has the template made that the next machine can be a copy of, where there is none.
    async fn after_machine(&self, wanted: machines::Wanted, refused: bool) {
        let engine = self.clone();
        let next = blocking(move || Ok(engine.0.machines.next_template(wanted, refused))).await;
        match next {
            Ok(Some(wanted)) => self.make_template_soon(wanted),
            Ok(None) => {}
            Err(error) => tracing::warn!(error = insula_base::chain(&error), "no template is made"),
        }
    }

    fn confirm(
        &self,
        container: &Arc<Container>,
        connection: (Connection, Asked),
        started: Started,
    ) -> Result<()> {
        failpoint("start.answered");
        for warning in &started.warnings {
            tracing::warn!(container = container.id.short(), warning, "start");
        }
        let row = container.change(self.store(), |row| {
            row.phase = Phase::Running { pid: started.pid };
            row.started = Some(moment(started.at));
        })?;
        failpoint("start.confirmed");
        self.publish_connections(&row, "connect")?;
        {
            let mut state = container.state();
            (state.oom, state.killed) = (false, false);
        }
        self.adopt(container, connection, false);
        self.begin_health(container);
        self.publish(&row, "start", &[]);
        self.0.refill();
        Ok(())
    }

    /// Listens to a monitor from now on.
    pub(crate) fn adopt(
        &self,
        container: &Arc<Container>,
        (connection, asked): (Connection, Asked),
        paused: bool,
    ) {
        let (task, events) = Task::new(connection, asked);
        let task = Self::runs(container, task, paused);
        self.serve_names(container);
        super::life::watch(Arc::downgrade(&self.0), container.clone(), task, events);
    }

    /// What memory has of a container that runs.
    pub(super) fn runs(container: &Container, task: Task, paused: bool) -> Weak<Task> {
        let task = Arc::new(task);
        let known = Arc::downgrade(&task);
        {
            let mut state = container.state();
            state.task = Some(task);
            state.paused = paused;
            state.uptime = Some(Uptime::of(state.row().started));
        }
        container.tell(|progress| progress.running = true);
        known
    }

    /// What a failed start leaves: as it was before, with the reason.
    async fn take_back(&self, container: &Container, before: &Row, error: &Error) {
        let message = insula_base::chain(error);
        let code = match error {
            Error::Wall { exit_code: Some(code), .. } => *code,
            _ => 128,
        };
        container.state().attachments.clear();
        if matches!(error, Error::Wall { kind: Kind::Unavailable, .. } | Error::Silent(_)) {
            // The monitor died midway, or dies now: nobody else takes away what it had built.
            let cgroup = format!("{}/{}", self.instance().cgroup(), before.id);
            let sandbox = self.sandbox(before);
            end_monitor(container.id.short(), &sandbox).await;
            super::leftovers::kill(&sandbox, &cgroup);
        }
        let freed = self.networks().release(&container.id).map_err(Error::from);
        if let Err(error) = freed.and_then(|()| self.sandbox(before).remove()) {
            // The next start takes it away, or the next daemon.
            let error = insula_base::chain(&error);
            tracing::error!(container = container.id.short(), error, "what a failed start left");
        }
        let as_before = |row: &mut Row| {
            row.phase = match &before.phase {
                Phase::Exited { .. } => before.phase.clone(),
                _ => Phase::Created,
            };
            row.failure = Some(Failure { code, error: message.clone() });
        };
        if let Err(error) = container.change(self.store(), as_before) {
            let error = insula_base::chain(&error);
            tracing::error!(container = container.id.short(), error, "a failed start is not written");
            // What nobody starts any more must not look as if somebody did.
            container.amend(as_before);
        }
        container.tell(|progress| progress.code = code);
    }

    pub(crate) fn sandbox(&self, row: &Row) -> SandboxFolder {
        SandboxFolder::new(self.instance().sandbox(&row.id))
    }

    /// Whose namespaces it shares; they have to run.
    fn joined(&self, row: &Row) -> Result<Joined> {
        let mut joined = Joined::default();
        let mut ids = Vec::new();
        for (mode, slot) in
            [(&row.host.pid_mode, &mut joined.pid), (&row.host.network_mode, &mut joined.network)]
        {
            let Some(reference) = mode.strip_prefix("container:") else { continue };
            let other = self.find(reference)?;
            if other.id == row.id {
                return Err(Error::Conflict(format!("container {} cannot share its own namespaces", row.id)));
            }
            let row = other.row();
            let pid = row.pid().ok_or_else(|| {
                Error::Conflict(format!("cannot join namespaces of a non running container: {}", row.id))
            })?;
            *slot = Some(pid);
            ids.push(self.ids_of(&row));
        }
        if ids.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(Error::Conflict(
                "conflicting options: the containers whose namespaces are to be shared have different user \
                 namespaces"
                    .to_owned(),
            ));
        }
        joined.ids = ids.into_iter().next().flatten();
        Ok(joined)
    }

    /// The range that it runs with: its own or that of whom it joins.
    pub(crate) fn ids_of(&self, row: &Row) -> Option<super::row::IdRange> {
        let mut row = Arc::new(row.clone());
        // Chains are as long as people make them; loops cannot have started.
        for _ in 0..16 {
            let shared = [&row.host.network_mode, &row.host.pid_mode];
            let Some(reference) = shared.into_iter().find_map(|mode| mode.strip_prefix("container:")) else {
                return row.ids;
            };
            row = self.find(reference).ok()?.row();
        }
        None
    }
}

/// A monitor's time.
pub(super) fn moment(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default()
}

/// For those who ask a monitor that ends meanwhile.
pub(crate) fn not_running(error: Error, id: &insula_base::ContainerId) -> Error {
    match error {
        Error::Wall { kind: Kind::Unavailable, .. } => {
            Error::Conflict(format!("container {id} is not running"))
        }
        error => error,
    }
}
