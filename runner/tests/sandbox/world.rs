//! A root file system with busybox, a launcher, and short ways to run a command in it.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;
use xbuild_runner::{Launcher, Outcome, Rootfs, SandboxError, Spec, Stdio};

const BUSYBOX: &str = "/bin/busybox";

/// Why these tests cannot run here.
pub(crate) fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root");
    }
    (!Path::new(BUSYBOX).exists()).then_some("no static busybox at /bin/busybox")
}

pub(crate) fn launcher() -> &'static Launcher {
    static LAUNCHER: OnceLock<Launcher> = OnceLock::new();
    LAUNCHER.get_or_init(|| Launcher::new().expect("launcher"))
}

pub(crate) struct World {
    folder: TempDir,
}

pub(crate) struct Ran {
    pub(crate) outcome: Result<Outcome, SandboxError>,
    pub(crate) stdout: String,
    pub(crate) upper: PathBuf,
}

impl Ran {
    #[track_caller]
    pub(crate) fn code(&self) -> i32 {
        self.outcome.as_ref().map(|outcome| outcome.code()).expect("the sandbox ran")
    }

    /// The output of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        assert_eq!(self.code(), 0, "output: {}", self.stdout);
        &self.stdout
    }

    /// What the step left in its upper directory, sorted, directories with a slash.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut found = Vec::new();
        list(&self.upper, "", &mut found);
        found.sort();
        found
    }
}

fn list(folder: &Path, prefix: &str, into: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("upper") {
        let entry = entry.expect("entry");
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type().expect("type").is_dir() {
            into.push(format!("{name}/"));
            list(&entry.path(), &format!("{name}/"), into);
        } else {
            into.push(name);
        }
    }
}

impl World {
    pub(crate) fn new() -> World {
        let folder = tempfile::Builder::new().prefix("xbuild-sandbox").tempdir().expect("folder");
        let world = World { folder };
        let lower = world.path("lower");
        for folder in ["bin", "etc", "tmp", "proc", "sys", "dev", "opt"] {
            fs::create_dir_all(lower.join(folder)).expect("folder");
        }
        fs::copy(BUSYBOX, lower.join("bin/busybox")).expect("busybox");
        fs::set_permissions(lower.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("tmp");
        symlink("busybox", lower.join("bin/sh")).expect("sh");
        let out = std::process::Command::new(BUSYBOX).arg("--list").output().expect("list");
        for applet in String::from_utf8_lossy(&out.stdout).lines() {
            let _ = symlink("busybox", lower.join("bin").join(applet));
        }
        fs::write(lower.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n").expect("passwd");
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn lower(&self) -> PathBuf {
        self.path("lower")
    }

    /// An overlay over the busybox root, or over `lower`, with a new upper directory.
    pub(crate) fn overlay(&self, lower: Vec<PathBuf>) -> Rootfs {
        let layer = tempfile::Builder::new().prefix("layer").tempdir_in(self.folder.path()).expect("layer").keep();
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        fs::create_dir(&upper).expect("upper");
        fs::create_dir(&work).expect("work");
        Rootfs::Overlay { lower, upper, work, volatile: true, userxattr: false }
    }

    pub(crate) fn spec(&self, script: &str) -> Spec {
        let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let mut spec = Spec::new(self.overlay(vec![self.lower()]), args);
        spec.hosts_file = Some(b"127.0.0.1\tlocalhost buildkitsandbox\n".to_vec());
        spec.resolv_conf = Some(b"nameserver 1.1.1.1\n".to_vec());
        spec
    }

    pub(crate) fn sh(&self, script: &str) -> Ran {
        self.run(&self.spec(script))
    }

    pub(crate) fn run(&self, spec: &Spec) -> Ran {
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        let stderr = writer.try_clone().expect("pipe");
        let stdio = Stdio { stdin: None, stdout: Some(OwnedFd::from(writer)), stderr: Some(OwnedFd::from(stderr)) };
        let running = launcher().start(spec, stdio).expect("start");
        let mut stdout = String::new();
        reader.read_to_string(&mut stdout).expect("output");
        let upper = match &spec.root {
            Rootfs::Overlay { upper, .. } => upper.clone(),
            Rootfs::Directory(path) => path.clone(),
            Rootfs::ReadOnlyOverlay { .. } => PathBuf::new(),
        };
        Ran { outcome: running.wait(), stdout, upper }
    }
}
