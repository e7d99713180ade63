//! What lowering asks of the outside.

use xbuild_graph::{GitSource, HttpSource, ImageSource, LocalSource, Platform};
use xbuild_oci::ImageConfig;

/// Facts that a Dockerfile needs from outside. Implemented by the engine; calls may block.
pub trait Resolver {
    /// Resolves base images to manifests and configurations, all at once so that they can be fetched in parallel.
    /// Answers come in the order of the requests.
    fn images(&self, requests: &[ImageRequest]) -> Vec<Result<ResolvedImage, ResolveError>>;

    /// What `--build-context NAME=…` says, if anything. `name` is a stage name or an image name as written in the
    /// Dockerfile; the frontend asks for the forms that it takes as equal (`x`, `x:latest`, `docker.io/library/x:latest`).
    fn named_context(&self, name: &str, platform: &Platform) -> Result<Option<NamedContext>, ResolveError>;

    /// The main build context.
    fn main_context(&self) -> MainContext;
}

/// An image by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRequest {
    /// As written, expanded.
    pub reference: String,
    /// The wanted platform.
    pub platform: Platform,
}

/// A base image's facts.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// Its vertex.
    pub source: ImageSource,
    /// Its configuration.
    pub config: ImageConfig,
}

/// What stands behind a named context.
#[derive(Clone, Debug)]
pub enum NamedContext {
    /// An image (`docker-image://`, `oci-layout://`).
    Image(Box<ResolvedImage>),
    /// A directory, with the patterns of its `.dockerignore`.
    Local(LocalSource),
    /// A repository.
    Git(GitSource),
    /// A remote archive, unpacked.
    Http(HttpSource),
    /// Another stage (`target:NAME`).
    Stage(String),
}

/// The main context.
#[derive(Clone, Debug)]
pub enum MainContext {
    /// A directory or unpacked archive.
    Local(LocalSource),
    /// A repository that the frontend reads COPY sources from.
    Git(GitSource),
}

/// Why an image or context cannot be had; the text names the thing and the cause.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ResolveError {
    /// One sentence.
    pub message: String,
}
