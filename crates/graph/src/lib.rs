//! The low-level instruction graph: what a build is, before anything of it has run.
//!
//! A [`Graph`] holds vertices; a vertex is an [`Op`] with ordered inputs, each an [`Edge`] (vertex and output number). Two
//! vertices with equal ops and inputs are one vertex: [`Graph::add`] merges them, so two stages with the same chain are one
//! chain. What must not change a digest (names, spans, `ignore_cache`) is [`Meta`], beside the op. Inputs are added before the
//! vertices that use them, so a graph made here has no cycles.

mod encode;
pub mod llb;
mod op;
mod platform;

pub use op::*;
pub use platform::{Platform, PlatformError};

use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::Topo;
use std::collections::{BTreeSet, HashMap};
use std::fmt;

/// Digest of an op and its inputs' digests; names the vertex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VertexDigest(pub [u8; 32]);

impl fmt::Debug for VertexDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for VertexDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// A vertex of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VertexId(u32);

impl VertexId {
    /// Position, for tables beside the graph.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// An output of a vertex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Edge {
    /// The vertex.
    pub vertex: VertexId,
    /// Which of its outputs; 0 is the root of an exec and the only one of everything else.
    pub output: u32,
}

/// Bytes `start..end` of the Dockerfile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// Byte after the last.
    pub end: usize,
}

/// What is said of a vertex without changing what it is.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    /// Line of the progress display: `[build 2/5] RUN make`.
    pub name: String,
    /// The instruction.
    pub span: Option<Span>,
    /// Run even if a record is there (`--no-cache`).
    pub ignore_cache: bool,
}

/// An op with its inputs.
#[derive(Clone, Debug)]
pub struct Vertex {
    /// What it does.
    pub op: Op,
    /// What it works on, in the op's order.
    pub inputs: Vec<Edge>,
    /// Digest of op and inputs.
    pub digest: VertexDigest,
    /// Digest of the op alone.
    pub op_digest: VertexDigest,
    /// Names and spans.
    pub meta: Meta,
}

/// A directed acyclic graph of vertices.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    dag: StableDiGraph<Vertex, ()>,
    known: HashMap<VertexDigest, VertexId>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a vertex, or returns the equal one that is there (whose name stays; `ignore_cache` is kept if either has it).
    pub fn add(&mut self, op: Op, inputs: Vec<Edge>, meta: Meta) -> VertexId {
        let op_digest = encode::digest_of(&op);
        let named: Vec<_> = inputs.iter().map(|e| (self[e.vertex].digest.0, e.output)).collect();
        let digest = VertexDigest(*encode::digest_of(&(op_digest.as_bytes(), named)).as_bytes());
        if let Some(&id) = self.known.get(&digest) {
            self.dag[node(id)].meta.ignore_cache |= meta.ignore_cache;
            return id;
        }
        let op_digest = VertexDigest(*op_digest.as_bytes());
        let mut sources: Vec<NodeIndex> = inputs.iter().map(|e| node(e.vertex)).collect();
        sources.sort_unstable();
        sources.dedup();
        let index = self.dag.add_node(Vertex { op, inputs, digest, op_digest, meta });
        for source in sources {
            self.dag.add_edge(source, index, ());
        }
        let id = VertexId(index.index() as u32);
        self.known.insert(digest, id);
        id
    }

    /// Drops every vertex that none of `targets` needs.
    pub fn retain_needed_by(&mut self, targets: impl IntoIterator<Item = VertexId>) {
        let mut needed = BTreeSet::new();
        let mut open: Vec<VertexId> = targets.into_iter().collect();
        while let Some(id) = open.pop() {
            if needed.insert(id) {
                open.extend(self[id].inputs.iter().map(|e| e.vertex));
            }
        }
        self.dag.retain_nodes(|_, index| needed.contains(&VertexId(index.index() as u32)));
        self.known.retain(|_, id| needed.contains(id));
    }

    /// All vertices, inputs before their users.
    pub fn in_order(&self) -> Vec<VertexId> {
        let mut topo = Topo::new(&self.dag);
        std::iter::from_fn(|| topo.next(&self.dag)).map(|n| VertexId(n.index() as u32)).collect()
    }

    /// Vertices that use an output of `id`.
    pub fn users(&self, id: VertexId) -> impl Iterator<Item = VertexId> + '_ {
        self.dag.neighbors_directed(node(id), Direction::Outgoing).map(|n| VertexId(n.index() as u32))
    }

    /// Number of vertices.
    pub fn len(&self) -> usize {
        self.dag.node_count()
    }

    /// Whether there is no vertex.
    pub fn is_empty(&self) -> bool {
        self.dag.node_count() == 0
    }

    /// One more than the highest [`VertexId::index`].
    pub fn bound(&self) -> usize {
        self.dag.node_indices().map(|n| n.index() + 1).max().unwrap_or(0)
    }
}

fn node(id: VertexId) -> NodeIndex {
    NodeIndex::new(id.index())
}

impl std::ops::Index<VertexId> for Graph {
    type Output = Vertex;
    fn index(&self, id: VertexId) -> &Vertex {
        &self.dag[node(id)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(name: &str) -> Op {
        Op::Source(SourceOp::Local(LocalSource { name: name.into(), excludes: vec![] }))
    }

    #[test]
    fn equal_vertices_are_one() {
        let mut graph = Graph::new();
        let a = graph.add(local("a"), vec![], Meta { name: "first".into(), ..Meta::default() });
        let b = graph.add(local("a"), vec![], Meta { name: "second".into(), ignore_cache: true, span: None });
        assert_eq!(a, b);
        assert!(graph[a].meta.ignore_cache);
        assert_ne!(a, graph.add(local("b"), vec![], Meta::default()));
    }

    #[test]
    fn what_no_target_needs_is_dropped() {
        let mut graph = Graph::new();
        let a = graph.add(local("a"), vec![], Meta::default());
        let b = graph.add(local("b"), vec![], Meta::default());
        let edge = |vertex| Edge { vertex, output: 0 };
        let m = graph.add(Op::Merge, vec![edge(b)], Meta::default());
        graph.retain_needed_by([m]);
        assert_eq!(graph.in_order(), [b, m]);
        assert_eq!(graph.users(b).collect::<Vec<_>>(), [m]);
        let _ = a;
    }
}
