//! COPY and ADD.

use super::content::{Mover, kept_xattrs, set_xattrs};
use super::delta::{Change, Changes, disjoint};
use super::dir::{Dir, Entry, MAX_DEPTH, list, open_regular, open_root};
use super::error::{Context, Result, TreeError};
use super::index::{FileDigests, StatKey};
use super::link::{Groups, link_within, lock};
use super::listing::Listing;
use super::meta::{Kind, Meta, Time};
use super::mode::ModeChange;
use super::select::{Include, Said, expand};
use super::unpack::Limits;
use super::view::{Node, Place, View, Visibility};
use super::writer::{DiffWriter, Ids, NewDirs, WriteDir, base_name, create, make_node, named, set_file, set_node_time};
use rayon::Scope;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Tells whether a name matches a pattern.
pub type Matcher<'a> = &'a (dyn Fn(&str, &str) -> bool + Sync);

/// What `--exclude` says of a path relative to the source, and whether it is a directory.
pub type Excludes<'a> = &'a (dyn Fn(&Path, bool) -> Visibility + Sync);

/// One COPY or ADD instruction.
#[derive(Clone)]
pub struct CopyOptions<'a> {
    /// Absolute; a trailing slash makes it a directory.
    pub destination: &'a Path,
    /// Owner of everything that is made, resolved by the caller.
    pub owner: Option<Ids>,
    /// Keep the source's owners where `owner` is none, instead of 0:0.
    pub keep_owner: bool,
    /// `--chmod`.
    pub mode: Option<ModeChange>,
    /// Unpack sources that are archives (ADD).
    pub unpack: bool,
    /// `--parents`: keep directories of sources, from the `/./` pivot on.
    pub parents: bool,
    /// `--exclude`.
    pub excludes: Option<Excludes<'a>>,
    /// Go's `filepath.Match`, for one component of a path at a time.
    pub wildcard: Matcher<'a>,
    /// One pattern of `.dockerignore` syntax against a whole relative path, for `--parents`.
    pub glob: Matcher<'a>,
    /// Time for everything that is made; none to keep the source's.
    pub mtime: Option<Time>,
    /// Latest time that is kept; later ones become this.
    pub clamp: Option<Time>,
    /// How much an archive may hold.
    pub limits: Limits,
    /// Copy only these of the directory that is the one source, over an earlier copy of it.
    pub changes: Option<&'a Changes>,
    /// Takes the digests of files of a context, which are hashed while they are copied.
    pub digests: Option<&'a dyn FileDigests>,
}

impl<'a> CopyOptions<'a> {
    /// Copies plain paths to `destination` as they are: owners, modes and times kept, nothing left out or unpacked.
    pub fn faithful(destination: &'a Path) -> Self {
        Self {
            destination,
            owner: None,
            keep_owner: true,
            mode: None,
            unpack: false,
            parents: false,
            excludes: None,
            wildcard: &no_match,
            glob: &no_match,
            mtime: None,
            clamp: None,
            limits: Limits::default(),
            changes: None,
            digests: None,
        }
    }

    /// The time that the copy of a file gets.
    pub(crate) fn time_of(&self, meta: &Meta) -> Time {
        match (self.mtime, self.clamp) {
            (Some(fixed), _) => fixed,
            (None, Some(clamp)) => meta.mtime.min(clamp),
            (None, None) => meta.mtime,
        }
    }
}

fn no_match(_: &str, _: &str) -> bool {
    false
}

impl fmt::Debug for CopyOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyOptions")
            .field("destination", &self.destination)
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

/// Something to copy.
#[derive(Clone, Copy, Debug)]
pub enum CopySource<'a> {
    /// A path or pattern in a view.
    Path {
        /// Where it is looked up.
        view: &'a View,
        /// Absolute path or pattern.
        path: &'a Path,
        /// It may hold wildcards; without a match nothing is copied.
        wildcard: bool,
        /// It must exist.
        required: bool,
    },
    /// Content given in the Dockerfile.
    Inline {
        /// Its name in a destination directory.
        name: &'a OsStr,
        /// The content.
        data: &'a [u8],
    },
}

