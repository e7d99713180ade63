//! Syntax tree → checked stages → one graph and an image configuration per platform.
//!
//! Each target platform has its own [`layout::Layout`] of stages, because FROM may depend on the platform. The layouts say
//! which images and contexts are needed; these are asked for together; then the stages are lowered in dependency order into
//! one graph, where equal chains of different platforms become one.

mod arguments;
mod configuration;
mod copy;
mod dispatch;
mod git_reference;
mod layout;
mod mode;
mod names;
mod run;
mod stage;

pub(crate) use dispatch::description;
pub use git_reference::GitReference;
pub use layout::image_forms;
pub(crate) use stage::{Note, NoteKind};

use crate::budget::Budget;
use crate::{CheckOptions, Diagnostic, Parsed, Resolver, Severity};
use layout::{Layout, Layouts};
use stage::{Lowering, State};
use std::collections::{BTreeMap, BTreeSet};
use xbuild_graph::{Edge, Graph, ImageSource, NetworkMode, Platform, Ulimit};
use xbuild_oci::{History, ImageConfig};

/// What one build wants beyond the Dockerfile.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--target`; the last stage if none.
    pub target: Option<String>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--label`; they win over the Dockerfile's.
    pub labels: BTreeMap<String, String>,
    /// Target platforms; the build platform if empty.
    pub platforms: Vec<Platform>,
    /// Platform that the build runs on.
    pub build_platform: Platform,
    /// `--no-cache`, `--no-cache-filter`.
    pub no_cache: NoCache,
    /// Network of RUN where the instruction says nothing.
    pub network: NetworkMode,
    /// What RUN may ask for.
    pub allow: BTreeSet<Entitlement>,
    /// `--add-host`: (name, address).
    pub extra_hosts: Vec<(String, String)>,
    /// `--shm-size`, in bytes.
    pub shm_size: Option<u64>,
    /// `--ulimit`.
    pub ulimits: Vec<Ulimit>,
    /// `--cgroup-parent`.
    pub cgroup_parent: String,
    /// Host name of RUN; `BUILDKIT_SANDBOX_HOSTNAME` if empty.
    pub hostname: String,
    /// Put before the ids of cache mounts; `BUILDKIT_CACHE_MOUNT_NS` if empty.
    pub cache_mount_ns: String,
    /// Checks as asked for by the caller; they replace those of the Dockerfile.
    pub check: Option<CheckOptions>,
}

impl Options {
    /// A build of the last stage for one platform.
    pub fn new(build_platform: Platform) -> Self {
        Self {
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            platforms: vec![build_platform.clone()],
            build_platform,
            no_cache: NoCache::None,
            network: NetworkMode::Default,
            allow: BTreeSet::new(),
            extra_hosts: Vec::new(),
            shm_size: None,
            ulimits: Vec::new(),
            cgroup_parent: String::new(),
            hostname: String::new(),
            cache_mount_ns: String::new(),
            check: None,
        }
    }

    /// Which checks count, by the caller, `BUILDKIT_DOCKERFILE_CHECK` or the Dockerfile, in this order.
    pub(crate) fn checks(&self, parsed: &Parsed) -> Result<CheckOptions, Diagnostic> {
        if let Some(check) = &self.check {
            return Ok(check.clone());
        }
        match self.build_args.get("BUILDKIT_DOCKERFILE_CHECK") {
            None => Ok(parsed.directives.check.clone()),
            Some(text) => CheckOptions::parse(text)
                .map_err(|why| Diagnostic::error(format!("BUILDKIT_DOCKERFILE_CHECK: {why}"), None)),
        }
    }
}

/// Which steps run even if the cache has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NoCache {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// Those of these stages.
    Stages(Vec<String>),
}

/// What RUN needs permission for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entitlement {
    /// `network.host`.
    NetworkHost,
    /// `security.insecure`.
    SecurityInsecure,
}

/// A build, ready to be solved.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is to be done for all platforms.
    pub graph: Graph,
    /// The images, in the order of the platforms asked for.
    pub images: Vec<PlannedImage>,
    /// Findings of the checks.
    pub warnings: Vec<Diagnostic>,
}

/// One platform's image.
#[derive(Clone, Debug)]
pub struct PlannedImage {
    /// The platform that was asked for.
    pub requested: Platform,
    /// The image's own platform, which FROM may have decided.
    pub platform: Platform,
    /// The files; none for an image without any.
    pub result: Option<Edge>,
    /// Configuration with history; `diff_ids` are the base's and times are left to the engine. In the history, what the
    /// base did not bring has the comment `buildkit.dockerfile.v0` (or `buildkit.exporter.image.v0`) and no time.
    pub config: ImageConfig,
    /// The image at the bottom.
    pub base: Option<ImageSource>,
    /// Name of the stage; empty if it has none.
    pub stage: String,
}

/// Why stages are lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// For a build: only what the target needs.
    Build,
    /// For the checks: everything, images may be missing.
    Check,
    /// For a description of the target: what it needs, images may be missing.
    Describe,
}

/// Lowers a Dockerfile for a build.
///
/// # Errors
/// All errors of the file; or those of its stages, images and contexts; or findings where the file says `check=error=true`.
pub fn lower(parsed: &Parsed, options: &Options, resolver: &dyn Resolver) -> Result<Plan, Vec<Diagnostic>> {
    let is_error = |d: &&Diagnostic| d.severity == Severity::Error;
    let errors: Vec<_> = parsed.diagnostics.iter().filter(is_error).cloned().collect();
    if !errors.is_empty() {
        return Err(errors);
    }
    let checks = options.checks(parsed).map_err(|e| vec![e])?;
    let mut found = Vec::new();
    let lowered = walk(parsed, options, resolver, Purpose::Build, &mut found)?;
    let warnings = findings(parsed, &checks, found);
    if checks.error && !warnings.is_empty() {
        let mut errors = vec![lint_error(&warnings)];
        errors.extend(warnings);
        return Err(errors);
    }
    let mut graph = lowered.graph;
    let images: Vec<_> = lowered.targets.into_iter().map(|(layout, state)| planned(&layout, state, options)).collect();
    graph.retain_needed_by(images.iter().filter_map(|i| i.result).map(|e| e.vertex));
    Ok(Plan { graph, images, warnings })
}

/// Warnings of parser and stages that `checks` wants, in the order of the file.
pub(crate) fn findings(parsed: &Parsed, checks: &CheckOptions, found: Vec<Diagnostic>) -> Vec<Diagnostic> {
    let early = parsed.diagnostics.iter().filter(|d| d.severity == Severity::Warning);
    let mut all: Vec<Diagnostic> = Vec::new();
    let mut seen = BTreeSet::new();
    for warning in early.cloned().chain(found) {
        let wanted = warning.rule.is_none_or(|rule| checks.wants(rule));
        let place = warning.at.map(|at| (at.start, at.end));
        let name = warning.rule.map(|rule| rule.name);
        if wanted && seen.insert((place, name, warning.message.clone())) {
            all.push(warning);
        }
    }
    all.sort_by_key(|w| w.at.map_or(0, |at| at.start));
    all
}

/// The error that findings become under `check=error=true`.
pub(crate) fn lint_error(warnings: &[Diagnostic]) -> Diagnostic {
    let rules: BTreeSet<&str> = warnings.iter().filter_map(|w| w.rule).map(|r| r.name).collect();
    let names: Vec<&str> = rules.into_iter().collect();
    let message = format!("lint violation found for rules: {}", names.join(", "));
    Diagnostic::error(message, None)
}

/// What a walk over the stages gave.
pub(crate) struct Lowered {
    pub(crate) graph: Graph,
    /// The target's end state in each layout.
    pub(crate) targets: Vec<(Target, State)>,
}

/// A target's facts.
pub(crate) struct Target {
    pub(crate) platform: Platform,
    pub(crate) name: Option<String>,
    /// Facts about arguments and mounts of all stages that the target needs.
    pub(crate) notes: Vec<Note>,
}

/// Plans all platforms, resolves what they need at once, and lowers their stages. Findings are kept even if that fails.
pub(crate) fn walk(
    parsed: &Parsed,
    options: &Options,
    resolver: &dyn Resolver,
    purpose: Purpose,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Lowered, Vec<Diagnostic>> {
    let platforms = match options.platforms.as_slice() {
        [] => std::slice::from_ref(&options.build_platform),
        some => some,
    };
    let mut budget = Budget::default();
    let mut layouts = Layouts::new(parsed, options, resolver, purpose, platforms, &mut budget, warnings)?;
    layouts.resolve()?;
    let layouts = layouts.layouts;
    let mut lowering = Lowering::new(parsed, options, resolver, purpose, budget);
    let mut targets = Vec::with_capacity(layouts.len());
    for layout in layouts {
        let lowered = lowering.layout(&layout);
        warnings.append(&mut lowering.warnings);
        let (state, notes) = lowered?;
        targets.push((target(&layout, notes), state));
    }
    Ok(Lowered { graph: lowering.graph, targets })
}

fn target(layout: &Layout<'_>, notes: Vec<Note>) -> Target {
    Target {
        platform: layout.platform.clone(),
        name: layout.nodes[layout.target].stage.and_then(|s| s.from.name.clone()),
        notes,
    }
}

fn planned(target: &Target, state: State, options: &Options) -> PlannedImage {
    let mut config = state.config;
    config.config.env = state.image_env.iter().map(|(n, v)| format!("{n}={v}")).collect();
    for (name, value) in &options.labels {
        config.config.labels.insert(name.clone(), value.clone());
    }
    pad_history(&mut config, &state.layers);
    PlannedImage {
        requested: target.platform.clone(),
        platform: Platform::new(&config.os, &config.architecture, config.variant.as_deref()),
        result: state.files,
        config,
        base: state.base.map(|image| image.source.clone()),
        stage: target.name.clone().unwrap_or_default(),
    }
}

/// Adds entries for layers that the history does not speak of (of a base without history, or of a context).
fn pad_history(config: &mut ImageConfig, layers: &[String]) {
    let told = config.history.iter().filter(|h| !h.empty_layer).count();
    for name in layers.iter().skip(told) {
        config.history.push(History {
            created_by: name.clone(),
            comment: "buildkit.exporter.image.v0".to_owned(),
            ..History::default()
        });
    }
}

#[cfg(test)]
mod tests;
