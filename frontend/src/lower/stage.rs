//! Lowering of the stages of one layout, each after those it needs.

use super::arguments::proxies;
use super::dispatch::Work;
use super::layout::{Base, Layout};
use super::{NoCache, Options, Purpose};
use crate::budget::Budget;
use crate::ignore::Matcher;
use crate::shell::Environment;
use crate::{Diagnostic, MainContext, NamedContext, Parsed, ResolvedImage, Resolver};
use std::collections::BTreeMap;
use std::sync::Arc;
use xbuild_graph::{CopyAction, CopySource, Edge, FileAction, FileOp, Graph, Meta, Op, Platform, SourceOp, Span};
use xbuild_oci::ImageConfig;

/// PATH where an image has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A stage after some of its instructions.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// The files; none for nothing.
    pub(super) files: Option<Edge>,
    /// Copies from here keep owners.
    pub(super) keep_owner: bool,
    pub(super) config: ImageConfig,
    /// ENV and ARG.
    pub(super) env: Environment,
    /// ENV alone; takes the place of the configuration's in the end.
    pub(super) image_env: Environment,
    /// ARGs in order, with values.
    pub(super) arguments: Vec<(String, Option<String>)>,
    pub(super) platform: Platform,
    pub(super) base: Option<Arc<ResolvedImage>>,
    pub(super) workdir_set: bool,
    /// Name of the step behind each layer.
    pub(super) layers: Vec<String>,
    /// Bytes of the configuration's labels.
    label_bytes: usize,
}

impl State {
    /// Nothing, for a platform.
    pub(super) fn empty(platform: &Platform) -> Self {
        let mut config = ImageConfig {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            variant: platform.variant.clone(),
            ..ImageConfig::default()
        };
        config.config.env = vec![format!("PATH={DEFAULT_PATH}")];
        config.config.working_dir = "/".to_owned();
        Self::with_config(config, platform.clone())
    }

    /// A configuration without files. It gets a PATH if it has none.
    pub(super) fn with_config(config: ImageConfig, platform: Platform) -> Self {
        let mut env = Environment::default();
        for pair in &config.config.env {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            env.set(name, value);
        }
        if env.get("PATH").is_none() {
            env.set("PATH", DEFAULT_PATH);
        }
        let label_bytes = config.config.labels.iter().map(|(n, v)| n.len() + v.len()).sum();
        Self {
            files: None,
            keep_owner: true,
            label_bytes,
            config,
            image_env: env.clone(),
            env,
            arguments: Vec::new(),
            platform,
            base: None,
            workdir_set: false,
            layers: Vec::new(),
        }
    }

    /// Sets a variable of the image.
    ///
    /// # Errors
    /// More environment and labels than an image can have.
    pub(super) fn set_env(&mut self, name: &str, value: &str) -> Result<(), String> {
        self.env.set(name, value);
        self.image_env.set(name, value);
        self.check_size()
    }

    /// Sets a label of the image.
    ///
    /// # Errors
    /// More environment and labels than an image can have.
    pub(super) fn set_label(&mut self, name: String, value: String) -> Result<(), String> {
        let length = name.len();
        self.label_bytes += length + value.len();
        if let Some(before) = self.config.config.labels.insert(name, value) {
            self.label_bytes -= length + before.len();
        }
        self.check_size()
    }

    /// Refuses early what would give a configuration that nobody reads.
    fn check_size(&self) -> Result<(), String> {
        const MOST: usize = 8 << 20;
        match self.image_env.bytes() + self.label_bytes <= MOST {
            true => Ok(()),
            false => Err("the environment and the labels of the stage have more than 8 MiB".to_owned()),
        }
    }

    /// What a copy of the state takes, about.
    pub(super) fn bytes(&self) -> usize {
        const ENTRY: usize = 64;
        let config = &self.config.config;
        let keys = config.exposed_ports.keys().chain(config.volumes.keys()).chain(&self.layers).chain(&config.env);
        let arguments = self.arguments.iter().map(|(n, v)| n.len() + v.as_ref().map_or(0, String::len) + ENTRY);
        let history = self.config.history.iter().map(|h| h.created_by.len() + h.comment.len() + 2 * ENTRY);
        let variables = [&self.env, &self.image_env].map(|env| 2 * env.bytes() + 2 * ENTRY * env.len());
        let lists = keys.map(|k| k.len() + ENTRY).chain(arguments).chain(history).chain(variables);
        self.label_bytes + ENTRY * config.labels.len() + lists.sum::<usize>()
    }

    /// Directory that processes and relative paths start in.
    pub(super) fn cwd(&self) -> &str {
        match self.config.config.working_dir.as_str() {
            "" => "/",
            dir => dir,
        }
    }
}

/// A fact about a target for `--call=outline`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) kind: NoteKind,
    pub(crate) span: Span,
}

