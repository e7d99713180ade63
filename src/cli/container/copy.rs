//! `cp`.

use super::lifecycle::lock_idle;
use crate::cli::{Global, Outcome};
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use xbuild_engine::Engine;
use xbuild_runner::container::archive::{self, Side};
use xbuild_runner::container::inside::{self, About, Destination, Place};
use xbuild_runner::container::{Found, Lock};

/// Flags of `cp`.
#[derive(clap::Args, Debug)]
pub(crate) struct CopyArgs {
    /// Keep owners; they are kept anyway
    #[arg(short, long)]
    archive: bool,
    /// Follow a link that is named as the source
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    /// `CONTAINER:PATH`, a path, or `-` for a tar
    source: String,
    /// `CONTAINER:PATH`, a path, or `-` for a tar
    destination: String,
}

/// One end of a copy, as it was named.
enum End<'a> {
    Tar,
    Here(PathBuf),
    /// A container and a path of it.
    Inside(&'a str, PathBuf),
}

/// A path of a container.
struct Inside {
    found: Found,
    path: PathBuf,
    /// Held while the files of a container that does not run are mounted.
    _lock: Option<Lock>,
}

pub(crate) fn copy(args: &CopyArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    match (end(&args.source)?, end(&args.destination)?) {
        (End::Inside(..), End::Inside(..)) => bail!("copying between containers is not supported"),
        (End::Inside(container, path), End::Tar) => {
            let from = Inside::find(&engine, container, path)?;
            let follow = args.follows(&from.path);
            from.check(&engine, follow)?;
            from.pack(&engine, &name_of(&from.path), follow, &mut std::io::stdout().lock())?;
        }
        (End::Tar, End::Inside(container, path)) => {
            let to = Inside::find(&engine, container, path)?;
            match to.look(&engine, true)? {
                Some(About { directory: true, .. }) => {}
                Some(_) => bail!("destination \"{}\" must be a directory", args.destination),
                None => bail!(
                    "Could not find the file {} in container {}: no such directory",
                    to.path.display(),
                    to.found.container.name
                ),
            }
            to.unpack(&engine, &to.path, &mut std::io::stdin().lock())?;
        }
        (End::Inside(container, path), End::Here(to)) => {
            let from = Inside::find(&engine, container, path)?;
            let follow = args.follows(&from.path);
            let about = from.check(&engine, follow)?;
            let there =
                Destination::of(Side::Host, &to).with_context(|| format!("cannot look at `{}`", to.display()))?;
            let (directory, name) = target(&from.path, &about, &there)?;
            transfer(
                |out| from.pack(&engine, &name, follow, out),
                |input| {
                    archive::unpack(Side::Host, &directory, input)
                        .with_context(|| format!("cannot copy to `{}`", to.display()))
                },
            )?;
        }
        (End::Here(from), End::Inside(container, path)) => {
            let to = Inside::find(&engine, container, path)?;
            let follow = args.follows(&from);
            let about = About::of(Side::Host, &from, follow)
                .with_context(|| format!("cannot look at `{}`", from.display()))?
                .with_context(|| format!("lstat {}: no such file or directory", from.display()))?;
            let (directory, name) = target(&from, &about, &to.destination(&engine)?)
                .with_context(|| format!("cannot copy to container {}", to.found.container.name))?;
            transfer(
                |out| {
                    archive::pack(Side::Host, &from, &name, follow, out)
                        .with_context(|| format!("cannot copy `{}`", from.display()))
                },
                |input| to.unpack(&engine, &directory, input),
            )?;
        }
        (End::Tar | End::Here(_), End::Tar | End::Here(_)) => {
            bail!("must specify at least one container source: CONTAINER:PATH")
        }
    }
    Ok(Outcome::Success)
}

impl CopyArgs {
    /// Whether a link that is named as the source stands for what it leads to.
    fn follows(&self, source: &Path) -> bool {
        self.follow_link || has_slash(source)
    }
}

/// Which end an argument names. Paths begin with a slash or a dot, or have no colon.
fn end(text: &str) -> Result<End<'_>> {
    if text == "-" {
        return Ok(End::Tar);
    }
    match text.split_once(':').filter(|(name, _)| !name.is_empty() && !name.starts_with(['/', '.'])) {
        None => Ok(End::Here(absolute(text)?)),
        Some((name, path)) => Ok(End::Inside(name, rooted(path))),
    }
}

