//! A new container: an image's configuration and a request, put together as docker does it.

use super::{mounts, names};
use crate::images::Found;
use crate::{Engine, EngineError};
use std::collections::BTreeMap;
use std::path::Path;
use xbuild_cache::tree::{self, View};
use xbuild_cache::{Lease, TreeId};
use xbuild_graph::Platform;
use xbuild_oci::{Healthcheck, RunConfig};
use xbuild_runner::container::config::{Config, Container, Endpoint, HostConfig, MountRequest, Nothing};
use xbuild_runner::container::{ContainerError, clock, is_name, monitor};
use xbuild_runner::network::{NetworkError, Networks};

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct CreateRequest {
    /// Name or ID of an image of the store.
    pub image: String,
    /// Of the image, where it has several.
    pub platform: Option<Platform>,
    /// Name of the container.
    pub name: Option<String>,
    /// What was asked for; the rest comes from the image. Entries of `env` without `=` take a variable away.
    pub config: Config,
    /// In place of the image's entrypoint; an empty list resets it. The image's command goes with it.
    pub entrypoint: Option<Vec<String>>,
    /// What the host gives.
    pub host: HostConfig,
    /// Mounts, in the order in which they count.
    pub mounts: Vec<MountRequest>,
    /// Program of another OCI runtime for its processes; none when empty.
    pub oci_runtime: String,
    /// Networks, with what was asked for in each.
    pub networks: BTreeMap<String, Endpoint>,
}

