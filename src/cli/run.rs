//! `xbuild run`: a container in the foreground.

use super::{Global, Outcome, signals};
use anyhow::{Context, Result};
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use xbuild_engine::EngineError;
use xbuild_engine::run::RunRequest;
use xbuild_graph::NetworkMode;
use xbuild_runner::Stdio;

/// Flags of `run`.
#[derive(clap::Args, Debug)]
pub(crate) struct RunArgs {
    /// Set a variable (`NAME=value`, or `NAME` to take it from the environment)
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User, `name|uid[:group|gid]`
    #[arg(short, long)]
    user: Option<String>,
    /// Program in place of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Host name
    #[arg(short = 'H', long)]
    hostname: Option<String>,
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Remove the container when it ends; containers are not kept otherwise either
    #[arg(long)]
    rm: bool,
    /// Network: `default` (one of its own, with a way out), `host` or `none`
    #[arg(long, alias = "net", default_value = "default", value_parser = ["default", "host", "none"])]
    network: String,
    /// Image, by name or ID
    image: String,
    /// Command and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Exit code of docker for errors of its own.
const OWN_ERROR: u8 = 125;

pub(crate) fn run(args: &RunArgs, global: &Global) -> Result<Outcome> {
    let fail = |error: anyhow::Error| {
        super::report::error(&error);
        Ok(Outcome::Code(OWN_ERROR))
    };
    match start(args, global) {
        Ok(code) => Ok(Outcome::Code(code)),
        Err(error) => match error.downcast_ref::<EngineError>() {
            Some(EngineError::Sandbox(sandbox)) if sandbox.exit_code().is_some() => {
                let code = sandbox.exit_code().unwrap_or(OWN_ERROR);
                super::report::error(&error);
                Ok(Outcome::Code(code))
            }
            _ => fail(error),
        },
    }
}

fn start(args: &RunArgs, global: &Global) -> Result<u8> {
    let engine = global.engine()?;
    let env = |entry: &String| match entry.contains('=') {
        true => Some(entry.clone()),
        false => std::env::var(entry).ok().map(|value| format!("{entry}={value}")),
    };
    let request = RunRequest {
        image: args.image.clone(),
        arguments: args.command.clone(),
        entrypoint: args.entrypoint.clone(),
        env: args.env.iter().filter_map(env).collect(),
        workdir: args.workdir.clone(),
        user: args.user.clone(),
        hostname: args.hostname.clone(),
        tty: args.tty,
        network: match args.network.as_str() {
            "none" => NetworkMode::None,
            "host" => NetworkMode::Host,
            _ => NetworkMode::Default,
        },
    };
    if args.tty && !std::io::stdin().is_terminal() {
        anyhow::bail!("the input device is not a TTY");
    }
    if !engine.has_image(&request.image)? {
        eprintln!("Unable to find image '{}' locally", request.image);
        let progress = crate::progress::Progress::start(crate::progress::Mode::Auto);
        let pulled = engine.pull(&request.image, None, progress.sink());
        progress.finish();
        pulled?;
    }
    let cancel = signals::cancel_on_interrupt()?;
    let terminal = if args.tty { Some(Terminal::open()?) } else { None };
    let stdio = match &terminal {
        Some(terminal) => terminal.stdio()?,
        None => Stdio {
            stdin: if args.interactive { Some(owned(std::io::stdin())?) } else { None },
            stdout: Some(owned(std::io::stdout())?),
            stderr: Some(owned(std::io::stderr())?),
        },
    };
    let container = engine.start(&request, stdio)?;
    if let Some(why) = container.network_shortfall() {
        eprintln!("WARNING: {why}");
    }
    let killer = container.killer()?;
    std::thread::spawn(move || {
        while !cancel.is_set() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        killer.kill();
    });
    let pump = terminal.map(Terminal::pump);
    let outcome = container.wait()?;
    drop(pump);
    Ok(u8::try_from(outcome.code()).unwrap_or(OWN_ERROR))
}

fn owned(stream: impl AsFd) -> Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned().context("cannot pass a standard stream on")
}

/// A pseudo-terminal between ours and the container.
struct Terminal {
    controller: OwnedFd,
    device: OwnedFd,
}

/// Puts the user's terminal back when dropped.
struct Raw(rustix::termios::Termios);

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal is gone if this fails.
        let _ = rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Flush, &self.0);
    }
}

impl Terminal {
    fn open() -> Result<Self> {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let controller =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).context("no pseudo-terminal")?;
        grantpt(&controller).and_then(|()| unlockpt(&controller)).context("no pseudo-terminal")?;
        let name = ptsname(&controller, Vec::new()).context("no pseudo-terminal")?;
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let device = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).context("no pseudo-terminal")?;
        if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdin()) {
            rustix::termios::tcsetwinsize(&controller, size).context("cannot set the terminal's size")?;
        }
        Ok(Self { controller, device })
    }

    fn stdio(&self) -> Result<Stdio> {
        Ok(Stdio {
            stdin: Some(owned(&self.device)?),
            stdout: Some(owned(&self.device)?),
            stderr: Some(owned(&self.device)?),
        })
    }

    /// Moves bytes both ways until the container is gone.
    fn pump(self) -> (Option<Raw>, std::thread::JoinHandle<()>) {
        let raw = rustix::termios::tcgetattr(std::io::stdin()).ok().inspect(|own| {
            let mut raw = own.clone();
            raw.make_raw();
            // Without raw mode lines are echoed twice, no more.
            let _ = rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Flush, &raw);
        });
        let (mut from, mut to) = match (self.controller.try_clone(), std::fs::File::from(self.controller)) {
            (Ok(other), file) => (file, std::fs::File::from(other)),
            (Err(_), file) => return (raw.map(Raw), std::thread::spawn(move || drop(file))),
        };
        std::thread::spawn(move || std::io::copy(&mut std::io::stdin().lock(), &mut to));
        let output = std::thread::spawn(move || {
            // Ends with an error when the device is closed, which is the end.
            let _ = std::io::copy(&mut from, &mut std::io::stdout().lock());
        });
        (raw.map(Raw), output)
    }
}
