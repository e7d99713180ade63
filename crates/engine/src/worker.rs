//! The solver's worker: keys, records and ops over store, sandbox and network.

use crate::cache_io::Imports;
use crate::context::Contexts;
use crate::event::{EventKind, Events, StepId};
use crate::image::Images;
use crate::net::Net;
use crate::network::Networks;
use crate::ops::source::Remote;
use crate::ops::{self, delta, select};
use crate::request::{Resources, SecretValue};
use crate::snapshot::Snapshots;
use crate::{EngineError, git};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use xbuild_cache::tree::{Listing, StatIndex, View};
use xbuild_cache::{NewRecord, Record, Staging, Store, TreeId};
use xbuild_graph::{Graph, Op, SourceOp, VertexId};
use xbuild_runner::Launcher;
use xbuild_solver::{CacheKey, Cancel, Task, Worker};

/// Newest records of an op whose inputs are compared when the definition key missed.
const CANDIDATES: u32 = 8;

/// A result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Files of the store.
    Tree(TreeId),
    /// A directory of the client's, by its context name; read in place.
    Local(String),
}

/// Everything that ops need.
pub(crate) struct BuildWorker {
    pub(crate) store: Arc<Store>,
    pub(crate) net: Arc<Net>,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) launcher: Arc<Launcher>,
    /// Why nothing can be run, if so.
    pub(crate) no_sandbox: Option<String>,
    pub(crate) contexts: Arc<Contexts>,
    pub(crate) secrets: BTreeMap<String, SecretValue>,
    pub(crate) ssh: BTreeMap<String, PathBuf>,
    pub(crate) events: Events,
    /// Step numbers by vertex.
    pub(crate) steps: Vec<StepId>,
    /// Last lines of output by vertex, for the error of a failed step.
    pub(crate) tails: Mutex<BTreeMap<usize, Vec<u8>>>,
    /// Keys that were computed, for records' descriptions of their inputs.
    pub(crate) locals: Mutex<BTreeMap<usize, Vec<Option<CacheKey>>>>,
    /// What remote sources stood for, by vertex.
    pub(crate) remotes: Mutex<Remotes>,
    /// What copies select of local directories, by vertex.
    pub(crate) listings: Mutex<BTreeMap<usize, Listing>>,
    /// Local directories that were copied while they were hashed, by vertex.
    pub(crate) staged: Mutex<BTreeMap<usize, Staging>>,
    /// Local directories as their ignore rules show them.
    pub(crate) views: Mutex<BTreeMap<String, View>>,
    /// Digests of context files, remembered between builds.
    pub(crate) indexes: Mutex<BTreeMap<String, Arc<StatIndex>>>,
    /// Networks of execs.
    pub(crate) networks: Networks,
    /// Root file systems of execs.
    pub(crate) snapshots: Arc<Snapshots>,
    /// Ends the build.
    pub(crate) cancel: Cancel,
    /// Limits of every exec.
    pub(crate) resources: Resources,
    /// Numbers control groups.
    pub(crate) groups: std::sync::atomic::AtomicU32,
    /// Times of files made by the build.
    pub(crate) epoch: Option<i64>,
    /// Caches that are asked when the store has no record.
    pub(crate) imports: Arc<Imports>,
}

/// Answers about remote sources, by the number of the vertex.
pub(crate) type Remotes = BTreeMap<usize, Remote>;

