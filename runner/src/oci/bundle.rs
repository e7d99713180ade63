//! A bundle: a directory with `config.json`, read and checked for what is not supported.

use super::error::{At, OciError};
use crate::error::Failure;
use oci_spec::runtime::{Linux, LinuxNamespaceType, Process, Spec};
use rustix::thread::UnshareFlags;
use std::fs;
use std::path::{Path, PathBuf};

/// A container to be: its directory and what is to be done there.
#[derive(Debug)]
pub struct Bundle {
    directory: PathBuf,
    config: Spec,
}

/// Namespaces that a configuration asks for.
#[derive(Debug, Default)]
pub(super) struct Spaces {
    /// To be made.
    pub(super) new: Vec<LinuxNamespaceType>,
    /// To be joined, by their paths.
    pub(super) joined: Vec<(LinuxNamespaceType, PathBuf)>,
}

impl Spaces {
    fn of(linux: &Linux) -> Result<Spaces, OciError> {
        let mut spaces = Spaces::default();
        for space in linux.namespaces().iter().flatten() {
            let kind = space.typ();
            if spaces.new.contains(&kind) || spaces.joined.iter().any(|(other, _)| *other == kind) {
                return Err(OciError::Refused(format!("linux.namespaces: `{kind}` is there twice")));
            }
            match space.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
                None => spaces.new.push(kind),
                Some(path) => spaces.joined.push((kind, path.clone())),
            }
        }
        Ok(spaces)
    }

    pub(super) fn makes(&self, kind: LinuxNamespaceType) -> bool {
        self.new.contains(&kind)
    }

    pub(super) fn joins(&self, kind: LinuxNamespaceType) -> Option<&Path> {
        self.joined.iter().find(|(own, _)| *own == kind).map(|(_, path)| path.as_path())
    }

    /// Not the runtime's own.
    pub(super) fn has(&self, kind: LinuxNamespaceType) -> bool {
        self.makes(kind) || self.joins(kind).is_some()
    }

    /// Those that a process makes for itself; pid and user namespaces are made with it.
    pub(super) fn unshared(&self) -> UnshareFlags {
        use LinuxNamespaceType as T;
        let known = [
            (T::Mount, UnshareFlags::NEWNS),
            (T::Ipc, UnshareFlags::NEWIPC),
            (T::Uts, UnshareFlags::NEWUTS),
            (T::Network, UnshareFlags::NEWNET),
            (T::Cgroup, UnshareFlags::NEWCGROUP),
        ];
        known.into_iter().filter(|(kind, _)| self.makes(*kind)).map(|(_, flag)| flag).collect()
    }
}

impl Bundle {
    /// Reads the bundle in `directory`.
    pub fn load(directory: &Path) -> Result<Bundle, OciError> {
        let directory = directory.canonicalize().at("open the bundle", directory)?;
        let config = read_config(&directory.join("config.json"))?;
        let bundle = Bundle { directory, config };
        bundle.check()?;
        Ok(bundle)
    }

    /// A bundle whose configuration lies elsewhere.
    pub(super) fn with_config(directory: &Path, file: &Path) -> Result<Bundle, OciError> {
        Ok(Bundle { directory: directory.to_owned(), config: read_config(file)? })
    }

