//! `run` and `create`.

use super::flags::CreateFlags;
use super::network::await_ports;
use super::session::{self, Ended, Session};
use crate::cli::{Global, Outcome, report};
use anyhow::{Context, Result, bail};
use std::io::Write;
use xbuild_engine::container::{CreateRequest, StartRequest};
use xbuild_engine::{Engine, EngineError};
use xbuild_graph::Platform;
use xbuild_runner::container::config::Container;
use xbuild_runner::container::{Answer, ContainerError, IdleMonitor, Streams};

/// Flags of `run`.
#[derive(clap::Args, Debug)]
pub(crate) struct RunArgs {
    /// Run in the background and print the container's ID
    #[arg(short, long)]
    detach: bool,
    /// Pass signals on to the process
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: bool,
    #[command(flatten)]
    flags: CreateFlags,
}

/// Exit code of docker for errors of its own.
pub(super) const OWN_ERROR: u8 = 125;

pub(crate) fn run(args: &RunArgs, global: &Global) -> Result<Outcome> {
    if let Err(error) = session::check_terminal(args.flags.tty, args.flags.interactive && !args.detach) {
        report::plain(&error.to_string());
        return Ok(Outcome::Code(1));
    }
    if args.detach && !args.flags.attach.is_empty() {
        report::plain("Conflicting options: -a and -d");
        return Ok(Outcome::Code(1));
    }
    // It gets ready while the container is made. An error comes again when it is needed.
    let monitor = IdleMonitor::start(args.flags.is_networked()).ok();
    with_codes(start(args, global, monitor))
}

pub(crate) fn create(args: &CreateFlags, global: &Global) -> Result<Outcome> {
    let created = (|| {
        let engine = global.engine()?;
        let request = args.request(true)?;
        let cidfile = args.cidfile()?;
        let container = make(&engine, args, &request)?;
        if let Some(path) = cidfile {
            std::fs::write(path, &container.id).with_context(|| format!("cannot write `{path}`"))?;
        }
        writeln!(std::io::stdout(), "{}", container.id)?;
        Ok(Outcome::Success)
    })();
    with_codes(created)
}

/// Errors of ours end with 125, those of a program that does not start with its own code.
fn with_codes(done: Result<Outcome>) -> Result<Outcome> {
    let error = match done {
        Ok(outcome) => return Ok(outcome),
        Err(error) => error,
    };
    report::error(&error);
    let start = error.chain().find_map(|cause| match cause.downcast_ref::<ContainerError>() {
        Some(ContainerError::Start { code, .. }) => Some(*code),
        _ => None,
    });
    Ok(Outcome::Code(start.unwrap_or(OWN_ERROR)))
}

fn start(args: &RunArgs, global: &Global, monitor: Option<IdleMonitor>) -> Result<Outcome> {
    let engine = global.engine()?;
    let flags = &args.flags;
    let request = flags.request(!args.detach)?;
    let cidfile = flags.cidfile()?;
    let container = make(&engine, flags, &request)?;
    if let Some(path) = cidfile {
        std::fs::write(path, &container.id).with_context(|| format!("cannot write `{path}`"))?;
    }
    let config = &container.config;
    let streams = Streams { stdin: config.attach_stdin, stdout: config.attach_stdout, stderr: config.attach_stderr };
    let attach = Some(streams).filter(|_| !args.detach);
    if args.detach {
        // Also where it cannot be started: it is there.
        writeln!(std::io::stdout(), "{}", container.id)?;
    }
    match launch(&engine, &container, attach, monitor) {
        Err(error) => {
            if flags.rm {
                discard(&engine, &container);
            }
            Err(error)
        }
        Ok(connection) if args.detach => {
            drop(connection);
            Ok(Outcome::Success)
        }
        Ok(connection) => {
            let session = Session {
                connection,
                terminal: config.tty,
                stdin: streams.stdin,
                detach_keys: flags.detach_keys.clone(),
                proxy: args.sig_proxy,
            };
            // The container holds what it needs; the store is closed while it runs.
            global.sweep_later(&engine);
            drop(engine);
            finish(session.run()?)
        }
    }
}

/// The exit code of a session.
pub(super) fn finish(ended: Ended) -> Result<Outcome> {
    match ended {
        Ended::Detached => Ok(Outcome::Success),
        Ended::Exited(code) => Ok(Outcome::Code(u8::try_from(code).unwrap_or(255))),
        Ended::Failed(message, code) => Err(ContainerError::Start { message, code }.into()),
    }
}

/// Starts a container; without streams the process runs when this returns.
fn launch(
    engine: &Engine,
    container: &Container,
    attach: Option<Streams>,
    monitor: Option<IdleMonitor>,
) -> Result<xbuild_runner::container::Connection, anyhow::Error> {
    let found = engine.containers().find(&container.id)?;
    let lock = engine.containers().try_lock(&container.id)?;
    let lock = lock.with_context(|| format!("container {} is being changed by another process", container.name))?;
    if let Some(why) = engine.network_shortfall(container) {
        report::note(&format!("no network of its own, the host's is used: {why}"));
    }
    let connection = engine.start(&found, lock, StartRequest { attach, size: session::size(), monitor })?;
    if attach.is_none() {
        match connection.answer()? {
            Answer::Failed { message, code } => return Err(ContainerError::Start { message, code }.into()),
            Answer::Refused(why) => bail!(why),
            Answer::Started { pid } => await_ports(&found, pid),
            _ => {}
        }
    }
    Ok(connection)
}

/// Removes a container that was never started.
fn discard(engine: &Engine, container: &Container) {
    let containers = engine.containers();
    if let Ok(Some(_lock)) = containers.try_lock(&container.id) {
        // The error that came first matters more.
        let _ = xbuild_runner::container::remove(&containers, container, true);
    }
}

/// Makes a container. The image is brought into the store first where `--pull` says so.
fn make(engine: &Engine, flags: &CreateFlags, request: &CreateRequest) -> Result<Container> {
    let bring = || pull(engine, &request.image, request.platform.as_ref(), flags.quiet);
    if flags.pull == "always" {
        bring()?;
        return Ok(engine.create(request)?);
    }
    match engine.create(request) {
        Err(EngineError::NoImage(name) | EngineError::OtherPlatform { name, .. }) if flags.pull == "missing" => {
            eprintln!("Unable to find image '{name}' locally");
            bring()?;
            Ok(engine.create(request)?)
        }
        made => Ok(made?),
    }
}

fn pull(engine: &Engine, image: &str, platform: Option<&Platform>, quiet: bool) -> Result<(), EngineError> {
    use crate::progress::{Mode, Progress};
    let progress = Progress::start(if quiet { Mode::Quiet } else { Mode::Auto });
    let pulled = engine.pull(image, platform, progress.sink());
    progress.finish();
    pulled.map(drop)
}