/// What a note says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoteKind {
    /// A stage's own ARG.
    Argument { name: String, value: Option<String>, description: Option<String> },
    /// A global ARG is used.
    Global { name: String, value: Option<String> },
    /// A secret is mounted.
    Secret { id: String, required: bool },
    /// An agent is mounted.
    Ssh { id: String, required: bool },
}

/// Lowers layouts into one graph.
pub(super) struct Lowering<'a> {
    pub(super) parsed: &'a Parsed,
    pub(super) options: &'a Options,
    pub(super) purpose: Purpose,
    pub(super) graph: Graph,
    pub(super) warnings: Vec<Diagnostic>,
    pub(super) proxies: BTreeMap<String, String>,
    resolver: &'a dyn Resolver,
    context: Option<(Edge, Option<Matcher>)>,
    pub(super) budget: Budget,
}

impl<'a> Lowering<'a> {
    pub(super) fn new(
        parsed: &'a Parsed,
        options: &'a Options,
        resolver: &'a dyn Resolver,
        purpose: Purpose,
        budget: Budget,
    ) -> Self {
        Self {
            parsed,
            options,
            purpose,
            graph: Graph::new(),
            warnings: Vec::new(),
            proxies: proxies(&options.build_args),
            resolver,
            context: None,
            budget,
        }
    }

