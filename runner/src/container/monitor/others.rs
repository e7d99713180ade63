//! Processes beside the container's own: those of `exec`, and probes of its health.

use super::{Interest, Monitor, Other, Purpose, described};
use crate::container::child::{Child, Input};
use crate::container::external::Task;
use crate::container::log::Stream;
use crate::container::state::{Probe, Status};
use crate::container::wire::{Answer, ExecRequest, Streams};
use crate::container::{clock, group_of};
use crate::spec::{Account, CgroupSpec};
use std::io;
use std::time::{Duration, Instant};

impl Monitor {
    pub(super) fn exec(&mut self, key: u64, request: &ExecRequest) {
        let id = &self.container.id;
        let main = match (&self.main, self.state.status) {
            (_, Status::Paused) => {
                let why = format!("Container {id} is paused, unpause the container before exec");
                return self.refuse(key, &why);
            }
            (Some(main), Status::Running) => main.pid,
            _ => {
                let why = format!("container {id} is not running");
                return self.refuse(key, &why);
            }
        };
        let input = match request.streams {
            Some(Streams { stdin: true, .. }) => Input::Pipe,
            _ => Input::Nothing,
        };
        let group = group_of(&self.container);
        match self.join(main, request, &group, input) {
            Err(error) => self.say(key, &Answer::Failed { message: error.to_string(), code: 125 }),
            Ok(child) => {
                let other = self.next_key;
                self.next_key += 1;
                self.set_interest(key, Interest::Other(other));
                if let Some(client) = self.clients.get_mut(&key) {
                    client.streams = request.streams.unwrap_or_default();
                }
                let id = format!("{:032x}{:032x}", child.pid, clock::now().1);
                let command = request.args.join(" ");
                self.tell(&format!("exec_create: {command}"), &[("execID", &id)]);
                self.tell(&format!("exec_start: {command}"), &[("execID", &id)]);
                let purpose = Purpose::Exec { client: Some(key) };
                self.others.insert(other, Other { child, purpose, id, announced: false });
            }
        }
    }

    fn join(&self, main: u32, request: &ExecRequest, group: &CgroupSpec, input: Input) -> io::Result<Child> {
        match &self.external {
            None => Child::join(&self.home, main, request, group, input),
            Some(external) => Child::supervised(&self.home, external, &Task::Process(main, request), input),
        }
    }

    /// Looks after a process that is not the container's own: announces its start, and takes its end.
    pub(super) fn look_after(&mut self, key: u64) {
        let Some(other) = self.others.get_mut(&key) else {
            return;
        };
        if !other.announced && other.child.session.is_none() && other.child.failure.is_none() {
            other.announced = true;
            if let Purpose::Exec { client: Some(client) } = other.purpose {
                let pid = other.child.pid;
                self.say(client, &Answer::Started { pid });
            }
        }
        let Some(other) = self.others.get_mut(&key) else {
            return;
        };
        if let Purpose::Probe { deadline, late, .. } = &mut other.purpose
            && !*late
            && Instant::now() >= *deadline
        {
            *late = true;
            other.child.signal(libc::SIGKILL);
        }
        // Output that others hold open does not keep a process that has ended.
        let waits = matches!(other.purpose, Purpose::Exec { .. }) && other.child.streams.is_open();
        if other.child.ended.is_some() && (!waits || other.child.failure.is_some()) {
            if matches!(other.purpose, Purpose::Probe { .. }) {
                self.pass_on(Some(key), Stream::Stdout);
                self.pass_on(Some(key), Stream::Stderr);
            }
            self.finish_other(key);
        }
    }

