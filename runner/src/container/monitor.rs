//! The process that looks after one container.
//!
//! One thread, one loop over `poll`. Every turn asks each part what it waits for, waits, and lets the parts do what can
//! be done without waiting. A client that does not take its output stops the container's output, as a pipe would.

use super::child::{Child, Home, Input};
use super::config::Container;

use super::events::Journal;
use super::files::{Containers, read_json, write_json};
use super::log::{LogWriter, Stream};
use super::policy::{self, Backoff, Check};
use super::state::{Health, Probe, State, Status};
use super::wire::{self, Answer, ExecRequest, Request, Streams, Tag};
use super::{clock, group_of};
use crate::devices::DeviceControl;
use crate::error::SandboxError;
use crate::network::{Attachment, ContainerNetwork, Networks};
use crate::spec::{Account, Network, Privileges, Rlimit, Space, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recv,
    send, socket_with,
};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Name the monitor is started under.
pub(super) const MONITOR_NAME: &str = "xbuild-monitor";

/// Bytes that may wait for a client, or for a process.
const WATERMARK: usize = 1 << 20;
/// Bytes taken at once.
const CHUNK: usize = 64 << 10;
/// For output of a process that has ended, held open by others.
const DRAIN: Duration = Duration::from_secs(2);
/// For clients that do not take their last answer.
const FAREWELL: Duration = Duration::from_secs(10);
/// Bytes of a probe's output that are kept.
const PROBE_OUTPUT: usize = 4096;

/// Becomes a container's monitor if that is what this process was started as, and then never returns.
///
/// To be called first in `main`, before threads, descriptors or handlers exist.
pub fn main_if_requested() {
    let mut arguments = std::env::args_os();
    if arguments.next().is_none_or(|name| name != MONITOR_NAME) {
        return;
    }
    let code = match serve() {
        Ok(()) => 0,
        Err(_) => 1,
    };
    xbuild_sys::exit_now(code);
}

fn serve() -> io::Result<()> {
    // Nobody's child: who asked for the container waits for this process only.
    match xbuild_sys::fork_pid_namespace(false)? {
        xbuild_sys::Forked::Parent { .. } => return Ok(()),
        xbuild_sys::Forked::Child => {}
    }
    rustix::process::setsid()?;
    xbuild_sys::close_inherited(3)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    if !xbuild_sys::is_single_threaded()? {
        return Err(io::Error::other("the monitor must be single-threaded"));
    }
    // A closed pipe is an error to handle, and only an explicit stop ends a container.
    xbuild_sys::block_signals()?;
    let first = xbuild_sys::adopt(0)?;
    let lock = xbuild_sys::adopt(1)?;
    rustix::io::ioctl_fionbio(&first, true)?;
    let directory = std::env::current_dir()?;
    let container: Container = read_json(Path::new("config.json")).map_err(io::Error::other)?;
    let state: State = read_json(Path::new("state.json")).map_err(io::Error::other)?;
    let root = directory.parent().map(Path::to_owned).unwrap_or_default();
    let containers = Containers::of(root.parent().unwrap_or(&root));
    let mut monitor = Monitor {
        journal: containers.events(),
        containers,
        container,
        state,
        home: Home::of_this_process()?,
        lock: Some(lock),
        listener: None,
        devices: None,
        spec: None,
        network: None,
        main: None,
        others: BTreeMap::new(),
        clients: BTreeMap::new(),
        next_key: 1,
        log: None,
        began: Instant::now(),
        backoff: Backoff::default(),
        stop_at: None,
        restart_at: None,
        drained_at: None,
        farewell_at: None,
        check: None,
        probe_at: None,
    };
    monitor.clients.insert(0, Client::new(first));
    monitor.run()
}

/// Who a process was started for.
#[derive(Debug)]
enum Purpose {
    /// A client, while it is there.
    Exec { client: Option<u64> },
    /// The health check.
    Probe { start: String, deadline: Instant, ran: Duration, output: Vec<u8>, late: bool },
}

#[derive(Debug)]
struct Other {
    child: Child,
    purpose: Purpose,
    id: String,
    announced: bool,
}

/// What a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interest {
    Nothing,
    /// To be told that the container was started.
    Start,
    /// Streams of the container, and its end.
    Main,
    /// A process of its own.
    Other(u64),
    /// The container's end.
    End,
    /// The container's end, as something that was asked for.
    Stop,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    inbox: Vec<u8>,
    outbox: VecDeque<u8>,
    interest: Interest,
    streams: Streams,
    gone: bool,
}

