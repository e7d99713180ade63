//! One build from request to response.
//!
//! [`Engine::build`] walks: contexts and Dockerfile → `frontend::parse` and `lower` (asking [`resolver`] for bases) → graph →
//! `solver::solve` with [`worker`] → [`export`] → [`Response`]. The engine gets its clock, directories and credentials from
//! the caller; it prints nothing and speaks through [`event`].

mod build;
mod cache_io;
mod call;
pub mod container;
pub mod context;
mod error;
pub mod event;
mod export;
mod git;
mod http;
mod image;
pub mod images;
mod load;
mod log;
mod net;
mod network;
mod ops;
mod provenance;
mod push;
pub mod request;
mod resolver;
mod snapshot;
mod solve;
mod stored;
pub mod time;
mod whole_file;
mod worker;

pub use build::{Engine, Response};
pub use call::Answer;
pub use error::{EngineError, StepError, StepFailure};

/// Keeps a login to a registry for the user.
pub fn keep_login(directory: &std::path::Path, host: &str, user: &str, password: &str) -> Result<(), EngineError> {
    Ok(xbuild_registry::store(directory, host, user, password).map_err(xbuild_registry::RegistryError::from)?)
}

/// Forgets a login; whether there was one.
pub fn forget_login(directory: &std::path::Path, host: &str) -> Result<bool, EngineError> {
    Ok(xbuild_registry::erase(directory, host).map_err(xbuild_registry::RegistryError::from)?)
}
pub use snapshot::Snapshotter;
pub use whole_file::WholeFile;
