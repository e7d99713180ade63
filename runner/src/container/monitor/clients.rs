//! What clients ask for, and what they are told.

use super::{Interest, Monitor, stop_signal};
use crate::container::child::Child;
use crate::container::files::read_json;
use crate::container::state::Status;
use crate::container::wire::{self, Answer, Request, Streams, Tag};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Client {
    pub(super) socket: OwnedFd,
    pub(super) inbox: Vec<u8>,
    pub(super) outbox: VecDeque<u8>,
    pub(super) interest: Interest,
    pub(super) streams: Streams,
    pub(super) gone: bool,
}

impl Client {
    pub(super) fn new(socket: OwnedFd) -> Client {
        let streams = Streams::default();
        Client { socket, inbox: Vec::new(), outbox: VecDeque::new(), interest: Interest::Nothing, streams, gone: false }
    }

    pub(super) fn say(&mut self, answer: &Answer) {
        match wire::message(Tag::Answer, answer) {
            Ok(bytes) => self.outbox.extend(bytes),
            Err(_) => self.gone = true,
        }
    }

    pub(super) fn push(&mut self) {
        while !self.outbox.is_empty() && !self.gone {
            match send(&self.socket, self.outbox.as_slices().0, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.gone = true,
            }
        }
    }

    pub(super) fn pull(&mut self) {
        let mut buffer = [0; 16 << 10];
        match recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.gone = true,
            Ok((count, _)) => self.inbox.extend(&buffer[..count]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.gone = true,
        }
    }
}

impl Monitor {
    pub(super) fn accept(&mut self) {
        if let Some(listener) = &self.listener
            && let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        {
            self.clients.insert(self.next_key, Client::new(socket));
            self.next_key += 1;
        }
    }

