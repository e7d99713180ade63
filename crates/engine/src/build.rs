//! The walk of one build.

use crate::cache_io::{Imports, Saver};
use crate::context::{self, Contexts, LocalContext, Named};
use crate::event::{EventKind, Events, Sink};
use crate::export::{self, Built, Exported, Exporter};
use crate::git::redacted;
use crate::image::Images;
use crate::net::Net;
use crate::request::{NoCache, Request};
use crate::resolver::BuildResolver;
use crate::snapshot::{Snapshots, Snapshotter};
use crate::solve::Solve;
use crate::worker::Output;
use crate::{EngineError, provenance, push};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use xbuild_cache::{Store, TreeId};
use xbuild_frontend::{self as frontend, Diagnostic, Entitlement, Parsed, Plan, SourceFile};
use xbuild_graph::{LocalSource, Platform, VertexId};
use xbuild_oci::Digest;
use xbuild_registry::{Certificates, Credentials};
use xbuild_runner::Launcher;
use xbuild_solver::Cancel;

/// Name of the main context in graphs.
const MAIN: &str = "context";

/// Where a machine has certificates of registries, besides `certs.d` in docker's directory of settings.
const CERTIFICATES: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// Builds on one store. What a build does not need (network client, sandbox helper) is not set up.
pub struct Engine {
    store: Arc<Store>,
    runtime: OnceLock<tokio::runtime::Runtime>,
    launcher: OnceLock<Arc<Launcher>>,
    net: Arc<Net>,
    pub(crate) snapshots: Arc<Snapshots>,
    clock: fn() -> (i64, u32),
    /// Why no process can be run in a sandbox, if so.
    no_sandbox: Option<String>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("store", &self.store).finish_non_exhaustive()
    }
}

/// What a build gave.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// Digest of the configuration, or of the index for several platforms.
    pub image_id: Option<Digest>,
    /// For `--metadata-file`.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// Findings of the build checks, rendered.
    pub warnings: Vec<String>,
}

/// A Dockerfile with its text and tree.
pub(crate) struct Loaded {
    pub(crate) source: SourceFile,
    pub(crate) parsed: Parsed,
    pub(crate) context: LocalContext,
}

impl Engine {
    /// Opens the store at `root`. `clock` gives seconds and nanoseconds since 1970.
    pub fn open(root: &Path, docker_config: Option<&Path>, clock: fn() -> (i64, u32)) -> Result<Self, EngineError> {
        let store = Arc::new(Store::open(root)?);
        let credentials = match docker_config {
            Some(directory) => Credentials::load(directory)
                .map_err(xbuild_registry::RegistryError::from)?
                .with_programs(xbuild_runner::rootless::command),
            None => Credentials::default(),
        };
        let own = docker_config.map(|directory| directory.join("certs.d"));
        let certificates = Certificates::of(own.into_iter().chain(CERTIFICATES.map(PathBuf::from)).collect());
        let (runtime, launcher) = (OnceLock::new(), OnceLock::new());
        let net = Arc::new(Net::new(credentials, certificates));
        Ok(Self { store, runtime, launcher, net, snapshots: Arc::default(), clock, no_sandbox: None })
    }

    /// Makes root file systems in another way than with overlayfs if that works.
    #[must_use]
    pub fn with_snapshotter(mut self, snapshotter: Snapshotter) -> Self {
        self.snapshots = Arc::new(Snapshots::new(snapshotter));
        self
    }

    /// Refuses to run processes, and says why.
    #[must_use]
    pub fn without_sandbox(mut self, why: Option<String>) -> Self {
        self.no_sandbox = why;
        self
    }

