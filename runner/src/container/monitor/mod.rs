//! The process that looks after one container.
//!
//! One thread, one loop over `poll`. Every turn asks each part what it waits for, waits, and lets the parts do what can
//! be done without waiting. A client that does not take its output stops the container's output, as a pipe would.

mod clients;
mod others;
mod process;
mod streams;

use super::child::{Child, Home};
use super::clock;
use super::config::Container;
use super::events::Journal;
use super::external::{self, External};
use super::files::{Containers, read_json, read_state, write_state};
use super::log::LogWriter;
use super::policy::{Backoff, Check};
use super::state::State;
use super::volumes::Volumes;
use crate::descriptors;
use crate::devices::DeviceControl;
use crate::error::SandboxError;
use crate::network::{Attachment, Endpoint, Networks, PreparedNetwork};
use crate::spec::{Network, Spec};
use clients::Client;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Name the monitor is started under.
pub(super) const MONITOR_NAME: &str = "xbuild-monitor";
/// Its argument if the container is to have a network of its own.
pub(super) const NETWORKED: &str = "networked";

/// Bytes that may wait for a client, or for a process.
const WATERMARK: usize = 1 << 20;
/// Bytes taken at once.
const CHUNK: usize = 64 << 10;
/// For output of a process that has ended, held open by others.
const DRAIN: Duration = Duration::from_secs(2);
/// A container's first moments, after which the pages of code that it took to start it are given back.
const SETTLED: Duration = Duration::from_secs(1);
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
    let code = match serve(arguments.next().is_some_and(|argument| argument == NETWORKED)) {
        Ok(()) => 0,
        Err(_) => 1,
    };
    xbuild_sys::exit_now(code);
}

fn serve(networked: bool) -> io::Result<()> {
    // Out of reach of what ends the command that started it, whose child it is until that command ends.
    rustix::process::setsid()?;
    xbuild_sys::close_inherited(3)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    if !xbuild_sys::is_single_threaded()? {
        return Err(io::Error::other("the monitor must be single-threaded"));
    }
    // A closed pipe is an error to handle, and only an explicit stop ends a container.
    xbuild_sys::block_signals()?;
    let first = xbuild_sys::adopt(0)?;
    crate::sandbox::get_ready();
    let prepared = networked.then(PreparedNetwork::new).and_then(Result::ok);
    let Some([directory, lock]) = descriptors::receive(first.as_fd(), &mut [0])? else {
        // No container came of it.
        return Ok(());
    };
    rustix::io::ioctl_fionbio(&first, true)?;
    rustix::process::fchdir(directory)?;
    let directory = std::env::current_dir()?;
    name_after(&directory);
    let container: Container = read_json(Path::new("config.json")).map_err(io::Error::other)?;
    let state = read_state(Path::new(".")).map_err(io::Error::other)?;
    let root = directory.parent().map(Path::to_owned).unwrap_or_default();
    let containers = Containers::of(root.parent().unwrap_or(&root));
    let external = external::of(&container, &directory);
    let mut monitor = Monitor {
        journal: containers.events(),
        containers,
        container,
        state,
        home: Home::of_this_process()?,
        external,
        lock: Some(lock),
        listener: None,
        devices: DeviceControl::None,
        spec: None,
        prepared,
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
        settle_at: None,
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

/// Shows in lists of processes which container it is that this one looks after.
fn name_after(directory: &Path) {
    let id = directory.file_name().and_then(|id| id.to_str()).unwrap_or_default();
    let name = std::ffi::CString::new(format!("xb-{}", id.get(..12).unwrap_or(id))).unwrap_or_default();
    // The default name is as good as it gets otherwise.
    let _ = rustix::thread::set_name(&name);
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
    devices: DeviceControl,
    external: Option<External>,
    spec: Option<Box<Spec>>,
    /// Made before anything was known of the container.
    prepared: Option<PreparedNetwork>,
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
    /// When little of the program will be needed any more.
    settle_at: Option<Instant>,
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
                self.sweep();
                return Ok(());
            }
            // Whoever started this monitor is gone before it said what to do.
            if self.spec.is_none() && self.clients.is_empty() {
                return Ok(());
            }
        }
    }

    /// Nobody waits for this process any more; it may as well see what others left.
    fn sweep(&self) {
        self.containers.sweep();
        Volumes::beside(&self.containers).sweep();
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
            let flows = !self.is_blocked(key) && child.speaks();
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

    fn next_deadline(&self) -> Option<Instant> {
        let probes = self.others.values().filter_map(|other| match other.purpose {
            Purpose::Probe { deadline, late: false, .. } => Some(deadline),
            _ => None,
        });
        let names = self.network.as_ref().and_then(Attachment::deadline);
        [self.stop_at, self.restart_at, self.drained_at, self.farewell_at, self.settle_at, self.probe_at, names]
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
        if due(self.settle_at) {
            self.settle_at = None;
            // What cannot be given back now is so by the kernel later.
            let _ = xbuild_sys::release_code();
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
            let launched = self.launch();
            self.let_go();
            if let Err(error) = launched {
                self.fail(&SandboxError::Helper(error));
            }
        }
    }

    fn write_state(&self) {
        // Nobody is there who could be told; readers see the last state that could be written.
        let _ = write_state(Path::new("."), &self.state);
    }

    fn tell_of_networks(&self, action: &str, endpoints: &[Endpoint]) {
        for endpoint in endpoints {
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

/// An error with its cause, for people who started a container and no sandbox.
fn described(error: &SandboxError) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("sandbox: ").unwrap_or(&text);
    match std::error::Error::source(error) {
        Some(cause) => format!("{text}: {cause}"),
        None => text.to_owned(),
    }
}