impl Client {
    fn new(socket: OwnedFd) -> Client {
        let streams = Streams::default();
        Client { socket, inbox: Vec::new(), outbox: VecDeque::new(), interest: Interest::Nothing, streams, gone: false }
    }

    fn say(&mut self, answer: &Answer) {
        match wire::message(Tag::Answer, answer) {
            Ok(bytes) => self.outbox.extend(bytes),
            Err(_) => self.gone = true,
        }
    }

    fn push(&mut self) {
        while !self.outbox.is_empty() && !self.gone {
            match send(&self.socket, self.outbox.as_slices().0, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.gone = true,
            }
        }
    }

    fn pull(&mut self) {
        let mut buffer = [0; 16 << 10];
        match recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.gone = true,
            Ok((count, _)) => self.inbox.extend(&buffer[..count]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.gone = true,
        }
    }
}

struct Monitor {
    journal: Journal,
    containers: Containers,
    container: Container,
    state: State,
    home: Home,
    /// Held until everything about the container is written down.
    lock: Option<OwnedFd>,
    listener: Option<OwnedFd>,
    devices: Option<DeviceControl>,
    spec: Option<Box<Spec>>,
    network: Option<Attachment>,
    main: Option<Child>,
    others: BTreeMap<u64, Other>,
    clients: BTreeMap<u64, Client>,
    next_key: u64,
    log: Option<LogWriter>,
    began: Instant,
    backoff: Backoff,
    stop_at: Option<Instant>,
    restart_at: Option<Instant>,
    drained_at: Option<Instant>,
    farewell_at: Option<Instant>,
    check: Option<Check>,
    probe_at: Option<Instant>,
}

/// A descriptor of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Listener,
    Names,
    Client(u64),
    Child(Option<u64>, Part),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Session,
    Process,
    Console,
    Stdin,
    Stdout,
    Stderr,
}

