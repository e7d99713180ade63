//! `create`, `run` and `exec`: commands that make processes.

use super::{Outcome, read_json};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use xbuild_runner::oci::oci_spec::runtime::{Process, User};
use xbuild_runner::oci::{CreateOptions, ExecOptions, Runtime, forward_signals, protect_program, wait_for};

/// Flags of `create` and `run`.
#[derive(clap::Args, Debug)]
pub(super) struct CreateArgs {
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

/// Flags of `run`.
#[derive(clap::Args, Debug)]
pub(super) struct RunArgs {
    /// Do not wait for its end
    #[arg(short, long)]
    detach: bool,
    /// Keep the container when it has ended
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    create: CreateArgs,
}

/// Flags of `exec`.
#[derive(clap::Args, Debug)]
pub(super) struct ExecArgs {
    /// Socket that takes the terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Set a variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// User, `uid[:gid]`
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Further groups
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// File with the process, as JSON
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Do not wait for its end
    #[arg(short, long)]
    detach: bool,
    /// File for the process's ID
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Programs cannot give it more than it has
    #[arg(long)]
    no_new_privs: bool,
    /// Hand on so many descriptors, from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Name of the container
    id: String,
    /// Command with its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) fn create(runtime: &Runtime, args: &CreateArgs) -> Result<()> {
    let options = prepare(args)?;
    runtime.create(&args.id, &args.bundle, &options)?;
    Ok(())
}

pub(super) fn run(runtime: &Runtime, args: &RunArgs, warn: &dyn Fn(&str)) -> Result<Outcome> {
    let options = prepare(&args.create)?;
    let id = &args.create.id;
    if !args.detach {
        forward_signals().context("cannot keep signals for the container")?;
    }
    let record = runtime.create(id, &args.create.bundle, &options)?;
    match runtime.start(id) {
        Ok(notes) => notes.iter().for_each(|why| warn(why)),
        Err(error) => {
            // The error that came first matters more.
            let _ = runtime.delete(id, true);
            return Err(error.into());
        }
    }
    if args.detach {
        return Ok(Outcome::Success);
    }
    let code = wait_for(record.pid);
    if !args.keep {
        runtime.delete(id, true)?.iter().for_each(|why| warn(why));
    }
    Ok(Outcome::Code(code))
}

/// What the caller's flags and environment say; makes the program one that no container can get at.
fn prepare(args: &CreateArgs) -> Result<CreateOptions> {
    let listen_fds = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
    protect_program(args.preserve_fds.saturating_add(listen_fds)).context("cannot protect the runtime's program")?;
    Ok(CreateOptions {
        pid_file: args.pid_file.clone(),
        console_socket: args.console_socket.clone(),
        preserve_fds: args.preserve_fds,
        listen_fds,
        no_pivot: args.no_pivot,
    })
}

pub(super) fn exec(runtime: &Runtime, args: &ExecArgs) -> Result<Outcome> {
    protect_program(args.preserve_fds).context("cannot protect the runtime's program")?;
    let process = process(runtime, args)?;
    let options = ExecOptions {
        pid_file: args.pid_file.clone(),
        console_socket: args.console_socket.clone(),
        preserve_fds: args.preserve_fds,
    };
    if !args.detach {
        forward_signals().context("cannot keep signals for the process")?;
    }
    let pid = runtime.exec(&args.id, &process, &options)?;
    Ok(if args.detach { Outcome::Success } else { Outcome::Code(wait_for(pid)) })
}

fn process(runtime: &Runtime, args: &ExecArgs) -> Result<Process> {
    if let Some(file) = &args.process {
        return read_json(file);
    }
    if args.command.is_empty() {
        bail!("process args cannot be empty: name a command, or a file with --process");
    }
    let mut process = runtime.process_of(&args.id)?;
    process.set_args(Some(args.command.clone())).set_terminal(Some(args.tty));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.env.iter().cloned());
    process.set_env(Some(env));
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(user) = &args.user {
        process.set_user(numeric(user)?);
    }
    let mut user = process.user().clone();
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    groups.extend(&args.additional_gids);
    user.set_additional_gids(Some(groups));
    process.set_user(user);
    Ok(process)
}

fn numeric(text: &str) -> Result<User> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    let number = |text: &str| text.parse::<u32>().with_context(|| format!("--user: `{text}` is not a number"));
    let mut user = User::default();
    user.set_uid(number(uid)?).set_gid(number(gid)?);
    Ok(user)
}

/// The path as it is wherever this process goes.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
