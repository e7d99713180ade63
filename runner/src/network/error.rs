//! What can go wrong with networks.

use std::io;

/// Why a network cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused something.
    #[error("cannot {action}")]
    Refused {
        /// What was tried, and on what.
        action: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The host's firewall is in the way.
    #[error("the host's firewall drops what passes through (chain `{chain}` of table `{table}`)")]
    Firewall {
        /// Table of nf_tables.
        table: String,
        /// Its chain.
        chain: String,
    },
    /// Every network or address that could be used is taken.
    #[error("no free {0}")]
    Exhausted(&'static str),
}

impl NetworkError {
    /// The whole story in one line.
    #[must_use]
    pub fn story(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }
}

/// Names the action that an error belongs to.
pub(super) trait Trying<T> {
    /// Wraps the error with what was tried.
    fn trying(self, action: impl FnOnce() -> String) -> Result<T, NetworkError>;
}

impl<T, E: Into<io::Error>> Trying<T> for Result<T, E> {
    fn trying(self, action: impl FnOnce() -> String) -> Result<T, NetworkError> {
        self.map_err(|error| NetworkError::Refused { action: action(), source: error.into() })
    }
}