impl Monitor {
    fn run(&mut self) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            for (token, flags) in ready {
                self.handle(token, flags);
            }
            self.tick();
            self.clients.retain(|_, client| !client.gone);
            if self
                .farewell_at
                .is_some_and(|at| Instant::now() >= at || self.clients.values().all(|client| client.outbox.is_empty()))
            {
                self.clients.clear();
                self.sweep_networks();
                return Ok(());
            }
            // Whoever started this monitor is gone before it said what to do.
            if self.spec.is_none() && self.clients.is_empty() {
                return Ok(());
            }
        }
    }

    /// Nobody waits for this process any more; it may as well see what others left.
    fn sweep_networks(&self) {
        if self.spec.as_ref().is_some_and(|spec| matches!(spec.network, Network::Namespace(_)))
            && let Ok(networks) = Networks::open(self.containers.store(), clock::stamp)
        {
            // What stays is removed after the next container.
            let _ = networks.sweep_when_idle();
        }
    }

    fn wait(&self) -> io::Result<Vec<(Token, PollFlags)>> {
        let mut wanted: Vec<(Token, BorrowedFd<'_>, PollFlags)> = Vec::new();
        if let Some(listener) = &self.listener {
            wanted.push((Token::Listener, listener.as_fd(), PollFlags::IN));
        }
        let names = self.network.iter().flat_map(Attachment::waits_for);
        wanted.extend(names.map(|(fd, flags)| (Token::Names, fd, flags)));
        for (key, client) in &self.clients {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, self.takes_input(client));
            flags.set(PollFlags::OUT, !client.outbox.is_empty());
            wanted.push((Token::Client(*key), client.socket.as_fd(), flags));
        }
        let main = self.main.iter().map(|child| (None, child));
        let others = self.others.iter().map(|(key, other)| (Some(*key), &other.child));
        for (key, child) in main.chain(others) {
            let flows = !self.is_blocked(key);
            let feeds = !child.streams.input.is_empty();
            let running = child.ended.is_none().then_some(&child.pidfd);
            for (part, fd, flags) in [
                (Part::Session, child.session.as_ref(), PollFlags::IN),
                (Part::Console, child.streams.console.as_ref(), PollFlags::IN),
                (Part::Stdout, child.streams.stdout.as_ref().filter(|_| flows), PollFlags::IN),
                (Part::Stderr, child.streams.stderr.as_ref().filter(|_| flows), PollFlags::IN),
                (Part::Stdin, child.streams.stdin.as_ref().filter(|_| feeds), PollFlags::OUT),
                (Part::Process, running, PollFlags::IN),
            ] {
                wanted.extend(fd.map(|fd| (Token::Child(key, part), fd.as_fd(), flags)));
            }
        }
        let mut fds: Vec<PollFd<'_>> =
            wanted.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        let timeout = self.next_deadline().map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = wanted.iter().zip(&fds).map(|((token, ..), fd)| (*token, fd.revents()));
        Ok(ready.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn takes_input(&self, client: &Client) -> bool {
        let full = |child: &Child| child.streams.input.len() > WATERMARK;
        match client.interest {
            Interest::Other(key) => !self.others.get(&key).is_some_and(|other| full(&other.child)),
            _ => !self.main.as_ref().is_some_and(full),
        }
    }

    /// Whether a client of the process is behind.
    fn is_blocked(&self, key: Option<u64>) -> bool {
        self.listeners(key).any(|(_, client)| client.outbox.len() > WATERMARK)
    }

    fn listeners(&self, key: Option<u64>) -> impl Iterator<Item = (&u64, &Client)> {
        let wanted = key.map_or(Interest::Main, Interest::Other);
        self.clients.iter().filter(move |(_, client)| client.interest == wanted)
    }

    fn next_deadline(&self) -> Option<Instant> {
        let probes = self.others.values().filter_map(|other| match other.purpose {
            Purpose::Probe { deadline, late: false, .. } => Some(deadline),
            _ => None,
        });
        let names = self.network.as_ref().and_then(Attachment::deadline);
        [self.stop_at, self.restart_at, self.drained_at, self.farewell_at, self.probe_at, names]
            .into_iter()
            .flatten()
            .chain(probes)
            .min()
    }

    fn handle(&mut self, token: Token, flags: PollFlags) {
        match token {
            Token::Listener => self.accept(),
            Token::Names => {}
            Token::Client(key) => self.serve_client(key, flags),
            Token::Child(key, part) => self.serve_child(key, part),
        }
    }

    fn accept(&mut self) {
        if let Some(listener) = &self.listener
            && let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        {
            self.clients.insert(self.next_key, Client::new(socket));
            self.next_key += 1;
        }
    }

    fn serve_client(&mut self, key: u64, flags: PollFlags) {
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

    /// Passes input on to the client's process. Its end is passed on where the process was started for that.
    fn feed(&mut self, key: u64, data: &[u8]) {
        let Some(client) = self.clients.get(&key) else {
            return;
        };
        if !client.streams.stdin {
            return;
        }
        let (child, once) = match client.interest {
            Interest::Other(other) => (self.others.get_mut(&other).map(|other| &mut other.child), true),
            _ => (self.main.as_mut(), self.container.config.stdin_once),
        };
        let Some(child) = child else {
            return;
        };
        if data.is_empty() {
            child.streams.input_ends |= once && !child.streams.terminal;
        }
        child.streams.feed(data);
        child.streams.push();
    }

    fn serve_child(&mut self, key: Option<u64>, part: Part) {
        let child = match key {
            None => self.main.as_mut(),
            Some(key) => self.others.get_mut(&key).map(|other| &mut other.child),
        };
        let Some(child) = child else {
            return;
        };
        match part {
            Part::Session => child.take_report(),
            Part::Process => child.take_end(),
            Part::Console => {
                // Without a terminal there is no output; the process's end tells the rest.
                let _ = child.streams.take_console();
                child.streams.push();
            }
            Part::Stdin => child.streams.push(),
            Part::Stdout => self.pass_on(key, Stream::Stdout),
            Part::Stderr => self.pass_on(key, Stream::Stderr),
        }
    }

    /// Passes output on: to the log, and to clients.
    fn pass_on(&mut self, key: Option<u64>, stream: Stream) {
        let mut buffer = [0; CHUNK];
        let child = match key {
            None => self.main.as_mut(),
            Some(key) => self.others.get_mut(&key).map(|other| &mut other.child),
        };
        let Some(child) = child else {
            return;
        };
        let from = match stream {
            Stream::Stdout => &mut child.streams.stdout,
            Stream::Stderr => &mut child.streams.stderr,
        };
        let Some(fd) = from else {
            return;
        };
        let data = match rustix::io::read(&*fd, &mut buffer) {
            Ok(0) => &[],
            Ok(count) => &buffer[..count],
            Err(Errno::INTR | Errno::AGAIN) => return,
            // A terminal whose last user is gone says so.
            Err(_) => &[],
        };
        if data.is_empty() {
            *from = None;
            return;
        }
        match key {
            None => {
                if let Some(log) = &mut self.log {
                    // A full disk must not stop the container.
                    let _ = log.write(stream, data);
                }
            }
            Some(key) => {
                if let Some(Other { purpose: Purpose::Probe { output, .. }, .. }) = self.others.get_mut(&key) {
                    let room = PROBE_OUTPUT.saturating_sub(output.len());
                    output.extend(&data[..data.len().min(room)]);
                }
            }
        }
        let wanted = key.map_or(Interest::Main, Interest::Other);
        let tag = if stream == Stream::Stdout { Tag::Stdout } else { Tag::Stderr };
        for client in self.clients.values_mut().filter(|client| client.interest == wanted) {
            let wants = if stream == Stream::Stdout { client.streams.stdout } else { client.streams.stderr };
            if wants {
                client.outbox.extend(wire::frame(tag, data));
                client.push();
            }
        }
    }

    fn answer(&mut self, key: u64, request: Request) {
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

    fn say(&mut self, key: u64, answer: &Answer) {
        if let Some(client) = self.clients.get_mut(&key) {
            client.say(answer);
            client.push();
        }
    }

    fn refuse(&mut self, key: u64, why: &str) {
        self.say(key, &Answer::Refused(why.to_owned()));
    }

    fn set_interest(&mut self, key: u64, interest: Interest) {
        if let Some(client) = self.clients.get_mut(&key) {
            client.interest = interest;
        }
    }

    fn child_of(&mut self, key: u64) -> Option<&mut Child> {
        match self.clients.get(&key)?.interest {
            Interest::Other(other) => self.others.get_mut(&other).map(|other| &mut other.child),
            _ => self.main.as_mut(),
        }
    }

    // ---------------------------------------------------------------- the container's own process

    fn begin(&mut self, key: u64, mut spec: Box<Spec>, network: Option<&ContainerNetwork>, attach: Option<Streams>) {
        if self.spec.is_some() {
            return self.refuse(key, "the container was started already");
        }
        self.set_interest(key, if attach.is_some() { Interest::Main } else { Interest::Start });
        if let Some(client) = self.clients.get_mut(&key) {
            client.streams = attach.unwrap_or_default();
        }
        self.state.restart_count = 0;
        self.state.stopped_by_hand = false;
        self.devices = Some(DeviceControl::with(&allowed_devices(&spec)));
        let attached = network.map(|wanted| super::networking::attach(self.containers.store(), wanted, &mut spec));
        self.spec = Some(spec);
        match attached.transpose() {
            Ok(network) => {
                network.iter().for_each(|network| self.tell_of_networks("connect", network));
                self.network = network;
            }
            Err(why) => return self.fail(&SandboxError::Refused(why)),
        }
        let prepared = LogWriter::open(Path::new("."), &self.container.host_config.log_config)
            .and_then(|log| {
                self.log = log;
                self.open_socket()
            })
            .and_then(|()| self.launch());
        if let Err(error) = prepared {
            self.fail(&SandboxError::Helper(error));
        }
    }

    fn open_socket(&mut self) -> io::Result<()> {
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

    fn launch(&mut self) -> io::Result<()> {
        let (Some(spec), Some(devices)) = (&self.spec, &self.devices) else {
            return Err(io::Error::other("nothing to start"));
        };
        let input = if self.container.config.open_stdin { Input::Pipe } else { Input::Nothing };
        self.main = Some(Child::start(&self.home, spec, devices, input)?);
        self.began = Instant::now();
        Ok(())
    }

    /// The program runs.
    fn started(&mut self) {
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
    fn fail(&mut self, error: &SandboxError) {
        let message = described(error);
        let code = error.exit_code().unwrap_or(125);
        if let Some(spec) = self.spec.as_ref().and_then(|spec| spec.cgroup.as_ref()) {
            crate::cgroup::remove(spec);
        }
        if self.state.started_at == clock::NEVER {
            self.state.status = Status::Created;
        } else {
            self.state.status = Status::Exited;
            self.state.finished_at = clock::stamp();
        }
        self.state.pid = 0;
        self.state.exit_code = if code == 125 { 128 } else { i32::from(code) };
        self.state.error.clone_from(&message);
        self.leave(&Answer::Failed { message, code });
    }

    /// The process has ended and its output is passed on.
    fn conclude(&mut self, code: i32) {
        self.main = None;
        self.drained_at = None;
        self.stop_at = None;
        self.probe_at = None;
        self.end_others();
        if let Some(log) = &mut self.log {
            let _ = log.flush();
        }
        let oom = self.clear_group();
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
        } else {
            if self.state.stopped_by_hand {
                self.tell("stop", &[]);
            }
            self.leave(&Answer::Exited { code });
        }
    }

    /// Ends what else was started in the container.
    fn end_others(&mut self) {
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
    fn drain(&mut self, key: u64, stream: Stream) -> bool {
        let before: usize = self.clients.values().map(|client| client.outbox.len()).sum();
        self.pass_on(Some(key), stream);
        let after: usize = self.clients.values().map(|client| client.outbox.len()).sum();
        after > before
    }

    /// Removes the control group, with processes that were not ended with the container's own pid namespace.
    fn clear_group(&self) -> bool {
        let Some(spec) = &self.spec else {
            return false;
        };
        let Some(group) = &spec.cgroup else {
            return false;
        };
        if spec.namespaces.pid != Space::Own {
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
        crate::cgroup::remove(group)
    }

    /// Writes the last words, lets go of the container, and says farewell.
    fn leave(&mut self, last: &Answer) {
        let failed = matches!(last, Answer::Failed { .. });
        self.listener = None;
        self.restart_at = None;
        let _ = std::fs::remove_file("socket");
        self.write_state();
        if let Some(devices) = &self.devices {
            devices.dissolve();
        }
        if let Some(network) = self.network.take() {
            self.tell_of_networks("disconnect", &network);
            // What cannot be removed does not count any more, and goes with the next change.
            let _ = network.detach();
        }
        if self.container.host_config.auto_remove {
            // Nobody is there who could be told of a failure; `rm` can be tried again.
            let _ = super::removal::remove(&self.containers, &self.container, true);
        }
        // From here on others may change the container.
        self.lock = None;
        if failed {
            for client in self.clients.values_mut() {
                client.say(last);
                client.push();
            }
        } else {
            self.dismiss(last);
        }
        self.farewell_at = Some(Instant::now() + FAREWELL);
    }

    /// Tells everybody who waits for the container's end.
    fn dismiss(&mut self, last: &Answer) {
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

    fn attach(&mut self, key: u64, streams: Streams) {
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

    fn signal(&mut self, key: u64, signal: i32) {
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
                return self.leave(&Answer::Exited { code: self.state.exit_code });
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

    fn stop(&mut self, key: u64, signal: i32, timeout: i64) {
        self.set_interest(key, Interest::Stop);
        self.state.stopped_by_hand = true;
        let Some(main) = &self.main else {
            self.restart_at = None;
            self.state.status = Status::Exited;
            return self.leave(&Answer::Exited { code: self.state.exit_code });
        };
        let signal = if timeout == 0 { libc::SIGKILL } else { signal };
        main.signal(signal);
        self.tell("kill", &[("signal", &signal.to_string())]);
        if self.state.status == Status::Paused {
            let _ = self.set_frozen(false);
        }
        self.stop_at = u64::try_from(timeout).ok().map(|seconds| Instant::now() + Duration::from_secs(seconds));
    }

    fn freeze(&mut self, key: u64, frozen: bool) {
        let id = self.container.id.clone();
        match (frozen, self.state.status) {
            (true, Status::Paused) => return self.refuse(key, &format!("Container {id} is already paused")),
            (true, Status::Running) => {}
            (true, _) => return self.refuse(key, &format!("Container {id} is not running")),
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

    fn set_frozen(&mut self, frozen: bool) -> Result<(), String> {
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

    // ---------------------------------------------------------------- other processes

    fn exec(&mut self, key: u64, request: &ExecRequest) {
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
        match Child::join(&self.home, main, request, &group, input) {
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

    /// Looks after a process that is not the container's own: announces its start, and takes its end.
    fn look_after(&mut self, key: u64) {
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

    fn finish_other(&mut self, key: u64) {
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

    // ---------------------------------------------------------------- health

    fn plan_probe(&mut self) {
        self.probe_at = match (&self.check, &self.state.health, self.state.status) {
            (Some(check), Some(health), Status::Running) => {
                Some(Instant::now() + check.pause(health, self.began.elapsed()))
            }
            _ => None,
        };
    }

    fn probe(&mut self) {
        self.probe_at = None;
        let (Some(check), Some(main), Some(spec)) = (&self.check, &self.main, &self.spec) else {
            return;
        };
        let request = ExecRequest {
            args: check.command.clone(),
            env: spec.env.clone(),
            cwd: spec.cwd.clone(),
            account: spec.account.clone().unwrap_or_else(Account::default),
            privileges: privileges_of(spec),
            rlimits: limits_of(spec),
            console: None,
            streams: None,
        };
        let (start, timeout) = (clock::stamp(), check.timeout);
        match Child::join(&self.home, main.pid, &request, &group_of(&self.container), Input::Nothing) {
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

    fn take_probe(&mut self, probe: Probe, ran: Duration) {
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

    // ---------------------------------------------------------------- every turn

    /// What is due, and what follows from what has come.
    fn tick(&mut self) {
        let now = Instant::now();
        let due = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        if due(self.stop_at) {
            self.stop_at = None;
            if let Some(main) = &self.main {
                main.signal(libc::SIGKILL);
            }
        }
        if due(self.probe_at) {
            self.probe();
        }
        if let Some(network) = &mut self.network {
            network.turn();
        }
        for key in self.others.keys().copied().collect::<Vec<_>>() {
            self.look_after(key);
        }
        self.look_after_main(now);
        if due(self.restart_at) {
            self.restart_at = None;
            self.state.restart_count += 1;
            if let Err(error) = self.launch() {
                self.fail(&SandboxError::Helper(error));
            }
        }
    }

    fn look_after_main(&mut self, now: Instant) {
        let Some(main) = &mut self.main else {
            return;
        };
        if let (Some(error), true) = (&main.failure, main.ended.is_some()) {
            let error = match error {
                SandboxError::Exec { message, code } => SandboxError::Exec { message: message.clone(), code: *code },
                other => SandboxError::Refused(described(other).trim_start_matches("sandbox: ").to_owned()),
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

    fn reload(&mut self) {
        if let Ok(container) = read_json(Path::new("config.json")) {
            self.container = container;
        }
    }

    fn write_state(&self) {
        // Nobody is there who could be told; readers see the last state that could be written.
        let _ = write_json(Path::new("state.json"), &self.state);
    }

    fn tell_of_networks(&self, action: &str, network: &Attachment) {
        for endpoint in network.endpoints().unwrap_or_default() {
            let attributes = [("container", &self.container.id), ("name", &endpoint.network_name)];
            let mut attributes: BTreeMap<String, String> =
                attributes.map(|(key, value)| (key.to_owned(), value.clone())).into();
            attributes.insert("type".to_owned(), "bridge".to_owned());
            self.journal.add("network", action, &endpoint.network, attributes);
        }
    }

    fn tell(&self, action: &str, more: &[(&str, &str)]) {
        self.journal.add("container", action, &self.container.id, attributes(&self.container, more));
    }
}

/// What events say of a container.
#[must_use]
pub fn attributes(container: &Container, more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut attributes = container.config.labels.clone();
    attributes.insert("image".to_owned(), container.config.image.clone());
    attributes.insert("name".to_owned(), container.name.clone());
    attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    attributes
}

/// The number of the signal that asks a container to stop.
#[must_use]
pub fn stop_signal(container: &Container) -> i32 {
    super::signals::parse(&container.config.stop_signal).unwrap_or(libc::SIGTERM)
}

fn allowed_devices(spec: &Spec) -> Vec<String> {
    let entry = |node: &crate::spec::DeviceNode| {
        let kind = if node.block { 'b' } else { 'c' };
        format!("{kind} {}:{} {}", node.major, node.minor, node.access)
    };
    spec.devices.iter().map(entry).collect()
}

fn privileges_of(spec: &Spec) -> Privileges {
    spec.security.privileges()
}

fn limits_of(spec: &Spec) -> Vec<Rlimit> {
    spec.rlimits.clone()
}

/// An error with its causes.
fn described(error: &SandboxError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
