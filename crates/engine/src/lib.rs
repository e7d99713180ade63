//! One build from request to response.
//!
//! [`Engine::build`] walks: contexts and Dockerfile → `frontend::parse` and `lower` (asking [`resolver`] for bases) → graph →
//! `solver::solve` with [`worker`] → [`export`] → [`Response`]. The engine gets its clock, directories and credentials from
//! the caller; it prints nothing and speaks through [`event`].

mod build;
mod cache_io;
mod call;
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
pub mod run;
mod snapshot;
mod stored;
pub mod time;
mod worker;

pub use build::{Engine, Response};
pub use call::Answer;
pub use error::{EngineError, StepError, StepFailure};
pub use snapshot::Snapshotter;
