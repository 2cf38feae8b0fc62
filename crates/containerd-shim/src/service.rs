//! The calls of containerd's task service.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::topics;
use containerd_shim_protos::ttrpc::{Result as RpcResult, TtrpcContext};

use crate::bundled::Bundled;
use crate::children::{Children, Exit};
use crate::error::{Error, Result};
use crate::events::Publisher;
use crate::machine::{Guest, Pod};
use crate::options::{Checkpoint, Options};
use crate::process::{Phase, State};
use crate::runtime::Runtime;
use crate::task::Task;
use crate::wall::Wall;
use crate::{lock, timestamp};

/// What containers of this shim are behind.
#[derive(Debug)]
pub(crate) enum Walls {
    Process { namespace: String, children: Arc<Children> },
    Machine(Arc<Pod>),
}

impl Walls {
    fn of(&self, request: &CreateTaskRequest, publisher: &Arc<Publisher>) -> Result<Box<dyn Wall>> {
        let options = Options::of(request.options.as_ref())?;
        let bundle = Path::new(&request.bundle);
        match self {
            Self::Process { namespace, children } => {
                let runtime = Runtime::new(children, namespace, &request.id, bundle, &options.kept)?;
                Ok(Box::new(Bundled::new(runtime, options, publisher)?))
            }
            // Options are about how the host's kernel is used, and what the runtime keeps.
            Self::Machine(_) if options != Options::default() => {
                Err(Error::Unsupported("an option of runc behind the VM wall".to_owned()))
            }
            Self::Machine(pod) => Ok(Box::new(Guest::new(&request.id, bundle, pod, publisher))),
        }
    }
}

/// All containers of one shim.
pub(crate) struct Service {
    walls: Walls,
    publisher: Arc<Publisher>,
    /// None while it is created.
    tasks: Mutex<BTreeMap<String, Option<Arc<Task>>>>,
    /// Called when the last one is gone.
    last: Box<dyn Fn() + Send + Sync>,
}

impl Service {
    pub(crate) fn new(walls: Walls, publisher: Arc<Publisher>, last: Box<dyn Fn() + Send + Sync>) -> Self {
        Self { walls, publisher, tasks: Mutex::default(), last }
    }

    fn task(&self, id: &str) -> Result<Arc<Task>> {
        lock(&self.tasks).get(id).cloned().flatten().ok_or_else(|| Error::UnknownTask(id.to_owned()))
    }

