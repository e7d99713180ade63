//! `oci`: the sandbox as an OCI runtime for other programs. Names, flags and output are what those expect of a runtime.
//!
//! They come here by `xbuild oci`, or by a link to the program that is called `xbuild-oci` or `xbuild-runtime`. This is all
//! that runs then: one thread, no store.

mod log;

use crate::cli::Outcome;
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xbuild_runner::container::signals;
use xbuild_runner::oci::{CreateOptions, Runtime, protect_program};

/// Names of links that make the program a runtime.
const NAMES: [&str; 2] = ["xbuild-oci", "xbuild-runtime"];

/// Where the states of containers lie when nothing is said.
const ROOT: &str = "/run/xbuild-oci";

/// Runs containers from OCI bundles.
#[derive(Parser, Debug)]
#[command(name = "xbuild oci", version = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0"))]
#[command(disable_help_subcommand = true, max_term_width = 110)]
struct Cli {
    /// Directory of states
    #[arg(long, value_name = "DIR", default_value = ROOT)]
    root: PathBuf,
    /// File that errors are written to, besides standard error
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Format of that file
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    log_format: String,
    /// Say more in the log
    #[arg(long)]
    debug: bool,
    /// Have systemd make control groups (not supported)
    #[arg(long)]
    systemd_cgroup: bool,
    /// Rootless mode: `true`, `false` or `auto` (it follows from the user)
    #[arg(long, value_name = "MODE", hide = true)]
    rootless: Option<String>,
    /// Path of criu (not used)
    #[arg(long, value_name = "PATH", hide = true)]
    criu: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a container whose program waits for `start`
    Create(CreateArgs),
    /// Run the program of a container that was made
    Start(Id),
    /// Print the state of a container
    State(Id),
    /// Send a signal to a container
    Kill(KillArgs),
    /// Remove a container that has ended
    Delete(DeleteArgs),
}

#[derive(clap::Args, Debug)]
struct Id {
    /// Name of the container
    id: String,
}

/// Flags of `create`.
#[derive(clap::Args, Debug)]
struct CreateArgs {
    /// Directory of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Socket that takes the terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// File for the process's ID
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Move the new root over the old one in place of exchanging them
    #[arg(long)]
    no_pivot: bool,
    /// Make no session keyring (none is made)
    #[arg(long, hide = true)]
    no_new_keyring: bool,
    /// Hand on so many descriptors, from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Name of the container
    id: String,
}

/// Flags of `kill`.
#[derive(clap::Args, Debug)]
struct KillArgs {
    /// To all processes
    #[arg(short, long)]
    all: bool,
    /// Name of the container
    id: String,
    /// Name or number of the signal
    #[arg(default_value = "SIGTERM")]
    signal: String,
}

/// Flags of `delete`.
#[derive(clap::Args, Debug)]
struct DeleteArgs {
    /// Kill it if it runs, and do not mind if it is not there
    #[arg(short, long)]
    force: bool,
    /// Name of the container
    id: String,
}

/// Whether the arguments are those of a runtime; which of them are its own.
pub(crate) fn requested(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let name = arguments.first().map(Path::new).and_then(Path::file_name).and_then(|name| name.to_str());
    if name.is_some_and(|name| NAMES.contains(&name)) {
        return Some(arguments.to_vec());
    }
    // A store may be named before; a runtime has none.
    let mut at = 1;
    while let Some(argument) = arguments.get(at).and_then(|argument| argument.to_str()) {
        match argument {
            "oci" => return Some([&arguments[..1], &arguments[at + 1..]].concat()),
            "--root" => at += 2,
            other if other.starts_with("--root=") => at += 1,
            _ => return None,
        }
    }
    None
}

/// Runs a command of the runtime.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { 1 } else { 0 };
            // Nobody is there to read what cannot be printed.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(&cli) {
        Ok(Outcome::Success) => ExitCode::SUCCESS,
        Ok(Outcome::Code(code)) => ExitCode::from(code),
        Err(error) => {
            log::error(&cli, &error);
            ExitCode::from(1)
        }
    }
}

fn run(cli: &Cli) -> Result<Outcome> {
    if cli.systemd_cgroup {
        anyhow::bail!("--systemd-cgroup is not supported; have the caller use its cgroupfs driver");
    }
    let root = std::path::absolute(&cli.root).unwrap_or_else(|_| cli.root.clone());
    let runtime = Runtime::at(&root);
    match &cli.command {
        Command::Create(args) => create(&runtime, args)?,
        Command::Start(args) => runtime.start(&args.id)?.iter().for_each(|why| log::warning(cli, why)),
        Command::State(args) => print(&runtime.state(&args.id)?)?,
        Command::Kill(args) => {
            let signal = signals::parse(&args.signal).with_context(|| format!("unknown signal {:?}", args.signal))?;
            runtime.kill(&args.id, signal, args.all)?;
        }
        Command::Delete(args) => {
            runtime.delete(&args.id, args.force)?.iter().for_each(|why| log::warning(cli, why));
        }
    }
    Ok(Outcome::Success)
}

fn create(runtime: &Runtime, args: &CreateArgs) -> Result<()> {
    let listen_fds = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
    let options = CreateOptions {
        pid_file: args.pid_file.clone(),
        console_socket: args.console_socket.clone(),
        preserve_fds: args.preserve_fds,
        listen_fds,
        no_pivot: args.no_pivot,
    };
    protect_program(args.preserve_fds.saturating_add(listen_fds)).context("cannot protect the runtime's program")?;
    runtime.create(&args.id, &args.bundle, &options)?;
    Ok(())
}

fn print(value: &serde_json::Value) -> Result<()> {
    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(value)?)?;
    Ok(())
}
