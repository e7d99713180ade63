//! Working without root: what this process may do, and one line about it at the first use of a store.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use xbuild_engine::Engine;
use xbuild_runner::container::Containers;
use xbuild_runner::network::{check_outlet, may_change_networks};
use xbuild_runner::rootless::{self, Standing};

const ROOTS_STORE: &str = "/var/lib/xbuild";

/// What was found at the first use of a store; looked for again after a start of the machine and by another version.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Found {
    boot: String,
    version: String,
    /// How many ids files in the store may have.
    ids: u32,
    line: String,
}

/// Who works here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rights {
    pub(crate) standing: Standing,
    /// This process was root before it entered a namespace: root of a container.
    was_root: bool,
}

impl Rights {
    /// Gets this process all rights that it can have. Nothing else may run in it yet.
    ///
    /// What reaches into the containers of the store at `beside` has to be in their user namespace.
    pub(crate) fn take(beside: Option<&Path>) -> Result<Rights> {
        let was_root = rustix::process::geteuid().is_root();
        let login = std::env::var("USER").ok();
        let others = beside.into_iter().flat_map(|root| {
            let found = Containers::of(root).list().unwrap_or_default();
            found.into_iter().map(|found| found.state.pid).filter(|pid| *pid > 0)
        });
        let standing = rootless::enter(login.as_deref(), others).context("cannot work without root")?;
        Ok(Rights { standing, was_root })
    }

    /// Where a user's store is, before anything is known of rights; none for root.
    pub(crate) fn before() -> Rights {
        let standing = match rustix::process::geteuid().is_root() {
            true => Standing::Root,
            false => Standing::User { why: String::new() },
        };
        Rights { standing, was_root: false }
    }

    /// Where the store is if nobody says so.
    pub(crate) fn default_root(&self) -> Result<PathBuf> {
        if self.standing == Standing::Root || self.was_root && may_write(Path::new(ROOTS_STORE)) {
            return Ok(ROOTS_STORE.into());
        }
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
        let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|data| data.is_absolute()).or(home);
        Ok(data.context("neither XDG_DATA_HOME nor HOME is set; give --root")?.join("xbuild"))
    }

    /// Why no process can be run in a sandbox, if so.
    pub(crate) fn no_sandbox(&self) -> Option<String> {
        match &self.standing {
            Standing::User { why } => Some(why.clone()),
            Standing::Root | Standing::Namespace { .. } => None,
        }
    }

    /// Checks that the store is one for these rights. Says what they are if the store does not know it yet.
    pub(crate) fn introduce(&self, engine: &Engine) -> Result<()> {
        let ids = match &self.standing {
            Standing::Root => return Ok(()),
            Standing::Namespace { ids, .. } => *ids,
            Standing::User { .. } => 1,
        };
        let path = engine.store().root().join("rootless");
        let known: Found =
            std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        if ids == 1 && known.ids > 1 {
            bail!(
                "the store at `{}` has files of several users, and only one id is there: bring the ranges in /etc/subuid \
                 and /etc/subgid back, or give another --root",
                engine.store().root().display()
            );
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        if (&known.boot, &known.version, known.ids) == (&boot, &version, ids) {
            return Ok(());
        }
        let line = self.line(engine);
        if line != known.line {
            eprintln!("rootless: {line}");
        }
        let part = path.with_extension(format!("part-{}", std::process::id()));
        std::fs::write(&part, serde_json::to_vec(&Found { boot, version, ids, line })?)
            .and_then(|()| std::fs::rename(&part, &path))
            .with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// What works here, and the one setting that would give more.
    pub(crate) fn line(&self, engine: &Engine) -> String {
        let (ids, shortfall) = match &self.standing {
            Standing::Root => return "no: this is root".to_owned(),
            Standing::User { why } => return format!("no RUN and no containers, only files; {why}"),
            Standing::Namespace { ids: 1, shortfall } => {
                ("one id only, so owners that RUN sets are not kept".to_owned(), shortfall.clone())
            }
            Standing::Namespace { ids, .. } => (format!("{ids} ids"), None),
        };
        let scratch = engine.store().staging();
        let overlay = scratch.is_ok_and(|scratch| xbuild_runner::try_overlay(scratch.path()).is_ok());
        let outlet = if may_change_networks() { Ok(()) } else { check_outlet() };
        let files = if overlay { "overlayfs" } else { "copies instead of overlayfs" };
        let network = if outlet.is_ok() { "networks of their own" } else { "the host's network" };
        let hint = shortfall.or(outlet.err()).map(|hint| format!("; {hint}")).unwrap_or_default();
        format!("{ids}, {files}, {network}{hint}")
    }
}

/// Whether a directory, or the one that it would be made in, may be written to.
fn may_write(directory: &Path) -> bool {
    let at = if directory.exists() { directory } else { directory.parent().unwrap_or(directory) };
    rustix::fs::access(at, rustix::fs::Access::WRITE_OK).is_ok()
}
