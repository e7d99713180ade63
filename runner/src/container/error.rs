//! What can go wrong with containers.

use crate::error::SandboxError;
use std::io;
use std::path::{Path, PathBuf};

/// Why something could not be done with a container. Texts are docker's where scripts look at them.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// No container has this name or id.
    #[error("No such container: {0}")]
    Missing(String),
    /// Several ids begin so.
    #[error("Multiple IDs found with provided prefix: {0}")]
    Ambiguous(String),
    /// Another container has the name.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) \
         that container to be able to reuse that name."
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// The container is not in a state in which this can be done.
    #[error("{0}")]
    Refused(String),
    /// The process could not be started.
    #[error("{message}")]
    Start {
        /// Why.
        message: String,
        /// The exit code that stands for it: 125, 126 or 127.
        code: u8,
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
    /// A file of the container is damaged.
    #[error("`{}` is damaged", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Why it is not understood.
        #[source]
        source: serde_json::Error,
    },
    /// The monitor did not answer.
    #[error("the monitor of container {0} ended unexpectedly")]
    MonitorGone(String),
    /// The sandbox refused.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Adds action and path to an I/O result.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, ContainerError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, ContainerError> {
        self.map_err(|error| ContainerError::Io { action, path: path.to_owned(), source: error.into() })
    }
}
