//! `cp`.

use super::lifecycle::lock_idle;
use crate::cli::{Global, Outcome};
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use xbuild_engine::Engine;
use xbuild_runner::container::archive;
use xbuild_runner::container::inside::{self, About, Place};
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
            let name = name_of(&from.path);
            from.check(&engine, args.follow_link)?;
            from.pack(&engine, &name, args.follow_link, &mut std::io::stdout().lock())?;
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
            let about = from.check(&engine, args.follow_link)?;
            let there = About::of(&to, true).with_context(|| format!("cannot look at `{}`", to.display()))?;
            let parent_is_there = || parent(&to).is_dir();
            let (directory, name) = target(&from.path, &about, &to, there.as_ref(), &parent_is_there)?;
            transfer(
                |out| from.pack(&engine, &name, args.follow_link, out),
                |input| {
                    archive::unpack(&directory, input).with_context(|| format!("cannot copy to `{}`", to.display()))
                },
            )?;
        }
        (End::Here(from), End::Inside(container, path)) => {
            let to = Inside::find(&engine, container, path)?;
            let about = About::of(&from, args.follow_link || has_slash(&from))
                .with_context(|| format!("cannot look at `{}`", from.display()))?
                .with_context(|| format!("lstat {}: no such file or directory", from.display()))?;
            let there = to.look(&engine, true)?;
            let parent_is_there = || {
                let above = Inside { found: to.found.clone(), path: parent(&to.path), _lock: None };
                matches!(above.look(&engine, true), Ok(Some(About { directory: true, .. })))
            };
            let (directory, name) = target(&from, &about, &to.path, there.as_ref(), &parent_is_there)
                .with_context(|| format!("cannot copy to container {}", to.found.container.name))?;
            transfer(
                |out| {
                    archive::pack(&from, &name, args.follow_link, out)
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
fn target(
    from: &Path,
    about: &About,
    to: &Path,
    there: Option<&About>,
    parent_is_there: &dyn Fn() -> bool,
) -> Result<(PathBuf, PathBuf)> {
    match there {
        Some(About { directory: true, .. }) => Ok((to.to_owned(), name_of(from))),
        Some(_) if about.directory => bail!("cannot copy directory"),
        Some(_) if has_slash(to) => bail!("not a directory: {}", to.display()),
        other => {
            if other.is_none() && !about.directory && has_slash(to) {
                bail!("destination directory must exist: no such directory {}", to.display());
            }
            let name = to.file_name().context("a destination without a name")?;
            if !parent_is_there() {
                bail!("could not find the directory {}: no such file or directory", parent(to).display());
            }
            Ok((parent(to), PathBuf::from(name)))
        }
    }
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

    /// What the source is; that it is not there is an error.
    fn check(&self, engine: &Engine, follow: bool) -> Result<About> {
        let about = self.look(engine, follow || has_slash(&self.path))?;
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