impl BuildWorker {
    pub(crate) fn images(&self) -> Images<'_> {
        Images { store: &self.store, net: &self.net, runtime: &self.runtime, cancel: &self.cancel }
    }

    pub(crate) fn step(&self, vertex: VertexId) -> StepId {
        self.steps[vertex.index()]
    }

    /// The stat index of a local context, opened at first use.
    pub(crate) fn stat_index(&self, name: &str) -> Result<Arc<StatIndex>, EngineError> {
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = indexes.get(name) {
            return Ok(index.clone());
        }
        let root = self.contexts.0.get(name).map(|c| c.path.canonicalize().unwrap_or_else(|_| c.path.clone()));
        let place = self.store.context_index(&root.unwrap_or_default().to_string_lossy());
        let index = Arc::new(StatIndex::open(&place)?);
        indexes.insert(name.to_owned(), index.clone());
        Ok(index)
    }

    /// Writes what was learnt of context files.
    pub(crate) fn save_indexes(&self) {
        let indexes = std::mem::take(&mut *self.indexes.lock().unwrap_or_else(PoisonError::into_inner));
        for index in indexes.into_values().filter_map(Arc::into_inner) {
            // Without it the next build hashes again.
            let _ = index.save();
        }
    }

    /// What a remote source stands for, asked for once in a build.
    fn remote(&self, vertex: VertexId, source: &SourceOp) -> Result<Remote, EngineError> {
        let known = |remotes: &Remotes| remotes.get(&vertex.index()).cloned();
        if let Some(remote) = known(&self.remotes.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(remote);
        }
        let remote = match source {
            SourceOp::Git(source) => Remote::Commit(source.clone(), ops::source::commit(self, source)?),
            SourceOp::Http(source) => Remote::File(source.clone(), ops::source::download(self, source)?),
            SourceOp::Image(_) | SourceOp::Local(_) => {
                return Err(EngineError::Internal("images and directories are no remote files".into()));
            }
        };
        self.remotes.lock().unwrap_or_else(PoisonError::into_inner).insert(vertex.index(), remote.clone());
        Ok(remote)
    }

    /// Copies what the op reads if it has to be copied anyway, since no such op was ever recorded: hashing it is then done in
    /// passing.
    fn stage(&self, graph: &Graph, vertex: VertexId, n: usize, name: &str) -> Result<(), EngineError> {
        let vertex_of = &graph[vertex];
        let Some(copy) = delta::listable(&vertex_of.op, n).filter(|_| self.imports.is_empty()) else { return Ok(()) };
        let Some(selected) = delta::stageable(self, copy, name)? else { return Ok(()) };
        if self.store.knows_op(&vertex_of.op_digest.0)? {
            return Ok(());
        }
        // What cannot be staged is copied later, or is an error then.
        if let Ok(Some(staged)) = selected.stage(self, name) {
            self.staged.lock().unwrap_or_else(PoisonError::into_inner).insert(vertex.index(), staged);
        }
        Ok(())
    }

    pub(crate) fn ssh_default(&self) -> Option<&std::path::Path> {
        self.ssh.get("default").map(PathBuf::as_path)
    }

    /// What the result of a vertex follows from, input by input: digests of what is read, where that is known.
    fn facts(&self, graph: &Graph, vertex: VertexId, inputs: &[Output]) -> Vec<Fact> {
        let locals = self.locals.lock().unwrap_or_else(PoisonError::into_inner);
        let known = locals.get(&vertex.index());
        let of = |(n, output): (usize, &Output)| match output {
            Output::Local(_) => {
                known.and_then(|k| k.get(n).copied().flatten()).map_or(Fact::Unknown, |k| Fact::Digest(k.0))
            }
            Output::Tree(tree) if select::is_selective(&graph[vertex].op, n) => Fact::Selection(*tree),
            Output::Tree(tree) => Fact::Tree(*tree, CacheKey(graph[graph[vertex].inputs[n].vertex].op_digest.0)),
        };
        inputs.iter().enumerate().map(of).collect()
    }

    /// The key that follows from what the inputs are rather than how they were made.
    fn result_key(&self, graph: &Graph, vertex: VertexId, facts: &[Fact]) -> Result<Option<[u8; 32]>, EngineError> {
        let mut hash = blake3::Hasher::new();
        hash.update(b"xbuild/result/v1").update(&graph[vertex].op_digest.0);
        for (n, fact) in facts.iter().enumerate() {
            let digest = match fact {
                Fact::Unknown => return Ok(None),
                Fact::Digest(digest) => *digest,
                Fact::Tree(tree, producer) => {
                    hash.update(&producer.0);
                    ops::content::of_tree(&self.store, *tree)?
                }
                Fact::Selection(tree) => select::digest_of_tree(&self.store, &graph[vertex].op, n, *tree)?,
            };
            hash.update(&digest);
        }
        Ok(Some(*hash.finalize().as_bytes()))
    }

    /// The result key, if any record could answer to it: computing it reads files.
    fn result_key_if_useful(
        &self,
        graph: &Graph,
        vertex: VertexId,
        facts: &[Fact],
    ) -> Result<Option<[u8; 32]>, EngineError> {
        if !self.store.knows_op(&graph[vertex].op_digest.0)? {
            return Ok(None);
        }
        let Some(wanted) = self.result_key(graph, vertex, facts)? else {
            return Ok(None);
        };
        for candidate in self.store.records_without_result_key(&graph[vertex].op_digest.0, CANDIDATES)? {
            let Some(facts) = Fact::parse_all(&candidate.inputs, &self.store) else {
                continue;
            };
            // A candidate whose files cannot be read any more is no candidate.
            if let Ok(Some(key)) = self.result_key(graph, vertex, &facts) {
                self.store.set_result_key(candidate.id, &key)?;
            }
        }
        Ok(Some(wanted))
    }

    fn usable(&self, record: Option<Record>) -> Option<Output> {
        let tree = record?.tree;
        (tree == TreeId::EMPTY || self.store.tree(tree).is_ok()).then_some(Output::Tree(tree))
    }

    /// A result that another cache has: brought into the store and recorded there.
    fn find_imported(&self, graph: &Graph, vertex: VertexId, key: CacheKey) -> Result<Option<Output>, EngineError> {
        let Some(found) = self.imports.find(&key.0)? else { return Ok(None) };
        let op = &graph[vertex].op;
        // The name of a base image says what its layers are; a cache that has others under it is wrong or forged.
        if let Op::Source(SourceOp::Image(image)) = op
            && found.chain_id().is_none_or(|chain| chain.to_string() != image.chain_id)
        {
            return Ok(None);
        }
        let began = Instant::now();
        let tree = self.imports.bring(&found, &self.images(), &self.events, self.step(vertex))?;
        let locals = self
            .locals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&vertex.index())
            .cloned()
            .unwrap_or_default();
        // What the inputs were is known of local directories only.
        let known = |n: usize| locals.get(n).copied().flatten().map_or(Fact::Unknown, |key| Fact::Digest(key.0));
        let facts: Vec<Fact> = (0..graph[vertex].inputs.len()).map(known).collect();
        self.store.add_record(&NewRecord {
            key: key.0,
            op: graph[vertex].op_digest.0,
            result_key: None,
            inputs: &Fact::to_text(&facts),
            tree,
            description: &graph[vertex].meta.name,
            duration_ms: began.elapsed().as_millis() as u64,
        })?;
        Ok(Some(Output::Tree(tree)))
    }

    fn execute(&self, task: &Task<'_, Output>) -> Result<Output, EngineError> {
        let step = self.step(task.vertex);
        match &task.graph[task.vertex].op {
            Op::Source(SourceOp::Local(local)) => Ok(Output::Local(local.name.clone())),
            Op::Source(SourceOp::Image(image)) if image.chain_id.is_empty() => Ok(Output::Tree(TreeId::EMPTY)),
            Op::Source(SourceOp::Image(image)) => {
                self.events.send(step, EventKind::Note(format!("resolve {}", image.reference)));
                Ok(Output::Tree(self.images().unpack(image, &self.events, step)?))
            }
            Op::Source(source @ (SourceOp::Git(_) | SourceOp::Http(_))) => {
                ops::source::fetch(self, &self.remote(task.vertex, source)?)
            }
            Op::File(op) => ops::file::run(self, op, task),
            Op::Exec(op) => ops::exec::run(self, op, task),
            Op::Merge | Op::Diff => Err(EngineError::Internal("merge and diff do not come from Dockerfiles".into())),
        }
    }
}