/// An absolute path that keeps a dot or slash at its end, which say what is meant.
fn absolute(text: &str) -> Result<PathBuf> {
    let here = std::env::current_dir().context("cannot tell the current directory")?;
    Ok(if text.starts_with('/') { PathBuf::from(text) } else { PathBuf::from(format!("{}/{text}", here.display())) })
}

/// A path of a container; relative ones begin at its root.
fn rooted(path: &str) -> PathBuf {
    PathBuf::from(if path.starts_with('/') { path.to_owned() } else { format!("/{path}") })
}

fn has_slash(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().ends_with(b"/") || archive::ends_in_dot(path)
}

fn parent(path: &Path) -> PathBuf {
    path.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

/// What a source is called in its tar: its own name, or `.` for content.
fn name_of(path: &Path) -> PathBuf {
    match path.file_name().filter(|_| !archive::ends_in_dot(path)) {
        Some(name) => PathBuf::from(name),
        None => PathBuf::from("."),
    }
}

/// Where a source goes: the directory to unpack in, and its name there. The rules are those of `cp -a`.
fn target(from: &Path, about: &About, to: &Destination) -> Result<(PathBuf, PathBuf)> {
    let path = &to.path;
    match &to.about {
        Some(About { directory: true, .. }) => return Ok((path.clone(), name_of(from))),
        Some(_) if about.directory => bail!("cannot copy directory"),
        Some(_) if has_slash(path) => bail!("not a directory: {}", path.display()),
        None if !about.directory && has_slash(path) => {
            bail!("destination directory must exist: no such directory {}", path.display())
        }
        _ => {}
    }
    let name = path.file_name().context("a destination without a name")?;
    if !to.has_parent {
        bail!("could not find the directory {}: no such file or directory", parent(path).display());
    }
    Ok((parent(path), PathBuf::from(name)))
}

/// Runs both sides at once, with a pipe between.
fn transfer(
    write: impl FnOnce(&mut dyn Write) -> Result<()> + Send,
    read: impl FnOnce(&mut dyn Read) -> Result<()>,
) -> Result<()> {
    let (mut reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || write(&mut std::io::BufWriter::with_capacity(256 << 10, writer)));
        let done = read(&mut reader);
        drop(reader);
        match (done, writing.join()) {
            (Ok(()), Ok(written)) => written,
            // The reader's error is the reason for a pipe that broke.
            (Err(error), _) => Err(error),
            (Ok(()), Err(_)) => bail!("the copy ended unexpectedly"),
        }
    })
}

impl Inside {
    fn find(engine: &Engine, name: &str, path: PathBuf) -> Result<Inside> {
        let containers = engine.containers();
        let found = containers.find(name)?;
        let lock = lock_idle(&containers, &found.container.id)?;
        let found = containers.read(&found.container.id)?;
        Ok(Inside { found, path, _lock: lock })
    }

    fn place(&self, engine: &Engine) -> Result<Place> {
        Ok(match self.found.state.pid {
            0 => Place::Sandbox(Box::new(engine.files_of(&self.found)?)),
            pid => Place::Process(pid),
        })
    }

    fn look(&self, engine: &Engine, follow: bool) -> Result<Option<About>> {
        Ok(inside::look(self.place(engine)?, &self.path, follow)?)
    }

    fn destination(&self, engine: &Engine) -> Result<Destination> {
        Ok(inside::destination(self.place(engine)?, &self.path)?)
    }

    /// What the source is; that it is not there is an error.
    fn check(&self, engine: &Engine, follow: bool) -> Result<About> {
        let about = self.look(engine, follow)?;
        about.with_context(|| {
            format!(
                "Could not find the file {} in container {}: no such file or directory",
                self.path.display(),
                self.found.container.name
            )
        })
    }

    fn pack(&self, engine: &Engine, name: &Path, follow: bool, out: &mut dyn Write) -> Result<()> {
        Ok(inside::pack(self.place(engine)?, &self.path, name, follow, out)?)
    }

    fn unpack(&self, engine: &Engine, directory: &Path, input: &mut dyn Read) -> Result<()> {
        Ok(inside::unpack(self.place(engine)?, directory, input)?)
    }
}
