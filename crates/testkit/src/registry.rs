//! Debian's docker-registry on loopback.

use crate::wait_until;
use std::fs::File;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A registry process; ends when dropped.
#[derive(Debug)]
pub struct Registry {
    dir: TempDir,
    child: Child,
    /// `127.0.0.1:PORT`.
    pub host: String,
}

impl Registry {
    /// A registry that everybody may use.
    pub fn start() -> Self {
        Self::launch("")
    }

    /// A registry that wants one of these lines of an htpasswd file, with bcrypt.
    pub fn with_users(htpasswd: &str) -> Self {
        Self::launch(htpasswd)
    }

    fn launch(users: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("xbuild-registry-").tempdir().expect("a directory can be made");
        let place = dir.path().display();
        let auth = if users.is_empty() {
            String::new()
        } else {
            std::fs::write(dir.path().join("users"), users).expect("a file can be written");
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {place}/users\n")
        };
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {place}/data\nhttp:\n  addr: \
             127.0.0.1:0\n{auth}"
        );
        std::fs::write(dir.path().join("config.yml"), config).expect("a file can be written");
        let log = File::create(dir.path().join("log")).expect("a file can be made");
        let program = crate::find("docker-registry").expect("docker-registry is there when tests are not skipped");
        let child = Command::new(program)
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be duplicated"))
            .stderr(log)
            .spawn()
            .expect("docker-registry can be started");
        let mut registry = Self { dir, child, host: String::new() };
        wait_until("the registry listens", || {
            let log = registry.log();
            let port = log.split_once("listening on 127.0.0.1:").map(|(_, rest)| rest);
            let Some((port, _)) = port.and_then(|p| p.split_once(|c: char| !c.is_ascii_digit())) else {
                return false;
            };
            registry.host = format!("127.0.0.1:{port}");
            true
        });
        registry
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).expect("the log can be read")
    }

    /// How many requests of this method had a path that contains `part`, and succeeded.
    pub fn count(&self, method: &str, part: &str) -> usize {
        let request = format!("\"{method} /v2/");
        let succeeded = |rest: &str| rest.split("\" ").nth(1).is_some_and(|status| status.starts_with('2'));
        let is_it = |rest: &str| rest.split(' ').next().is_some_and(|path| path.contains(part)) && succeeded(rest);
        self.log().lines().filter_map(|line| line.split_once(&request)).filter(|(_, rest)| is_it(rest)).count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Both fail if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