impl Worker for BuildWorker {
    type Output = Output;
    type Error = EngineError;

    fn source_key(&self, graph: &Graph, vertex: VertexId) -> Result<CacheKey, EngineError> {
        let mut hash = blake3::Hasher::new();
        hash.update(&graph[vertex].op_digest.0);
        if let Op::Source(source @ (SourceOp::Git(_) | SourceOp::Http(_))) = &graph[vertex].op {
            match self.remote(vertex, source)? {
                Remote::Commit(_, commit) => {
                    hash.update(commit.id.as_bytes());
                }
                Remote::File(_, file) => {
                    hash.update(file.digest.as_bytes());
                    hash.update(file.modified.unwrap_or_default().as_bytes());
                }
            }
        }
        Ok(CacheKey(*hash.finalize().as_bytes()))
    }

    fn local_digests(&self, graph: &Graph, vertex: VertexId) -> Result<Vec<Option<CacheKey>>, EngineError> {
        let mut digests = Vec::new();
        for (n, edge) in graph[vertex].inputs.iter().enumerate() {
            digests.push(match &graph[edge.vertex].op {
                Op::Source(SourceOp::Local(local)) => {
                    self.stage(graph, vertex, n, &local.name)?;
                    let (digest, listing) = select::digest_of_context(self, &graph[vertex].op, n, &local.name)?;
                    let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
                    listings.extend(listing.map(|listing| (vertex.index(), listing)));
                    Some(CacheKey(digest))
                }
                _ => None,
            });
        }
        self.locals.lock().unwrap_or_else(PoisonError::into_inner).insert(vertex.index(), digests.clone());
        Ok(digests)
    }

