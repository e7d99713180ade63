use std::io;
use std::path::{Path, PathBuf};

/// Why a build did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The Dockerfile is wrong; each text is rendered with place and excerpt.
    #[error("{}", .0.join("\n"))]
    Dockerfile(Vec<String>),
    /// A step failed.
    #[error(transparent)]
    Step(Box<StepError>),
    /// No image of the store has this name, which is shown with its tag.
    #[error("No such image: {0}")]
    NoImage(String),
    /// The image of that name in the store is for another platform than was asked for.
    #[error(
        "image with reference {name} was found but its platform ({actual}) does not match the specified platform ({wanted})"
    )]
    OtherPlatform {
        /// The image's name.
        name: String,
        /// What it is for.
        actual: String,
        /// What it was to be for.
        wanted: String,
    },
    /// A context or base cannot be had.
    #[error("{0}")]
    Source(String),
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
    /// The store failed.
    #[error(transparent)]
    Store(#[from] xbuild_cache::StoreError),
    /// Files of a tree could not be read or written.
    #[error(transparent)]
    Tree(#[from] xbuild_cache::tree::TreeError),
    /// A layer of an image could not be unpacked.
    #[error("cannot unpack the layer {layer} of {image}")]
    Layer {
        /// Digest of the layer's blob.
        layer: xbuild_oci::Digest,
        /// The image, as it was named.
        image: String,
        /// Why not.
        #[source]
        source: xbuild_cache::tree::TreeError,
    },
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] xbuild_registry::RegistryError),
    /// The export failed.
    #[error(transparent)]
    Export(#[from] xbuild_exporter::ExportError),
    /// A process of a step failed.
    #[error("process \"{}\" did not complete successfully: {}", .0.command, .0.why)]
    Process(StepFailure),
    /// A network failed.
    #[error(transparent)]
    Network(#[from] xbuild_runner::network::NetworkError),
    /// The sandbox could not be set up.
    #[error(transparent)]
    Sandbox(#[from] xbuild_runner::SandboxError),
    /// A container could not be made, found or changed.
    #[error(transparent)]
    Container(#[from] xbuild_runner::container::ContainerError),
    /// Ctrl-C.
    #[error("the build was cancelled")]
    Cancelled,
    /// A bug.
    #[error("internal error: {0}")]
    Internal(String),
}

/// A failed step, with all that helps to see why.
#[derive(Debug, thiserror::Error)]
#[error("failed to solve: {message}")]
pub struct StepError {
    /// Name of the step.
    pub step: String,
    /// One sentence.
    pub message: String,
    /// The last lines of its output.
    pub tail: Vec<String>,
    /// Place and excerpt in the Dockerfile.
    pub excerpt: String,
    /// The file system was full.
    pub out_of_space: bool,
}

/// How a process of a step failed.
#[derive(Clone, Debug)]
pub struct StepFailure {
    /// Its command line.
    pub command: String,
    /// `exit code: 1`.
    pub why: String,
}

impl EngineError {
    /// Whether a file system or the store's index had no room left.
    pub fn is_out_of_space(&self) -> bool {
        if let Self::Step(step) = self {
            return step.out_of_space;
        }
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let full = |e: &io::Error| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            if error.downcast_ref().is_some_and(full) {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// The text with that of what it came from.
    pub(crate) fn with_causes(&self) -> String {
        let first: &dyn std::error::Error = self;
        let causes = std::iter::successors(first.source(), |error| error.source());
        causes.fold(self.to_string(), |text, cause| format!("{text}: {cause}"))
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { action, path: path.to_owned(), source: source.into() }
    }
}
