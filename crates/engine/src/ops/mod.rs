//! How each op runs.

mod agent;
pub(crate) mod content;
pub(crate) mod delta;
pub(crate) mod exec;
pub(crate) mod file;
mod mask;
mod output;
pub(crate) mod select;
pub(crate) mod source;