    /// With what tells the program of listening sockets that it is given.
    pub(super) fn with_listeners(mut self, count: u32) -> Bundle {
        if count > 0
            && let Some(process) = self.config.process_mut()
        {
            let mut env = process.env().clone().unwrap_or_default();
            env.extend([format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()]);
            process.set_env(Some(env));
        }
        self
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The whole configuration.
    #[must_use]
    pub fn config(&self) -> &Spec {
        &self.config
    }

    pub(super) fn linux(&self) -> Result<&Linux, OciError> {
        self.config.linux().as_ref().ok_or_else(|| refused("`linux`"))
    }

    pub(super) fn process(&self) -> Result<&Process, OciError> {
        self.config.process().as_ref().ok_or_else(|| refused("`process`"))
    }

    pub(super) fn spaces(&self) -> Result<Spaces, OciError> {
        Spaces::of(self.linux()?)
    }

    /// The root file system, as a path of the host.
    pub(super) fn rootfs(&self) -> Result<PathBuf, OciError> {
        let root = self.config.root().as_ref().ok_or_else(|| refused("`root`"))?;
        let path = self.directory.join(root.path());
        path.canonicalize().at("open the root file system", &path)
    }

    /// Says no to everything that would otherwise be left out in silence.
    fn check(&self) -> Result<(), OciError> {
        if !self.config.version().starts_with("1.") {
            return Err(OciError::Refused(format!("ociVersion `{}` is not 1.x", self.config.version())));
        }
        if self.config.vm().is_some() {
            return Err(unsupported("vm"));
        }
        let linux = self.linux()?;
        let spaces = Spaces::of(linux)?;
        if !spaces.makes(LinuxNamespaceType::Mount) {
            return Err(OciError::Refused(
                "linux.namespaces: a container needs a new mount namespace; others are not supported".to_owned(),
            ));
        }
        for (there, what) in [
            (linux.intel_rdt().is_some(), "linux.intelRdt"),
            (linux.memory_policy().is_some(), "linux.memoryPolicy"),
            (linux.net_devices().as_ref().is_some_and(|all| !all.is_empty()), "linux.netDevices"),
            (linux.time_offsets().as_ref().is_some_and(|all| !all.is_empty()), "linux.timeOffsets"),
            (spaces.has(LinuxNamespaceType::Time), "linux.namespaces: time"),
            (linux.personality().is_some(), "linux.personality"),
            (
                linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()),
                "linux.mountLabel (there is no SELinux support)",
            ),
        ] {
            if there {
                return Err(unsupported(what));
            }
        }
        let uts = spaces.has(LinuxNamespaceType::Uts);
        for (name, there) in [("hostname", self.config.hostname()), ("domainname", self.config.domainname())] {
            if there.as_ref().is_some_and(|name| !name.is_empty()) && !uts {
                return Err(OciError::Refused(format!("`{name}` needs a namespace of type `uts`")));
            }
        }
        let mapped = linux.uid_mappings().iter().flatten().next().is_some();
        if mapped && !spaces.has(LinuxNamespaceType::User) {
            return Err(OciError::Refused("linux.uidMappings needs a namespace of type `user`".to_owned()));
        }
        if !mapped && spaces.makes(LinuxNamespaceType::User) {
            return Err(OciError::Refused(
                "a new namespace of type `user` needs linux.uidMappings and gidMappings".to_owned(),
            ));
        }
        if let Some(process) = self.config.process() {
            check_process(process)?;
        }
        for mount in self.config.mounts().iter().flatten() {
            let mapped = mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
            if mapped {
                return Err(unsupported(&format!("mounts: `{}`: uidMappings", mount.destination().display())));
            }
            super::options::Options::parse(mount)?;
        }
        Ok(())
    }
}

/// The same for a process.
pub(super) fn check_process(process: &Process) -> Result<(), Failure> {
    let text = |value: &Option<String>| value.as_ref().is_some_and(|text| !text.is_empty());
    for (there, what) in [
        (text(process.selinux_label()), "process.selinuxLabel"),
        (process.io_priority().is_some(), "process.ioPriority"),
        (process.scheduler().is_some(), "process.scheduler"),
        (process.exec_cpu_affinity().is_some(), "process.execCPUAffinity"),
    ] {
        if there {
            return Err(Failure::Refused(format!("{what} is not supported by this runtime")));
        }
    }
    if process.args().iter().flatten().next().is_none() {
        return Err(Failure::Refused("process.args must not be empty".to_owned()));
    }
    if !process.cwd().is_absolute() {
        return Err(Failure::Refused(format!("process.cwd `{}` is not an absolute path", process.cwd().display())));
    }
    Ok(())
}

fn read_config(path: &Path) -> Result<Spec, OciError> {
    let bytes = fs::read(path).at("read", path)?;
    serde_json::from_slice(&bytes).map_err(|source| OciError::Config { path: path.to_owned(), source })
}

fn refused(what: &str) -> OciError {
    OciError::Refused(format!("config.json has no {what}"))
}

fn unsupported(what: &str) -> OciError {
    OciError::Refused(format!("{what} is not supported by this runtime"))
}