    pub(super) fn serve_client(&mut self, key: u64, flags: PollFlags) {
        let Some(client) = self.clients.get_mut(&key) else {
            return;
        };
        if flags.contains(PollFlags::OUT) {
            client.push();
        }
        if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            client.pull();
        }
        loop {
            let Some(client) = self.clients.get_mut(&key) else {
                return;
            };
            match wire::take(&mut client.inbox) {
                Ok(Some((Tag::Stdin, data))) => self.feed(key, &data),
                Ok(Some((Tag::Request, content))) => match serde_json::from_slice(&content) {
                    Ok(request) => self.answer(key, request),
                    Err(error) => client.say(&Answer::Refused(format!("the request is not understood: {error}"))),
                },
                Ok(Some(_)) | Err(_) => client.gone = true,
                Ok(None) => break,
            }
        }
        if self.clients.get(&key).is_some_and(|client| client.gone) {
            // What it sent before it went has been taken; its input has ended.
            self.feed(key, &[]);
        }
    }

    pub(super) fn answer(&mut self, key: u64, request: Request) {
        match request {
            Request::Start { spec, network, attach } => self.begin(key, spec, network.as_deref(), attach),
            Request::Attach(streams) => self.attach(key, streams),
            Request::Exec(request) => self.exec(key, &request),
            Request::Resize(rows, columns) => {
                if let Some(child) = self.child_of(key) {
                    child.streams.resize(rows, columns);
                }
            }
            Request::Signal(signal) => self.signal(key, signal),
            Request::Stop { signal, timeout } => self.stop(key, signal, timeout),
            Request::Pause => self.freeze(key, true),
            Request::Unpause => self.freeze(key, false),
            Request::Wait => self.set_interest(key, Interest::End),
            Request::Reload => {
                if let Ok(container) = read_json(Path::new("config.json")) {
                    self.container = container;
                }
                self.say(key, &Answer::Done);
            }
        }
    }

    pub(super) fn say(&mut self, key: u64, answer: &Answer) {
        if let Some(client) = self.clients.get_mut(&key) {
            client.say(answer);
            client.push();
        }
    }

    pub(super) fn refuse(&mut self, key: u64, why: &str) {
        self.say(key, &Answer::Refused(why.to_owned()));
    }

    pub(super) fn set_interest(&mut self, key: u64, interest: Interest) {
        if let Some(client) = self.clients.get_mut(&key) {
            client.interest = interest;
        }
    }

    pub(super) fn child_of(&mut self, key: u64) -> Option<&mut Child> {
        match self.clients.get(&key)?.interest {
            Interest::Other(other) => self.others.get_mut(&other).map(|other| &mut other.child),
            _ => self.main.as_mut(),
        }
    }

    pub(super) fn attach(&mut self, key: u64, streams: Streams) {
        match (self.state.status, &self.main) {
            (Status::Paused, _) => {
                return self.refuse(key, "You cannot attach to a paused container, unpause it first");
            }
            (Status::Restarting, _) | (_, None) => {
                return self.refuse(key, "You cannot attach to a restarting container, wait until it is running");
            }
            _ => {}
        }
        self.set_interest(key, Interest::Main);
        let pid = self.state.pid;
        if let Some(client) = self.clients.get_mut(&key) {
            client.streams = streams;
            client.say(&Answer::Started { pid });
            client.push();
        }
        self.tell("attach", &[]);
    }

    pub(super) fn signal(&mut self, key: u64, signal: i32) {
        if let Some(Interest::Other(other)) = self.clients.get(&key).map(|client| client.interest) {
            if let Some(other) = self.others.get(&other) {
                other.child.signal(signal);
            }
            return;
        }
        let silent = self.clients.get(&key).is_some_and(|client| client.interest == Interest::Main);
        let Some(main) = &self.main else {
            // Nothing to kill between two runs, but the next one is not wanted any more.
            self.state.stopped_by_hand = true;
            if self.restart_at.take().is_some() {
                self.say(key, &Answer::Done);
                self.state.status = Status::Exited;
                return self.leave(&Answer::Exited { code: self.state.exit_code }, None);
            }
            return self.refuse(key, &format!("container {} is not running", self.container.id));
        };
        let stop = stop_signal(&self.container);
        self.state.stopped_by_hand |= signal == libc::SIGKILL || signal == stop;
        main.signal(signal);
        self.tell("kill", &[("signal", &signal.to_string())]);
        if signal == libc::SIGKILL && self.state.status == Status::Paused {
            let _ = self.set_frozen(false);
        }
        if !silent {
            self.say(key, &Answer::Done);
        }
    }

    pub(super) fn stop(&mut self, key: u64, signal: i32, timeout: i64) {
        self.set_interest(key, Interest::Stop);
        self.state.stopped_by_hand = true;
        let Some(main) = &self.main else {
            self.restart_at = None;
            self.state.status = Status::Exited;
            return self.leave(&Answer::Exited { code: self.state.exit_code }, None);
        };
        let signal = if timeout == 0 { libc::SIGKILL } else { signal };
        main.signal(signal);
        self.tell("kill", &[("signal", &signal.to_string())]);
        if self.state.status == Status::Paused {
            let _ = self.set_frozen(false);
        }
        self.stop_at = u64::try_from(timeout).ok().map(|seconds| Instant::now() + Duration::from_secs(seconds));
    }

    pub(super) fn freeze(&mut self, key: u64, frozen: bool) {
        let id = self.container.id.clone();
        match (frozen, self.state.status) {
            (true, Status::Paused) => return self.refuse(key, &format!("Container {id} is already paused")),
            (true, Status::Running) => {}
            (true, _) => return self.refuse(key, &format!("container {id} is not running")),
            (false, Status::Paused) => {}
            (false, _) => return self.refuse(key, &format!("Container {id} is not paused")),
        }
        match self.set_frozen(frozen) {
            Ok(()) => {
                self.tell(if frozen { "pause" } else { "unpause" }, &[]);
                self.say(key, &Answer::Done);
            }
            Err(why) => self.refuse(key, &why),
        }
    }

    /// Tells everybody who waits for the container's end.
    pub(super) fn dismiss(&mut self, last: &Answer) {
        for client in self.clients.values_mut() {
            match client.interest {
                Interest::Main | Interest::End => client.say(last),
                Interest::Stop => client.say(&Answer::Done),
                _ => continue,
            }
            client.interest = Interest::Nothing;
            client.push();
        }
    }
}
