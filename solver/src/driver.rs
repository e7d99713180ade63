//! Runs a machine's effects on blocking threads.

use crate::machine::{Effect, Event, Machine};
use crate::{CacheKey, Task, Worker};
use std::collections::{BinaryHeap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc};
use xbuild_graph::{Graph, Op, VertexId};

/// Tells everything that runs for a build to end. Cloned freely; setting it is final.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<(AtomicBool, Notify)>);

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the flag and wakes who waits.
    pub fn cancel(&self) {
        self.0.0.store(true, Ordering::SeqCst);
        self.0.1.notify_waiters();
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.0.load(Ordering::SeqCst)
    }

    /// Waits until it is set. Cancel-safe.
    pub async fn wait(&self) {
        loop {
            let notified = self.0.1.notified();
            if self.is_set() {
                return;
            }
            notified.await;
        }
    }
}

/// How much may run at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Execs.
    pub execs: usize,
    /// Threads that compute keys and look records up; at least 1.
    pub lookups: usize,
}

/// What a vertex is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its op runs.
    Started,
    /// Its result was recorded.
    Cached,
    /// Its op ended well.
    Finished,
    /// Its op failed.
    Failed,
    /// The build ended while it ran.
    Cancelled,
}

/// Takes reports of what vertices do; called on the solver's task, must not block.
pub type Progress = dyn Fn(VertexId, Status) + Send + Sync;

/// What a solve gave.
#[derive(Clone, Debug)]
pub struct Solved<O> {
    /// Results of the targets, in order.
    pub outputs: Vec<O>,
    /// Definition keys by [`VertexId::index`]; none for local directories and for what no target needs.
    pub keys: Vec<Option<CacheKey>>,
    /// Results by [`VertexId::index`]; none for what a recorded result above made needless.
    pub results: Vec<Option<O>>,
}

/// A solve that did not succeed.
#[derive(Debug)]
pub enum SolveError<E> {
    /// An op failed.
    Failed {
        /// Which.
        vertex: VertexId,
        /// Why.
        error: E,
    },
    /// Cancelled from outside.
    Cancelled,
    /// A worker thread died; a bug.
    Internal(String),
}

/// A run that waits for its turn; those with the longest path to the targets first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    remaining: u32,
    earlier: std::cmp::Reverse<usize>,
    vertex: VertexId,
    key: Option<CacheKey>,
    reuse: bool,
}

/// What came of an effect; an error of `None` is a thread that died.
type Answer<W> = Result<Event<<W as Worker>::Output>, Option<<W as Worker>::Error>>;

/// What is done for an effect.
type Work<W> =
    Box<dyn FnOnce(&W, &Graph, &Cancel) -> Result<Event<<W as Worker>::Output>, <W as Worker>::Error> + Send>;

/// What blocking threads need; one a solve.
struct Bench<W: Worker> {
    graph: Arc<Graph>,
    worker: Arc<W>,
    cancel: Cancel,
    answers: mpsc::UnboundedSender<(VertexId, Answer<W>)>,
    lookups: Mutex<Lookups<W>>,
}

/// Keys and records that are wanted. They are many and short, so that a thread for each would cost more than they do.
struct Lookups<W: Worker> {
    waiting: VecDeque<(VertexId, Work<W>)>,
    threads: usize,
}

struct Driver<W: Worker> {
    graph: Arc<Graph>,
    bench: Arc<Bench<W>>,
    /// Effects that were started and not answered.
    open: usize,
    execs: usize,
    waiting: BinaryHeap<Waiting>,
    remaining: Vec<u32>,
    limits: Limits,
}

