//! The container's own process: its start, its end, and what follows.

use super::{DRAIN, FAREWELL, Interest, Monitor, SETTLED, described};
use crate::container::child::{Child, Input};
use crate::container::external::Task;
use crate::container::files::read_json;
use crate::container::log::LogWriter;
use crate::container::policy::{self, Check};
use crate::container::state::{Health, State, Status};
use crate::container::wire::{Answer, Streams};
use crate::container::{clock, group_of, networking, removal};
use crate::devices::DeviceControl;
use crate::error::SandboxError;
use crate::network::ContainerNetwork;
use crate::spec::{CgroupSpec, Network, Space, Spec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

impl Monitor {
    pub(super) fn begin(
        &mut self,
        key: u64,
        spec: Box<Spec>,
        network: Option<&ContainerNetwork>,
        attach: Option<Streams>,
    ) {
        if self.spec.is_some() {
            return self.refuse(key, "the container was started already");
        }
        self.set_interest(key, if attach.is_some() { Interest::Main } else { Interest::Start });
        if let Some(client) = self.clients.get_mut(&key) {
            client.streams = attach.unwrap_or_default();
        }
        if attach.is_some() {
            self.tell("attach", &[]);
        }
        self.state.restart_count = 0;
        self.state.stopped_by_hand = false;
        self.devices = match &self.external {
            None if !spec.security.privileges().all_devices => DeviceControl::Own { more: allowed_devices(&spec) },
            // It sees to that itself, or nothing is to be limited.
            _ => DeviceControl::None,
        };
        self.spec = Some(spec);
        if let Err(error) = self.set_going(network) {
            if let Some(main) = self.main.take() {
                main.end();
            }
            self.fail(&error);
        }
    }

    /// Starts the process and makes its network, at once where neither needs the other.
    fn set_going(&mut self, network: Option<&ContainerNetwork>) -> Result<(), SandboxError> {
        let prepared = network.map(|_| networking::prepare(self.prepared.take())).transpose();
        let prepared = prepared.map_err(SandboxError::Refused)?;
        if let (Some(spec), Some(prepared)) = (&mut self.spec, &prepared) {
            spec.network = Network::Namespace(prepared.namespace().inherited_path());
        }
        let log = LogWriter::open(Path::new("."), &self.container.host_config.log_config);
        self.log = log.map_err(SandboxError::Helper)?;
        self.open_socket().map_err(SandboxError::Helper)?;
        let needs_links = |spec: &Spec| spec.sysctls.iter().any(|(name, _)| name.starts_with("net."));
        let at_once = self.external.is_none() && !self.spec.as_deref().is_some_and(needs_links);
        if at_once {
            self.launch().map_err(SandboxError::Helper)?;
        }
        if let (Some(wanted), Some(prepared), Some(spec)) = (network, prepared, &self.spec) {
            let own_name = (spec.hostname.as_str(), spec.domainname.as_str());
            let attached = networking::attach(self.containers.store(), wanted, prepared, own_name);
            let attachment = attached.map_err(SandboxError::Refused)?;
            self.tell_of_networks("connect", attachment.endpoints());
            self.network = Some(attachment);
        }
        if !at_once {
            self.launch().map_err(SandboxError::Helper)?;
        }
        self.let_go();
        Ok(())
    }

    /// Lets the process begin that was launched.
    pub(super) fn let_go(&self) {
        self.main.iter().for_each(Child::let_go);
    }

    pub(super) fn open_socket(&mut self) -> io::Result<()> {
        match std::fs::remove_file("socket") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        bind(&listener, &SocketAddrUnix::new("socket")?)?;
        listen(&listener, 64)?;
        self.listener = Some(listener);
        Ok(())
    }

    pub(super) fn launch(&mut self) -> io::Result<()> {
        let Some(spec) = &self.spec else {
            return Err(io::Error::other("nothing to start"));
        };
        let input = if self.container.config.open_stdin { Input::Pipe } else { Input::Nothing };
        self.main = Some(match &self.external {
            None => Child::start(&self.home, spec, &self.devices, input)?,
            Some(external) => Child::supervised(&self.home, external, &Task::Container(spec), input)?,
        });
        self.began = Instant::now();
        Ok(())
    }

    /// The program runs.
    pub(super) fn started(&mut self) {
        let pid = self.main.as_ref().map_or(0, |main| main.pid);
        self.began = Instant::now();
        let config = &self.container.config;
        self.check = Check::of(config.healthcheck.as_ref(), config.shell.as_deref());
        let starting = Health { status: "starting".to_owned(), ..Health::default() };
        self.state = State {
            status: Status::Running,
            pid,
            started_at: clock::stamp(),
            finished_at: clock::NEVER.to_owned(),
            health: self.check.as_ref().map(|_| starting),
            restart_count: self.state.restart_count,
            stopped_by_hand: self.state.stopped_by_hand,
            ..State::default()
        };
        self.write_state();
        self.plan_probe();
        self.settle_at = Some(Instant::now() + SETTLED);
        self.tell("start", &[]);
        for client in self.clients.values_mut() {
            if matches!(client.interest, Interest::Start | Interest::Main) {
                client.say(&Answer::Started { pid });
                client.push();
            }
            if client.interest == Interest::Start {
                client.interest = Interest::Nothing;
            }
        }
    }

    /// The program could not be started.
    pub(super) fn fail(&mut self, error: &SandboxError) {
        let message = described(error);
        let code = error.exit_code().unwrap_or(125);
        if self.state.started_at == clock::NEVER {
            self.state.status = Status::Created;
        } else {
            self.state.status = Status::Exited;
            self.state.finished_at = clock::stamp();
        }
        self.state.pid = 0;
        self.state.exit_code = if code == 125 { 128 } else { i32::from(code) };
        self.state.error.clone_from(&message);
        self.leave(&Answer::Failed { message, code }, None);
    }

    /// The process has ended and its output is passed on.
    pub(super) fn conclude(&mut self, code: i32) {
        let mounts = self.main.take().and_then(|main| main.mounts);
        self.drained_at = None;
        self.settle_at = None;
        self.stop_at = None;
        self.probe_at = None;
        self.end_others();
        if let Some(log) = &mut self.log {
            let _ = log.flush();
        }
        self.end_stragglers();
        let oom = self.group().is_some_and(crate::cgroup::ran_out_of_memory);
        if let Some(external) = &self.external {
            external.forget();
        }
        self.reload();
        let ran = self.began.elapsed();
        if oom {
            self.tell("oom", &[]);
        }
        self.state.pid = 0;
        self.state.exit_code = code;
        self.state.oom_killed = oom;
        self.state.finished_at = clock::stamp();
        self.state.status = Status::Exited;
        let duration = ran.as_secs().to_string();
        self.tell("die", &[("exitCode", &code.to_string()), ("execDuration", &duration)]);
        let policy = &self.container.host_config.restart_policy;
        if policy::restarts(policy, code, self.state.restart_count, self.state.stopped_by_hand) {
            self.state.status = Status::Restarting;
            self.restart_at = Some(Instant::now() + self.backoff.next(ran));
            self.write_state();
            self.dismiss(&Answer::Exited { code });
            self.clear(mounts);
        } else {
            if self.clients.values().any(|client| client.interest == Interest::Stop) {
                self.tell("stop", &[]);
            }
            self.leave(&Answer::Exited { code }, mounts);
        }
    }

    fn group(&self) -> Option<&CgroupSpec> {
        self.spec.as_ref()?.cgroup.as_ref()
    }

    /// Ends processes that were not ended with the container's own pid namespace.
    fn end_stragglers(&self) {
        let shared = self.spec.as_ref().is_some_and(|spec| spec.namespaces.pid != Space::Own);
        let Some(group) = self.group().filter(|_| shared) else {
            return;
        };
        for _ in 0..100 {
            let left = crate::cgroup::processes(group);
            if left.is_empty() {
                break;
            }
            for pid in left.into_iter().filter_map(|pid| u32::try_from(pid).ok()) {
                let _ = xbuild_sys::kill(pid, libc::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Takes off the container's mounts and removes its control group: what nobody has to wait for but who starts it again.
    fn clear(&self, mounts: Option<OwnedFd>) {
        drop(mounts);
        if let Some(group) = self.group() {
            crate::cgroup::remove(group);
        }
    }

    /// Writes the last words, says farewell, and lets go of the container.
    pub(super) fn leave(&mut self, last: &Answer, mounts: Option<OwnedFd>) {
        let failed = matches!(last, Answer::Failed { .. });
        self.restart_at = None;
        if let Some(network) = self.network.take() {
            // What cannot be removed does not count any more, and goes with the next change.
            self.tell_of_networks("disconnect", &network.detach().unwrap_or_default());
        }
        // Nobody is there who could be told of a failure; `rm` can be tried again.
        let removes = self.container.host_config.auto_remove;
        let gone = removes.then(|| removal::forget(&self.containers, &self.container, true)).and_then(Result::ok);
        if gone.is_none() {
            // Before nobody listens any more: whoever finds that looks there.
            self.write_state();
            let _ = std::fs::remove_file("socket");
        }
        self.listener = None;
        if failed {
            for client in self.clients.values_mut() {
                client.say(last);
                client.push();
            }
        } else {
            self.dismiss(last);
        }
        self.clear(mounts);
        if let Some(gone) = gone {
            // What stays is removed with the next container.
            let _ = std::fs::remove_dir_all(gone);
        }
        // From here on others may change the container.
        self.lock = None;
        self.farewell_at = Some(Instant::now() + FAREWELL);
    }

    pub(super) fn set_frozen(&mut self, frozen: bool) -> Result<(), String> {
        let group = group_of(&self.container);
        crate::cgroup::freeze(&group, frozen).map_err(|failure| described(&failure.into()))?;
        self.state.status = if frozen { Status::Paused } else { Status::Running };
        self.write_state();
        if frozen {
            self.probe_at = None
        } else {
            self.plan_probe()
        }
        Ok(())
    }

    pub(super) fn look_after_main(&mut self, now: Instant) {
        let Some(main) = &mut self.main else {
            return;
        };
        if let (Some(error), true) = (&main.failure, main.ended.is_some()) {
            let error = match error {
                SandboxError::Exec { message, code } => SandboxError::Exec { message: message.clone(), code: *code },
                other => SandboxError::Refused(described(other)),
            };
            self.main = None;
            return self.fail(&error);
        }
        // One that failed has said so before its session ended, and its own end is still to come.
        if main.session.is_none() && main.failure.is_none() && self.state.pid != main.pid {
            self.started();
        }
        let Some(main) = &self.main else {
            return;
        };
        if let Some(code) = main.ended {
            let deadline = *self.drained_at.get_or_insert(now + DRAIN);
            if !main.streams.is_open() || (now >= deadline && !self.is_blocked(None)) {
                self.conclude(code);
            }
        }
    }

    pub(super) fn reload(&mut self) {
        if let Ok(container) = read_json(Path::new("config.json")) {
            self.container = container;
        }
    }
}

fn allowed_devices(spec: &Spec) -> Vec<String> {
    let entry = |node: &crate::spec::DeviceNode| {
        let kind = if node.block { 'b' } else { 'c' };
        format!("{kind} {}:{} {}", node.major, node.minor, node.access)
    };
    spec.devices.iter().map(entry).collect()
}
