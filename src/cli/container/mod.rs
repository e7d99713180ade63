//! Commands on containers: flags → requests to monitors and the engine → text.

mod changes;
mod copy;
mod events;
mod exec;
mod flags;
mod inspect;
mod lifecycle;
mod limits;
mod list;
mod logs;
mod look;
mod network;
mod pattern;
mod prune;
mod run;
mod session;
mod values;
mod volume;

pub(crate) use changes::{ImportArgs, disk_size, import};
pub(crate) use events::{EventsArgs, events};
pub(crate) use inspect::InspectFlags;
pub(crate) use list::{at, has_label, keyed, row as container_row, size as disk_use};
pub(crate) use prune::{Chosen, PruneArgs, confirmed, list_gone, prune_containers, prune_networks, prune_volumes};
pub(crate) use volume::say_reclaimed;

use super::on_demand::OnDemand;
use super::{Global, Outcome, report};
use anyhow::Result;
use clap::Subcommand;
use std::io::Write;

/// Commands on containers, by themselves and under `container`.
#[derive(Subcommand, Debug)]
pub(crate) enum ContainerCommand {
    /// Attach to a container that runs
    Attach(OnDemand<exec::AttachArgs>),
    /// Make an image of a container's changes
    Commit(OnDemand<changes::CommitArgs>),
    /// Copy files into a container or out of it
    Cp(OnDemand<copy::CopyArgs>),
    /// Make a container without starting it
    #[command(disable_help_flag = true)]
    Create(OnDemand<WithHelp<flags::CreateFlags>>),
    /// Show what a container has changed in its files
    Diff(OnDemand<changes::DiffArgs>),
    /// Run a command in a container that runs
    Exec(OnDemand<exec::ExecArgs>),
    /// Write a container's files as a tar
    Export(OnDemand<changes::ExportArgs>),
    /// Send a signal to containers
    Kill(OnDemand<lifecycle::KillArgs>),
    /// Show the output of a container
    Logs(OnDemand<logs::LogsArgs>),
    /// Freeze containers
    Pause(OnDemand<lifecycle::Names>),
    /// Show the published ports of a container
    Port(OnDemand<look::PortArgs>),
    /// List containers
    Ps(OnDemand<list::PsArgs>),
    /// Give a container another name
    Rename(OnDemand<lifecycle::RenameArgs>),
    /// Stop containers and start them again
    Restart(OnDemand<lifecycle::StopArgs>),
    /// Remove containers
    Rm(OnDemand<lifecycle::RmArgs>),
    /// Run a command in a new container
    #[command(disable_help_flag = true)]
    Run(OnDemand<WithHelp<run::RunArgs>>),
    /// Start containers
    Start(OnDemand<lifecycle::StartArgs>),
    /// Show what containers use
    Stats(OnDemand<look::StatsArgs>),
    /// Stop containers
    Stop(OnDemand<lifecycle::StopArgs>),
    /// Show the processes of a container
    Top(OnDemand<look::TopArgs>),
    /// Let frozen containers go on
    Unpause(OnDemand<lifecycle::Names>),
    /// Change limits and restart policies
    Update(OnDemand<lifecycle::UpdateArgs>),
    /// Wait for containers to end, and print their exit codes
    Wait(OnDemand<lifecycle::Names>),
}

/// `container …`: what exists in this form only.
#[derive(Subcommand, Debug)]
pub(crate) enum ContainerGroup {
    /// Show details of containers
    Inspect(OnDemand<inspect::ContainerInspectArgs>),
    /// List containers
    #[command(visible_aliases = ["list"])]
    Ls(OnDemand<list::PsArgs>),
    /// Remove containers that do not run
    Prune(OnDemand<prune::PruneArgs>),
    #[command(flatten)]
    Plain(ContainerCommand),
}

