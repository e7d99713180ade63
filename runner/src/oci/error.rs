//! What can go wrong with containers of the runtime interface.

use crate::error::{Failure, SandboxError};
use std::io;
use std::path::{Path, PathBuf};

/// Why a command of the runtime failed. Callers match some texts, which are those of other runtimes.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// No container has this id.
    #[error("container does not exist: `{0}`")]
    Missing(String),
    /// Another container has it.
    #[error("container with given ID already exists: `{0}`")]
    Exists(String),
    /// The id is none.
    #[error("invalid container ID format: {0:?}: letters, digits and `_+-.` only")]
    Id(String),
    /// It cannot be done, with the reason.
    #[error("{0}")]
    Refused(String),
    /// The configuration is not understood.
    #[error("cannot read `{}`", path.display())]
    Config {
        /// Its file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A file operation failed.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A step of the set-up failed.
    #[error("{step}")]
    Setup {
        /// What was being done, and to what.
        step: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl From<Failure> for OciError {
    fn from(failure: Failure) -> OciError {
        match SandboxError::from(failure) {
            SandboxError::Setup { step, source } => OciError::Setup { step, source },
            SandboxError::Refused(text) => OciError::Refused(text),
            other => OciError::Refused(other.to_string()),
        }
    }
}

/// Adds action and path to an I/O result.
pub(super) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, OciError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, OciError> {
        self.map_err(|error| OciError::Io { action, path: path.to_owned(), source: error.into() })
    }
}