    fn find(&self, graph: &Graph, vertex: VertexId, key: CacheKey) -> Result<Option<Output>, EngineError> {
        let found = match self.usable(self.store.find_record(&key.0)?) {
            Some(output) => Some(output),
            None => self.find_imported(graph, vertex, key)?,
        };
        if found.is_some() {
            self.listings.lock().unwrap_or_else(PoisonError::into_inner).remove(&vertex.index());
        }
        Ok(found)
    }

    fn find_by_inputs(
        &self,
        graph: &Graph,
        vertex: VertexId,
        key: CacheKey,
        inputs: &[Output],
    ) -> Result<Option<Output>, EngineError> {
        let facts = self.facts(graph, vertex, inputs);
        let Some(result_key) = self.result_key_if_useful(graph, vertex, &facts)? else {
            return Ok(None);
        };
        let Some(record) = self.store.find_result(&result_key)? else {
            return Ok(None);
        };
        let id = record.id;
        let output = self.usable(Some(record));
        if output.is_some() {
            self.store.alias(&key.0, id)?;
        }
        Ok(output)
    }

    fn run(&self, task: Task<'_, Output>) -> Result<Output, EngineError> {
        let Some(key) = task.key else {
            return self.execute(&task);
        };
        // Equal work of other builds and processes is waited for, not repeated.
        let stop = || task.cancel.is_set();
        let lock = self.store.lock(&format!("step-{key}"), &stop)?;
        let _lock = lock.ok_or(EngineError::Cancelled)?;
        if task.reuse
            && let Some(output) = self.usable(self.store.find_record(&key.0)?)
        {
            return Ok(output);
        }
        let began = Instant::now();
        let output = self.execute(&task)?;
        let Output::Tree(tree) = output else {
            return Ok(output);
        };
        let vertex = &task.graph[task.vertex];
        let facts = self.facts(task.graph, task.vertex, task.inputs);
        let new = NewRecord {
            key: key.0,
            op: vertex.op_digest.0,
            result_key: None,
            inputs: &Fact::to_text(&facts),
            tree,
            description: &git::redacted(&vertex.meta.name),
            duration_ms: began.elapsed().as_millis() as u64,
        };
        self.store.add_record(&new)?;
        Ok(output)
    }
}

/// What one input was.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fact {
    /// Cannot be told.
    Unknown,
    /// Local files with this digest.
    Digest([u8; 32]),
    /// All of a tree, and the op that made it: an instruction that was rewritten counts as a change, as in Docker, even if it
    /// makes the same files; one that ran again for another reason does not.
    Tree(TreeId, CacheKey),
    /// The selected paths of a tree.
    Selection(TreeId),
}

impl Fact {
    fn to_text(facts: &[Fact]) -> String {
        let words = facts.iter().map(|fact| match fact {
            Self::Unknown => "?".to_owned(),
            Self::Digest(digest) => format!("d{}", CacheKey(*digest)),
            Self::Tree(tree, producer) => format!("t{}:{producer}", tree.number()),
            Self::Selection(tree) => format!("s{}", tree.number()),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// Reads what [`Fact::to_text`] wrote; `None` if a tree is gone or the text is of another form.
    fn parse_all(text: &str, store: &Store) -> Option<Vec<Self>> {
        let tree = |number: &str| {
            let tree = TreeId::from(number.parse::<i64>().ok()?);
            (tree == TreeId::EMPTY || store.tree(tree).is_ok()).then_some(tree)
        };
        let one = |word: &str| match word.split_at_checked(1)? {
            ("d", hex) => blake3::Hash::from_hex(hex).ok().map(|h| Self::Digest(*h.as_bytes())),
            ("t", pair) => {
                let (number, producer) = pair.split_once(':')?;
                let producer = blake3::Hash::from_hex(producer).ok()?;
                tree(number).map(|tree| Self::Tree(tree, CacheKey(*producer.as_bytes())))
            }
            ("s", number) => tree(number).map(Self::Selection),
            _ => None,
        };
        text.split_ascii_whitespace().map(one).collect()
    }
}