    /// An error where processes cannot be run.
    pub(crate) fn check_sandbox(&self, what: &str) -> Result<(), EngineError> {
        match &self.no_sandbox {
            Some(why) => Err(EngineError::Source(format!("{what} needs a user namespace: {why}"))),
            None => Ok(()),
        }
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(crate) fn net(&self) -> &Arc<Net> {
        &self.net
    }

    /// The threads that wait for many things at once; they start with the first.
    pub(crate) fn runtime(&self) -> Result<&tokio::runtime::Handle, EngineError> {
        if let Some(runtime) = self.runtime.get() {
            return Ok(runtime.handle());
        }
        let made = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .thread_name("xbuild")
            .build()
            .map_err(|e| EngineError::Internal(format!("no threads: {e}")))?;
        Ok(self.runtime.get_or_init(|| made).handle())
    }

    pub(crate) fn images<'a>(&'a self, cancel: &'a Cancel) -> Result<Images<'a>, EngineError> {
        Ok(Images { store: &self.store, net: &self.net, runtime: self.runtime()?, cancel })
    }

    /// The sandbox launcher; its helper starts with the first process.
    pub(crate) fn launcher(&self) -> Result<Arc<Launcher>, EngineError> {
        if let Some(launcher) = self.launcher.get() {
            return Ok(launcher.clone());
        }
        let launcher = Arc::new(Launcher::new()?);
        Ok(self.launcher.get_or_init(|| launcher).clone())
    }

    pub(crate) fn now(&self) -> String {
        let (seconds, nanos) = (self.clock)();
        crate::time::rfc3339(seconds, nanos)
    }

    /// Reads and parses the Dockerfile of a request.
    pub(crate) fn load(&self, request: &Request, events: &Events) -> Result<Loaded, EngineError> {
        let main = events.step("[internal] load build definition from Dockerfile", |_| {
            context::load(request, &self.store, self.runtime()?, &self.net)
        })?;
        let source = SourceFile::new(&main.dockerfile.name, main.dockerfile.bytes);
        let parsed = frontend::parse(&source);
        Ok(Loaded { source, parsed, context: main.context })
    }

    /// Answers the frontend's questions; named contexts that the Dockerfile uses are added to `contexts`.
    pub(crate) fn resolver<'a>(
        &'a self,
        request: &Request,
        loaded: &Loaded,
        contexts: &'a Mutex<Contexts>,
        events: &'a Events,
        cancel: &'a Cancel,
    ) -> Result<BuildResolver<'a>, EngineError> {
        let named = request.named_contexts.iter().map(|(name, value)| Ok((name.clone(), Named::parse(value)?)));
        Ok(BuildResolver {
            images: self.images(cancel)?,
            events,
            named: named.collect::<Result<_, EngineError>>()?,
            contexts,
            main: LocalSource { name: MAIN.into(), excludes: loaded.context.excludes.clone() },
            fresh: request.pull,
        })
    }

    /// Builds, and writes the outputs.
    pub fn build(&self, request: &Request, sink: Arc<Sink>, cancel: &Cancel) -> Result<Response, EngineError> {
        let started = self.now();
        let (seconds, nanos) = (self.clock)();
        let id = format!("{seconds}-{nanos:09}-{}", std::process::id());
        let events = Events::new(crate::log::keep(self.store.root(), &id, sink));
        let loaded = self.load(request, &events)?;
        let contexts = Mutex::new(Contexts::default());
        let lowered = {
            let resolver = self.resolver(request, &loaded, &contexts, &events, cancel)?;
            frontend::lower(&loaded.parsed, &options(request), &resolver)
        };
        let plan = lowered.map_err(|d| rendered(&d, &loaded.source))?;
        let mut contexts = contexts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Loaded { source, context, .. } = loaded;
        contexts.0.insert(MAIN.into(), context);
        let warnings = self.warn(&plan, &source, &events);
        let graph = Arc::new(plan.graph);
        let targets: Vec<VertexId> = plan.images.iter().filter_map(|i| i.result.map(|e| e.vertex)).collect();
        let solve = Solve {
            engine: self,
            request,
            graph: graph.clone(),
            contexts: Arc::new(contexts),
            source: &source,
            imports: Arc::new(Imports::load(&request.cache_from, &events)?),
            events: &events,
            cancel,
        };
        let solved = match solve.run(&targets) {
            // What was done is kept; what nobody uses makes room for the rest.
            Err(error) if error.is_out_of_space() && self.store.make_room().unwrap_or(false) => solve.run(&targets),
            solved => solved,
        }?;
        let mut outputs = solved.outputs.iter().cloned();
        let statement = export::wants_provenance(request)
            .then(|| provenance::predicate(request, &graph, source.name(), &started, &self.now()));
        let mut built = Vec::new();
        for image in plan.images {
            let tree = match image.result.and_then(|_| outputs.next()) {
                Some(Output::Tree(tree)) => tree,
                Some(Output::Local(_)) => {
                    return Err(EngineError::Internal("a result is a client's directory".into()));
                }
                None => TreeId::EMPTY,
            };
            let mut config = image.config;
            // Passwords of addresses are for the download alone.
            config.history.iter_mut().for_each(|h| h.created_by = redacted(&h.created_by));
            self.stamp(&mut config, tree, request)?;
            built.push(Built { platform: image.platform, tree, config, provenance: statement.clone() });
        }
        let mut response = self.export(request, &built, &events)?;
        let saver =
            Saver { store: &self.store, graph: &graph, solved: &solved, imports: &solve.imports, events: &events };
        request.cache_to.iter().try_for_each(|cache| saver.save(cache))?;
        response.warnings = warnings;
        Ok(response)
    }

    fn warn(&self, plan: &Plan, source: &SourceFile, events: &Events) -> Vec<String> {
        plan.warnings
            .iter()
            .map(|w| frontend::render_plain(w, source))
            .inspect(|text| {
                let step = events.name("[internal] check build definition");
                let short = text.lines().next().unwrap_or_default().to_owned();
                events.send(step, EventKind::Warning { text: text.clone(), short });
            })
            .collect()
    }

    /// Creation times: SOURCE_DATE_EPOCH, or those of the layers, so that a cached build gives the same image again.
    fn stamp(&self, config: &mut xbuild_oci::ImageConfig, tree: TreeId, request: &Request) -> Result<(), EngineError> {
        if let Some(epoch) = request.source_date_epoch {
            let epoch = crate::time::rfc3339(epoch, 0);
            let ours = config.history.iter_mut().filter(|h| h.created.is_none() && h.comment.starts_with("buildkit."));
            ours.for_each(|h| h.created = Some(epoch.clone()));
            config.created = Some(epoch);
            return Ok(());
        }
        let layers = self.store.layers(tree)?;
        let mut layers = layers.iter();
        let mut last = config.created.take();
        for step in &mut config.history {
            let made = if step.empty_layer { None } else { layers.next() };
            if step.created.is_none() && step.comment.starts_with("buildkit.") {
                let made = made.map(|l| {
                    crate::time::rfc3339(l.created.div_euclid(1000), l.created.rem_euclid(1000) as u32 * 1_000_000)
                });
                step.created = made.or_else(|| last.clone());
            }
            last = step.created.clone().or(last);
        }
        config.created = Some(last.unwrap_or_else(|| self.now()));
        Ok(())
    }

    fn export(&self, request: &Request, built: &[Built], events: &Events) -> Result<Response, EngineError> {
        let pusher = push::Pusher { net: self.net(), runtime: self.runtime()?, store: &self.store, events };
        let exporter = Exporter { store: &self.store, request, built, events, pusher };
        let mut response = Response::default();
        for output in &request.outputs {
            let exported = exporter.write(output)?;
            if exported.digest.is_some() {
                describe(&mut response, &exported)?;
            }
        }
        Ok(response)
    }
}

