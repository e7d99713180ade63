//! Dockerfile text → syntax tree → checked stages → instruction graph and image configurations. Pure: no I/O.

mod resolve;

pub use resolve::{ImageRequest, MainContext, NamedContext, ResolveError, ResolvedImage, Resolver};