    fn create_task(&self, request: &CreateTaskRequest) -> Result<u32> {
        {
            let mut tasks = lock(&self.tasks);
            if tasks.contains_key(&request.id) {
                return Err(Error::Exists(request.id.clone()));
            }
            tasks.insert(request.id.clone(), None);
        }
        let wall = self.walls.of(request, &self.publisher);
        let task = match wall.and_then(|wall| Task::create(request, wall, &self.publisher)) {
            Ok(task) => task,
            Err(error) => {
                lock(&self.tasks).remove(&request.id);
                return Err(error);
            }
        };
        lock(&self.tasks).insert(request.id.clone(), Some(Arc::clone(&task)));
        let pid = task.init().state().pid.unsigned_abs();
        let io = events::TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..events::TaskIO::default()
        };
        let event = events::TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: Some(io).into(),
            pid,
            ..events::TaskCreate::default()
        };
        self.publisher.publish(topics::TASK_CREATE_EVENT_TOPIC, &event);
        task.init().settle();
        Ok(pid)
    }

    fn start_process(&self, request: &StartRequest) -> Result<u32> {
        let task = self.task(&request.id)?;
        let (container_id, exec_id) = (request.id.clone(), request.exec_id.clone());
        let pid = if exec_id.is_empty() {
            task.start(|pid| {
                let pid = pid.unsigned_abs();
                let event = events::TaskStart { container_id, pid, ..events::TaskStart::default() };
                self.publisher.publish(topics::TASK_START_EVENT_TOPIC, &event);
            })?
        } else {
            task.execute(&request.exec_id, |pid| {
                let pid = pid.unsigned_abs();
                let event = events::TaskExecStarted {
                    container_id,
                    exec_id,
                    pid,
                    ..events::TaskExecStarted::default()
                };
                self.publisher.publish(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &event);
            })?
        };
        Ok(pid.unsigned_abs())
    }

    fn delete_process(&self, request: &DeleteRequest) -> Result<(State, Exit)> {
        let task = self.task(&request.id)?;
        if !request.exec_id.is_empty() {
            return task.remove(&request.exec_id);
        }
        let (state, exit) = task.delete()?;
        lock(&self.tasks).remove(&request.id);
        let event = events::TaskDelete {
            container_id: request.id.clone(),
            pid: state.pid.unsigned_abs(),
            exit_status: exit.code.unsigned_abs(),
            exited_at: Some(timestamp(exit.at)).into(),
            ..events::TaskDelete::default()
        };
        self.publisher.publish(topics::TASK_DELETE_EVENT_TOPIC, &event);
        Ok((state, exit))
    }

    fn state_of(&self, request: &StateRequest) -> Result<StateResponse> {
        let task = self.task(&request.id)?;
        let process = task.process(&request.exec_id)?;
        let state = process.state();
        let status = match state.phase {
            Phase::Created => Status::CREATED,
            Phase::Stopped => Status::STOPPED,
            _ if task.is_paused() => Status::PAUSED,
            Phase::Starting if request.exec_id.is_empty() => Status::CREATED,
            Phase::Starting | Phase::Running => Status::RUNNING,
        };
        let mut response = StateResponse {
            id: request.id.clone(),
            bundle: task.bundle().display().to_string(),
            pid: state.pid.unsigned_abs(),
            status: status.into(),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exec_id: request.exec_id.clone(),
            ..StateResponse::default()
        };
        if let (Phase::Stopped, Some(exit)) = (state.phase, state.exit) {
            response.exit_status = exit.code.unsigned_abs();
            response.exited_at = Some(timestamp(exit.at)).into();
        }
        Ok(response)
    }

    fn pids_of(&self, id: &str) -> Result<Vec<ProcessInfo>> {
        let task = self.task(id)?;
        let info = |pid: i32| {
            let mut info = ProcessInfo { pid: pid.unsigned_abs(), ..ProcessInfo::default() };
            if let Some(exec_id) = task.executed_as(pid) {
                let details = ProcessDetails { exec_id, ..ProcessDetails::default() };
                let value = details
                    .write_to_bytes()
                    .map_err(|source| Error::Message { on: "write what a process is", source })?;
                let type_url = "containerd.runc.v1.ProcessDetails".to_owned();
                info.info = Some(Any { type_url, value, ..Any::default() }).into();
            }
            Ok(info)
        };
        task.processes()?.into_iter().map(info).collect()
    }

    fn freeze(&self, id: &str, frozen: bool) -> Result<()> {
        self.task(id)?.freeze(frozen)?;
        let container_id = id.to_owned();
        if frozen {
            let event = events::TaskPaused { container_id, ..events::TaskPaused::default() };
            self.publisher.publish(topics::TASK_PAUSED_EVENT_TOPIC, &event);
        } else {
            let event = events::TaskResumed { container_id, ..events::TaskResumed::default() };
            self.publisher.publish(topics::TASK_RESUMED_EVENT_TOPIC, &event);
        }
        Ok(())
    }

    fn checkpoint_task(&self, request: &CheckpointTaskRequest) -> Result<()> {
        let order = Checkpoint::of(&request.path, request.options.as_ref())?;
        self.task(&request.id)?.checkpoint(&order)?;
        let event = events::TaskCheckpointed {
            container_id: request.id.clone(),
            checkpoint: order.images.display().to_string(),
            ..events::TaskCheckpointed::default()
        };
        self.publisher.publish(topics::TASK_CHECKPOINTED_EVENT_TOPIC, &event);
        Ok(())
    }

    fn add_process(&self, request: &ExecProcessRequest) -> Result<()> {
        self.task(&request.id)?.add(request)?;
        let event = events::TaskExecAdded {
            container_id: request.id.clone(),
            exec_id: request.exec_id.clone(),
            ..events::TaskExecAdded::default()
        };
        self.publisher.publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &event);
        Ok(())
    }

    fn resize(&self, request: &ResizePtyRequest) -> Result<()> {
        let cells = |count: u32| {
            u16::try_from(count).map_err(|_| Error::Invalid(format!("{count} is too large for a terminal")))
        };
        let (columns, rows) = (cells(request.width)?, cells(request.height)?);
        self.task(&request.id)?.resize(&request.exec_id, columns, rows)
    }
}

