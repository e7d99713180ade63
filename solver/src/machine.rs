//! The state of every vertex as one pure state machine.

use crate::CacheKey;
use xbuild_graph::{Graph, Op, SourceOp, VertexId};

/// Format of the definition key's encoding.
const SALT: &[u8] = b"xbuild/key/v1";

/// Where a vertex stands. Moves only downwards.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State<O> {
    /// Nothing is known, nobody asked.
    Initial,
    /// Its key was asked for; waits for the inputs' keys or for digests of local files.
    Keying,
    /// The definition key is known (none for a local directory). Nobody needs the result yet.
    Keyed(Option<CacheKey>),
    /// The result is wanted; the record is being looked up under the definition key.
    Finding(CacheKey),
    /// Missed; waits for the inputs' results.
    NeedsInputs(Option<CacheKey>),
    /// The inputs are there; a record for equal inputs is being looked up.
    FindingByInputs(CacheKey),
    /// The op runs.
    Running(Option<CacheKey>),
    /// The result is there.
    Done { key: Option<CacheKey>, output: O },
}

impl<O> State<O> {
    /// The definition key: `None` while unknown, `Some(None)` for a local directory.
    fn key(&self) -> Option<Option<CacheKey>> {
        match self {
            Self::Initial | Self::Keying => None,
            Self::Keyed(key) | Self::NeedsInputs(key) | Self::Running(key) | Self::Done { key, .. } => Some(*key),
            Self::Finding(key) | Self::FindingByInputs(key) => Some(Some(*key)),
        }
    }
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event<O> {
    /// A result is wanted by the build itself.
    Want(VertexId),
    /// A source's key.
    SourceKey(VertexId, CacheKey),
    /// Digests of local inputs.
    LocalDigests(VertexId, Vec<Option<CacheKey>>),
    /// A look-up ended.
    Found(VertexId, Option<O>),
    /// An op ended.
    Ran(VertexId, O),
}

/// What is to be done; each is answered by one event, except `Cached`.
#[derive(Debug, PartialEq)]
pub(crate) enum Effect {
    SourceKey(VertexId),
    LocalDigests(VertexId),
    Find(VertexId, CacheKey),
    FindByInputs(VertexId, CacheKey),
    Run {
        vertex: VertexId,
        key: Option<CacheKey>,
        reuse: bool,
    },
    /// Tell people: the vertex was not needed because a result above it was recorded.
    Cached(VertexId),
}

#[derive(Debug)]
struct Cell<O> {
    state: State<O>,
    /// Digests of local inputs, in input order.
    locals: Option<Vec<Option<CacheKey>>>,
    /// Somebody needs the result, not just the key.
    wanted: bool,
    /// Its being skipped was reported.
    skipped: bool,
}

/// States of all vertices of one solve.
#[derive(Debug)]
pub(crate) struct Machine<'g, O> {
    graph: &'g Graph,
    cells: Vec<Cell<O>>,
}

impl<'g, O: Clone> Machine<'g, O> {
    pub(crate) fn new(graph: &'g Graph) -> Self {
        let blank = || Cell { state: State::Initial, locals: None, wanted: false, skipped: false };
        Self { graph, cells: (0..graph.bound()).map(|_| blank()).collect() }
    }

    /// The result of `id`, once it is there.
    pub(crate) fn output(&self, id: VertexId) -> Option<&O> {
        match &self.cell(id).state {
            State::Done { output, .. } => Some(output),
            _ => None,
        }
    }

    /// Results of the inputs of `id`; all must be there.
    pub(crate) fn inputs(&self, id: VertexId) -> Vec<O> {
        self.graph[id].inputs.iter().filter_map(|e| self.output(e.vertex).cloned()).collect()
    }

    /// Definition keys and results by vertex index, as far as they became known.
    pub(crate) fn into_known(self) -> (Vec<Option<CacheKey>>, Vec<Option<O>>) {
        let known = self.cells.into_iter().map(|cell| match cell.state {
            State::Done { key, output } => (key, Some(output)),
            state => (state.key().flatten(), None),
        });
        known.unzip()
    }

