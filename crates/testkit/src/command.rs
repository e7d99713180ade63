//! Commands in an environment of their own.

use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// After this a command counts as hung.
const HUNG: Duration = Duration::from_secs(480);

/// A command that is not started yet.
#[derive(Debug)]
pub struct Call {
    command: Command,
    input: Option<Vec<u8>>,
}

/// A command that runs; dropping it kills its process.
#[derive(Debug)]
pub struct Running {
    child: Child,
    text: String,
    out: File,
    err: File,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Done {
    /// Exit code, or 128 + the number of the signal that ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    text: String,
}

impl Call {
    pub(crate) fn new(program: &Path, home: &Path, dir: &Path) -> Self {
        let mut command = Command::new(program);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env_clear().current_dir(dir);
        command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
        command.env("HOME", home).env("TMPDIR", home).env("LC_ALL", "C").env("COLUMNS", "100");
        Self { command, input: None }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives it standard input; without, that is empty.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        let text = words.map(|word| format!("{} ", word.display())).collect::<String>();
        let file = || tempfile::tempfile().expect("a temporary file can be made");
        let (out, err) = (file(), file());
        let own = |file: &File| Stdio::from(file.try_clone().expect("a file can be duplicated"));
        self.command.stdout(own(&out)).stderr(own(&err));
        self.command.stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = self.command.spawn().unwrap_or_else(|e| panic!("cannot start {text}: {e}"));
        if let (Some(input), Some(mut pipe)) = (self.input, child.stdin.take()) {
            // A command may end without reading all of it.
            std::thread::spawn(move || drop(pipe.write_all(&input)));
        }
        Running { child, text, out, err }
    }

    /// Runs it to its end.
    pub fn run(self) -> Done {
        self.start().wait()
    }

    /// Runs it; it has to succeed.
    pub fn ok(self) -> Done {
        self.exits(0)
    }

    /// Runs it; it has to end with this code.
    pub fn exits(self, code: i32) -> Done {
        let done = self.run();
        assert_eq!(done.code, code, "exit code of {done}");
        done
    }
}

impl Running {
    /// Process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Standard error until now.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&read(&self.err)).into_owned()
    }

    /// Waits until standard error holds `text`.
    pub fn wait_for(&mut self, text: &str) {
        let start = Instant::now();
        while !self.stderr().contains(text) {
            let ended = self.child.try_wait().expect("a child can be waited for").is_some();
            assert!(self.stderr().contains(text) || !ended, "{} ended without `{text}`:\n{}", self.text, self.stderr());
            assert!(start.elapsed() < HUNG, "{} did not print `{text}`:\n{}", self.text, self.stderr());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a child that was not waited for can get signals");
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Done {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            assert!(start.elapsed() < HUNG, "{} hangs:\n{}", self.text, self.stderr());
            std::thread::sleep(Duration::from_millis(2));
        };
        let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(-1);
        Done { code, stdout: read(&self.out), stderr: self.stderr(), text: self.text.clone() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it was waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Done {
    /// Standard output as text, without white space at the ends.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|e| panic!("no JSON ({e}) from {self}"))
    }

    /// Standard error has to hold `text`.
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "`{text}` is not in the standard error of {self}");
        self
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let out: String = self.out().chars().take(4000).collect();
        write!(f, "{}\n--- code {}, stdout:\n{out}\n--- stderr:\n{}", self.text, self.code, self.stderr)
    }
}

/// Waits until `what` holds; panics when that takes longer than anything should.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < HUNG / 4, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// All of a file, wherever its cursor is: that is shared with the process which writes.
fn read(file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut part = vec![0; 1 << 16];
    while let Ok(n @ 1..) = file.read_at(&mut part, bytes.len() as u64) {
        bytes.extend_from_slice(&part[..n]);
    }
    bytes
}
