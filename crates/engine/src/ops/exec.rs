//! Exec ops: one process in a sandbox over an overlay of its root.

use super::agent::Agent;
use super::{file, output, select};
use crate::event::EventKind;
use crate::network::Attached;
use crate::request::Resources;
use crate::snapshot::WritableRoot;
use crate::worker::{BuildWorker, Output};
use crate::{EngineError, StepFailure};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use xbuild_cache::tree::View;
use xbuild_cache::{FileLock, NewTree, Staging, TreeId};
use xbuild_graph::{CacheSharing, ExecOp, Mount, MountKind, Platform, SecurityMode};
use xbuild_runner::rootless::has_one_id;
use xbuild_runner::{
    CgroupSpec, End, MountSource, MountSpec, Outcome, Rlimit, Running, SandboxError, Security, Spec, Stdio, users,
};
use xbuild_solver::Task;

/// Largest `/etc/passwd` and `/etc/group` of an image.
pub(crate) const USERS_MAX: u64 = 10 << 20;

/// Everything that must live as long as the process.
struct Prepared {
    root: WritableRoot,
    staging: Staging,
    parent: TreeId,
    mounts: Vec<MountSpec>,
    /// Locks of cache mounts, and scratch directories.
    _held: Vec<Held>,
    lower: Vec<PathBuf>,
}

#[allow(dead_code, reason = "held for its drop")]
enum Held {
    Lock(FileLock),
    Scratch(Staging),
    Agent(Agent),
}

/// Runs the process; what it leaves in its root is one layer.
pub(crate) fn run(worker: &BuildWorker, op: &ExecOp, task: &Task<'_, Output>) -> Result<Output, EngineError> {
    if let Some(why) = &worker.no_sandbox {
        return Err(EngineError::Source(why.clone()));
    }
    // Made by another thread, while this one starts the helper and looks for files.
    let wanted = worker.networks.want(op.network);
    worker.launcher.warm_up()?;
    let prepared = prepare(worker, op, task)?;
    let network = worker.networks.attach(wanted);
    for text in worker.networks.shortfall().into_iter().chain(worker.snapshots.shortfall()) {
        let short = text.clone();
        worker.events.send(worker.step(task.vertex), EventKind::Warning { text, short });
    }
    let spec = spec(worker, op, &prepared, &network)?;
    let end = execute(worker, op, &spec, task)?;
    drop(network);
    if task.cancel.is_set() {
        return Err(EngineError::Cancelled);
    }
    if let Some(why) = end {
        let command = op.args.join(" ");
        return Err(EngineError::Process(StepFailure { command, why }));
    }
    let Prepared { root, staging, parent, lower, .. } = prepared;
    let writable = op.mounts.first().is_some_and(|m| m.output.is_some());
    if !writable {
        return Ok(Output::Tree(parent));
    }
    root.finish(&worker.store, &lower, &staging)?;
    let user = (spec.user.uid, spec.user.gid);
    if user != (0, 0) && has_one_id() {
        let base = View::layers(&lower, worker.store.marks())?;
        xbuild_cache::tree::claim(&base, &staging.path().join("fs"), user.0, user.1)?;
    }
    let new = NewTree { parent: Some(parent), ..NewTree::default() };
    Ok(Output::Tree(worker.store.add_tree(Some(staging), &new)?))
}

fn prepare(worker: &BuildWorker, op: &ExecOp, task: &Task<'_, Output>) -> Result<Prepared, EngineError> {
    let parent = match op.mounts.first().and_then(|m| m.input).map(|n| &task.inputs[n]) {
        None => TreeId::EMPTY,
        Some(Output::Tree(tree)) => *tree,
        Some(Output::Local(name)) => select::whole_context(worker, name)?,
    };
    let staging = worker.store.staging()?;
    let lower = worker.store.dirs(parent)?;
    let root = worker.snapshots.writable(&worker.store, &lower, &staging)?;
    let mut held = Vec::new();
    let mut mounts = Vec::new();
    for mount in op.mounts.iter().skip(1) {
        mounts.extend(source_of(worker, mount, task, &mut held)?.map(|source| MountSpec {
            source,
            destination: mount.destination.clone(),
            readonly: mount.readonly,
        }));
    }
    Ok(Prepared { root, staging, parent, mounts: in_order(mounts), _held: held, lower })
}

