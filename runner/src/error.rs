//! What can go wrong with a sandbox.

use serde::{Deserialize, Serialize};
use std::io;

/// Why a sandbox did not run its command.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The helper process could not be started.
    #[error("the sandbox helper could not be started")]
    Helper(#[source] io::Error),
    /// The helper process ended while it was needed.
    #[error("the sandbox helper ended unexpectedly")]
    HelperGone,
    /// Helper and engine do not understand each other: a bug.
    #[error("the sandbox helper sent a message that is not understood: {0}")]
    Protocol(String),
    /// A step of the set-up failed.
    #[error("sandbox: {step}")]
    Setup {
        /// What was being done, and to what.
        step: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The request asks for something that cannot be.
    #[error("sandbox: {0}")]
    Refused(String),
    /// The command could not be executed; the text is docker's.
    #[error("{message}")]
    Exec {
        /// e.g. `exec: "x": executable file not found in $PATH`.
        message: String,
        /// Exit code a shell or docker would give: 126 or 127.
        code: u8,
    },
}

impl SandboxError {
    /// The exit code that stands for a command that could not be executed.
    #[must_use]
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            SandboxError::Exec { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// A failure on its way from the new process to the engine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    Setup { step: String, errno: i32 },
    Refused(String),
    Exec { message: String, code: u8 },
}

impl Failure {
    /// Whether somebody with more rights would have been let.
    pub(crate) fn is_denial(&self) -> bool {
        matches!(self, Failure::Setup { errno: libc::EACCES | libc::EPERM | libc::EROFS, .. })
    }

    /// Adds what it means to the step that failed.
    pub(crate) fn because(self, why: &str) -> Failure {
        match self {
            Failure::Setup { step, errno } => Failure::Setup { step: format!("{step} ({why})"), errno },
            other => other,
        }
    }
}

impl From<Failure> for SandboxError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Setup { step, errno } => SandboxError::Setup { step, source: io::Error::from_raw_os_error(errno) },
            Failure::Refused(text) => SandboxError::Refused(text),
            Failure::Exec { message, code } => SandboxError::Exec { message, code },
        }
    }
}

/// Names the step that an error belongs to.
pub(crate) trait During<T> {
    /// Wraps the error with what was being done.
    fn during(self, step: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> During<T> for Result<T, rustix::io::Errno> {
    fn during(self, step: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|errno| Failure::Setup { step: step(), errno: errno.raw_os_error() })
    }
}

impl<T> During<T> for io::Result<T> {
    fn during(self, step: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::Setup { step: step(), errno: error.raw_os_error().unwrap_or(libc::EIO) })
    }
}
