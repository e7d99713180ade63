//! Finding and executing the command.

use crate::error::Failure;
use crate::spec::DEFAULT_PATH;
use rustix::fs::{FileType, stat};
use rustix::io::Errno;
use std::convert::Infallible;
use std::ffi::CString;
use std::io;

const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// A command ready for exec.
#[derive(Debug)]
pub(crate) struct Program {
    arguments: Vec<CString>,
    environment: Vec<CString>,
    path: String,
    /// Device and inode of the engine's own file, which nothing in the sandbox may execute.
    own: Option<(u64, u64)>,
}

impl Program {
    /// Checks arguments and environment. Entries without `=` are left out: they name variables of somebody else's
    /// environment (CVE-2026-57231).
    pub(crate) fn new(args: &[String], env: &[String]) -> Result<Program, Failure> {
        if args.first().is_none_or(String::is_empty) {
            return Err(Failure::Exec { message: "no command specified".to_owned(), code: NOT_FOUND });
        }
        let terminated = |text: &String| {
            CString::new(text.as_str())
                .map_err(|_| Failure::Refused("an argument or variable holds a NUL byte".to_owned()))
        };
        let variables = || env.iter().filter(|entry| entry.find('=').is_some_and(|at| at > 0));
        let path = variables().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        Ok(Program {
            arguments: args.iter().map(terminated).collect::<Result<_, _>>()?,
            environment: variables().map(terminated).collect::<Result<_, _>>()?,
            path: path.to_owned(),
            own: stat("/proc/self/exe").ok().map(|stat| (stat.st_dev, stat.st_ino)),
        })
    }

    /// Sets `HOME` unless the environment has one that says something.
    pub(crate) fn set_home(&mut self, home: &str) -> Result<(), Failure> {
        self.environment.retain(|entry| entry.as_bytes() != b"HOME=");
        if !self.environment.iter().any(|entry| entry.as_bytes().starts_with(b"HOME=")) {
            let entry = CString::new(format!("HOME={home}"));
            self.environment.push(entry.map_err(|_| Failure::Refused("a home directory holds a NUL byte".to_owned()))?);
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.arguments[0].to_string_lossy().into_owned()
    }

    /// Replaces this process by the command; returns only what went wrong.
    pub(crate) fn execute(&self) -> Result<Infallible, Failure> {
        let name = self.name();
        if name.contains('/') {
            return self.attempt(&name).map_err(|errno| self.refusal(&name, errno));
        }
        let mut denied = false;
        // Go's rule, which docker users know: relative entries of PATH are not searched.
        for directory in self.path.split(':').filter(|directory| directory.starts_with('/')) {
            let candidate = format!("{directory}/{name}");
            match self.attempt(&candidate) {
                Ok(never) => match never {},
                Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::LOOP) => {}
                Err(Errno::ACCESS | Errno::ISDIR) => denied = true,
                Err(errno) => return Err(self.refusal(&candidate, errno)),
            }
        }
        Err(self.not_found(denied))
    }

    /// Says what will be wrong with executing it, as far as that shows before: with the root and working directory of the
    /// process.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let name = self.name();
        if name.contains('/') {
            return self.look(&name).map_err(|errno| self.refusal(&name, errno));
        }
        let mut denied = false;
        for directory in self.path.split(':').filter(|directory| directory.starts_with('/')) {
            match self.look(&format!("{directory}/{name}")) {
                Ok(()) => return Ok(()),
                Err(errno) => denied |= matches!(errno, Errno::ACCESS | Errno::ISDIR),
            }
        }
        Err(self.not_found(denied))
    }

    fn look(&self, path: &str) -> Result<(), Errno> {
        let found = stat(path)?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            return Err(Errno::ISDIR);
        }
        if self.own == Some((found.st_dev, found.st_ino)) || found.st_mode & 0o111 == 0 {
            return Err(Errno::ACCESS);
        }
        Ok(())
    }

    fn not_found(&self, denied: bool) -> Failure {
        let name = self.name();
        match denied {
            true => failed(format!("exec: \"{name}\": permission denied"), NOT_EXECUTABLE),
            false => failed(format!("exec: \"{name}\": executable file not found in $PATH"), NOT_FOUND),
        }
    }

    fn attempt(&self, path: &str) -> Result<Infallible, Errno> {
        let found = stat(path)?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            return Err(Errno::ISDIR);
        }
        if self.own == Some((found.st_dev, found.st_ino)) {
            return Err(Errno::ACCESS);
        }
        let path = CString::new(path).map_err(|_| Errno::INVAL)?;
        xbuild_sys::execute(&path, &self.arguments, &self.environment)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    fn refusal(&self, path: &str, errno: Errno) -> Failure {
        let name = self.name();
        match errno {
            Errno::NOENT if stat(path).is_err() => {
                failed(format!("exec: \"{name}\": stat {path}: no such file or directory"), NOT_FOUND)
            }
            Errno::NOENT => failed(format!("exec {path}: no such file or directory"), NOT_FOUND),
            Errno::NOTDIR => failed(format!("exec: \"{name}\": stat {path}: not a directory"), NOT_EXECUTABLE),
            Errno::ACCESS | Errno::PERM => failed(format!("exec: \"{name}\": permission denied"), NOT_EXECUTABLE),
            Errno::ISDIR => failed(format!("exec: \"{name}\": is a directory"), NOT_EXECUTABLE),
            Errno::NOEXEC => failed(format!("exec {path}: exec format error"), NOT_EXECUTABLE),
            other => failed(format!("exec {path}: {}", io::Error::from(other)), NOT_EXECUTABLE),
        }
    }
}

fn failed(message: String, code: u8) -> Failure {
    Failure::Exec { message, code }
}
