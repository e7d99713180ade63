//! Commits and remote files as trees.

use crate::worker::{BuildWorker, Output};
use crate::{EngineError, git as repository, http as remote};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};
use xbuild_cache::{NewTree, RemoteFile};
use xbuild_graph::{GitSource, HttpSource};
use xbuild_oci::verify_checksum;

/// What an address stood for when the build asked; asked once, so that a step runs with what its key was made of.
#[derive(Clone, Debug)]
pub(crate) enum Remote {
    Commit(GitSource, repository::Commit),
    File(HttpSource, RemoteFile),
}

/// Brings the files of a remote source into a tree.
pub(crate) fn fetch(worker: &BuildWorker, remote: &Remote) -> Result<Output, EngineError> {
    match remote {
        Remote::Commit(source, commit) => git(worker, source, commit),
        Remote::File(source, file) => http(worker, source, file),
    }
}

/// Asks what a repository's reference is.
pub(crate) fn commit(worker: &BuildWorker, source: &GitSource) -> Result<repository::Commit, EngineError> {
    repository::resolve(source, worker.ssh_default())
}

/// Downloads a file and checks it.
pub(crate) fn download(worker: &BuildWorker, source: &HttpSource) -> Result<RemoteFile, EngineError> {
    let file = worker.runtime.block_on(remote::fetch(worker.net.http()?, &worker.store, &source.url))?;
    check(worker, source, &file)?;
    Ok(file)
}

/// Checks a commit out.
fn git(worker: &BuildWorker, source: &GitSource, commit: &repository::Commit) -> Result<Output, EngineError> {
    let staging = worker.store.staging()?;
    let work = worker.store.staging()?;
    repository::checkout(source, commit, &staging.path().join("fs"), work.path(), worker.ssh_default())?;
    Ok(Output::Tree(worker.store.add_tree(Some(staging), &NewTree::default())?))
}

/// Puts a downloaded file into a tree of its own: mode 0600, the server's time or 1970.
fn http(worker: &BuildWorker, source: &HttpSource, file: &RemoteFile) -> Result<Output, EngineError> {
    let staging = worker.store.staging()?;
    let directory = staging.path().join("fs");
    std::fs::create_dir(&directory).map_err(|e| EngineError::io("make", &directory, e))?;
    let name = source.filename.clone().or_else(|| file.name.clone()).unwrap_or_else(|| remote::name_of(&source.url));
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
fn check(worker: &BuildWorker, source: &HttpSource, file: &RemoteFile) -> Result<(), EngineError> {
    let Some(expected) = &source.checksum else {
        return Ok(());
    };
    let path = worker.store.blob_path(file.digest);
    let bytes = std::fs::File::open(&path).map_err(|e| EngineError::io("open", &path, e))?;
    let verified = verify_checksum(expected, bytes).map_err(|e| EngineError::io("read", &path, e))?;
    verified.map_err(|found| {
        let url = repository::redacted(&source.url);
        EngineError::Source(format!("digest mismatch for {url}: got {found}, expected {expected}"))
    })
}
