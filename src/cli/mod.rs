//! Commands: flags → engine → text and exit codes. No engine logic.

mod build;
mod call;
mod clusters;
mod container;
mod format;
mod image;
mod oci;
mod on_demand;
mod registry;
mod report;
mod rootless;
mod signals;
mod store;
mod system;
mod template;
pub(crate) mod time;
mod usage;
mod values;

use anyhow::{Context, Result};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use on_demand::OnDemand;
use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xbuild_engine::{Engine, Snapshotter, WholeFile};

/// Builds Dockerfiles into OCI images and runs them.
///
/// `xbuild [FLAGS] CONTEXT` is short for `xbuild build [FLAGS] CONTEXT`.
#[derive(Parser, Debug)]
#[command(name = "xbuild", version = concat!("version ", env!("CARGO_PKG_VERSION")), max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(clap::Args, Debug)]
pub(crate) struct Global {
    /// Directory of the store (default: /var/lib/xbuild, or $XDG_DATA_HOME/xbuild without root)
    #[arg(long, global = true, env = "XBUILD_ROOT", value_name = "DIR", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    root: Option<PathBuf>,
    /// Found out before the command begins.
    #[arg(skip)]
    rights: rootless::Rights,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Build an image from a Dockerfile
    #[command(visible_alias = "b")]
    Build(OnDemand<build::BuildArgs>),
    #[command(flatten)]
    OnContainer(container::ContainerCommand),
    #[command(flatten)]
    Beside(container::Beside),
    /// Containers
    #[command(subcommand)]
    Container(OnDemand<container::ContainerGroup>),
    /// List images
    Images(OnDemand<image::ImagesArgs>),
    /// Show how an image was made
    History(OnDemand<image::HistoryArgs>),
    /// Give an image another name
    Tag(OnDemand<image::TagArgs>),
    /// Remove images
    Rmi(OnDemand<image::RmiArgs>),
    /// Write images to an archive
    Save(OnDemand<image::SaveArgs>),
    /// Read images from an archive
    Load(OnDemand<image::LoadArgs>),
    /// Images
    #[command(subcommand)]
    Image(OnDemand<image::ImageGroup>),
    /// Log in to a registry
    Login(OnDemand<registry::LoginArgs>),
    /// Log out of a registry
    Logout(OnDemand<registry::LogoutArgs>),
    /// Fetch an image from a registry
    Pull(OnDemand<registry::PullArgs>),
    /// Send an image to a registry
    Push(OnDemand<registry::PushArgs>),
    /// Look for images in a registry
    Search(OnDemand<registry::SearchArgs>),
    /// Show facts about this host and store
    Info(OnDemand<system::InfoArgs>),
    /// Show versions
    Version(OnDemand<system::InfoArgs>),
    /// Containers, volumes, images and cache together
    #[command(subcommand)]
    System(OnDemand<system::SystemCommand>),
    /// Show what takes room in the store
    Du(OnDemand<store::DuArgs>),
    /// Remove recorded steps
    Prune(OnDemand<store::PruneArgs>),
    /// Look after the store
    #[command(subcommand)]
    Store(OnDemand<store::StoreCommand>),
    /// Run containers from OCI bundles, as a runtime for other programs (`xbuild oci --help`)
    Oci {
        /// Command with its flags
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// How a command ended when it did not fail with an error of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is well.
    Success,
    /// The user was told what went wrong, or the process in the container ended with this code.
    Code(u8),
}

/// Runs the program with its arguments.
pub(crate) fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some(own) = oci::requested(&arguments) {
        return oci::main(own);
    }
    let cli = match parse(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is there to read what cannot be printed.
            let _ = error.print();
            return ExitCode::from(usage_code(&error));
        }
    };
    match dispatch(cli) {
        Ok(Outcome::Success) => ExitCode::SUCCESS,
        Ok(Outcome::Code(code)) => ExitCode::from(code),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            report::error(&error);
            ExitCode::from(1)
        }
    }
}

/// Docker's exit codes for command lines that are wrong: one for flags, another for what stands beside them.
fn usage_code(error: &clap::Error) -> u8 {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let is_flag = |name: &str| name.starts_with('-');
    let about_flag = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(name)) => is_flag(name),
        Some(ContextValue::Strings(names)) => names.iter().any(|name| is_flag(name)),
        _ => false,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
        _ if about_flag => 125,
        _ => 1,
    }
}

/// Reads the command line.
fn parse(arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
    let known = Cli::command();
    let arguments = with_command(arguments, &known);
    Cli::from_arg_matches(&known.try_get_matches_from(arguments)?)
}

fn dispatch(mut cli: Cli) -> Result<Outcome> {
    if cli.command.needs_store() {
        cli.global.rights = rootless::Rights::before();
        let root = cli.global.root().ok().filter(|_| cli.command.is_about_containers());
        cli.global.rights = rootless::Rights::take(root.as_deref())?;
    }
    let global = &cli.global;
    match cli.command {
        Command::Build(args) => build::run(&args, global),
        Command::OnContainer(command) => container::dispatch(&command, global),
        Command::Beside(command) => container::beside(&command, global),
        Command::Container(command) => container::group(&command, global),
        Command::Images(args) => image::images(&args, global),
        Command::History(args) => image::history(&args, global),
        Command::Tag(args) => image::tag(&args, global),
        Command::Rmi(args) => image::rmi(&args, global),
        Command::Save(args) => image::save(&args, global),
        Command::Load(args) => image::load(&args, global),
        Command::Image(command) => image::group(&command, global),
        Command::Login(args) => registry::login(&args, global),
        Command::Logout(args) => registry::logout(&args),
        Command::Pull(args) => registry::pull(&args, global),
        Command::Push(args) => registry::push(&args, global),
        Command::Search(args) => registry::search(&args, global),
        Command::Info(args) => system::info(&args, global),
        Command::Version(args) => system::version(&args),
        Command::System(command) => system::system(&command, global),
        Command::Du(args) => store::du(&args, global),
        Command::Prune(args) => store::prune(&args, global),
        Command::Store(command) => store::store(&command, global),
        // Without anything before it, it is taken before flags are read.
        Command::Oci { .. } => anyhow::bail!("`oci` has to be the first word; a store is named by `oci spec --store`"),
    }
}