impl containerd_shim_protos::Task for Service {
    fn state(&self, _: &TtrpcContext, request: StateRequest) -> RpcResult<StateResponse> {
        Ok(self.state_of(&request)?)
    }

    fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> RpcResult<CreateTaskResponse> {
        let pid = self.create_task(&request)?;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    fn start(&self, _: &TtrpcContext, request: StartRequest) -> RpcResult<StartResponse> {
        let pid = self.start_process(&request)?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> RpcResult<DeleteResponse> {
        let (state, exit) = self.delete_process(&request)?;
        Ok(response(state.pid, exit))
    }

    fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> RpcResult<PidsResponse> {
        Ok(PidsResponse { processes: self.pids_of(&request.id)?, ..PidsResponse::default() })
    }

    fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> RpcResult<Empty> {
        self.freeze(&request.id, true)?;
        Ok(Empty::default())
    }

    fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> RpcResult<Empty> {
        self.freeze(&request.id, false)?;
        Ok(Empty::default())
    }

    fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> RpcResult<Empty> {
        self.checkpoint_task(&request)?;
        Ok(Empty::default())
    }

    fn kill(&self, _: &TtrpcContext, request: KillRequest) -> RpcResult<Empty> {
        let signal = i32::try_from(request.signal)
            .map_err(|_| Error::Invalid(format!("unknown signal {}", request.signal)))?;
        self.task(&request.id)?.kill(&request.exec_id, signal, request.all)?;
        Ok(Empty::default())
    }

    fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> RpcResult<Empty> {
        self.add_process(&request)?;
        Ok(Empty::default())
    }

    fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> RpcResult<Empty> {
        self.resize(&request)?;
        Ok(Empty::default())
    }

    fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> RpcResult<Empty> {
        let process = self.task(&request.id)?.process(&request.exec_id)?;
        if let Some(streams) = process.streams().filter(|_| request.stdin) {
            streams.close_stdin();
        }
        Ok(Empty::default())
    }

    fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> RpcResult<Empty> {
        self.task(&request.id)?.update(&request.resources)?;
        Ok(Empty::default())
    }

    fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> RpcResult<WaitResponse> {
        let exit = self.task(&request.id)?.process(&request.exec_id)?.wait();
        Ok(WaitResponse {
            exit_status: exit.code.unsigned_abs(),
            exited_at: Some(timestamp(exit.at)).into(),
            ..WaitResponse::default()
        })
    }

    fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> RpcResult<StatsResponse> {
        let metrics = self.task(&request.id)?.metrics()?;
        Ok(StatsResponse { stats: Some(metrics).into(), ..StatsResponse::default() })
    }

    fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> RpcResult<ConnectResponse> {
        // Also asked of a shim whose task is not there yet.
        let task_pid = self.task(&request.id).map_or(0, |task| task.init().state().pid.unsigned_abs());
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ConnectResponse::default()
        })
    }

    fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> RpcResult<Empty> {
        // Other containers of the pod go on.
        if lock(&self.tasks).is_empty() {
            (self.last)();
        }
        Ok(Empty::default())
    }
}

pub(crate) fn response(pid: i32, exit: Exit) -> DeleteResponse {
    DeleteResponse {
        pid: pid.unsigned_abs(),
        exit_status: exit.code.unsigned_abs(),
        exited_at: Some(timestamp(exit.at)).into(),
        ..DeleteResponse::default()
    }
}
