//! One solve of a build's graph: the worker that is set up for it, and what is told of its steps.

use crate::cache_io::Imports;
use crate::context::Contexts;
use crate::event::{EventKind, Events, StepId};
use crate::git::redacted;
use crate::network::Networks;
use crate::request::Request;
use crate::worker::{BuildWorker, Output};
use crate::{Engine, EngineError, StepError};
use std::sync::{Arc, Mutex, PoisonError};
use xbuild_frontend::{self as frontend, SourceFile};
use xbuild_graph::{Graph, NetworkMode, Op, SourceOp, VertexId};
use xbuild_solver::{Cancel, Limits, SolveError, Solved, Status};

/// What a solve needs beside its targets.
pub(crate) struct Solve<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) request: &'a Request,
    pub(crate) graph: Arc<Graph>,
    pub(crate) contexts: Arc<Contexts>,
    /// The Dockerfile, for the excerpt in an error.
    pub(crate) source: &'a SourceFile,
    pub(crate) imports: Arc<Imports>,
    pub(crate) events: &'a Events,
    pub(crate) cancel: &'a Cancel,
}

impl Solve<'_> {
    /// Results of `targets`, in their order.
    pub(crate) fn run(&self, targets: &[VertexId]) -> Result<Solved<Output>, EngineError> {
        let Solve { engine, request, graph, .. } = self;
        let events = self.events;
        if targets.is_empty() {
            return Ok(Solved { outputs: Vec::new(), keys: Vec::new(), results: Vec::new() });
        }
        let mut steps = vec![StepId(0); graph.bound()];
        for id in graph.in_order() {
            steps[id.index()] = events.name(&redacted(&graph[id].meta.name));
        }
        let own_networks = graph.in_order().into_iter().filter(|id| has_own_network(&graph[*id].op)).count();
        let worker = Arc::new(BuildWorker {
            store: engine.store().clone(),
            net: engine.net().clone(),
            runtime: engine.runtime()?.clone(),
            launcher: engine.launcher()?,
            no_sandbox: engine.check_sandbox("RUN").err().map(|error| error.to_string()),
            contexts: self.contexts.clone(),
            secrets: request.secrets.clone(),
            ssh: request.ssh.clone(),
            events: events.clone(),
            steps: steps.clone(),
            tails: Mutex::default(),
            locals: Mutex::default(),
            remotes: Mutex::default(),
            listings: Mutex::default(),
            staged: Mutex::default(),
            views: Mutex::default(),
            indexes: Mutex::default(),
            networks: Networks::of_host(own_networks),
            snapshots: engine.snapshots.clone(),
            cancel: self.cancel.clone(),
            resources: request.resources.clone(),
            groups: Default::default(),
            epoch: request.source_date_epoch,
            imports: self.imports.clone(),
        });
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let execs = if request.max_parallelism == 0 { (cores * 2).max(16) } else { request.max_parallelism };
        let report = {
            let (graph, events, steps) = (graph.clone(), events.clone(), steps);
            move |id: VertexId, status: Status| {
                let local = matches!(graph[id].op, Op::Source(SourceOp::Local(_)));
                let kind = match status {
                    Status::Started => EventKind::Started,
                    Status::Cached if local => return,
                    Status::Cached => EventKind::Cached,
                    Status::Finished => EventKind::Done,
                    Status::Failed => EventKind::Failed("failed".into()),
                    Status::Cancelled => EventKind::Cancelled,
                };
                events.send(steps[id.index()], kind);
            }
        };
        let solved = engine.runtime()?.block_on(xbuild_solver::solve(
            graph.clone(),
            targets,
            worker.clone(),
            Limits { execs, lookups: cores.max(4) },
            self.cancel.clone(),
            &report,
        ));
        worker.save_indexes();
        solved.map_err(|error| match error {
            SolveError::Cancelled => EngineError::Cancelled,
            SolveError::Internal(why) => EngineError::Internal(why),
            SolveError::Failed { vertex, error } => self.step_error(vertex, error, &worker),
        })
    }

    /// Adds step, place and the last output to what went wrong.
    fn step_error(&self, vertex: VertexId, error: EngineError, worker: &BuildWorker) -> EngineError {
        let meta = &self.graph[vertex].meta;
        let tails = worker.tails.lock().unwrap_or_else(PoisonError::into_inner);
        let tail = tails.get(&vertex.index()).map(|t| String::from_utf8_lossy(t).into_owned()).unwrap_or_default();
        let out_of_space = error.is_out_of_space();
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        EngineError::Step(Box::new(StepError {
            step: redacted(&meta.name),
            message,
            tail: tail.lines().map(str::to_owned).collect(),
            excerpt: meta.span.map(|span| redacted(&frontend::excerpt(span, self.source))).unwrap_or_default(),
            out_of_space,
        }))
    }
}

fn has_own_network(op: &Op) -> bool {
    matches!(op, Op::Exec(exec) if exec.network == NetworkMode::Default)
}