/// Outer mounts before those inside them, in whatever order they were written; of several at one place the last counts.
fn in_order(mut mounts: Vec<MountSpec>) -> Vec<MountSpec> {
    mounts.reverse();
    mounts.sort_by(|a, b| a.destination.cmp(&b.destination));
    mounts.dedup_by(|later, kept| later.destination == kept.destination);
    mounts
}

/// The upper directory is the root that the process sees: it takes mode and owner of the one below.
pub(crate) fn copy_root_attributes(lower: &[PathBuf], upper: &Path) -> Result<(), EngineError> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let Some(below) = lower.first() else {
        let mode = std::fs::Permissions::from_mode(0o755);
        return std::fs::set_permissions(upper, mode).map_err(|e| EngineError::io("set mode of", upper, e));
    };
    let copy = || {
        let meta = std::fs::symlink_metadata(below)?;
        xbuild_cache::tree::set_owner(upper, meta.uid(), meta.gid())?;
        std::fs::set_permissions(upper, std::fs::Permissions::from_mode(meta.mode() & 0o7777))
    };
    copy().map_err(|e| EngineError::io("prepare", upper, e))
}

/// What a mount of the op is made of; `None` for an optional secret or agent that is not there.
fn source_of(
    worker: &BuildWorker,
    mount: &Mount,
    task: &Task<'_, Output>,
    held: &mut Vec<Held>,
) -> Result<Option<MountSource>, EngineError> {
    Ok(Some(match &mount.kind {
        MountKind::Bind => bind(worker, mount, task, held)?,
        MountKind::Cache { id, named: _, sharing, mode, uid, gid } => {
            cache(worker, mount, task, held, &id.0, sharing.0, (*mode, *uid, *gid))?
        }
        MountKind::Tmpfs { size } => {
            MountSource::Tmpfs { size: *size, mode: 0o1777, noexec: false, options: Vec::new() }
        }
        MountKind::Secret { id, mode, uid, gid, optional } => match worker.secrets.get(id) {
            Some(value) => MountSource::File { data: value.0.clone(), mode: *mode, uid: *uid, gid: *gid },
            None if *optional => return Ok(None),
            None => {
                return Err(EngineError::Source(format!(
                    "secret {id}: not found; pass it with --secret id={id},src=FILE"
                )));
            }
        },
        MountKind::Ssh { id, mode, uid, gid, optional } => match worker.ssh.get(id) {
            Some(path) => {
                let staging = worker.store.staging()?;
                let agent = Agent::forward(path, staging.path()).map_err(|e| EngineError::io("forward", path, e))?;
                let path = agent.path().to_owned();
                held.extend([Held::Agent(agent), Held::Scratch(staging)]);
                MountSource::Socket { path, mode: *mode, uid: *uid, gid: *gid }
            }
            None if *optional => return Ok(None),
            None => {
                return Err(EngineError::Source(format!("unset ssh forward key {id}; pass it with --ssh {id}")));
            }
        },
    }))
}

fn bind(
    worker: &BuildWorker,
    mount: &Mount,
    task: &Task<'_, Output>,
    held: &mut Vec<Held>,
) -> Result<MountSource, EngineError> {
    let (tree, selector) = match mount.input.map(|n| &task.inputs[n]) {
        None => (TreeId::EMPTY, mount.selector.clone()),
        Some(Output::Tree(tree)) => (*tree, mount.selector.clone()),
        Some(Output::Local(name)) => select::selected_context(worker, name, &mount.selector)?,
    };
    let lower = worker.store.dirs(tree)?;
    if !matches!(selector.as_str(), "" | "/") {
        // A clear error before anything is mounted.
        View::layers(&lower, worker.store.marks())?.require(&selector, true)?;
    }
    let staging = worker.store.staging()?;
    let source = worker.snapshots.mount(&worker.store, lower, &selector, mount.readonly, &staging)?;
    held.push(Held::Scratch(staging));
    Ok(source)
}

