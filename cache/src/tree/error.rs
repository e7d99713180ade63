//! What can go wrong with trees.

use std::io;
use std::path::{Path, PathBuf};

/// A file operation that did not work out. Paths are inside the tree or context, never on the host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// A path that has to exist does not.
    #[error("{path:?}: not found")]
    NotFound {
        /// The path as it was asked for.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The tree holds something else than the operation needs.
    #[error("{path:?}: {problem}")]
    Unfit {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An entry of an archive that is not applied.
    #[error("archive entry {entry:?}: {problem}")]
    Entry {
        /// The entry's name, shortened.
        entry: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An archive that cannot be read as one.
    #[error("cannot read archive")]
    Archive(#[source] io::Error),
    /// More data or entries than the caller allows.
    #[error("archive is over the size limit of {limit} {unit}")]
    Limit {
        /// The limit that was passed.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// `--chmod` with something else than a mode.
    #[error("invalid mode {mode:?}")]
    Mode {
        /// The mode as written.
        mode: String,
    },
    /// The consumer of a tar stream failed.
    #[error("cannot write archive")]
    Output(#[source] io::Error),
}

/// Result of tree operations.
pub type Result<T, E = TreeError> = std::result::Result<T, E>;

impl TreeError {
    pub(crate) fn unfit(path: impl AsRef<Path>, problem: &'static str) -> TreeError {
        TreeError::Unfit { path: path.as_ref().to_path_buf(), problem }
    }

    pub(crate) fn not_found(path: impl AsRef<Path>) -> TreeError {
        TreeError::NotFound { path: Path::new("/").join(path) }
    }

    pub(crate) fn entry(name: &[u8], problem: impl Into<String>) -> TreeError {
        let shown: String = String::from_utf8_lossy(name).chars().take(200).collect();
        TreeError::Entry { entry: shown, problem: problem.into() }
    }
}

/// Puts the action and the path to a failed system call.
pub(crate) trait Context<T> {
    /// Names what was done to which path.
    fn context(self, action: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| TreeError::Io { action, path: path.as_ref().to_path_buf(), source: e.into() })
    }
}