/// Solves `targets` and returns their results in order, with the keys of all vertices.
///
/// On failure nothing new is started, what runs is cancelled and waited for, and finished results stay recorded.
///
/// # Errors
/// The first failure, or [`SolveError::Cancelled`].
pub async fn solve<W: Worker>(
    graph: Arc<Graph>,
    targets: &[VertexId],
    worker: Arc<W>,
    limits: Limits,
    cancel: Cancel,
    progress: &Progress,
) -> Result<Solved<W::Output>, SolveError<W::Error>> {
    let (answers, mut inbox) = mpsc::unbounded_channel();
    let remaining = remaining_paths(&graph);
    let mut machine = Machine::new(&graph);
    let stop = Cancel::new();
    let lookups = Mutex::new(Lookups { waiting: VecDeque::new(), threads: 0 });
    let bench = Bench { graph: graph.clone(), worker, cancel: stop.clone(), answers, lookups };
    let mut driver = Driver {
        graph: graph.clone(),
        bench: Arc::new(bench),
        open: 0,
        execs: 0,
        waiting: BinaryHeap::new(),
        remaining,
        limits,
    };
    for &target in targets {
        let effects = machine.handle(Event::Want(target));
        driver.start_all(effects, &machine, progress);
    }
    let mut failure = None;
    while driver.open > 0 {
        let (vertex, answer) = tokio::select! {
            // Both arms are cancel-safe: `recv` loses nothing, `wait` holds nothing.
            answer = inbox.recv() => match answer { Some(answer) => answer, None => break },
            () = cancel.wait(), if !stop.is_set() => {
                driver.stop();
                failure.get_or_insert(SolveError::Cancelled);
                continue;
            }
        };
        driver.open -= 1;
        match answer {
            Ok(event) => {
                if let Event::Ran(id, _) = &event {
                    driver.ran(*id);
                    progress(*id, Status::Finished);
                } else if let Event::Found(id, Some(_)) = &event {
                    progress(*id, Status::Cached);
                }
                let effects = machine.handle(event);
                if failure.is_none() {
                    driver.start_all(effects, &machine, progress);
                }
            }
            Err(error) => {
                driver.ran(vertex);
                progress(vertex, if failure.is_some() { Status::Cancelled } else { Status::Failed });
                failure.get_or_insert(match error {
                    Some(error) => SolveError::Failed { vertex, error },
                    None => SolveError::Internal(format!("the work of `{}` died", graph[vertex].meta.name)),
                });
                driver.stop();
            }
        }
        driver.start_waiting(&machine, progress);
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    let outputs: Option<Vec<_>> = targets.iter().map(|&t| machine.output(t).cloned()).collect();
    let outputs = outputs.ok_or_else(|| SolveError::Internal("a worker thread ended without an answer".into()))?;
    let (keys, results) = machine.into_known();
    Ok(Solved { outputs, keys, results })
}

impl<W: Worker> Driver<W> {
    fn start_all(&mut self, effects: Vec<Effect>, machine: &Machine<'_, W::Output>, progress: &Progress) {
        for effect in effects {
            match effect {
                Effect::Cached(id) => progress(id, Status::Cached),
                // Asks the network, perhaps.
                Effect::SourceKey(id) => self.spawn(id, move |w, g, _| Ok(Event::SourceKey(id, w.source_key(g, id)?))),
                Effect::LocalDigests(id) => {
                    self.look_up(id, move |w, g, _| Ok(Event::LocalDigests(id, w.local_digests(g, id)?)));
                }
                Effect::Find(id, key) => self.look_up(id, move |w, g, _| Ok(Event::Found(id, w.find(g, id, key)?))),
                Effect::FindByInputs(id, key) => {
                    let inputs = machine.inputs(id);
                    self.look_up(id, move |w, g, _| Ok(Event::Found(id, w.find_by_inputs(g, id, key, &inputs)?)));
                }
                Effect::Run { vertex, key, reuse } => {
                    let earlier = std::cmp::Reverse(vertex.index());
                    let remaining = self.remaining[vertex.index()];
                    self.waiting.push(Waiting { remaining, earlier, vertex, key, reuse });
                }
            }
        }
        self.start_waiting(machine, progress);
    }

    /// Starts runs while there is room. Only execs are limited here; sources and file ops have pools of their own.
    fn start_waiting(&mut self, machine: &Machine<'_, W::Output>, progress: &Progress) {
        let mut held = Vec::new();
        while let Some(next) = self.waiting.pop() {
            let exec = matches!(self.graph[next.vertex].op, Op::Exec(_));
            if exec && self.execs >= self.limits.execs {
                held.push(next);
                continue;
            }
            self.execs += usize::from(exec);
            progress(next.vertex, Status::Started);
            let inputs = machine.inputs(next.vertex);
            let Waiting { vertex, key, reuse, .. } = next;
            self.spawn(vertex, move |worker, graph, cancel| {
                let task = Task { graph, vertex, key, inputs: &inputs, reuse, cancel };
                Ok(Event::Ran(vertex, worker.run(task)?))
            });
        }
        self.waiting.extend(held);
    }

    fn ran(&mut self, vertex: VertexId) {
        if matches!(self.graph[vertex].op, Op::Exec(_)) {
            self.execs = self.execs.saturating_sub(1);
        }
    }

    /// Starts nothing any more; what runs is told to end.
    fn stop(&mut self) {
        self.bench.cancel.cancel();
        self.waiting.clear();
        self.open -= std::mem::take(&mut self.bench.lookups().waiting).len();
    }

    /// Does `work` on a thread of its own.
    fn spawn(
        &mut self,
        vertex: VertexId,
        work: impl FnOnce(&W, &Graph, &Cancel) -> Result<Event<W::Output>, W::Error> + Send + 'static,
    ) {
        self.open += 1;
        let bench = self.bench.clone();
        tokio::task::spawn_blocking(move || bench.answer(vertex, work));
    }

    /// Does `work` in its turn on one of a few threads.
    fn look_up(
        &mut self,
        vertex: VertexId,
        work: impl FnOnce(&W, &Graph, &Cancel) -> Result<Event<W::Output>, W::Error> + Send + 'static,
    ) {
        self.open += 1;
        let mut lookups = self.bench.lookups();
        lookups.waiting.push_back((vertex, Box::new(work)));
        if lookups.threads < self.limits.lookups {
            lookups.threads += 1;
            let bench = self.bench.clone();
            tokio::task::spawn_blocking(move || bench.answer_lookups());
        }
    }
}

impl<W: Worker> Bench<W> {
    fn lookups(&self) -> MutexGuard<'_, Lookups<W>> {
        self.lookups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer_lookups(&self) {
        loop {
            let mut lookups = self.lookups();
            let Some((vertex, work)) = lookups.waiting.pop_front() else {
                lookups.threads -= 1;
                return;
            };
            drop(lookups);
            self.answer(vertex, work);
        }
    }

    fn answer(&self, vertex: VertexId, work: impl FnOnce(&W, &Graph, &Cancel) -> Result<Event<W::Output>, W::Error>) {
        let attempt = std::panic::AssertUnwindSafe(|| work(&self.worker, &self.graph, &self.cancel));
        let answer = std::panic::catch_unwind(attempt).map_or(Err(None), |answer| answer.map_err(Some));
        // The answer is ignored only when the solve itself is gone.
        let _ = self.answers.send((vertex, answer));
    }
}

/// For each vertex the number of vertices on the longest way up from it.
fn remaining_paths(graph: &Graph) -> Vec<u32> {
    let mut remaining = vec![0; graph.bound()];
    for id in graph.in_order().into_iter().rev() {
        remaining[id.index()] = graph.users(id).map(|user| remaining[user.index()] + 1).max().unwrap_or(0);
    }
    remaining
}