impl DiffWriter {
    /// Copies every source to the destination, in order, with BuildKit's rules.
    pub fn copy(&self, sources: &[CopySource<'_>], options: &CopyOptions<'_>) -> Result<()> {
        for source in sources {
            match *source {
                CopySource::Inline { name, data } => self.copy_inline(name, data, options)?,
                CopySource::Path { view, path, wildcard, required } if options.parents => {
                    self.copy_with_parents(view, path, required && !wildcard, options)?;
                }
                CopySource::Path { view, path, wildcard: true, .. } => {
                    for found in expand(view, path, options.wildcard, true)? {
                        self.copy_path(view, &found, true, options)?;
                    }
                }
                CopySource::Path { view, path, wildcard: false, required } => {
                    self.copy_path(view, path, required, options)?;
                }
            }
        }
        Ok(())
    }

    fn copy_path(&self, view: &View, path: &Path, required: bool, options: &CopyOptions<'_>) -> Result<()> {
        let Some(node) = view.lookup(path, true)? else {
            return if required { Err(TreeError::not_found(path)) } else { Ok(()) };
        };
        if options.unpack && node.meta.is_file() && self.add_archive(view, &node, options)? {
            return Ok(());
        }
        let Some(target) = self.target(&node.meta, base_name(path), options)? else {
            return Ok(());
        };
        Copier::new(self, view, options, None).run(&node, target)
    }

    fn copy_with_parents(&self, view: &View, path: &Path, required: bool, options: &CopyOptions<'_>) -> Result<()> {
        let text = path.to_str().ok_or_else(|| TreeError::unfit(path, "not valid UTF-8"))?;
        let (pivot, pattern) = text.split_once("/./").unwrap_or(("/", text));
        let node = view.require(pivot, true)?;
        let include = Include::new(pattern, options.glob, options.wildcard);
        let Some(target) = self.target(&node.meta, None, options)? else {
            return Ok(());
        };
        let copier = Copier::new(self, view, options, Some(include));
        copier.run(&node, target)?;
        if required && !copier.found.load(Ordering::Relaxed) {
            return Err(TreeError::not_found(path));
        }
        Ok(())
    }

    fn copy_inline(&self, name: &OsStr, data: &[u8], options: &CopyOptions<'_>) -> Result<()> {
        let now = Meta { kind: Kind::File, ..self.view().root().meta().context("stat", "/")? };
        let Some((dir, name)) = self.target(&now, Some(name), options)? else {
            return Ok(());
        };
        let name = name.ok_or_else(|| TreeError::unfit(options.destination, "is a directory"))?;
        let mode = options.mode.as_ref().map_or(0o644, |m| m.apply(0o644, false));
        self.write_file(&dir, &name, data, mode, options.owner.unwrap_or_default(), options.mtime)
    }

    /// Makes what is needed above the destination. For a directory the answer is the directory that takes its content.
    fn target(
        &self,
        source: &Meta,
        name: Option<&OsStr>,
        options: &CopyOptions<'_>,
    ) -> Result<Option<(WriteDir, Option<OsString>)>> {
        let new = ModeChange::new_dirs(options.mode.as_ref(), options.owner, options.mtime);
        let destination = options.destination.as_os_str().as_bytes();
        let cut = destination.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let (above, last) = destination.split_at(cut);
        let into = last.is_empty() || last == b".";
        self.ensure_path(Path::new(OsStr::from_bytes(if into { destination } else { above })), new)?;
        let resolved = self.view().resolve(options.destination, true)?;
        let mut components = resolved.components;
        if source.is_dir() {
            return match resolved.node {
                Some(node) if !node.meta.is_dir() => {
                    Err(TreeError::unfit(Path::new("/").join(node.path), "cannot copy to non-directory"))
                }
                _ => Ok(Some((self.ensure(&components, new)?, None))),
            };
        }
        if resolved.node.is_some_and(|n| n.meta.is_dir()) {
            let name = name.ok_or_else(|| TreeError::unfit(options.destination, "is a directory"))?;
            components.push(name.to_os_string());
        }
        let Some(name) = components.pop() else {
            return Err(TreeError::unfit(options.destination, "is a directory"));
        };
        Ok(Some((self.ensure(&components, new)?, Some(name))))
    }

    /// Takes over what was copied into the root of another diff from the directory `source`, as a copy of it would be made
    /// here. False, and nothing is changed, where that would not be the same: see [`disjoint`].
    pub fn adopt(&self, staged: &Path, source: &Node, options: &CopyOptions<'_>, all: &Listing) -> Result<bool> {
        if !source.meta.is_dir() || !disjoint(self.view(), options.destination, all)? {
            return Ok(false);
        }
        let Some((dir, None)) = self.target(&source.meta, None, options)? else { return Ok(false) };
        let from = open_root(staged)?;
        let mut names = Vec::new();
        list(from.as_fd(), |name, _| names.push(name.to_os_string())).context("list", staged)?;
        for name in names {
            rustix::fs::renameat(&from, &name, &dir.fd, &name).context("take", dir.path.join(&name))?;
        }
        self.set_time_later(&dir.path, options.time_of(&source.meta));
        Ok(true)
    }

    /// The directory at a path, links followed, made as needed.
    pub(crate) fn ensure_path(&self, path: &Path, new: NewDirs) -> Result<WriteDir> {
        let resolved = self.view().resolve(path, true)?;
        if let Some(node) = resolved.node.filter(|n| !n.meta.is_dir()) {
            return Err(TreeError::unfit(Path::new("/").join(node.path), "not a directory"));
        }
        self.ensure(&resolved.components, new)
    }
}

/// Copies one source.
struct Copier<'a> {
    writer: &'a DiffWriter,
    view: &'a View,
    options: &'a CopyOptions<'a>,
    include: Option<Include<'a>>,
    copy: u32,
    mover: Mover,
    groups: Groups,
    found: AtomicBool,
    stop: AtomicBool,
    failure: Mutex<Option<TreeError>>,
}

