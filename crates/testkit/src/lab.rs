//! A place for one test.

use crate::{Call, busybox, find, missing, skip, wait_until};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// A home, a store and a working directory for one test; gone when dropped.
#[derive(Debug)]
pub struct Lab {
    dir: TempDir,
    program: PathBuf,
}

impl Lab {
    /// With an empty store.
    pub fn empty(program: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("xbuild-test-").tempdir().expect("a directory can be made");
        for name in ["home", "work"] {
            std::fs::create_dir(dir.path().join(name)).expect("a directory can be made");
        }
        Self { dir, program: program.to_owned() }
    }

    /// With `busybox` in the store. None, and a note on standard error, if that or one of `programs` cannot be had.
    pub fn with_busybox(program: &Path, programs: &[&str]) -> Option<Self> {
        if let Some(reason) = missing(programs) {
            skip(&reason);
            return None;
        }
        let lab = Self::empty(program);
        lab.load_busybox(&lab.root());
        Some(lab)
    }

    /// Puts `busybox` into a store.
    pub fn load_busybox(&self, root: &Path) {
        self.xbuild(&["load"]).env("XBUILD_ROOT", root).input(busybox(&self.program)).ok();
    }

    /// The store.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Another store; it is made when it is used.
    pub fn other_root(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A path in the working directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("work").join(name)
    }

    /// Writes a file in the working directory, with the directories above it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        let parent = path.parent().expect("a file has a directory");
        std::fs::create_dir_all(parent).expect("a directory can be made");
        std::fs::write(&path, content).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    }

    /// A file of the working directory as text, without white space at the ends.
    pub fn read(&self, name: &str) -> String {
        let path = self.path(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        text.trim().to_owned()
    }

    /// A call of the program that is tested.
    pub fn xbuild(&self, arguments: &[&str]) -> Call {
        self.call(&self.program).env("XBUILD_ROOT", self.root()).args(arguments)
    }

    /// The program that is tested.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A call of another program.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Call {
        let path = find(program).unwrap_or_else(|| panic!("`{program}` is not installed"));
        self.call(&path).args(arguments)
    }

    /// The home directory.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn call(&self, program: &Path) -> Call {
        Call::new(program, &self.home(), &self.path(""))
    }

    /// Waits until no process of any build here is left, nor a mount; `token` is an argument of what RUN started.
    pub fn assert_no_traces(&self, token: &str) {
        let place = self.dir.path().to_str().expect("temporary directories have plain names");
        let mut found = Vec::new();
        let start = std::time::Instant::now();
        loop {
            found.clear();
            traces(place, token, &mut found);
            if found.is_empty() {
                return;
            }
            assert!(start.elapsed().as_secs() < 60, "left over:\n{}", found.join("\n"));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Waits until a process with this argument runs.
    pub fn wait_for_process(&self, token: &str) {
        wait_until(&format!("a process has the argument `{token}`"), || {
            let mut found = Vec::new();
            traces("\0", token, &mut found);
            !found.is_empty()
        });
    }

    /// A number that no other test uses as an argument, fit for `sleep`.
    pub fn token(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        format!("9{}{:03}", std::process::id() % 100_000, NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The processes that look after a container, the first of them the monitor.
pub fn monitors_of(id: &str) -> Vec<i32> {
    let called = format!("xb-{}\n", &id[..12]);
    let processes = std::fs::read_dir("/proc").expect("/proc is there").flatten();
    let ours =
        processes.filter(|entry| std::fs::read(entry.path().join("comm")).is_ok_and(|it| it == called.as_bytes()));
    let mut found: Vec<i32> = ours.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    found.sort_unstable();
    found
}

/// Processes with `token` as an argument or `place` in one, those that look after the container `token`, and mounts
/// below `place`.
fn traces(place: &str, token: &str, found: &mut Vec<String>) {
    if token.len() == 64 {
        found.extend(monitors_of(token).iter().map(|process| format!("process {process}, the container's monitor")));
    }
    for entry in std::fs::read_dir("/proc").expect("/proc is there").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        // Processes end while we look.
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).into_owned();
        if line.contains(place) || line.split(['\0', ' ', ';']).any(|argument| argument == token) {
            found.push(format!("process {name}: {}", line.replace('\0', " ")));
        }
        if let Some(mount) = String::from_utf8_lossy(&read("mountinfo")).lines().find(|l| l.contains(place)) {
            found.push(format!("mount of process {name} ({}): {mount}", line.replace('\0', " ")));
        }
    }
}
