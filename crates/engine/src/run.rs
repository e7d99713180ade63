//! One container in the foreground, so that what was built is seen to work.

use crate::network::{Attached, Networks};
use crate::ops::exec::USERS_MAX;
use crate::{Engine, EngineError};
use std::path::PathBuf;
use xbuild_cache::Staging;
use xbuild_cache::tree::View;
use xbuild_graph::{NetworkMode, Platform};
use xbuild_runner::{Outcome, Running, Spec, Stdio, users};

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct RunRequest {
    /// Name or ID of an image of the store.
    pub image: String,
    /// Arguments in place of the image's `Cmd`.
    pub arguments: Vec<String>,
    /// In place of the image's `Entrypoint`; an empty one resets it.
    pub entrypoint: Option<String>,
    /// `NAME=value`, over the image's.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// User.
    pub user: Option<String>,
    /// Host name.
    pub hostname: Option<String>,
    /// A terminal: standard input is one.
    pub tty: bool,
    /// The network; one of its own by default.
    pub network: NetworkMode,
}

/// A container that runs; its files go when this is dropped.
#[derive(Debug)]
pub struct Container {
    running: Running,
    /// Why it has the host's network, if that was not asked for.
    shortfall: Option<String>,
    _network: Attached,
    _networks: Networks,
    _staging: Staging,
}

impl Container {
    /// A handle to end it from elsewhere.
    pub fn killer(&self) -> Result<xbuild_runner::Killer, EngineError> {
        self.running.killer().map_err(|e| EngineError::Internal(e.to_string()))
    }

    /// Why it has the host's network, if that was not asked for.
    pub fn network_shortfall(&self) -> Option<&str> {
        self.shortfall.as_deref()
    }

    /// Waits for its end.
    pub fn wait(self) -> Result<Outcome, EngineError> {
        Ok(self.running.wait()?)
    }
}

impl Engine {
    /// Starts a container of an image; an image that is not here is pulled by the caller.
    pub fn start(&self, request: &RunRequest, stdio: Stdio) -> Result<Container, EngineError> {
        let networks = Networks::of_host(1);
        let wanted = networks.want(request.network);
        self.launcher()?.warm_up()?;
        let (_, found) = self.find(&request.image, &Platform::host())?;
        let config = &found.config.config;
        let lower = self.store().dirs(self.tree_of(&found)?)?;
        let args = arguments(request, config.entrypoint.as_deref(), config.cmd.as_deref());
        if args.is_empty() {
            return Err(EngineError::Source(format!("no command specified: {} has none of its own", request.image)));
        }
        let view = View::layers(&lower, self.store().marks())?;
        let small = |path| Ok::<_, EngineError>(view.read_small(path, USERS_MAX)?.unwrap_or_default());
        let user = request.user.as_deref().unwrap_or(&config.user);
        let user = users::resolve(user, &small("/etc/passwd")?, &small("/etc/group")?)
            .map_err(|e| EngineError::Source(e.to_string()))?;
        let staging = self.store().staging()?;
        let root = self.snapshots().writable(self.store(), &lower, &staging)?.rootfs;
        let hostname = request.hostname.clone().unwrap_or_else(|| short_name(staging.path().to_owned()));
        let cwd = request.workdir.clone().unwrap_or_else(|| config.working_dir.clone());
        let network = networks.attach(wanted);
        let spec = Spec {
            env: environment(request, &config.env, &hostname, &user.home),
            cwd: if cwd.is_empty() { "/".into() } else { cwd },
            user: user.identity,
            network: network.network.clone(),
            hosts_file: Some(network.hosts_file(&hostname, &[])),
            resolv_conf: Some(network.resolv_conf.clone()),
            hostname,
            tty: request.tty,
            ..Spec::new(root, args)
        };
        let running = self.launcher()?.start(&spec, stdio)?;
        Ok(Container {
            running,
            shortfall: networks.shortfall().or_else(|| self.snapshots().shortfall()),
            _network: network,
            _networks: networks,
            _staging: staging,
        })
    }
}

/// Entrypoint and command, as docker joins them.
fn arguments(request: &RunRequest, entrypoint: Option<&[String]>, cmd: Option<&[String]>) -> Vec<String> {
    let mut args: Vec<String> = match &request.entrypoint {
        Some(own) if own.is_empty() => Vec::new(),
        Some(own) => vec![own.clone()],
        None => entrypoint.unwrap_or_default().to_vec(),
    };
    // The image's command belongs to the image's entrypoint.
    if !request.arguments.is_empty() {
        args.extend(request.arguments.iter().cloned());
    } else if request.entrypoint.is_none() {
        args.extend(cmd.unwrap_or_default().iter().cloned());
    }
    args
}

fn environment(request: &RunRequest, image: &[String], hostname: &str, home: &str) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut env = vec![format!("PATH={}", xbuild_runner::DEFAULT_PATH), format!("HOSTNAME={hostname}")];
    if request.tty {
        env.push("TERM=xterm".to_owned());
    }
    env.push(format!("HOME={home}"));
    for entry in image.iter().chain(&request.env).filter(|e| e.contains('=')) {
        env.retain(|e| name(e) != name(entry));
        env.push(entry.clone());
    }
    env
}

/// Twelve hex digits, as containers are called.
fn short_name(place: PathBuf) -> String {
    blake3::hash(place.as_os_str().as_encoded_bytes()).to_hex()[..12].to_owned()
}