    pub(super) fn finish_other(&mut self, key: u64) {
        let Some(other) = self.others.remove(&key) else {
            return;
        };
        let code = other.child.ended.unwrap_or(255);
        match other.purpose {
            Purpose::Exec { client } => {
                let last = match &other.child.failure {
                    Some(error) => Answer::Failed { message: described(error), code: error.exit_code().unwrap_or(125) },
                    None => Answer::Exited { code },
                };
                if let Some(client) = client {
                    self.say(client, &last);
                    self.set_interest(client, Interest::Nothing);
                }
                self.tell("exec_die", &[("execID", &other.id), ("exitCode", &code.to_string())]);
            }
            Purpose::Probe { start, ran, mut output, late, .. } => {
                let code = if late { -1 } else { code };
                if late {
                    output = b"Health check exceeded timeout".to_vec();
                } else if let Some(error) = &other.child.failure {
                    output = described(error).into_bytes();
                }
                let output = String::from_utf8_lossy(&output).into_owned();
                self.take_probe(Probe { start, end: clock::stamp(), exit_code: code, output }, ran);
            }
        }
    }

    /// Ends what else was started in the container.
    pub(super) fn end_others(&mut self) {
        for other in self.others.values_mut() {
            other.child.signal(libc::SIGKILL);
            while other.child.ended.is_none() {
                other.child.take_end();
            }
        }
        for key in self.others.keys().copied().collect::<Vec<_>>() {
            while self.others.get(&key).is_some_and(|other| other.child.streams.stdout.is_some())
                && self.drain(key, Stream::Stdout)
            {}
            while self.others.get(&key).is_some_and(|other| other.child.streams.stderr.is_some())
                && self.drain(key, Stream::Stderr)
            {}
        }
        for key in self.others.keys().copied().collect::<Vec<_>>() {
            self.finish_other(key);
        }
    }

    /// Passes on what is left of a stream; false when nothing came.
    pub(super) fn drain(&mut self, key: u64, stream: Stream) -> bool {
        let before: usize = self.clients.values().map(|client| client.outbox.len()).sum();
        self.pass_on(Some(key), stream);
        let after: usize = self.clients.values().map(|client| client.outbox.len()).sum();
        after > before
    }

    pub(super) fn plan_probe(&mut self) {
        self.probe_at = match (&self.check, &self.state.health, self.state.status) {
            (Some(check), Some(health), Status::Running) => {
                Some(Instant::now() + check.pause(health, self.began.elapsed()))
            }
            _ => None,
        };
    }

    pub(super) fn probe(&mut self) {
        self.probe_at = None;
        let (Some(check), Some(main), Some(spec)) = (&self.check, &self.main, &self.spec) else {
            return;
        };
        let request = ExecRequest {
            args: check.command.clone(),
            env: spec.env.clone(),
            cwd: spec.cwd.clone(),
            account: spec.account.clone().unwrap_or_else(Account::default),
            privileges: spec.security.privileges(),
            rlimits: spec.rlimits.clone(),
            console: None,
            streams: None,
        };
        let (start, timeout) = (clock::stamp(), check.timeout);
        match self.join(main.pid, &request, &group_of(&self.container), Input::Nothing) {
            Ok(child) => {
                let purpose = Purpose::Probe {
                    start,
                    deadline: Instant::now() + timeout,
                    ran: self.began.elapsed(),
                    output: Vec::new(),
                    late: false,
                };
                self.others.insert(self.next_key, Other { child, purpose, id: String::new(), announced: true });
                self.next_key += 1;
            }
            Err(error) => {
                let probe = Probe { start, end: clock::stamp(), exit_code: -1, output: error.to_string() };
                self.take_probe(probe, self.began.elapsed());
            }
        }
    }

    pub(super) fn take_probe(&mut self, probe: Probe, ran: Duration) {
        let (Some(check), Some(health)) = (&self.check, &mut self.state.health) else {
            return;
        };
        if self.main.is_none() {
            return;
        }
        let before = health.status.clone();
        check.take(health, probe, ran);
        let now = health.status.clone();
        self.write_state();
        if before != now {
            self.tell(&format!("health_status: {now}"), &[]);
        }
        self.plan_probe();
    }
}