/// A directory of the destination, made when the first thing goes into it.
struct Target {
    above: Option<Arc<Target>>,
    name: OsString,
    source: Dir,
    meta: Meta,
    /// Only something below it is wanted, so an existing directory keeps its owner and time.
    incidental: bool,
    made: Mutex<Option<(WriteDir, bool)>>,
}

/// A directory of the source that is to be copied. It is opened when its turn comes, to hold few descriptors.
struct Waiting<'a> {
    parent: Arc<Job<'a>>,
    entry: Entry,
    meta: Meta,
    path: PathBuf,
    below: PathBuf,
    said: Said,
    /// It is made even if it stays empty.
    wanted: bool,
    incidental: bool,
    changes: Option<&'a Changes>,
}

/// A directory of the source that is being copied.
struct Job<'a> {
    dir: Dir,
    /// All that is to be copied, if it is not everything.
    changes: Option<&'a Changes>,
    /// Path in the view.
    path: PathBuf,
    /// Path below the source.
    below: PathBuf,
    /// All of it is wanted, as far as `--parents` is concerned.
    included: bool,
    depth: usize,
    target: Arc<Target>,
}

/// Entries handled by one task.
const CHUNK: usize = 128;

impl<'a> Copier<'a> {
    fn new(
        writer: &'a DiffWriter,
        view: &'a View,
        options: &'a CopyOptions<'a>,
        include: Option<Include<'a>>,
    ) -> Copier<'a> {
        Copier {
            writer,
            view,
            options,
            include,
            copy: writer.links.next_copy(),
            mover: Mover::default(),
            groups: Groups::default(),
            found: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    fn run(&self, node: &Node, (dir, name): (WriteDir, Option<OsString>)) -> Result<()> {
        if !node.meta.is_dir() {
            let name = name.ok_or_else(|| TreeError::unfit(&node.path, "is a directory"))?;
            return self.place(node, &dir, &name, false);
        }
        self.writer.set_time_later(&dir.path, self.mtime(&node.meta));
        let source = self.view.open_dir(node)?;
        let target = Target {
            above: None,
            name: OsString::new(),
            source: source.clone(),
            meta: node.meta,
            incidental: false,
            made: Mutex::new(Some((dir, false))),
        };
        let included = self.include.as_ref().is_none_or(|i| i.says(Path::new("")) == Said::Yes);
        if included {
            self.found.store(true, Ordering::Relaxed);
        }
        let job = Job {
            dir: source,
            changes: self.options.changes,
            path: node.path.clone(),
            below: PathBuf::new(),
            included,
            depth: 0,
            target: Arc::new(target),
        };
        rayon::scope(|scope| {
            if let Err(failure) = self.directory(scope, job) {
                self.fail(failure);
            }
        });
        match lock(&self.failure).take() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    fn start<'s>(&'s self, scope: &Scope<'s>, waiting: Waiting<'a>)
    where
        'a: 's,
    {
        scope.spawn(move |scope| {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if let Err(failure) = self.enter(scope, waiting) {
                self.fail(failure);
            }
        });
    }

    fn fail(&self, failure: TreeError) {
        self.stop.store(true, Ordering::Relaxed);
        lock(&self.failure).get_or_insert(failure);
    }

    fn enter<'s>(&'s self, scope: &Scope<'s>, waiting: Waiting<'a>) -> Result<()> {
        let Waiting { parent, entry, meta, path, below, said, wanted, incidental, changes } = waiting;
        let Some(source) = parent.dir.child_from(&entry.name, entry.part).context("open", &path)? else {
            return Ok(());
        };
        let target = Arc::new(Target {
            above: Some(Arc::clone(&parent.target)),
            name: entry.name,
            source: source.clone(),
            meta,
            incidental,
            made: Mutex::new(None),
        });
        if wanted {
            self.found.store(true, Ordering::Relaxed);
            self.open(&target)?;
        }
        let included = said == Said::Yes;
        self.directory(scope, Job { dir: source, changes, path, below, included, depth: parent.depth + 1, target })
    }