fn cache(
    worker: &BuildWorker,
    mount: &Mount,
    task: &Task<'_, Output>,
    held: &mut Vec<Held>,
    id: &str,
    sharing: CacheSharing,
    (mode, uid, gid): (u32, u32, u32),
) -> Result<MountSource, EngineError> {
    let stop = || task.cancel.is_set();
    let base = match mount.input.map(|n| &task.inputs[n]) {
        Some(Output::Tree(tree)) if *tree != TreeId::EMPTY => Some(*tree),
        _ => None,
    };
    // What began otherwise is another cache.
    let files = base.map(|tree| worker.store.tree(tree).map(|tree| tree.name() + &mount.selector)).transpose()?;
    let id = match (files, (mode, uid, gid)) {
        (None, (0o755, 0, 0)) => id.to_owned(),
        (files, _) => format!("{id}@{mode:o}:{uid}:{gid}:{}", files.unwrap_or_default()),
    };
    let mut place = id.clone();
    match sharing {
        CacheSharing::Shared => {
            let lock = worker.store.share_lock(&select::lock_name(&id), &stop)?.ok_or(EngineError::Cancelled)?;
            held.push(Held::Lock(lock));
        }
        CacheSharing::Locked => {
            let lock = worker.store.lock(&select::lock_name(&id), &stop)?.ok_or(EngineError::Cancelled)?;
            held.push(Held::Lock(lock));
        }
        CacheSharing::Private => {
            // The first directory of this id that nobody uses, that of others to begin with.
            let mut n = 0;
            let lock = loop {
                if n > 0 {
                    place = format!("{id}#{n}");
                }
                match worker.store.try_lock(&select::lock_name(&place))? {
                    Some(lock) => break lock,
                    None => n += 1,
                }
            };
            held.push(Held::Lock(lock));
        }
    }
    if task.graph[task.vertex].meta.ignore_cache {
        worker.store.clear_cache_mount(&place)?;
    }
    let (path, new) = worker.store.cache_mount(&place)?;
    if new {
        if let Some(tree) = base {
            let view = View::layers(&worker.store.dirs(tree)?, worker.store.marks())?;
            file::copy_out(&view, &mount.selector, &path)?;
        }
        use std::os::unix::fs::PermissionsExt;
        xbuild_cache::tree::set_owner(&path, uid, gid)
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)))
            .map_err(|e| EngineError::io("prepare", &path, e))?;
    }
    let selector = if mount.input.is_some() { String::new() } else { mount.selector.clone() };
    Ok(MountSource::Bind { path, selector, recursive: false })
}

fn spec(worker: &BuildWorker, op: &ExecOp, prepared: &Prepared, network: &Attached) -> Result<Spec, EngineError> {
    let view = View::layers(&prepared.lower, worker.store.marks())?;
    let small = |path| Ok::<_, EngineError>(view.read_small(path, USERS_MAX)?.unwrap_or_default());
    let user = users::resolve(&op.user, &small("/etc/passwd")?, &small("/etc/group")?)
        .map_err(|e| EngineError::Source(e.to_string()))?;
    let root = prepared.root.rootfs.clone();
    let hostname = if op.hostname.is_empty() { "buildkitsandbox" } else { &op.hostname };
    let mut env = op.env.clone();
    let set = |env: &[String], name: &str| env.iter().any(|e| e.split_once('=').is_some_and(|(n, _)| n == name));
    for (name, value) in &op.proxy_env.0 {
        if !set(&env, name) {
            env.push(format!("{name}={value}"));
        }
    }
    for secret in &op.secret_env {
        match worker.secrets.get(&secret.id) {
            Some(value) => env.push(format!("{}={}", secret.name, String::from_utf8_lossy(&value.0))),
            None if secret.optional => {}
            None => {
                return Err(EngineError::Source(format!(
                    "secret {0}: not found; pass it with --secret id={0},src=FILE",
                    secret.id
                )));
            }
        }
    }
    env.retain(|entry| entry != "HOME=");
    if !set(&env, "HOME") {
        env.push(format!("HOME={}", user.home));
    }
    if let Some(agent) =
        op.mounts.iter().find(|m| matches!(&m.kind, MountKind::Ssh { id, .. } if worker.ssh.contains_key(id)))
        && !set(&env, "SSH_AUTH_SOCK")
    {
        env.push(format!("SSH_AUTH_SOCK={}", agent.destination));
    }
    Ok(Spec {
        env,
        cwd: op.cwd.clone(),
        user: user.identity,
        mounts: prepared.mounts.clone(),
        network: network.network.clone(),
        security: match op.security {
            SecurityMode::Sandbox => Security::Sandbox,
            SecurityMode::Insecure => Security::Insecure,
        },
        hostname: hostname.to_owned(),
        hosts_file: Some(network.hosts_file(hostname, &op.extra_hosts)),
        resolv_conf: Some(network.resolv_conf.clone()),
        shm_size: op.shm_size,
        rlimits: op.ulimits.iter().map(limit).collect(),
        cgroup: cgroup(worker, op),
        ..Spec::new(root, op.args.clone())
    })
}

