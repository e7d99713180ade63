//! How each op runs.

pub(crate) mod content;
pub(crate) mod exec;
pub(crate) mod file;
pub(crate) mod select;
pub(crate) mod source;
