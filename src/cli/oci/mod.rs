//! `oci`: the sandbox as an OCI runtime for other programs. Names, flags and output are what those expect of a runtime.
//!
//! They come here by `xbuild oci`, or by a link to the program that is called `xbuild-oci` or `xbuild-runtime`. This is all
//! that runs then: one thread, no store.

mod log;
mod run;

use crate::cli::rootless::Rights;
use crate::cli::{Global, Outcome};
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xbuild_runner::container::signals;
use xbuild_runner::oci::{Runtime, Status, features};

/// Names of links that make the program a runtime.
const NAMES: [&str; 2] = ["xbuild-oci", "xbuild-runtime"];

/// Where the states of containers lie when nothing is said.
const ROOT: &str = "/run/xbuild-oci";

/// Runs containers from OCI bundles.
#[derive(Parser, Debug)]
#[command(name = "xbuild oci", bin_name = "xbuild oci", version = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0"))]
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
    Create(run::CreateArgs),
    /// Run the program of a container that was made
    Start(Id),
    /// Print the state of a container
    State(Id),
    /// Send a signal to a container
    Kill(KillArgs),
    /// Remove a container that has ended
    Delete(DeleteArgs),
    /// Run another process in a container
    Exec(run::ExecArgs),
    /// Make a container, run it, and remove it at its end
    Run(run::RunArgs),
    /// List containers
    List(ListArgs),
    /// List the processes of a container
    Ps(PsArgs),
    /// Stop the processes of a container for the time being
    Pause(Id),
    /// Let the processes of a container go on
    Resume(Id),
    /// Set other limits
    Update(UpdateArgs),
    /// Print what this runtime has
    Features,
    /// Print the configuration that a container of the store has for other runtimes
    Spec(SpecArgs),
}

#[derive(clap::Args, Debug)]
struct Id {
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

/// Flags of `spec`.
#[derive(clap::Args, Debug)]
struct SpecArgs {
    /// Directory of the store
    #[arg(long, value_name = "DIR", env = "XBUILD_ROOT")]
    store: Option<PathBuf>,
    /// Name or ID of the container
    container: String,
}

/// Flags of `list`.
#[derive(clap::Args, Debug)]
struct ListArgs {
    /// `table` or `json`
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    format: String,
    /// Names only
    #[arg(short, long)]
    quiet: bool,
}

/// Flags of `ps`.
#[derive(clap::Args, Debug)]
struct PsArgs {
    /// `table` or `json`
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    format: String,
    /// Name of the container
    id: String,
}

/// Flags of `update`.
#[derive(clap::Args, Debug)]
struct UpdateArgs {
    /// File with `linux.resources`, as JSON; `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    resources: PathBuf,
    /// Name of the container
    id: String,
}

/// Whether the arguments are those of a runtime; which of them are its own.
pub(crate) fn requested(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let name = arguments.first().map(Path::new).and_then(Path::file_name).and_then(|name| name.to_str());
    if name.is_some_and(|name| NAMES.contains(&name)) {
        return Some(arguments.to_vec());
    }
    let (first, rest) = arguments.split_first()?;
    match rest.split_first() {
        Some((command, rest)) if command == "oci" => Some([std::slice::from_ref(first), rest].concat()),
        _ => None,
    }
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
    match dispatch(&cli) {
        Ok(Outcome::Success) => ExitCode::SUCCESS,
        Ok(Outcome::Code(code)) => ExitCode::from(code),
        Err(error) => {
            log::error(&cli, &error);
            ExitCode::from(1)
        }
    }
}

fn dispatch(cli: &Cli) -> Result<Outcome> {
    if cli.systemd_cgroup {
        anyhow::bail!("--systemd-cgroup is not supported; have the caller use its cgroupfs driver");
    }
    let runtime = Runtime::at(&run::absolute(&cli.root));
    match &cli.command {
        Command::Create(args) => run::create(&runtime, args)?,
        Command::Run(args) => return run::run(&runtime, args, &|why| log::warning(cli, why)),
        Command::Exec(args) => return run::exec(&runtime, args),
        Command::List(args) => list(&runtime, args)?,
        Command::Ps(args) => ps(&runtime, args)?,
        Command::Pause(args) => runtime.freeze(&args.id, true)?,
        Command::Resume(args) => runtime.freeze(&args.id, false)?,
        Command::Update(args) => runtime.update(&args.id, &read_json(&args.resources)?)?,
        Command::Features => print(&features())?,
        Command::Spec(args) => {
            let rights = Rights::take(args.store.as_deref())?;
            let engine = Global { root: args.store.clone(), rights }.engine()?;
            print(&engine.bundle_of(&engine.containers().find(&args.container)?)?)?;
        }
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

fn print(value: &serde_json::Value) -> Result<()> {
    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(value)?)?;
    Ok(())
}

fn list(runtime: &Runtime, args: &ListArgs) -> Result<()> {
    let all = runtime.list()?;
    let mut out = std::io::stdout().lock();
    if args.quiet {
        return all.iter().try_for_each(|one| writeln!(out, "{}", one.id)).map_err(Into::into);
    }
    if args.format == "json" {
        let states: Vec<serde_json::Value> = all.iter().map(|one| runtime.state(&one.id)).collect::<Result<_, _>>()?;
        return print(&serde_json::Value::Array(states));
    }
    writeln!(out, "{:<24} {:<10} {:<10} {:<40} CREATED", "ID", "PID", "STATUS", "BUNDLE")?;
    for one in &all {
        let status = runtime.status(one);
        let pid = if status == Status::Stopped { 0 } else { one.pid };
        let bundle = one.bundle.display().to_string();
        writeln!(out, "{:<24} {pid:<10} {:<10} {bundle:<40} {}", one.id, status.name(), one.created)?;
    }
    Ok(())
}

fn ps(runtime: &Runtime, args: &PsArgs) -> Result<()> {
    let all = runtime.processes(&args.id)?;
    if args.format == "json" {
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&all)?)?;
        return Ok(());
    }
    writeln!(std::io::stdout(), "{:<10} CMD", "PID")?;
    for pid in all {
        // One that has ended since has none.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        writeln!(std::io::stdout(), "{pid:<10} {}", String::from_utf8_lossy(&line).replace('\0', " ").trim_end())?;
    }
    Ok(())
}

/// Reads a file of JSON; `-` is standard input.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let read = match path.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(path),
    };
    let text = read.with_context(|| format!("cannot read `{}`", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("cannot understand `{}`", path.display()))
}
