//! Commits and remote files as trees.

use crate::worker::{BuildWorker, Output};
use crate::{EngineError, git as repository, http as remote};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};
use xbuild_cache::NewTree;
use xbuild_graph::{GitSource, HttpSource};
use xbuild_oci::Digest;

/// Checks a commit out.
pub(crate) fn git(worker: &BuildWorker, source: &GitSource) -> Result<Output, EngineError> {
    let ssh = worker.ssh.get("default").map(std::path::PathBuf::as_path);
    let commit = repository::resolve(source, ssh)?;
    let staging = worker.store.staging()?;
    let work = worker.store.staging()?;
    repository::checkout(source, &commit, &staging.path().join("fs"), work.path(), ssh)?;
    Ok(Output::Tree(worker.store.add_tree(Some(staging), &NewTree::default())?))
}

/// Puts a downloaded file into a tree of its own: mode 0600, the server's time or 1970.
pub(crate) fn http(worker: &BuildWorker, source: &HttpSource) -> Result<Output, EngineError> {
    let file = worker.runtime.block_on(remote::fetch(worker.net.http()?, &worker.store, &source.url))?;
    check(source, file.digest)?;
    let staging = worker.store.staging()?;
    let directory = staging.path().join("fs");
    std::fs::create_dir(&directory).map_err(|e| EngineError::io("make", &directory, e))?;
    let name = source.filename.clone().or(file.name).unwrap_or_else(|| remote::name_of(&source.url));
    let path = directory.join(name);
    let modified = file.modified.as_deref().and_then(crate::time::http_date).unwrap_or(0);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(modified).unwrap_or(0));
    let write = || {
        std::fs::copy(worker.store.blob_path(file.digest), &path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        std::fs::File::options().write(true).open(&path)?.set_modified(time)
    };
    write().map_err(|e| EngineError::io("write", &path, e))?;
    Ok(Output::Tree(worker.store.add_tree(Some(staging), &NewTree::default())?))
}

/// Compares with `--checksum`.
pub(crate) fn check(source: &HttpSource, found: Digest) -> Result<(), EngineError> {
    match &source.checksum {
        Some(expected) if *expected != found.to_string() => Err(EngineError::Source(format!(
            "digest mismatch for {}: got {found}, expected {expected}",
            repository::redacted(&source.url)
        ))),
        _ => Ok(()),
    }
}