    /// Lowers what the layout's target needs; returns the target's end state and the notes of all stages.
    pub(super) fn layout(&mut self, layout: &Layout<'_>) -> Result<(State, Vec<Note>), Vec<Diagnostic>> {
        let order = order(layout).map_err(|e| vec![e])?;
        let mut states: Vec<Option<State>> = Vec::new();
        states.resize_with(layout.nodes.len(), || None);
        let mut users = vec![0usize; layout.nodes.len()];
        order.iter().flat_map(|&at| layout.nodes[at].dependencies()).for_each(|d| users[d] += 1);
        users[layout.target] += 1;
        let mut notes = Vec::new();
        let mut errors = Vec::new();
        for at in order {
            let ready = layout.nodes[at].dependencies().all(|d| states[d].is_some());
            if !ready {
                continue;
            }
            let lowered = self.base(layout, at, &users, &mut states).and_then(|b| self.node(layout, at, b, &states));
            match lowered {
                Ok((state, found)) => {
                    states[at] = Some(state);
                    notes.extend(found);
                }
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        match states[layout.target].take() {
            Some(state) => Ok((state, notes)),
            None => Err(vec![Diagnostic::error("the target could not be lowered", None)]),
        }
    }

    /// The state of the stage that a node stands on: a copy, or the state itself if nobody else needs it.
    fn base(
        &mut self,
        layout: &Layout<'_>,
        at: usize,
        users: &[usize],
        states: &mut [Option<State>],
    ) -> Result<Option<State>, Diagnostic> {
        let Base::Node(base) = layout.nodes[at].base else {
            return Ok(None);
        };
        if users[base] == 1 {
            return Ok(states[base].take());
        }
        let bytes = states[base].as_ref().map_or(0, State::bytes);
        self.charge(bytes, layout.nodes[at].span)?;
        Ok(states[base].clone())
    }

    fn node(
        &mut self,
        layout: &Layout<'_>,
        at: usize,
        base: Option<State>,
        states: &[Option<State>],
    ) -> Result<(State, Vec<Note>), Diagnostic> {
        let mut work = Work::new(self, layout, at, states);
        work.begin(base)?;
        work.instructions()?;
        Ok(work.finish())
    }

    /// Counts what instructions copy (variables × RUN, ports × EXPOSE), so that a small file cannot fill the memory.
    ///
    /// # Errors
    /// More than the whole Dockerfile may have.
    pub(super) fn charge(&mut self, bytes: usize, span: Span) -> Result<(), Diagnostic> {
        self.budget.copies(bytes).map_err(|why| Diagnostic::error(why, span))
    }

    /// Whether the caller wants the steps of a stage run again.
    pub(super) fn ignores_cache(&self, names: &[&str]) -> bool {
        match &self.options.no_cache {
            NoCache::None => false,
            NoCache::All => true,
            NoCache::Stages(list) => list.iter().any(|l| names.iter().any(|n| n.eq_ignore_ascii_case(l))),
        }
    }

    /// The main context, made when it is first used.
    pub(super) fn context(&mut self) -> Result<Edge, String> {
        if let Some((edge, _)) = &self.context {
            return Ok(*edge);
        }
        let (op, excludes) = match self.resolver.main_context() {
            MainContext::Local(local) => (SourceOp::Local(local.clone()), local.excludes),
            MainContext::Git(git) => (SourceOp::Git(git), Vec::new()),
        };
        let matcher = match excludes.is_empty() {
            true => None,
            false => Some(Matcher::new(&excludes).map_err(|e| e.to_string())?),
        };
        let edge = self.source(op, "[internal] load build context", None);
        self.context = Some((edge, matcher));
        Ok(edge)
    }

    /// Whether `.dockerignore` leaves a path of the main context out.
    pub(super) fn ignored(&mut self, path: &str) -> Result<bool, String> {
        self.context()?;
        let matcher = self.context.as_ref().and_then(|(_, m)| m.as_ref());
        Ok(matcher.is_some_and(|m| !path.is_empty() && m.excluded(path)))
    }

    /// Adds a source vertex.
    pub(super) fn source(&mut self, op: SourceOp, name: &str, span: Option<Span>) -> Edge {
        let meta = Meta { name: name.to_owned(), span, ignore_cache: false };
        self.vertex(Op::Source(op), Vec::new(), meta)
    }

    /// Adds a vertex and names its first output.
    pub(super) fn vertex(&mut self, op: Op, inputs: Vec<Edge>, meta: Meta) -> Edge {
        Edge { vertex: self.graph.add(op, inputs, meta), output: 0 }
    }

    /// A tree with nothing in it, for copies from scratch.
    pub(super) fn nothing(&mut self) -> Edge {
        let op = FileOp { base: None, actions: Vec::new() };
        let meta = Meta { name: "[internal] nothing".to_owned(), ..Meta::default() };
        self.vertex(Op::File(op), Vec::new(), meta)
    }

    /// The tree of a named context that is no image, and whether it is a stage's base.
    pub(super) fn named(&mut self, name: &str, context: &NamedContext, as_base: bool) -> Option<Edge> {
        let title = format!("[context {name}] load from client");
        let (op, unpack) = match context {
            NamedContext::Local(local) => (SourceOp::Local(local.clone()), false),
            NamedContext::Git(git) => (SourceOp::Git(git.clone()), false),
            NamedContext::Http(http) => (SourceOp::Http(http.clone()), true),
            NamedContext::Image(_) | NamedContext::Stage(_) => return None,
        };
        let source = self.source(op, &title, None);
        if !as_base && !unpack {
            return Some(source);
        }
        let copied = match unpack {
            true => CopySource::Input { input: 0, directory: false },
            false => CopySource::Path { path: "/".to_owned(), wildcard: false, required: true },
        };
        let action = CopyAction {
            input: 0,
            sources: vec![copied],
            destination: "/".to_owned(),
            owner: None,
            keep_owner: false,
            mode: None,
            unpack,
            parents: false,
            excludes: Vec::new(),
            link: false,
            mtime: None,
        };
        let op = Op::File(FileOp { base: None, actions: vec![FileAction::Copy(Box::new(action))] });
        let meta = Meta { name: title, ..Meta::default() };
        Some(self.vertex(op, vec![source], meta))
    }
}

/// The needed nodes, each after those it needs.
fn order(layout: &Layout<'_>) -> Result<Vec<usize>, Diagnostic> {
    let count = layout.nodes.len();
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); count];
    let mut missing = vec![0usize; count];
    let needed: Vec<usize> = (0..count).filter(|&n| layout.nodes[n].needed).collect();
    for &at in &needed {
        for dependency in layout.nodes[at].dependencies() {
            users[dependency].push(at);
            missing[at] += 1;
        }
    }
    let mut ready: std::collections::BTreeSet<usize> = needed.iter().copied().filter(|&n| missing[n] == 0).collect();
    let mut order = Vec::with_capacity(needed.len());
    while let Some(at) = ready.pop_first() {
        order.push(at);
        for &user in &users[at] {
            missing[user] -= 1;
            if missing[user] == 0 {
                ready.insert(user);
            }
        }
    }
    match needed.iter().find(|&&n| missing[n] > 0) {
        None => Ok(order),
        Some(&at) => Err(circle(layout, at, &missing)),
    }
}

/// The error for a node that needs itself.
fn circle(layout: &Layout<'_>, start: usize, missing: &[usize]) -> Diagnostic {
    // Every node left needs one that is left, so walking on ends in the circle.
    let next = |at: usize| layout.nodes[at].dependencies().find(|&d| missing[d] > 0);
    let mut at = start;
    for _ in 0..layout.nodes.len() {
        at = next(at).unwrap_or(at);
    }
    let node = &layout.nodes[at];
    let blamed = node.sources.iter().find(|(_, source)| missing[**source] > 0);
    let span = blamed.and_then(|(place, _)| match place.trigger {
        true => node.triggers.get(place.instruction),
        false => node.stage.and_then(|s| s.instructions.get(place.instruction)),
    });
    let name = node.stage.and_then(|s| s.from.name.as_deref()).unwrap_or(&node.image);
    let message = format!("circular dependency detected on stage: {name}");
    let base_only = matches!(node.base, Base::Node(_)).then_some(node.span);
    Diagnostic::error(message, span.map(|i| i.span).or(base_only).unwrap_or(node.span))
}