    fn directory<'s>(&'s self, scope: &Scope<'s>, job: Job<'a>) -> Result<()> {
        if job.depth > MAX_DEPTH {
            return Err(TreeError::unfit(&job.path, "nested too deeply"));
        }
        let mut entries = match job.changes {
            None => job.dir.entries().context("list", &job.path)?,
            Some(changes) => {
                self.hide_removed(&job.target, changes)?;
                changes.to_copy()
            }
        };
        if !self.view.immutable() {
            // After the listing: what changes from here on has a later time.
            self.writer.note_source(job.dir.meta().context("stat", &job.path)?.ctime);
        }
        let job = Arc::new(job);
        while entries.len() > CHUNK {
            let chunk = entries.split_off(entries.len() - CHUNK);
            let job = Arc::clone(&job);
            scope.spawn(move |scope| self.entries(scope, &job, chunk));
        }
        self.entries(scope, &job, entries);
        Ok(())
    }

    fn entries<'s>(&'s self, scope: &Scope<'s>, job: &Arc<Job<'a>>, entries: Vec<Entry>) {
        for entry in entries {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if let Err(failure) = self.entry(scope, job, entry) {
                return self.fail(failure);
            }
        }
    }

    fn entry<'s>(&'s self, scope: &Scope<'s>, job: &Arc<Job<'a>>, entry: Entry) -> Result<()> {
        let path = job.path.join(&entry.name);
        let below = job.below.join(&entry.name);
        let said = match &self.include {
            Some(include) if !job.included => include.says(&below),
            _ => Said::Yes,
        };
        if said == Said::No {
            return Ok(());
        }
        let Some(meta) = job.dir.stat_entry(&entry).context("stat", &path)? else {
            return Ok(());
        };
        let meta = self.view.shown(meta);
        let visible = self.view.visibility(&path, meta.is_dir());
        let wanted = self.options.excludes.map_or(Visibility::Visible, |e| e(&below, meta.is_dir()));
        if visible == Visibility::Hidden || wanted == Visibility::Hidden {
            return Ok(());
        }
        if !meta.is_dir() {
            if wanted != Visibility::Visible
                || said != Said::Yes
                || (meta.kind == Kind::Socket && !self.view.immutable())
            {
                return Ok(());
            }
            self.found.store(true, Ordering::Relaxed);
            let (dir, made) = self.open(&job.target)?;
            let place = Place::Name { parent: job.dir.clone(), part: entry.part, name: entry.name.clone() };
            return self.place(&Node { path, meta, place }, &dir, &entry.name, made);
        }
        let incidental = wanted != Visibility::Visible || said != Said::Yes;
        let wanted = !incidental && visible == Visibility::Visible;
        let changes = match job.changes.and_then(|changes| changes.of(&entry.name)) {
            Some(Change::Enter(changes)) => Some(changes),
            _ => None,
        };
        let parent = Arc::clone(job);
        self.start(scope, Waiting { parent, entry, meta, path, below, said, wanted, incidental, changes });
        Ok(())
    }

    /// Takes names that are gone out of the earlier copy.
    fn hide_removed(&self, target: &Target, changes: &Changes) -> Result<()> {
        for (name, _) in changes.0.iter().filter(|(_, change)| *change == Change::Remove) {
            let (dir, _) = self.open(target)?;
            self.writer.hide(&dir, name)?;
        }
        Ok(())
    }

    /// The directory to write to, and whether it was made by this copy.
    fn open(&self, target: &Target) -> Result<(WriteDir, bool)> {
        let mut made = lock(&target.made);
        if let Some(made) = &*made {
            return Ok(made.clone());
        }
        let Some(above) = &target.above else {
            return Err(TreeError::unfit("/", "has no directory"));
        };
        let (above, _) = self.open(above)?;
        let new = NewDirs { mode: 0o700, owner: Ids::default(), mtime: None };
        let (dir, new) = self.writer.enter(&above, &target.name, Some(new))?;
        let mode = self.mode(&target.meta);
        if new || !target.incidental {
            set_file(dir.fd.as_fd(), mode, self.owner(&target.meta), None).context("set attributes of", &dir.path)?;
            self.writer.set_time_later(&dir.path, self.mtime(&target.meta));
            if let Some(fd) = target.source.top().filter(|_| self.view.immutable()) {
                let xattrs = kept_xattrs(fd).context("read attributes of", &dir.path)?;
                set_xattrs(dir.fd.as_fd(), &xattrs).context("set attributes of", &dir.path)?;
            }
        } else {
            rustix::fs::fchmod(&dir.fd, mode.into()).context("set mode of", &dir.path)?;
        }
        *made = Some((dir.clone(), new));
        Ok((dir, new))
    }

    fn owner(&self, meta: &Meta) -> Ids {
        match self.options.owner {
            Some(owner) => owner,
            None if self.options.keep_owner => Ids { uid: meta.uid, gid: meta.gid },
            None => Ids::default(),
        }
    }

    fn mtime(&self, meta: &Meta) -> Time {
        self.options.time_of(meta)
    }

    fn mode(&self, meta: &Meta) -> u32 {
        self.options.mode.as_ref().map_or(meta.mode, |m| m.apply(meta.mode, meta.is_dir()))
    }

    /// Copies something that is no directory. `free` says that the name is known to be unused.
    fn place(&self, node: &Node, dir: &WriteDir, name: &OsStr, free: bool) -> Result<()> {
        if !free {
            self.writer.make_room(dir, name)?;
        }
        let Some((parent, part, from)) = named(node) else {
            return Err(TreeError::unfit(&node.path, "is a directory"));
        };
        let meta = &node.meta;
        let path = dir.path.join(name);
        let mtime = self.mtime(meta);
        let owner = self.owner(meta);
        let id = (part, meta.dev, meta.ino);
        if self.may_share(meta, owner, mtime) {
            let to = (dir.fd.as_fd(), name);
            if self.writer.links.share(self.copy, id, (parent.fd(part), from), to).context("link", &path)? {
                return Ok(());
            }
        }
        if meta.nlink > 1 && meta.kind == Kind::File && !self.writer.separate {
            let slot = self.groups.slot(id);
            let mut first = lock(&slot);
            if let Some(first) = &*first
                && link_within(self.writer.diff_root(), first, (dir.fd.as_fd(), name)).context("link", &path)?
            {
                return Ok(());
            }
            self.copy_file(parent, part, from, node, dir, name)?;
            first.get_or_insert(path);
            return Ok(());
        }
        match meta.kind {
            Kind::File => self.copy_file(parent, part, from, node, dir, name),
            Kind::Symlink => {
                let target = parent.readlink(part, from).context("read link", &node.path)?;
                rustix::fs::symlinkat(&target, &dir.fd, name).context("make link", &path)?;
                super::owner::set_node(dir.fd.as_fd(), name, owner).context("set owner of", &path)?;
                set_node_time(dir.fd.as_fd(), name, Some(mtime)).context("set times of", &path)
            }
            _ if meta.is_whiteout() => Err(TreeError::unfit(&node.path, "a device with number 0:0 cannot be copied")),
            kind => make_node(dir.fd.as_fd(), name, kind, meta.rdev, self.mode(meta), owner, Some(mtime))
                .context("make", &path),
        }
    }

    /// True if the file would be the same in everything that an inode holds.
    fn may_share(&self, meta: &Meta, owner: Ids, mtime: Time) -> bool {
        self.view.immutable()
            && matches!(meta.kind, Kind::File | Kind::Symlink)
            && self.options.owner.is_none()
            && owner == (Ids { uid: meta.uid, gid: meta.gid })
            && mtime == meta.mtime
            && (meta.kind == Kind::Symlink || self.mode(meta) == meta.mode)
    }

    fn copy_file(
        &self,
        parent: &Dir,
        part: usize,
        from: &OsStr,
        node: &Node,
        dir: &WriteDir,
        name: &OsStr,
    ) -> Result<()> {
        let path = dir.path.join(name);
        let (source, now) = open_regular(parent.fd(part), from, &node.path)?;
        let file = create(dir.fd.as_fd(), name).context("create", &path)?;
        match self.options.digests.filter(|_| !self.view.immutable()) {
            None => self.mover.copy(source.as_fd(), file.as_fd(), now.size, now.blocks).context("copy to", &path)?,
            Some(digests) => {
                let hash = self.mover.copy_hashed(source.as_fd(), file.as_fd(), now.size, now.blocks);
                let hash = hash.context("copy to", &path)?;
                let after = Meta::of(&rustix::fs::fstat(&source).context("stat", &node.path)?);
                let key = StatKey::of(&now, false);
                if StatKey::of(&after, false) == key {
                    digests.put(&key, hash);
                }
            }
        }
        if !self.view.immutable() {
            self.writer.note_source(now.ctime);
        }
        let mtime = self.mtime(&node.meta);
        set_file(file.as_fd(), self.mode(&node.meta), self.owner(&node.meta), Some(mtime))
            .context("set attributes of", &path)?;
        if self.view.immutable() {
            let mut xattrs = kept_xattrs(source.as_fd()).context("read attributes of", &node.path)?;
            xattrs.retain(|(name, _)| self.options.owner.is_none() || name != "security.capability");
            if !xattrs.is_empty() {
                set_xattrs(file.as_fd(), &xattrs).context("set attributes of", &path)?;
                rustix::fs::futimens(&file, &mtime.timestamps()).context("set times of", &path)?;
            }
        }
        Ok(())
    }
}

/// Copies the whole of a view into a directory of the user, as `type=local` does.
///
/// What is there stays unless the view has the same name. Files get `owner`; times later than `clamp` become `clamp`.
pub fn export_to_directory(view: &View, directory: &Path, owner: Option<Ids>, clamp: Option<Time>) -> Result<()> {
    let options = CopyOptions { owner, clamp, ..CopyOptions::faithful(Path::new("/")) };
    let writer = DiffWriter::onto(directory)?;
    let source = CopySource::Path { view, path: Path::new("/"), wildcard: false, required: false };
    writer.copy(&[source], &options)?;
    writer.finish()
}