    /// Takes an event and returns what follows from it.
    pub(crate) fn handle(&mut self, event: Event<O>) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Want(id) => self.want(id, &mut effects),
            Event::SourceKey(id, key) => self.keyed(id, Some(key), &mut effects),
            Event::LocalDigests(id, digests) => {
                self.cell_mut(id).locals = Some(digests);
                self.try_key(id, &mut effects);
            }
            Event::Found(id, Some(output)) => self.found(id, output, &mut effects),
            Event::Found(id, None) => self.missed(id, &mut effects),
            Event::Ran(id, output) => {
                let key = self.key(id).flatten();
                self.done(id, key, output, &mut effects);
            }
        }
        effects
    }

    fn cell(&self, id: VertexId) -> &Cell<O> {
        &self.cells[id.index()]
    }

    fn cell_mut(&mut self, id: VertexId) -> &mut Cell<O> {
        &mut self.cells[id.index()]
    }

    /// See [`State::key`].
    fn key(&self, id: VertexId) -> Option<Option<CacheKey>> {
        self.cell(id).state.key()
    }

    fn want(&mut self, id: VertexId, effects: &mut Vec<Effect>) {
        if std::mem::replace(&mut self.cell_mut(id).wanted, true) {
            return;
        }
        match self.cell(id).state {
            State::Initial => self.ask_key(id, effects),
            State::Keyed(key) => self.pursue(id, key, effects),
            _ => {}
        }
    }

    /// Asks for keys downwards; iterative, because chains may be thousands long.
    fn ask_key(&mut self, id: VertexId, effects: &mut Vec<Effect>) {
        let mut open = vec![id];
        let mut asked = Vec::new();
        while let Some(id) = open.pop() {
            if !matches!(self.cell(id).state, State::Initial) {
                continue;
            }
            self.cell_mut(id).state = State::Keying;
            asked.push(id);
            open.extend(self.graph[id].inputs.iter().map(|e| e.vertex));
        }
        for id in asked.into_iter().rev() {
            match &self.graph[id].op {
                Op::Source(SourceOp::Local(_)) => self.keyed(id, None, effects),
                Op::Source(_) => effects.push(Effect::SourceKey(id)),
                _ if self.reads_locals(id) => effects.push(Effect::LocalDigests(id)),
                _ => {
                    self.cell_mut(id).locals = Some(vec![None; self.graph[id].inputs.len()]);
                    self.try_key(id, effects);
                }
            }
        }
    }

    fn reads_locals(&self, id: VertexId) -> bool {
        let local = |op: &Op| matches!(op, Op::Source(SourceOp::Local(_)));
        self.graph[id].inputs.iter().any(|e| local(&self.graph[e.vertex].op))
    }

    /// Makes the definition key of `id` and of everything above that waited for it.
    fn try_key(&mut self, id: VertexId, effects: &mut Vec<Effect>) {
        if matches!(self.cell(id).state, State::Keying)
            && let Some(key) = self.definition_key(id)
        {
            self.keyed(id, Some(key), effects);
        }
    }

    fn keyed(&mut self, id: VertexId, key: Option<CacheKey>, effects: &mut Vec<Effect>) {
        let mut open = vec![(id, key)];
        while let Some((id, key)) = open.pop() {
            if !matches!(self.cell(id).state, State::Keying) {
                continue;
            }
            self.cell_mut(id).state = State::Keyed(key);
            if self.cell(id).wanted {
                self.pursue(id, key, effects);
            }
            for user in self.graph.users(id).collect::<Vec<_>>() {
                if matches!(self.cell(user).state, State::Keying)
                    && let Some(key) = self.definition_key(user)
                {
                    open.push((user, Some(key)));
                }
            }
        }
    }

    fn definition_key(&self, id: VertexId) -> Option<CacheKey> {
        let vertex = &self.graph[id];
        let locals = self.cell(id).locals.as_ref()?;
        let mut hash = blake3::Hasher::new();
        hash.update(SALT).update(&vertex.op_digest.0);
        for (input, local) in vertex.inputs.iter().zip(locals) {
            let key = match local {
                Some(digest) => *digest,
                None => self.key(input.vertex)??,
            };
            hash.update(&[u8::from(local.is_some())]).update(&input.output.to_le_bytes()).update(&key.0);
        }
        Some(CacheKey(*hash.finalize().as_bytes()))
    }

    /// The key is there and the result is wanted.
    fn pursue(&mut self, id: VertexId, key: Option<CacheKey>, effects: &mut Vec<Effect>) {
        match key {
            Some(key) if !self.graph[id].meta.ignore_cache => {
                self.cell_mut(id).state = State::Finding(key);
                effects.push(Effect::Find(id, key));
            }
            key => self.need_inputs(id, key, effects),
        }
    }

    fn need_inputs(&mut self, id: VertexId, key: Option<CacheKey>, effects: &mut Vec<Effect>) {
        self.cell_mut(id).state = State::NeedsInputs(key);
        for input in self.graph[id].inputs.clone() {
            self.want(input.vertex, effects);
        }
        self.try_start(id, effects);
    }

    fn try_start(&mut self, id: VertexId, effects: &mut Vec<Effect>) {
        let State::NeedsInputs(key) = self.cell(id).state else {
            return;
        };
        if !self.graph[id].inputs.iter().all(|e| self.output(e.vertex).is_some()) {
            return;
        }
        let ignore = self.graph[id].meta.ignore_cache;
        match key {
            Some(key) if !ignore && !self.graph[id].inputs.is_empty() => {
                self.cell_mut(id).state = State::FindingByInputs(key);
                effects.push(Effect::FindByInputs(id, key));
            }
            key => self.start(id, key, effects),
        }
    }

    fn start(&mut self, id: VertexId, key: Option<CacheKey>, effects: &mut Vec<Effect>) {
        self.cell_mut(id).state = State::Running(key);
        let reuse = !self.graph[id].meta.ignore_cache;
        effects.push(Effect::Run { vertex: id, key, reuse });
    }

    fn missed(&mut self, id: VertexId, effects: &mut Vec<Effect>) {
        match self.cell(id).state {
            State::Finding(key) => self.need_inputs(id, Some(key), effects),
            State::FindingByInputs(key) => self.start(id, Some(key), effects),
            _ => {}
        }
    }

    fn found(&mut self, id: VertexId, output: O, effects: &mut Vec<Effect>) {
        let key = self.key(id).flatten();
        let skipped = matches!(self.cell(id).state, State::Finding(_));
        self.done(id, key, output, effects);
        if skipped {
            self.report_skipped(id, effects);
        }
    }

    /// Everything below a hit that nobody else wants is as good as cached.
    fn report_skipped(&mut self, id: VertexId, effects: &mut Vec<Effect>) {
        let mut open: Vec<VertexId> = self.graph[id].inputs.iter().map(|e| e.vertex).collect();
        while let Some(below) = open.pop() {
            let cell = self.cell_mut(below);
            if !cell.wanted && !cell.skipped && matches!(cell.state, State::Keyed(_)) {
                cell.skipped = true;
                effects.push(Effect::Cached(below));
                open.extend(self.graph[below].inputs.iter().map(|e| e.vertex));
            }
        }
    }

    fn done(&mut self, id: VertexId, key: Option<CacheKey>, output: O, effects: &mut Vec<Effect>) {
        self.cell_mut(id).state = State::Done { key, output };
        for user in self.graph.users(id).collect::<Vec<_>>() {
            self.try_start(user, effects);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xbuild_graph::{Edge, ExecOp, HttpSource, LocalSource, Meta, Mount, MountKind};

    fn edge(vertex: VertexId) -> Edge {
        Edge { vertex, output: 0 }
    }

    fn source(graph: &mut Graph, url: &str) -> VertexId {
        let op = SourceOp::Http(HttpSource { url: url.into(), checksum: None, filename: None });
        graph.add(Op::Source(op), vec![], Meta::default())
    }

    fn exec(graph: &mut Graph, command: &str, inputs: Vec<VertexId>, ignore_cache: bool) -> VertexId {
        let mount = Mount {
            destination: "/".into(),
            input: Some(0),
            selector: String::new(),
            output: Some(0),
            readonly: false,
            kind: MountKind::Bind,
        };
        let op = Op::Exec(Box::new(ExecOp {
            args: vec![command.into()],
            cwd: "/".into(),
            mounts: vec![mount],
            ..ExecOp::default()
        }));
        let meta = Meta { ignore_cache, ..Meta::default() };
        graph.add(op, inputs.into_iter().map(edge).collect(), meta)
    }

    /// Plays the worker: results are strings, `known` are those found by definition, `equal` those found by inputs.
    fn play(graph: &Graph, target: VertexId, known: &[VertexId], equal: &[VertexId]) -> Vec<String> {
        let mut machine = Machine::<String>::new(graph);
        let mut log = Vec::new();
        let mut open = machine.handle(Event::Want(target));
        while let Some(effect) = open.pop() {
            let event = match effect {
                Effect::SourceKey(id) => Event::SourceKey(id, CacheKey([id.index() as u8; 32])),
                Effect::LocalDigests(id) => {
                    let local = |e: &Edge| matches!(graph[e.vertex].op, Op::Source(SourceOp::Local(_)));
                    let digests = graph[id].inputs.iter().map(|e| local(e).then_some(CacheKey([7; 32])));
                    Event::LocalDigests(id, digests.collect())
                }
                Effect::Find(id, _) => Event::Found(id, known.contains(&id).then(|| "hit".into())),
                Effect::FindByInputs(id, _) => Event::Found(id, equal.contains(&id).then(|| "equal".into())),
                Effect::Run { vertex, reuse, .. } => {
                    log.push(format!("run {}{}", vertex.index(), if reuse { "" } else { "!" }));
                    Event::Ran(vertex, "ran".into())
                }
                Effect::Cached(id) => {
                    log.push(format!("skip {}", id.index()));
                    continue;
                }
            };
            open.extend(machine.handle(event));
        }
        assert!(machine.output(target).is_some(), "the target is not solved: {:?}", machine.cell(target).state);
        log
    }

    #[test]
    fn a_hit_needs_no_input() {
        let mut graph = Graph::new();
        let a = source(&mut graph, "a");
        let b = exec(&mut graph, "b", vec![a], false);
        let c = exec(&mut graph, "c", vec![b], false);
        assert_eq!(play(&graph, c, &[c], &[]), ["skip 0", "skip 1"]);
        assert_eq!(play(&graph, c, &[b], &[]), ["skip 0", "run 2"]);
        assert_eq!(play(&graph, c, &[], &[]), ["run 0", "run 1", "run 2"]);
    }

    #[test]
    fn equal_results_cut_the_re_running_off() {
        let mut graph = Graph::new();
        let a = source(&mut graph, "a");
        let b = exec(&mut graph, "b", vec![a], false);
        let c = exec(&mut graph, "c", vec![b], false);
        assert_eq!(play(&graph, c, &[a], &[c]), ["run 1"]);
    }

    #[test]
    fn ignored_records_are_those_of_the_vertex_alone() {
        let mut graph = Graph::new();
        let a = source(&mut graph, "a");
        let b = exec(&mut graph, "b", vec![a], true);
        let c = exec(&mut graph, "c", vec![b], false);
        assert_eq!(play(&graph, c, &[a, b, c], &[]), ["skip 0", "skip 1"]);
        assert_eq!(play(&graph, c, &[a, b], &[]), ["run 1!", "run 2"]);
        assert_eq!(play(&graph, c, &[a, b], &[b, c]), ["run 1!"]);
    }

    #[test]
    fn keys_are_known_below_a_hit() {
        let mut graph = Graph::new();
        let a = source(&mut graph, "a");
        let b = exec(&mut graph, "b", vec![a], false);
        let mut machine = Machine::<String>::new(&graph);
        machine.handle(Event::Want(b));
        machine.handle(Event::SourceKey(a, CacheKey([1; 32])));
        machine.handle(Event::Found(b, Some("hit".into())));
        let (keys, results) = machine.into_known();
        assert_eq!(keys[a.index()], Some(CacheKey([1; 32])));
        assert!(keys[b.index()].is_some());
        assert_eq!(results, [None, Some("hit".to_owned())]);
    }

    #[test]
    fn local_directories_count_by_what_is_read() {
        let mut graph = Graph::new();
        let op = SourceOp::Local(LocalSource { name: "context".into(), excludes: vec![] });
        let context = graph.add(Op::Source(op), vec![], Meta::default());
        let b = exec(&mut graph, "b", vec![context], false);
        assert_eq!(play(&graph, b, &[b], &[]), ["skip 0"]);
        assert_eq!(play(&graph, b, &[], &[]), ["run 0", "run 1"]);
    }
}
