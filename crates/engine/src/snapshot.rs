//! Root file systems that processes write to: overlays, or copies where overlays cannot be mounted.

use crate::EngineError;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use xbuild_cache::tree::{self, Fill, Marks, Time, View};
use xbuild_cache::{Staging, Store};
use xbuild_runner::{MountSource, Rootfs, try_overlay};

/// How root file systems are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Snapshotter {
    /// With overlayfs if it works here.
    #[default]
    Auto,
    /// With overlayfs.
    Overlay,
    /// As plain copies.
    Native,
}

/// What is remembered in a store where overlays work.
const FACT: &str = "overlay works";

/// Makes root file systems for one engine.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    wanted: Snapshotter,
    native: OnceLock<bool>,
    /// Why overlays are not used, until somebody says it.
    shortfall: Mutex<Option<String>>,
}

/// A root file system in a staging directory. What changes in it becomes the directory `fs` there.
pub(crate) struct WritableRoot {
    pub(crate) rootfs: Rootfs,
    /// Of a copy: when it was complete.
    copied: Option<Time>,
}

impl Snapshots {
    pub(crate) fn new(wanted: Snapshotter) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Why copies are made instead of overlays; once.
    pub(crate) fn shortfall(&self) -> Option<String> {
        self.shortfall.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn is_native(&self, store: &Store) -> bool {
        match self.wanted {
            Snapshotter::Overlay => false,
            Snapshotter::Native => true,
            Snapshotter::Auto => *self.native.get_or_init(|| match overlay_works(store) {
                Ok(()) => false,
                Err(why) => {
                    let text = format!("overlayfs cannot be used, every RUN copies its root: {why}");
                    *self.shortfall.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
                    true
                }
            }),
        }
    }

    /// A root that shows `dirs`, topmost first.
    pub(crate) fn writable(
        &self,
        store: &Store,
        dirs: &[PathBuf],
        staging: &Staging,
    ) -> Result<WritableRoot, EngineError> {
        let [upper, work, root] = ["fs", "work", "root"].map(|name| staging.path().join(name));
        make(&upper)?;
        if self.is_native(store) {
            make(&root)?;
            let copied = tree::copy_out(&View::layers(dirs, store.marks())?, &root)?;
            return Ok(WritableRoot { rootfs: Rootfs::Directory(root), copied: Some(copied) });
        }
        make(&work)?;
        crate::ops::exec::copy_root_attributes(dirs, &upper)?;
        let userxattr = store.marks() == Marks::User;
        let rootfs = Rootfs::Overlay { lower: dirs.to_vec(), upper, work, volatile: true, userxattr };
        Ok(WritableRoot { rootfs, copied: None })
    }

    /// Files to mount over a root. Changes, where they are allowed, stay in `staging`.
    pub(crate) fn mount(
        &self,
        store: &Store,
        lower: Vec<PathBuf>,
        selector: &str,
        readonly: bool,
        staging: &Staging,
    ) -> Result<MountSource, EngineError> {
        let selector = selector.to_owned();
        // One directory is shown as it is.
        if self.is_native(store) && !(readonly && lower.len() == 1) {
            let path = staging.path().join("root");
            make(&path)?;
            let fill = if readonly { Fill::Link } else { Fill::Copy };
            tree::flatten(&View::layers(&lower, store.marks())?, &path, fill)?;
            return Ok(MountSource::Bind { path, selector, recursive: false });
        }
        let mut scratch = None;
        if !readonly {
            let [upper, work] = ["fs", "work"].map(|name| staging.path().join(name));
            make(&upper)?;
            make(&work)?;
            scratch = Some((upper, work));
        }
        Ok(MountSource::Overlay { lower, scratch, selector })
    }
}

impl WritableRoot {
    /// Leaves only the changes in the staging directory, as a diff directory over `dirs`.
    pub(crate) fn finish(&self, store: &Store, dirs: &[PathBuf], staging: &Staging) -> Result<(), EngineError> {
        if let (Some(copied), Rootfs::Directory(root)) = (self.copied, &self.rootfs) {
            let base = View::layers(dirs, store.marks())?;
            tree::take_changes(&base, root, copied, &staging.path().join("fs"), store.marks())?;
        }
        staging.discard("work")?;
        Ok(staging.discard("root")?)
    }
}

fn overlay_works(store: &Store) -> Result<(), String> {
    let told = |e: &dyn std::error::Error| match e.source() {
        Some(cause) => format!("{e}: {cause}"),
        None => e.to_string(),
    };
    if store.knows(FACT).map_err(|e| told(&e))? {
        return Ok(());
    }
    let scratch = store.staging().map_err(|e| told(&e))?;
    try_overlay(scratch.path()).map_err(|e| told(&e))?;
    store.remember(FACT).map_err(|e| told(&e))
}

fn make(path: &Path) -> Result<(), EngineError> {
    std::fs::create_dir(path).map_err(|e| EngineError::io("make", path, e))
}