/// A group of its own where a parent or limits are asked for; whether they can be set is found out when the step starts.
fn cgroup(worker: &BuildWorker, op: &ExecOp) -> Option<CgroupSpec> {
    let limits = &worker.resources;
    if op.cgroup_parent.is_empty() && *limits == Resources::default() {
        return None;
    }
    let parent = if op.cgroup_parent.is_empty() { "xbuild" } else { op.cgroup_parent.trim_matches('/') };
    let n = worker.groups.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Some(CgroupSpec {
        parent: parent.to_owned(),
        name: format!("xbuild-{}-{n}", std::process::id()),
        memory: limits.memory,
        cpu_quota: limits.cpu_quota,
        cpu_period: limits.cpu_period,
        cpu_shares: limits.cpu_shares,
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
        ..CgroupSpec::default()
    })
}

fn limit(ulimit: &xbuild_graph::Ulimit) -> Rlimit {
    Rlimit { name: ulimit.name.clone(), soft: u64::try_from(ulimit.soft).ok(), hard: u64::try_from(ulimit.hard).ok() }
}

/// Runs the process and passes its output on; `Some` says how it failed.
fn execute(
    worker: &BuildWorker,
    op: &ExecOp,
    spec: &Spec,
    task: &Task<'_, Output>,
) -> Result<Option<String>, EngineError> {
    let pipe = || std::io::pipe().map_err(|e| EngineError::io("make", Path::new("a pipe"), e));
    let ((out_read, out_write), (err_read, err_write)) = (pipe()?, pipe()?);
    let stdio = Stdio { stdin: None, stdout: Some(OwnedFd::from(out_write)), stderr: Some(OwnedFd::from(err_write)) };
    let running = worker.launcher.start(spec, stdio)?;
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| output::forward(worker, task, 1, out_read));
        scope.spawn(|| output::forward(worker, task, 2, err_read));
        wait(worker, running, task)
    });
    match ended {
        Ok(outcome) if outcome.oom => Ok(Some(format!("{}: out of memory", said(outcome.end)))),
        Ok(outcome) if outcome.end == End::Exited(0) => Ok(None),
        Ok(outcome) => Ok(Some(said(outcome.end))),
        Err(error) => match error.exit_code() {
            Some(code) => {
                output::note(worker, task, 2, format!("{error}\n").into_bytes());
                Ok(Some(format!("exit code: {code}{}", emulator_hint(code, op))))
            }
            None => Err(error.into()),
        },
    }
}

/// A program of another architecture that cannot be executed most likely has no emulator.
fn emulator_hint(code: u8, op: &ExecOp) -> String {
    match &op.platform {
        Some(platform) if code == 126 && platform.architecture != Platform::host().architecture => {
            format!(" (hint: to run programs of {platform} here, install qemu-user-static and binfmt-support)")
        }
        _ => String::new(),
    }
}

fn said(end: End) -> String {
    match end {
        End::Exited(code) => format!("exit code: {code}"),
        End::Signaled(signal) => format!("exit code: {} (signal {signal})", 128 + signal),
    }
}

/// Waits for the end; a cancelled build kills the sandbox.
fn wait(worker: &BuildWorker, running: Running, task: &Task<'_, Output>) -> Result<Outcome, SandboxError> {
    let Ok(killer) = running.killer() else {
        return running.wait();
    };
    let cancel = task.cancel.clone();
    let watcher = worker.runtime.spawn(async move {
        cancel.wait().await;
        killer.kill();
    });
    let outcome = running.wait();
    watcher.abort();
    outcome
}