/// Fills in what `--metadata-file` and `--iidfile` hold.
fn describe(response: &mut Response, exported: &Exported) -> Result<(), EngineError> {
    let Some(root) = &exported.digest else {
        return Ok(());
    };
    response.image_id = Some(exported.config.unwrap_or(root.digest()));
    let metadata = &mut response.metadata;
    if let Some(config) = exported.config {
        metadata.insert("containerimage.config.digest".into(), json!(config));
    }
    metadata.insert("containerimage.descriptor".into(), json!(root.descriptor));
    metadata.insert("containerimage.digest".into(), json!(root.digest()));
    if !exported.names.is_empty() {
        metadata.insert("image.name".into(), json!(exported.names.join(",")));
    }
    Ok(())
}

/// The request in the frontend's words.
pub(crate) fn options(request: &Request) -> frontend::Options {
    let platforms = if request.platforms.is_empty() { vec![Platform::host()] } else { request.platforms.clone() };
    frontend::Options {
        target: request.target.clone(),
        build_args: request.build_args.clone(),
        labels: request.labels.clone(),
        platforms,
        build_platform: Platform::host(),
        no_cache: match &request.no_cache {
            NoCache::None => frontend::NoCache::None,
            NoCache::All => frontend::NoCache::All,
            NoCache::Stages(stages) => frontend::NoCache::Stages(stages.clone()),
        },
        network: request.network,
        allow: request.allow.iter().filter_map(|a| entitlement(a)).collect(),
        extra_hosts: request.extra_hosts.clone(),
        shm_size: request.shm_size,
        ulimits: request.ulimits.clone(),
        cgroup_parent: request.cgroup_parent.clone(),
        ..frontend::Options::new(Platform::host())
    }
}

fn entitlement(name: &str) -> Option<Entitlement> {
    match name {
        "network.host" => Some(Entitlement::NetworkHost),
        "security.insecure" => Some(Entitlement::SecurityInsecure),
        _ => None,
    }
}

pub(crate) fn rendered(diagnostics: &[Diagnostic], source: &SourceFile) -> EngineError {
    EngineError::Dockerfile(diagnostics.iter().map(|d| frontend::render_plain(d, source)).collect())
}
