//! Volumes and binds of a new container.

use super::{create::CreateRequest, names};
use crate::{Engine, EngineError};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use xbuild_cache::TreeId;
use xbuild_cache::tree::View;
use xbuild_oci::RunConfig;
use xbuild_runner::container::config::{Container, Mount, MountRequest};

/// Decides what is mounted where, makes the volumes, and fills new ones from the image.
pub(super) fn resolve(
    engine: &Engine,
    request: &CreateRequest,
    container: &Container,
    image: &RunConfig,
) -> Result<Vec<Mount>, EngineError> {
    let mut mounts: BTreeMap<String, Mount> = BTreeMap::new();
    for from in request.host.volumes_from.iter().flatten() {
        inherit(engine, from, &mut mounts)?;
    }
    let mut asked = std::collections::BTreeSet::new();
    for one in request.mounts.iter().filter(|one| one.kind != "tmpfs") {
        let destination = clean(&one.target);
        if !asked.insert(destination.clone()) {
            return Err(EngineError::Source(format!("Duplicate mount point: {destination}")));
        }
        mounts.insert(destination.clone(), mount(engine, one, destination)?);
    }
    let tmpfs = |path: &str| {
        request.host.tmpfs.keys().any(|target| clean(target) == path)
            || request.mounts.iter().any(|one| one.kind == "tmpfs" && clean(&one.target) == path)
    };
    for path in image.volumes.keys().map(|path| clean(path)).filter(|path| !tmpfs(path)) {
        if !mounts.contains_key(&path) {
            let nameless = MountRequest { kind: "volume".to_owned(), target: path.clone(), ..MountRequest::default() };
            mounts.insert(path.clone(), mount(engine, &nameless, path)?);
        }
    }
    let mut mounts: Vec<Mount> = mounts.into_values().collect();
    for one in &mut mounts {
        if one.kind == "volume" && one.copy_up {
            fill(engine, container, one)?;
        }
    }
    Ok(mounts)
}

/// Removes the nameless volumes of a container that could not be made.
pub(super) fn discard(engine: &Engine, container: &Container) {
    for mount in container.mounts.iter().filter(|mount| mount.anonymous) {
        // What went wrong before matters more.
        let _ = engine.volumes().remove(&mount.name);
    }
}

/// `--volumes-from NAME[:ro]`.
fn inherit(engine: &Engine, from: &str, mounts: &mut BTreeMap<String, Mount>) -> Result<(), EngineError> {
    let (name, mode) = from.split_once(':').unwrap_or((from, "rw"));
    if !matches!(mode, "ro" | "rw" | "z" | "Z") {
        return Err(EngineError::Source(format!("invalid mode for volumes-from: {mode}")));
    }
    for mut mount in engine.containers().find(name)?.container.mounts {
        mount.rw &= mode != "ro";
        mount.copy_up = false;
        mounts.insert(mount.destination.clone(), mount);
    }
    Ok(())
}

fn mount(engine: &Engine, one: &MountRequest, destination: String) -> Result<Mount, EngineError> {
    if !destination.starts_with('/') || destination == "/" {
        return Err(EngineError::Source(format!(
            "invalid mount config for type \"{}\": invalid specification: destination can't be '{}'",
            one.kind, one.target
        )));
    }
    let mode = if one.read_only { "ro" } else { "" };
    if one.kind == "bind" {
        let source = Path::new(&one.source);
        if !source.is_absolute() {
            return Err(EngineError::Source(format!(
                "invalid mount config for type \"bind\": invalid mount path: '{}' mount path must be absolute",
                one.source
            )));
        }
        if !one.create_mountpoint && std::fs::metadata(source).is_err() {
            return Err(EngineError::Source(format!(
                "invalid mount config for type \"bind\": bind source path does not exist: {}",
                one.source
            )));
        }
        return Ok(Mount {
            kind: "bind".to_owned(),
            source: one.source.clone(),
            destination,
            mode: mode.to_owned(),
            rw: !one.read_only,
            propagation: if one.propagation.is_empty() { "rprivate".to_owned() } else { one.propagation.clone() },
            non_recursive: one.non_recursive,
            ..Mount::default()
        });
    }
    let anonymous = one.source.is_empty();
    let name = if anonymous { names::id() } else { one.source.clone() };
    let (volume, new) = engine.volumes().create(&name, &one.labels, &BTreeMap::new(), anonymous)?;
    if new {
        let attributes = BTreeMap::from([("driver".to_owned(), "local".to_owned())]);
        engine.containers().events().add("volume", "create", &name, attributes);
    }
    Ok(Mount {
        kind: "volume".to_owned(),
        name,
        source: volume.mountpoint,
        destination,
        driver: "local".to_owned(),
        mode: if anonymous { mode } else { "z" }.to_owned(),
        rw: !one.read_only,
        anonymous,
        copy_up: !one.no_copy,
        ..Mount::default()
    })
}

/// An empty volume takes content, owner and mode of the directory that it lies over.
fn fill(engine: &Engine, container: &Container, mount: &Mount) -> Result<(), EngineError> {
    let data = engine.volumes().data(&mount.name);
    let at = |action: &'static str| move |error: std::io::Error| EngineError::io(action, Path::new("a volume"), error);
    if std::fs::read_dir(&data).map_err(at("read"))?.next().is_some() {
        return Ok(());
    }
    let lower = engine.store().dirs(TreeId::from(container.tree))?;
    let view = View::layers(&lower, engine.store().marks())?;
    let Some(node) = view.lookup(&mount.destination, true)?.filter(|node| node.meta.is_dir()) else {
        return Ok(());
    };
    crate::ops::file::copy_out(&view, &mount.destination, &data)?;
    use std::os::unix::fs::PermissionsExt;
    xbuild_cache::tree::set_owner(&data, node.meta.uid, node.meta.gid)
        .and_then(|()| std::fs::set_permissions(&data, std::fs::Permissions::from_mode(node.meta.mode & 0o7777)))
        .map_err(at("set the owner of"))
}

/// A path without doubled slashes, dots and a slash at the end.
pub(super) fn clean(path: &str) -> String {
    let mut parts = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir => {}
            other => parts.push(other),
        }
    }
    parts.to_string_lossy().into_owned()
}
