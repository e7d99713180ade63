//! Graph → results.
//!
//! [`solve`] drives a [`machine::Machine`], a pure state machine that owns the state of every vertex: events in, effects out.
//! The driver hands each effect to a [`Worker`] on a blocking thread and feeds the answer back. The solver never touches the
//! file system; what a result is, how it is looked up and how an op runs are the worker's.
//!
//! # Keys
//! A vertex has two keys, and a record is written under both:
//! - the *definition key*: op digest and the definition keys of the inputs, where a local directory stands for the digest of
//!   just the paths that the op reads. Known before anything has run; a hit needs no input at all.
//! - the *result key*: op digest and what the inputs turned out to be. Looked up when the definition key missed and the inputs
//!   are there: a step that ran again and produced the same files stops the re-running there (early cut-off).
//!
//! A vertex that must not use its records (`ignore_cache`) is run where its result is needed. A record above it that is found
//! by its definition key needs no result below, so nothing runs there: BuildKit's meaning of `--no-cache-filter`.

mod driver;
mod machine;

pub use driver::{Cancel, Limits, Progress, SolveError, Solved, Status, solve};

use std::fmt;
use xbuild_graph::{Graph, VertexId};

/// A cache key: ours, blake3, versioned by the encoding's salt.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey(pub [u8; 32]);

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Does the work of vertices. Methods block and are called on blocking threads, several at once.
pub trait Worker: Send + Sync + 'static {
    /// A handle to a result; cheap to clone, and keeps the result from being collected.
    type Output: Clone + Send + Sync + fmt::Debug + 'static;
    /// Why something could not be done.
    type Error: Send + 'static;

    /// Key of a source that is not a local directory: image, commit, remote file.
    fn source_key(&self, graph: &Graph, vertex: VertexId) -> Result<CacheKey, Self::Error>;

    /// Digests of what the op reads from each of its local inputs; `None` for inputs that are not local directories.
    fn local_digests(&self, graph: &Graph, vertex: VertexId) -> Result<Vec<Option<CacheKey>>, Self::Error>;

    /// The result recorded under a definition key.
    fn find(&self, graph: &Graph, vertex: VertexId, key: CacheKey) -> Result<Option<Self::Output>, Self::Error>;

    /// The result recorded for the same op on equal inputs. A hit is also recorded under `key`.
    fn find_by_inputs(
        &self,
        graph: &Graph,
        vertex: VertexId,
        key: CacheKey,
        inputs: &[Self::Output],
    ) -> Result<Option<Self::Output>, Self::Error>;

    /// Runs the op and records the result under both keys. `reuse` is false where records must not be used.
    fn run(&self, task: Task<'_, Self::Output>) -> Result<Self::Output, Self::Error>;
}

/// One op to run.
#[derive(Debug)]
pub struct Task<'a, O> {
    /// The graph.
    pub graph: &'a Graph,
    /// The vertex to run.
    pub vertex: VertexId,
    /// Its definition key; none for local directories.
    pub key: Option<CacheKey>,
    /// Results of its inputs, in order.
    pub inputs: &'a [O],
    /// Whether a record that appeared meanwhile may be taken instead.
    pub reuse: bool,
    /// Set when the build ends early.
    pub cancel: &'a Cancel,
}
