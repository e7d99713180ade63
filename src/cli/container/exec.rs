//! `exec` and `attach`.

use super::lifecycle::connect;
use super::run::{OWN_ERROR, finish};
use super::session::{self, Session};
use super::values;
use crate::cli::{Global, Outcome, report};
use anyhow::{Context, Result, bail};
use xbuild_engine::container::{environment, exec_privileges};
use xbuild_runner::container::config::Container;
use xbuild_runner::container::{Answer, ContainerError, Containers, ExecRequest, Found, Request, Status, Streams};
use xbuild_runner::{Account, Rlimit};

/// Flags of `exec`.
#[derive(clap::Args, Debug)]
pub(crate) struct ExecArgs {
    /// Run it in the background
    #[arg(short, long)]
    detach: bool,
    /// Keys that detach from the process
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Set a variable
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// All capabilities
    #[arg(long)]
    privileged: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// User, `name|uid[:group|gid]`
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Container, by name or ID, and the command with its arguments
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, allow_hyphen_values = true, value_name = "CONTAINER COMMAND")]
    container_and_command: Vec<String>,
}

/// Flags of `attach`.
#[derive(clap::Args, Debug)]
pub(crate) struct AttachArgs {
    /// Keys that detach from the container
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Do not attach to standard input
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the process
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: bool,
    /// Name or ID
    container: String,
}

pub(crate) fn exec(args: &ExecArgs, global: &Global) -> Result<Outcome> {
    session::check_terminal(args.tty, args.interactive && !args.detach)?;
    let (name, command) = args.container_and_command.split_first().context("\"exec\" requires at least 2 arguments")?;
    if name.starts_with('-') {
        bail!("unknown flag: {name}");
    }
    let containers = global.containers()?;
    let found = containers.find(name)?;
    if found.state.status == Status::Paused {
        bail!("Container {name} is paused, unpause the container before exec");
    }
    let connection = connect(&containers, &found)?;
    let connection = connection.with_context(|| format!("container {} is not running", found.container.id))?;
    let streams = Streams { stdin: args.interactive && !args.detach, stdout: true, stderr: true };
    let request = request(args, &found.container, command, Some(streams).filter(|_| !args.detach))?;
    connection.send(&Request::Exec(Box::new(request)))?;
    let done = if args.detach {
        match connection.answer()? {
            Answer::Failed { message, code } => Err(ContainerError::Start { message, code }.into()),
            Answer::Refused(why) => bail!(why),
            _ => Ok(Outcome::Success),
        }
    } else {
        let session = Session {
            connection,
            terminal: args.tty,
            stdin: args.interactive,
            detach_keys: args.detach_keys.clone(),
            proxy: false,
        };
        finish(session.run()?)
    };
    match done {
        Err(error) => {
            let code = match error.downcast_ref::<ContainerError>() {
                Some(ContainerError::Start { code, .. }) if *code != OWN_ERROR => *code,
                _ => 126,
            };
            report::error(&error.context("exec failed"));
            Ok(Outcome::Code(code))
        }
        done => done,
    }
}

fn request(
    args: &ExecArgs,
    container: &Container,
    command: &[String],
    streams: Option<Streams>,
) -> Result<ExecRequest> {
    let config = &container.config;
    let mut own = Vec::new();
    for file in &args.env_file {
        own.extend(values::env_file(file)?);
    }
    own.extend(
        values::environment(values::named(&args.env, "environment variable")?)
            .into_iter()
            .filter(|entry| entry.contains('=')),
    );
    let directory = args.workdir.as_ref().unwrap_or(&config.working_dir);
    if !directory.is_empty() && !directory.starts_with('/') {
        bail!("the working directory '{directory}' is invalid, it needs to be an absolute path");
    }
    let bound = |value: i64| u64::try_from(value).ok();
    let limits = container.host_config.ulimits.iter();
    Ok(ExecRequest {
        args: command.to_vec(),
        env: environment(config, args.tty, &own),
        cwd: if directory.is_empty() { "/".to_owned() } else { directory.clone() },
        account: Account {
            user: args.user.clone().unwrap_or_else(|| config.user.clone()),
            groups: match &args.user {
                None => container.host_config.group_add.clone().unwrap_or_default(),
                Some(_) => Vec::new(),
            },
        },
        privileges: exec_privileges(&container.host_config, args.privileged)?,
        rlimits: limits
            .map(|limit| Rlimit { name: limit.name.clone(), soft: bound(limit.soft), hard: bound(limit.hard) })
            .collect(),
        console: args.tty.then(|| session::size().unwrap_or((0, 0))),
        streams,
    })
}

pub(crate) fn attach(args: &AttachArgs, global: &Global) -> Result<Outcome> {
    let containers = global.containers()?;
    let found = containers.find(&args.container)?;
    join(&containers, &found, !args.no_stdin, args.detach_keys.clone(), args.sig_proxy)
}

/// Passes the streams of a container on that runs; its input, too, if it has one and that is wanted.
pub(super) fn join(
    containers: &Containers,
    found: &Found,
    stdin: bool,
    detach_keys: Option<String>,
    proxy: bool,
) -> Result<Outcome> {
    if found.state.status == Status::Paused {
        bail!("You cannot attach to a paused container, unpause it first");
    }
    let config = &found.container.config;
    let stdin = stdin && config.open_stdin;
    session::check_terminal(config.tty, stdin)?;
    let connection = connect(containers, found)?;
    let connection = connection.context("You cannot attach to a stopped container, start it first")?;
    connection.send(&Request::Attach(Streams { stdin, stdout: true, stderr: true }))?;
    if let (true, Some((rows, columns))) = (config.tty, session::size()) {
        // Once smaller, so that programs notice and draw again.
        connection.send(&Request::Resize(rows, columns.saturating_sub(1)))?;
        connection.send(&Request::Resize(rows, columns))?;
    }
    finish(Session { connection, terminal: config.tty, stdin, detach_keys, proxy }.run()?)
}