/// Commands on other things that stand beside containers.
#[derive(Subcommand, Debug)]
pub(crate) enum Beside {
    /// Show what happens
    Events(OnDemand<events::EventsArgs>),
    /// Make an image of a tar of files
    Import(OnDemand<changes::ImportArgs>),
    /// Show details of containers, images, volumes and networks
    Inspect(OnDemand<inspect::InspectArgs>),
    /// Networks
    #[command(subcommand)]
    Network(OnDemand<network::NetworkCommand>),
    /// Volumes
    #[command(subcommand)]
    Volume(OnDemand<volume::VolumeCommand>),
}

/// `--help` without a short form, which is the host name's.
#[derive(clap::Args, Debug)]
pub(crate) struct WithHelp<T: clap::Args> {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    inner: T,
}

/// The description of a command that takes another command behind its own flags.
pub(crate) fn described(name: &str) -> Option<fn() -> clap::Command> {
    fn of<T: clap::Args>() -> clap::Command {
        T::augment_args(clap::Command::new("container"))
    }
    match name {
        "run" => Some(of::<run::RunArgs>),
        "create" => Some(of::<flags::CreateFlags>),
        "exec" => Some(of::<exec::ExecArgs>),
        _ => None,
    }
}

pub(crate) fn dispatch(command: &ContainerCommand, global: &Global) -> Result<Outcome> {
    use ContainerCommand as C;
    match command {
        C::Attach(args) => exec::attach(args, global),
        C::Commit(args) => changes::commit(args, global),
        C::Cp(args) => copy::copy(args, global),
        C::Create(args) => run::create(&args.inner, global),
        C::Diff(args) => changes::diff(args, global),
        C::Exec(args) => exec::exec(args, global),
        C::Export(args) => changes::export(args, global),
        C::Kill(args) => lifecycle::kill(args, global),
        C::Logs(args) => logs::logs(args, global),
        C::Pause(args) => lifecycle::pause(args, global),
        C::Port(args) => look::port(args, global),
        C::Ps(args) => list::ps(args, global),
        C::Rename(args) => lifecycle::rename(args, global),
        C::Restart(args) => lifecycle::restart(args, global),
        C::Rm(args) => lifecycle::rm(args, global),
        C::Run(args) => run::run(&args.inner, global),
        C::Start(args) => lifecycle::start(args, global),
        C::Stats(args) => look::stats(args, global),
        C::Stop(args) => lifecycle::stop(args, global),
        C::Top(args) => look::top(args, global),
        C::Unpause(args) => lifecycle::unpause(args, global),
        C::Update(args) => lifecycle::update(args, global),
        C::Wait(args) => lifecycle::wait(args, global),
    }
}

pub(crate) fn group(command: &ContainerGroup, global: &Global) -> Result<Outcome> {
    match command {
        ContainerGroup::Inspect(args) => inspect::containers(args, global),
        ContainerGroup::Ls(args) => list::ps(args, global),
        ContainerGroup::Prune(args) => prune::containers(args, global),
        ContainerGroup::Plain(command) => dispatch(command, global),
    }
}

pub(crate) fn beside(command: &Beside, global: &Global) -> Result<Outcome> {
    match command {
        Beside::Events(args) => events::events(args, global),
        Beside::Import(args) => changes::import(args, global),
        Beside::Inspect(args) => inspect::inspect(args, global),
        Beside::Network(command) => network::network(command, global),
        Beside::Volume(command) => volume::volume(command, global),
    }
}

/// Does something for each name; those that fail are told, and the others done.
fn each(names: &[String], mut work: impl FnMut(&str) -> Result<Option<String>>) -> Result<Outcome> {
    let mut outcome = Outcome::Success;
    for name in names {
        match work(name) {
            Ok(Some(line)) => writeln!(std::io::stdout(), "{line}")?,
            Ok(None) => {}
            Err(error) => {
                report::error(&error);
                outcome = Outcome::Code(1);
            }
        }
    }
    Ok(outcome)
}