impl Command {
    /// Whether it may reach into containers that run.
    fn is_about_containers(&self) -> bool {
        matches!(self, Command::OnContainer(_) | Command::Container(_) | Command::Beside(_))
    }

    /// Whether it works on the store, and so needs rights on its files.
    fn needs_store(&self) -> bool {
        !matches!(self, Command::Login(_) | Command::Logout(_) | Command::Search(_) | Command::Version(_))
    }
}

/// Puts `build` in where no command is named.
fn with_command(mut arguments: Vec<OsString>, known: &clap::Command) -> Vec<OsString> {
    let mut first = 1;
    while let Some(argument) = arguments.get(first).and_then(|a| a.to_str()) {
        match argument {
            "--root" => first += 2,
            a if a.starts_with("--root=") => first += 1,
            _ => break,
        }
    }
    let is_command = |a: &str| {
        a == "help" || known.get_subcommands().any(|c| c.get_name() == a || c.get_all_aliases().any(|x| x == a))
    };
    match arguments.get(first).and_then(|a| a.to_str()) {
        None | Some("-h" | "--help" | "-V" | "--version") => {}
        Some(argument) if is_command(argument) => {}
        _ => arguments.insert(first, "build".into()),
    }
    let word = |at: usize| arguments.get(at).and_then(|argument| argument.to_str());
    let command = first + usize::from(word(first) == Some("container"));
    match word(command).and_then(container::described) {
        Some(describe) => clusters::apart(arguments, command + 1, describe),
        None => arguments,
    }
}

/// Keeps what this process knows from core dumps and other processes of the user, now that it knows secrets.
pub(crate) fn keep_out_of_dumps() {
    // It cannot fail with a known behaviour.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// Whether nobody reads standard output any more. Only writing there fails with an error that has no story.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let itself = error.chain().next().and_then(|first| first.downcast_ref::<std::io::Error>());
    itself.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Writes a file of the user: whole, or not at all.
pub(crate) fn write_whole(path: &Path, mode: u32, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let failed = || format!("cannot write `{}`", path.display());
    let file = WholeFile::create(path, mode).with_context(failed)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write(&mut out)?;
    out.into_inner().map_err(std::io::IntoInnerError::into_error).and_then(WholeFile::finish).with_context(failed)
}

impl Global {
    /// The store's directory.
    fn root(&self) -> Result<PathBuf> {
        // An empty variable is one that is not set.
        match self.root.as_ref().filter(|root| !root.as_os_str().is_empty()) {
            Some(root) => Ok(root.clone()),
            None => self.rights.default_root(),
        }
    }

    /// The containers of the store, without opening it.
    pub(crate) fn containers(&self) -> Result<xbuild_runner::container::Containers> {
        let root = self.root()?;
        Ok(xbuild_runner::container::Containers::of(&std::path::absolute(&root).unwrap_or(root)))
    }

    /// Opens the engine.
    pub(crate) fn engine(&self) -> Result<Engine> {
        let root = self.root()?;
        let snapshotter = snapshotter()?;
        let docker_config = docker_config();
        if docker_config.as_ref().is_some_and(|directory| directory.join("config.json").exists()) {
            keep_out_of_dumps();
        }
        let engine = Engine::open(&root, docker_config.as_deref(), clock)
            .with_context(|| format!("cannot open the store at `{}`", root.display()))?;
        self.rights.introduce(&engine)?;
        Ok(engine.with_snapshotter(snapshotter).without_sandbox(self.rights.no_sandbox()))
    }

    /// Frees what was thrown away, in a process of its own that outlives this one. Where space is low, the trash is emptied
    /// at once, since the next build could not do without; cache goes in the background all the same.
    pub(crate) fn sweep_later(&self, engine: &Engine) {
        let low = engine.store().is_low_on_space();
        if low {
            // What could not be freed is tried again by the other process.
            let _ = engine.store().sweep();
        }
        if !low && !engine.store().needs_sweep() {
            return;
        }
        let Ok(program) = std::env::current_exe() else {
            return;
        };
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new(program);
        command.arg("store").arg("sweep").arg("--root").arg(engine.store().root()).process_group(0);
        let silent = std::process::Stdio::null;
        // The trash stays for the next time if this fails.
        let _ = command.stdin(silent()).stdout(silent()).stderr(silent()).spawn();
    }
}

/// How root file systems are made, by `XBUILD_SNAPSHOTTER`.
fn snapshotter() -> Result<Snapshotter> {
    match std::env::var_os("XBUILD_SNAPSHOTTER").unwrap_or_default().to_str() {
        Some("" | "auto") => Ok(Snapshotter::Auto),
        Some("overlay") => Ok(Snapshotter::Overlay),
        Some("native") => Ok(Snapshotter::Native),
        _ => anyhow::bail!("XBUILD_SNAPSHOTTER is none of `auto`, `overlay`, `native`"),
    }
}

/// Where docker's configuration is.
pub(crate) fn docker_config() -> Option<PathBuf> {
    let own = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    own.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker")))
}

/// Seconds and nanoseconds since 1970.
fn clock() -> (i64, u32) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(now.as_secs()).unwrap_or(i64::MAX), now.subsec_nanos())
}
