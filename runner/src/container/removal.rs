//! Taking a container away.

use super::config::Container;
use super::error::{At, ContainerError};
use super::files::Containers;
use super::monitor::attributes;
use super::volumes::Volumes;
use std::path::PathBuf;

/// Removes a container that does not run, with its nameless volumes if `volumes`. The caller holds its lock.
pub fn remove(containers: &Containers, container: &Container, volumes: bool) -> Result<(), ContainerError> {
    let gone = forget(containers, container, volumes)?;
    std::fs::remove_dir_all(&gone).at("remove", &gone)
}

/// The same but for the container's files: gives the directory where they are, which is to be removed.
pub(super) fn forget(containers: &Containers, container: &Container, volumes: bool) -> Result<PathBuf, ContainerError> {
    let gone = containers.remove(container)?;
    crate::cgroup::remove(&super::group_of(container));
    if volumes {
        let store = Volumes::beside(containers);
        for mount in container.mounts.iter().filter(|mount| mount.anonymous) {
            // One that another container uses stays.
            if store.users(containers, &mount.name)?.is_empty() {
                store.remove(&mount.name)?;
            }
        }
    }
    containers.events().add("container", "destroy", &container.id, attributes(container, &[]));
    Ok(gone)
}
