//! `start stop restart kill pause unpause wait rename rm update`.

use super::exec::join;
use super::limits::LimitFlags;
use super::network::await_ports;
use super::run::finish;
use super::session::{self, Session};
use super::{each, values};
use crate::cli::{Global, Outcome, report};
use anyhow::{Context, Result, anyhow, bail};
use std::io::Write;
use std::time::{Duration, Instant};
use xbuild_engine::Engine;
use xbuild_engine::container::StartRequest;
use xbuild_runner::container::monitor::{attributes, stop_signal};
use xbuild_runner::container::{
    Answer, Connection, ContainerError, Containers, Found, Lock, Request, Status, Streams, clock, is_name, remove,
    signals, update_limits,
};
use xbuild_runner::network::Networks;

/// Flags of `start`.
#[derive(clap::Args, Debug)]
pub(crate) struct StartArgs {
    /// Attach to output, and pass signals on
    #[arg(short, long)]
    attach: bool,
    /// Attach to standard input
    #[arg(short, long)]
    interactive: bool,
    /// Keys that detach from the container
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Names or IDs
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Flags of `stop` and `restart`.
#[derive(clap::Args, Debug)]
pub(crate) struct StopArgs {
    /// Signal in place of the container's own
    #[arg(short, long)]
    signal: Option<String>,
    /// Seconds until it is killed; -1 waits for ever
    #[arg(short = 't', long = "time", alias = "timeout", allow_hyphen_values = true)]
    time: Option<i64>,
    /// Names or IDs
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Flags of `kill`.
#[derive(clap::Args, Debug)]
pub(crate) struct KillArgs {
    /// Signal
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// Names or IDs
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Names of containers.
#[derive(clap::Args, Debug)]
pub(crate) struct Names {
    /// Names or IDs
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Names of `rename`.
#[derive(clap::Args, Debug)]
pub(crate) struct RenameArgs {
    /// Name or ID
    container: String,
    /// New name
    name: String,
}

/// Flags of `rm`.
#[derive(clap::Args, Debug)]
pub(crate) struct RmArgs {
    /// Kill and remove containers that run, too
    #[arg(short, long)]
    force: bool,
    /// Remove nameless volumes, too
    #[arg(short, long)]
    volumes: bool,
    /// Names or IDs
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Flags of `update`.
#[derive(clap::Args, Debug)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    limits: LimitFlags,
    /// When to start it again
    #[arg(long)]
    restart: Option<String>,
    /// Names or IDs
    #[arg(required = true)]
    containers: Vec<String>,
}

/// The time that a monitor may take to begin or to stop listening.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time that it may take to let go of a container that has ended: unmounting writes out what the file system has in memory.
const CLEARING: Duration = Duration::from_secs(120);
/// Number of the signal that nothing survives.
const KILL: i32 = 9;
/// Seconds until a container is killed when nothing else is said.
const STOP_TIMEOUT: i64 = 10;

/// The right to change a container; `None` when it runs.
pub(crate) fn lock_idle(containers: &Containers, id: &str) -> Result<Option<Lock>> {
    let deadline = Instant::now() + CLEARING;
    loop {
        if let Some(lock) = containers.try_lock(id)? {
            return Ok(Some(lock));
        }
        if containers.read(id)?.state.status.is_alive() {
            return Ok(None);
        }
        if Instant::now() > deadline {
            bail!("container {id} is being changed by another process");
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// A connection to the monitor of a container that runs; `None` when it does not, or no longer.
pub(crate) fn connect(containers: &Containers, found: &Found) -> Result<Option<Connection>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(connection) = Connection::open(found)? {
            return Ok(Some(connection));
        }
        // It may be about to listen, or about to go.
        match containers.read(&found.container.id) {
            Ok(now) if now.state.status.is_alive() && Instant::now() < deadline => {}
            _ => return Ok(None),
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

pub(crate) fn start(args: &StartArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    if (args.attach || args.interactive) && args.containers.len() > 1 {
        bail!("you cannot start and attach multiple containers at once");
    }
    if args.attach || args.interactive {
        return start_attached(args, &engine);
    }
    let mut failed = Vec::new();
    let outcome = each(&args.containers, |name| {
        let begun = engine.containers().find(name).map_err(Into::into).and_then(|found| begin(&engine, &found));
        begun.inspect_err(|_| failed.push(name.to_owned()))?;
        Ok(Some(name.to_owned()))
    })?;
    if !failed.is_empty() {
        report::error(&anyhow!("failed to start containers: {}", failed.join(", ")));
    }
    Ok(outcome)
}

/// Starts a container unless it runs.
fn begin(engine: &Engine, found: &Found) -> Result<()> {
    let containers = engine.containers();
    let id = &found.container.id;
    let Some(lock) = lock_idle(&containers, id)? else {
        return match containers.read(id)?.state.status {
            Status::Paused => bail!("cannot start a paused container, try unpause instead"),
            _ => Ok(()),
        };
    };
    let connection = engine.start(&containers.read(id)?, lock, StartRequest::default())?;
    match connection.answer()? {
        Answer::Failed { message, code } => Err(ContainerError::Start { message, code }.into()),
        Answer::Refused(why) => bail!(why),
        Answer::Started { pid } => {
            await_ports(found, pid);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn start_attached(args: &StartArgs, engine: &Engine) -> Result<Outcome> {
    let containers = engine.containers();
    let found = containers.find(&args.containers[0])?;
    let config = &found.container.config;
    let stdin = args.interactive && config.open_stdin;
    session::check_terminal(config.tty, stdin)?;
    let Some(lock) = lock_idle(&containers, &found.container.id)? else {
        return join(&containers, &found, args.interactive, args.detach_keys.clone(), true);
    };
    let streams = Streams { stdin, stdout: true, stderr: true };
    let request = StartRequest { attach: Some(streams), size: session::size(), monitor: None };
    let connection = engine.start(&found, lock, request)?;
    let session =
        Session { connection, terminal: config.tty, stdin, detach_keys: args.detach_keys.clone(), proxy: true };
    finish(session.run()?)
}

pub(crate) fn stop(args: &StopArgs, global: &Global) -> Result<Outcome> {
    let containers = global.containers()?;
    let signal = args.signal.as_deref().map(number).transpose()?;
    each(&args.containers, |name| {
        halt(&containers, &containers.find(name)?, signal, args.time)?;
        Ok(Some(name.to_owned()))
    })
}

fn halt(containers: &Containers, found: &Found, signal: Option<i32>, time: Option<i64>) -> Result<()> {
    let Some(connection) = connect(containers, found)? else {
        return Ok(());
    };
    let signal = signal.unwrap_or_else(|| stop_signal(&found.container));
    let timeout = time.or(found.container.config.stop_timeout).unwrap_or(STOP_TIMEOUT);
    match connection.ask(&Request::Stop { signal, timeout }) {
        // It ended meanwhile.
        Err(ContainerError::MonitorGone(_)) => Ok(()),
        done => done.map(drop).map_err(Into::into),
    }
}

pub(crate) fn restart(args: &StopArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let containers = engine.containers();
    let signal = args.signal.as_deref().map(number).transpose()?;
    each(&args.containers, |name| {
        let found = containers.find(name)?;
        // A container that goes when it ends has to outlive this end.
        let goes = found.container.host_config.auto_remove;
        let set = |auto_remove| {
            containers.update(&found.container.id, &mut |container| {
                container.host_config.auto_remove = auto_remove;
                Ok(())
            })
        };
        if goes {
            set(false)?;
        }
        let halted = halt(&containers, &found, signal, args.time);
        if goes {
            set(true)?;
        }
        halted?;
        begin(&engine, &found)?;
        containers.events().add("container", "restart", &found.container.id, attributes(&found.container, &[]));
        Ok(Some(name.to_owned()))
    })
}

pub(crate) fn kill(args: &KillArgs, global: &Global) -> Result<Outcome> {
    let containers = global.containers()?;
    each(&args.containers, |name| {
        // One line, as docker prints it.
        send(&containers, name, &args.signal).map_err(|why| anyhow!("cannot kill container: {name}: {why:#}"))?;
        Ok(Some(name.to_owned()))
    })
}

fn send(containers: &Containers, name: &str, signal: &str) -> Result<()> {
    let signal = number(signal)?;
    let found = containers.find(name)?;
    let idle = || ContainerError::Refused(format!("container {} is not running", found.container.id));
    let connection = connect(containers, &found)?.ok_or_else(idle)?;
    connection.ask(&Request::Signal(signal)).map_err(|error| match error {
        ContainerError::MonitorGone(_) => idle(),
        other => other,
    })?;
    Ok(())
}

fn number(signal: &str) -> Result<i32> {
    match (signals::parse(signal), signal.parse::<i32>()) {
        (Some(number), _) => Ok(number),
        (None, Ok(1..)) => bail!("the linux daemon does not support signal {signal}"),
        _ => bail!("invalid signal: {signal}"),
    }
}

pub(crate) fn pause(args: &Names, global: &Global) -> Result<Outcome> {
    freeze(args, global, &Request::Pause, |id| format!("container {id} is not running"))
}

pub(crate) fn unpause(args: &Names, global: &Global) -> Result<Outcome> {
    freeze(args, global, &Request::Unpause, |id| format!("Container {id} is not paused"))
}

fn freeze(args: &Names, global: &Global, request: &Request, idle: fn(&str) -> String) -> Result<Outcome> {
    let containers = global.containers()?;
    each(&args.containers, |name| {
        let found = containers.find(name)?;
        let connection = connect(&containers, &found)?;
        connection.with_context(|| idle(&found.container.id))?.ask(request)?;
        Ok(Some(name.to_owned()))
    })
}

pub(crate) fn wait(args: &Names, global: &Global) -> Result<Outcome> {
    let containers = global.containers()?;
    // Asked of all before the first answer, so that none is missed while another is waited for.
    let waiting: Vec<_> = args
        .containers
        .iter()
        .map(|name| {
            let found = containers.find(name)?;
            let connection = connect(&containers, &found)?;
            if let Some(connection) = &connection {
                // One that is gone by now has left its code.
                let _ = connection.send(&Request::Wait);
            }
            Ok::<_, anyhow::Error>((found, connection))
        })
        .collect();
    let mut waiting = waiting.into_iter();
    each(&args.containers, |_| {
        let Some(one) = waiting.next() else {
            return Ok(None);
        };
        let (found, connection) = one?;
        let told = connection.map(|connection| connection.answer());
        match told {
            Some(Ok(Answer::Exited { code })) => Ok(Some(code.to_string())),
            _ => {
                let last =
                    containers.read(&found.container.id).map_or(found.state.exit_code, |now| now.state.exit_code);
                Ok(Some(last.to_string()))
            }
        }
    })
}

pub(crate) fn rename(args: &RenameArgs, global: &Global) -> Result<Outcome> {
    let containers = global.containers()?;
    let found = containers.find(&args.container)?;
    let name = args.name.strip_prefix('/').unwrap_or(&args.name);
    if name == found.container.name {
        bail!("Renaming a container with the same name as its current name");
    }
    if !is_name(name) {
        bail!(
            "Error when allocating new name: Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        );
    }
    match containers.rename(&found.container.id, name) {
        Err(taken @ ContainerError::NameTaken { .. }) => bail!("Error when allocating new name: {taken}"),
        done => done?,
    }
    Networks::open(containers.store(), clock::stamp)?.rename(&found.container.id, name)?;
    reload(&containers, &found)?;
    let mut container = found.container;
    let old = std::mem::replace(&mut container.name, name.to_owned());
    let more = attributes(&container, &[("oldName", &format!("/{old}"))]);
    containers.events().add("container", "rename", &container.id, more);
    Ok(Outcome::Success)
}

/// Tells the monitor, if there is one, that the configuration has changed.
pub(super) fn reload(containers: &Containers, found: &Found) -> Result<()> {
    if let Some(connection) = connect(containers, found)? {
        // One that ends reads it again anyway.
        let _ = connection.ask(&Request::Reload);
    }
    Ok(())
}

pub(crate) fn rm(args: &RmArgs, global: &Global) -> Result<Outcome> {
    let containers = global.containers()?;
    each(&args.containers, |name| {
        let found = match containers.find(name) {
            Err(error @ ContainerError::Missing(_)) if args.force => {
                report::error(&error.into());
                return Ok(None);
            }
            found => found?,
        };
        remove_one(&containers, &found, args.force, args.volumes)?;
        Ok(Some(name.to_owned()))
    })
}

fn remove_one(containers: &Containers, found: &Found, force: bool, volumes: bool) -> Result<()> {
    let id = &found.container.id;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let lock = match lock_idle(containers, id) {
            // It was one that goes by itself.
            Err(_) if containers.read(id).is_err() => return Ok(()),
            lock => lock?,
        };
        if let Some(lock) = lock {
            let done = remove(containers, &found.container, volumes);
            drop(lock);
            return done.map_err(Into::into);
        }
        let state = containers.read(id)?.state.status;
        if !force {
            let hint = if state == Status::Paused { "unpause and stop" } else { "stop" };
            bail!(
                "cannot remove container \"/{}\": container is {}: {hint} the container before removing or force remove",
                found.container.name,
                state.word()
            );
        }
        if let Some(connection) = connect(containers, found)? {
            // Gone is what it is wanted to be.
            let _ = connection.ask(&Request::Signal(KILL)).and_then(|_| connection.ask(&Request::Wait));
        }
        if Instant::now() > deadline {
            bail!("container {id} could not be killed");
        }
    }
}

pub(crate) fn update(args: &UpdateArgs, global: &Global) -> Result<Outcome> {
    let containers = global.containers()?;
    let policy = args.restart.as_deref().map(values::restart_policy).transpose()?;
    if policy.is_none() && args.limits.is_empty() {
        bail!("you must provide one or more flags when using this command");
    }
    each(&args.containers, |name| {
        let found = containers.find(name)?;
        let mut wanted = found.container.clone();
        args.limits.update(&mut wanted.host_config)?;
        if let Some(policy) = &policy {
            if wanted.host_config.auto_remove && policy.name != "no" {
                bail!("Restart policy cannot be updated because AutoRemove is enabled for the container");
            }
            wanted.host_config.restart_policy.clone_from(policy);
        }
        if found.state.status.is_alive() {
            update_limits(&wanted)?;
        }
        containers.update(&found.container.id, &mut |container| {
            container.host_config.clone_from(&wanted.host_config);
            Ok(())
        })?;
        reload(&containers, &found)?;
        containers.events().add("container", "update", &wanted.id, attributes(&wanted, &[]));
        Ok(Some(name.to_owned()))
    })
}

/// Prints a line for those who only want to know that something was done.
pub(crate) fn say(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
