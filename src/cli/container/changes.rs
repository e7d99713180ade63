//! `commit`, `diff`, `export`, `import`.

use super::lifecycle::{connect, say};
use crate::cli::build::full_name;
use crate::cli::{Global, Outcome, write_whole};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use xbuild_engine::container::CommitRequest;
use xbuild_graph::Platform;
use xbuild_runner::container::monitor::attributes;
use xbuild_runner::container::{Request, Status};

/// Flags of `commit`.
#[derive(clap::Args, Debug)]
pub(crate) struct CommitArgs {
    /// Author
    #[arg(short, long, default_value = "")]
    author: String,
    /// Apply a Dockerfile instruction
    #[arg(short, long)]
    change: Vec<String>,
    /// Remark
    #[arg(short, long, default_value = "")]
    message: String,
    /// Freeze the container meanwhile
    #[arg(short, long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pause: bool,
    /// Name or ID
    container: String,
    /// Name of the image
    name: Option<String>,
}

/// Names of `diff`.
#[derive(clap::Args, Debug)]
pub(crate) struct DiffArgs {
    /// Name or ID
    container: String,
}

/// Flags of `export`.
#[derive(clap::Args, Debug)]
pub(crate) struct ExportArgs {
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name or ID
    container: String,
}

/// Flags of `import`.
#[derive(clap::Args, Debug)]
pub(crate) struct ImportArgs {
    /// Apply a Dockerfile instruction
    #[arg(short, long)]
    change: Vec<String>,
    /// Remark
    #[arg(short, long, default_value = "")]
    message: String,
    /// Platform of the image
    #[arg(long)]
    platform: Option<String>,
    /// File, or `-` for standard input
    file: String,
    /// Name of the image
    name: Option<String>,
}

pub(crate) fn commit(args: &CommitArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let containers = engine.containers();
    let found = containers.find(&args.container)?;
    let request = CommitRequest {
        name: args.name.as_deref().map(full_name).transpose()?,
        message: args.message.clone(),
        author: args.author.clone(),
        changes: args.change.clone(),
    };
    let frozen = match found.state.status {
        Status::Running if args.pause => connect(&containers, &found)?,
        _ => None,
    };
    if let Some(connection) = &frozen {
        connection.ask(&Request::Pause)?;
    }
    let made = engine.commit(&found, &request);
    if let Some(connection) = &frozen {
        connection.ask(&Request::Unpause)?;
    }
    let id = made?;
    containers.events().add("container", "commit", &found.container.id, attributes(&found.container, &[]));
    say(&id.to_string())?;
    Ok(Outcome::Success)
}

pub(crate) fn import(args: &ImportArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let name = args.name.as_deref().map(full_name).transpose()?;
    let platform = args.platform.as_deref().map(Platform::parse).transpose()?.unwrap_or_else(Platform::host);
    if platform.os != Platform::host().os {
        bail!("operating system is not supported");
    }
    let request =
        CommitRequest { name, message: args.message.clone(), author: String::new(), changes: args.change.clone() };
    let input = match args.file.as_str() {
        "-" => File::from(std::io::stdin().as_fd().try_clone_to_owned().context("cannot read standard input")?),
        address if address.starts_with("http://") || address.starts_with("https://") => engine.download(address)?,
        file => File::open(file).with_context(|| format!("cannot open `{file}`"))?,
    };
    let id = engine.import(input, &platform, &request)?;
    say(&id.to_string())?;
    Ok(Outcome::Success)
}

pub(crate) fn export(args: &ExportArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let found = engine.containers().find(&args.container)?;
    match &args.output {
        Some(path) => {
            write_whole(path, 0o600, |mut out| Ok(engine.export_container(&found, &mut out)?))?;
        }
        None if std::io::stdout().is_terminal() => {
            bail!("cowardly refusing to save to a terminal. Use the -o flag or redirect")
        }
        None => {
            let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
            engine.export_container(&found, &mut out)?;
            out.flush()?;
        }
    }
    Ok(Outcome::Success)
}

pub(crate) fn diff(args: &DiffArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let found = engine.containers().find(&args.container)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    for (kind, path) in engine.changes(&found)? {
        writeln!(out, "{kind} {}", path.display())?;
    }
    out.flush()?;
    Ok(Outcome::Success)
}

/// Bytes that files take, each counted once; what cannot be read counts as nothing.
pub(crate) fn disk_size(path: &Path) -> u64 {
    let mut seen = BTreeSet::new();
    let mut open = vec![path.to_owned()];
    let mut total = 0;
    while let Some(path) = open.pop() {
        let Ok(about) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        if about.is_file() && (about.nlink() == 1 || seen.insert((about.dev(), about.ino()))) {
            total += about.len();
        }
        if about.is_dir() {
            open.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    total
}