impl Engine {
    /// Makes a container of an image; an image that is not here is pulled by the caller.
    pub fn create(&self, request: &CreateRequest) -> Result<Container, EngineError> {
        let platform = request.platform.clone().unwrap_or_else(Platform::host);
        let (_, found) = self.find(&request.image, &platform)?;
        let actual = Platform::new(&found.config.os, &found.config.architecture, found.config.variant.as_deref());
        if request.platform.is_some() && platform.accepts(&actual).is_none() {
            let (actual, wanted) = (actual.to_string(), platform.to_string());
            return Err(EngineError::OtherPlatform { name: request.image.clone(), actual, wanted });
        }
        let tree = self.tree_of(&found)?;
        let containers = self.containers();
        if let Some(name) = &request.name
            && !is_name(name)
        {
            return Err(EngineError::Source(format!(
                "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            )));
        }
        if let Some(name) = &request.name
            && containers.has_name(name)
        {
            // Before volumes are made for nothing. What counts is checked again when the name is taken.
            let id = containers.find(name)?.container.id;
            return Err(ContainerError::NameTaken { name: name.clone(), id }.into());
        }
        let mut container = self.assemble(request, &found, tree)?;
        if container.command().is_empty() {
            return Err(EngineError::Source("no command specified".to_owned()));
        }
        container.mounts = mounts::resolve(self, request, &container, &found.config.config)?;
        self.publish(request, &mut container, tree, found.digest)?;
        containers.events().add("container", "create", &container.id, monitor::attributes(&container, &[]));
        Ok(container)
    }

    fn assemble(&self, request: &CreateRequest, found: &Found, tree: TreeId) -> Result<Container, EngineError> {
        let id = names::id();
        let mut config = merged(request, &found.config.config);
        config.image = request.image.clone();
        if config.hostname.is_empty() {
            config.hostname = super::start::host_name(self, &request.host, &id)?;
        }
        Ok(Container {
            name: request.name.clone().unwrap_or_default(),
            created: xbuild_runner::container::clock::stamp(),
            image: found.manifest.config.digest.to_string(),
            manifest: found.digest.to_string(),
            tree: tree.number(),
            oci_runtime: request.oci_runtime.clone(),
            native: self.snapshots.is_native(self.store()),
            platform: found.config.os.clone(),
            config,
            host_config: request.host.clone(),
            mounts: Vec::new(),
            networks: self.named_networks(&request.networks)?,
            id,
        })
    }

    /// Networks by their names, however they were asked for. One that is not there may be when the container starts.
    fn named_networks(&self, asked: &BTreeMap<String, Endpoint>) -> Result<BTreeMap<String, Endpoint>, EngineError> {
        if asked.is_empty() {
            return Ok(BTreeMap::new());
        }
        let networks = Networks::open(self.store().root(), clock::stamp)?;
        let named = |(name, endpoint): (&String, &Endpoint)| match networks.find(name) {
            Ok(network) => Ok((network.name, endpoint.clone())),
            Err(NetworkError::NotFound(_)) => Ok((name.clone(), endpoint.clone())),
            Err(error) => Err(error.into()),
        };
        asked.iter().map(named).collect()
    }

    /// Writes the container down, under a name of ours if it was given none.
    fn publish(
        &self,
        request: &CreateRequest,
        container: &mut Container,
        files: TreeId,
        manifest: xbuild_oci::Digest,
    ) -> Result<(), EngineError> {
        let containers = self.containers();
        let lower = self.store().dirs(files)?;
        let native = container.native;
        let prepare = |directory: &Path| {
            let failed = |error: EngineError| ContainerError::Refused(error.with_causes());
            Lease { tree: files, manifest }.write(directory).map_err(|error| failed(error.into()))?;
            for name in ["fs", "work"] {
                let path = directory.join(name);
                std::fs::create_dir(&path).map_err(|source| ContainerError::Io {
                    action: "make",
                    path: path.clone(),
                    source,
                })?;
            }
            let files = directory.join("fs");
            if native {
                let view = View::layers(&lower, self.store().marks()).map_err(|error| failed(error.into()))?;
                return tree::copy_out(&view, &files).map(drop).map_err(|error| failed(error.into()));
            }
            crate::ops::exec::copy_root_attributes(&lower, &files).map_err(failed)
        };
        for attempt in 0.. {
            if request.name.is_none() {
                container.name = names::name(attempt);
            }
            match containers.create(container, &prepare) {
                Err(ContainerError::NameTaken { .. }) if request.name.is_none() && attempt < 20 => {}
                Err(error) => {
                    mounts::discard(self, container);
                    return Err(error.into());
                }
                Ok(_) => break,
            }
        }
        Ok(())
    }
}

/// The request's configuration over the image's.
fn merged(request: &CreateRequest, image: &RunConfig) -> Config {
    let mut config = request.config.clone();
    let text = |own: String, image: &String| if own.is_empty() { image.clone() } else { own };
    config.user = text(config.user, &image.user);
    config.working_dir = text(config.working_dir, &image.working_dir);
    config.stop_signal = text(config.stop_signal, &image.stop_signal);
    config.env = environment(&config.env, &image.env);
    for (key, value) in &image.labels {
        config.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    for port in image.exposed_ports.keys() {
        let port = if port.contains('/') { port.clone() } else { format!("{port}/tcp") };
        config.exposed_ports.insert(port, Nothing {});
    }
    let asked = config.cmd.take().filter(|cmd| !cmd.is_empty());
    (config.entrypoint, config.cmd) = match &request.entrypoint {
        Some(own) => (Some(own.clone()).filter(|own| !own.is_empty()), asked),
        None => (image.entrypoint.clone().filter(|own| !own.is_empty()), asked.or_else(|| image.cmd.clone())),
    };
    config.healthcheck = healthcheck(config.healthcheck.take(), image.healthcheck.as_ref());
    config.shell = image.shell.clone();
    let mut volumes = config.volumes.take().unwrap_or_default();
    volumes.extend(image.volumes.keys().map(|path| (path.clone(), Nothing {})));
    config.volumes = Some(volumes).filter(|volumes| !volumes.is_empty());
    config
}

/// The user's variables, then those of the image that they do not replace or take away.
fn environment(own: &[String], image: &[String]) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut env: Vec<String> = Vec::new();
    for entry in own.iter().filter(|entry| entry.contains('=')) {
        env.retain(|before| name(before) != name(entry));
        env.push(entry.clone());
    }
    let taken: Vec<String> = own.iter().map(|entry| name(entry)).collect();
    env.extend(image.iter().filter(|entry| !taken.contains(&name(entry))).cloned());
    env
}

/// What the user says of the check counts, the image says the rest.
fn healthcheck(own: Option<Healthcheck>, image: Option<&Healthcheck>) -> Option<Healthcheck> {
    let Some(mut own) = own else {
        return image.cloned();
    };
    let Some(image) = image else {
        return Some(own);
    };
    if own.test.is_empty() {
        own.test.clone_from(&image.test);
    }
    let number = |own: i64, image: i64| if own == 0 { image } else { own };
    own.interval = number(own.interval, image.interval);
    own.timeout = number(own.timeout, image.timeout);
    own.start_period = number(own.start_period, image.start_period);
    own.start_interval = number(own.start_interval, image.start_interval);
    own.retries = number(own.retries, image.retries);
    Some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|entry| (*entry).to_owned()).collect()
    }

    #[test]
    fn variables_of_the_user_win_and_can_take_away() {
        let env = environment(&list(&["A=2", "B=3", "A=4", "GONE"]), &list(&["A=1", "GONE=x", "C=5", "PATH=/bin"]));
        assert_eq!(env, list(&["B=3", "A=4", "C=5", "PATH=/bin"]));
        assert!(environment(&[], &[]).is_empty(), "what every process gets is not the container's own");
    }

    #[test]
    fn an_entrypoint_of_the_user_drops_the_image_s_command() {
        let image = RunConfig {
            entrypoint: Some(list(&["echo", "entry"])),
            cmd: Some(list(&["default"])),
            ..RunConfig::default()
        };
        let of = |entrypoint: Option<&[&str]>, cmd: &[&str]| {
            let request = CreateRequest {
                entrypoint: entrypoint.map(list),
                config: Config { cmd: Some(list(cmd)), ..Config::default() },
                ..CreateRequest::default()
            };
            let config = merged(&request, &image);
            (config.entrypoint, config.cmd)
        };
        assert_eq!(of(None, &[]), (image.entrypoint.clone(), image.cmd.clone()));
        assert_eq!(of(None, &["a"]), (image.entrypoint.clone(), Some(list(&["a"]))));
        assert_eq!(of(Some(&["ls"]), &[]), (Some(list(&["ls"])), None));
        assert_eq!(of(Some(&[]), &["a"]), (None, Some(list(&["a"]))));
    }
}
