//! Which stages there are for one target platform, what each stands on, and which of them are needed.

use super::arguments::{self, Globals};
use super::{Options, Purpose};
use crate::budget::Budget;
use crate::parse::{mount, parse_trigger};
use crate::rules::{FROM_PLATFORM_FLAG_CONST_DISALLOWED, INVALID_BASE_IMAGE_PLATFORM, REDUNDANT_TARGET_PLATFORM};
use crate::shell::Expander;
use crate::{Diagnostic, ImageRequest, Instruction, Kind, NamedContext, Parsed, ResolvedImage, Resolver, Stage};
use std::collections::HashMap;
use std::sync::Arc;
use xbuild_graph::{Platform, Span};
use xbuild_oci::Reference;

/// Where in a node a source stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Among the triggers of the base, not the stage's own instructions.
    pub(super) trigger: bool,
    /// Which instruction.
    pub(super) instruction: usize,
    /// Which `--mount`; 0 for COPY.
    pub(super) part: usize,
}

/// What a stage begins with.
#[derive(Debug)]
pub(super) enum Base {
    /// Not looked at yet.
    Unknown,
    /// To be resolved.
    Wanted,
    /// Nothing.
    Scratch,
    /// Another node.
    Node(usize),
    /// An image.
    Image(Arc<ResolvedImage>),
    /// A named context that is no image.
    Context(NamedContext),
}

/// A stage, or an image or context that COPY or a mount reads.
#[derive(Debug)]
pub(super) struct Node<'a> {
    /// The stage; none for images and contexts by name.
    pub(super) stage: Option<&'a Stage>,
    /// Expanded name of the base, or of the image.
    pub(super) image: String,
    /// `--platform` of FROM.
    pub(super) platform: Option<Platform>,
    pub(super) base: Base,
    /// ONBUILD instructions of the base.
    pub(super) triggers: Vec<Instruction>,
    /// Nodes that COPY --from and mounts read.
    pub(super) sources: HashMap<Place, usize>,
    /// Where the node is asked for.
    pub(super) span: Span,
    /// Names of global ARGs that FROM uses.
    pub(super) used_globals: Vec<String>,
    pub(super) needed: bool,
    /// A named context takes the place of the whole stage.
    pub(super) replaced: bool,
}

impl<'a> Node<'a> {
    fn new(stage: Option<&'a Stage>, image: String, span: Span) -> Self {
        Self {
            stage,
            image,
            platform: None,
            base: Base::Unknown,
            triggers: Vec::new(),
            sources: HashMap::new(),
            span,
            used_globals: Vec::new(),
            needed: false,
            replaced: false,
        }
    }

    /// The nodes that must be lowered before this one.
    pub(super) fn dependencies(&self) -> impl Iterator<Item = usize> {
        let base = match self.base {
            Base::Node(at) => Some(at),
            _ => None,
        };
        base.into_iter().chain(self.sources.values().copied())
    }
}

/// All nodes for one target platform; the stages come first, in order.
#[derive(Debug)]
pub(super) struct Layout<'a> {
    pub(super) platform: Platform,
    pub(super) globals: Globals,
    pub(super) nodes: Vec<Node<'a>>,
    pub(super) target: usize,
    stage_count: usize,
    by_name: HashMap<String, usize>,
    others: HashMap<String, usize>,
    open: Vec<usize>,
}

/// The layouts of all target platforms.
pub(super) struct Layouts<'a, 'w> {
    pub(super) layouts: Vec<Layout<'a>>,
    warnings: &'w mut Vec<Diagnostic>,
    budget: &'w mut Budget,
    resolver: &'a dyn Resolver,
    purpose: Purpose,
}

impl<'a, 'w> Layouts<'a, 'w> {
    /// Expands every FROM and finds the target.
    pub(super) fn new(
        parsed: &'a Parsed,
        options: &'a Options,
        resolver: &'a dyn Resolver,
        purpose: Purpose,
        platforms: &[Platform],
        budget: &'w mut Budget,
        warnings: &'w mut Vec<Diagnostic>,
    ) -> Result<Self, Vec<Diagnostic>> {
        let mut layouts = Vec::with_capacity(platforms.len());
        for platform in platforms {
            layouts.push(Layout::new(parsed, options, platform, budget, warnings)?);
        }
        for layout in &mut layouts {
            match purpose {
                Purpose::Check => (0..layout.stage_count).rev().for_each(|n| layout.need(n)),
                _ => layout.need(layout.target),
            }
        }
        Ok(Self { layouts, warnings, budget, resolver, purpose })
    }

    /// Finds out all bases: contexts one by one, images all at once. Triggers of an image may need more.
    pub(super) fn resolve(&mut self) -> Result<(), Vec<Diagnostic>> {
        loop {
            let mut errors = Vec::new();
            for layout in &mut self.layouts {
                layout.settle(self.resolver, self.budget, &mut errors);
            }
            if !errors.is_empty() {
                return Err(errors);
            }
            if !self.fetch(&mut errors) {
                return Ok(());
            }
            if !errors.is_empty() {
                return Err(errors);
            }
        }
    }

    /// Asks for the wanted images; false if none is wanted.
    fn fetch(&mut self, errors: &mut Vec<Diagnostic>) -> bool {
        let mut requests: Vec<ImageRequest> = Vec::new();
        let mut wanted = Vec::new();
        for (l, layout) in self.layouts.iter().enumerate() {
            for (n, node) in layout.nodes.iter().enumerate() {
                if !matches!(node.base, Base::Wanted) {
                    continue;
                }
                let request = ImageRequest {
                    reference: node.image.clone(),
                    platform: node.platform.clone().unwrap_or_else(|| layout.platform.clone()),
                };
                let known = requests.iter().position(|r| *r == request);
                let at = known.unwrap_or_else(|| {
                    requests.push(request);
                    requests.len() - 1
                });
                wanted.push((l, n, at));
            }
        }
        if requests.is_empty() {
            return false;
        }
        let answers: Vec<_> = self.resolver.images(&requests).into_iter().map(|a| a.map(Arc::new)).collect();
        let mut told = vec![false; requests.len()];
        for (l, n, at) in wanted {
            let layout = &mut self.layouts[l];
            match answers.get(at) {
                Some(Ok(image)) => {
                    mismatch(&layout.nodes[n], &requests[at].platform, image, self.warnings);
                    layout.set_image(n, Arc::clone(image), self.budget, errors);
                }
                _ if self.purpose != Purpose::Build => layout.nodes[n].base = Base::Scratch,
                answer if !told[at] => {
                    told[at] = true;
                    let why = match answer {
                        Some(Err(error)) => error.message.clone(),
                        _ => "was not resolved".to_owned(),
                    };
                    errors.push(layout.missing(n, &why));
                }
                _ => {}
            }
        }
        true
    }
}

fn mismatch(node: &Node<'_>, wanted: &Platform, image: &ResolvedImage, warnings: &mut Vec<Diagnostic>) {
    let config = &image.config;
    let own = Platform::new(&config.os, &config.architecture, config.variant.as_deref());
    if config.os.is_empty() || wanted.accepts(&own).is_some() {
        return;
    }
    let message = format!(
        "Base image {} was pulled with platform \"{own}\", expected \"{wanted}\" for current build",
        node.image
    );
    warnings.push(Diagnostic::warning(&INVALID_BASE_IMAGE_PLATFORM, message, node.span));
}

impl<'a> Layout<'a> {
    fn new(
        parsed: &'a Parsed,
        options: &Options,
        platform: &Platform,
        budget: &mut Budget,
        warnings: &mut Vec<Diagnostic>,
    ) -> Result<Self, Vec<Diagnostic>> {
        let globals = Globals::new(parsed, options, platform, budget).map_err(|e| vec![e])?;
        arguments::bad_defaults(parsed, &globals.predefined, budget, warnings);
        let mut nodes = Vec::with_capacity(parsed.tree.stages.len());
        let mut by_name = HashMap::new();
        let mut errors = Vec::new();
        for stage in &parsed.tree.stages {
            match node(stage, parsed, &globals, platform, budget, warnings) {
                Ok(mut node) => {
                    if let Some(&at) = by_name.get(&node.image.to_lowercase()) {
                        node.base = Base::Node(at);
                    }
                    nodes.push(node);
                }
                Err(error) => {
                    errors.push(error);
                    nodes.push(Node::new(Some(stage), String::new(), stage.span));
                }
            }
            if let Some(name) = &stage.from.name {
                by_name.insert(name.clone(), nodes.len() - 1);
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let target = target(options, &by_name, nodes.len()).map_err(|e| vec![e])?;
        Ok(Self {
            platform: platform.clone(),
            globals,
            stage_count: nodes.len(),
            nodes,
            target,
            by_name,
            others: HashMap::new(),
            open: Vec::new(),
        })
    }

    /// Whether a node's files become (the beginning of) an image, and are not only read by copies and mounts.
    pub(super) fn is_base(&self, at: usize) -> bool {
        let node = &self.nodes[at];
        let has_own_steps = node.stage.is_some() && !node.replaced;
        let stands_on_it = |n: &Node<'_>| n.needed && matches!(n.base, Base::Node(b) if b == at);
        has_own_steps || at == self.target || self.nodes.iter().any(stands_on_it)
    }

    fn need(&mut self, at: usize) {
        if !self.nodes[at].needed {
            self.nodes[at].needed = true;
            self.open.push(at);
        }
    }

    /// Looks at every node that is newly needed.
    fn settle(&mut self, resolver: &dyn Resolver, budget: &mut Budget, errors: &mut Vec<Diagnostic>) {
        while let Some(at) = self.open.pop() {
            match self.base(at, resolver, budget) {
                Ok(replaced) => {
                    if !replaced {
                        self.own_sources(at, errors);
                    }
                }
                Err(error) => errors.push(error),
            }
        }
    }

    /// Decides the base of a node; true if a named context takes the place of the whole stage.
    fn base(&mut self, at: usize, resolver: &dyn Resolver, budget: &mut Budget) -> Result<bool, Diagnostic> {
        let node = &self.nodes[at];
        let platform = node.platform.clone().unwrap_or_else(|| self.platform.clone());
        let ask = |name: &str| {
            let answer = resolver.named_context(name, &platform);
            answer.map_err(|e| Diagnostic::error(e.message, node.span))
        };
        if let Some(name) = node.stage.and_then(|s| s.from.name.as_deref())
            && let Some(context) = ask(name)?
        {
            self.nodes[at].replaced = true;
            self.set_context(at, context, budget)?;
            return Ok(true);
        }
        match node.base {
            Base::Node(base) => {
                self.stage_triggers(at, base, budget)?;
                self.need(base);
                return Ok(false);
            }
            _ if node.image == "scratch" => {
                self.nodes[at].base = Base::Scratch;
                return Ok(false);
            }
            _ => {}
        }
        for form in image_forms(&node.image) {
            if let Some(context) = ask(&form)? {
                self.set_context(at, context, budget)?;
                return Ok(false);
            }
        }
        if let Err(why) = node.image.parse::<Reference>() {
            return Err(self.missing(at, &why.to_string()));
        }
        self.nodes[at].base = Base::Wanted;
        Ok(false)
    }

    fn missing(&self, at: usize, why: &str) -> Diagnostic {
        let node = &self.nodes[at];
        let message = match why.contains(&node.image) {
            true => why.to_owned(),
            false => format!("{}: {why}", node.image),
        };
        let names = self.by_name.keys().map(String::as_str);
        Diagnostic::error(message, node.span).suggest(&node.image, names)
    }

    fn set_context(&mut self, at: usize, context: NamedContext, budget: &mut Budget) -> Result<(), Diagnostic> {
        match context {
            NamedContext::Image(image) => {
                let mut errors = Vec::new();
                self.set_image(at, Arc::from(image), budget, &mut errors);
                errors.into_iter().next().map_or(Ok(()), Err)
            }
            NamedContext::Stage(name) => {
                let Some(&other) = self.by_name.get(&name.to_lowercase()) else {
                    let message = format!("stage `{name}` of a named context could not be found");
                    return Err(Diagnostic::error(message, self.nodes[at].span));
                };
                self.nodes[at].base = Base::Node(other);
                self.need(other);
                Ok(())
            }
            other => {
                self.nodes[at].base = Base::Context(other);
                Ok(())
            }
        }
    }

    /// Gives a node its image. The image's triggers run first in a stage that stands on it.
    fn set_image(&mut self, at: usize, image: Arc<ResolvedImage>, budget: &mut Budget, errors: &mut Vec<Diagnostic>) {
        self.nodes[at].base = Base::Image(Arc::clone(&image));
        if self.nodes[at].stage.is_some()
            && !self.nodes[at].replaced
            && let Err(error) = self.add_triggers(at, &image.config.config.on_build, budget)
        {
            errors.push(error);
        }
    }

    /// ONBUILD of a stage of this file works on the stages that stand on it.
    fn stage_triggers(&mut self, at: usize, base: usize, budget: &mut Budget) -> Result<(), Diagnostic> {
        let texts: Vec<String> = self.nodes[base]
            .stage
            .iter()
            .flat_map(|s| &s.instructions)
            .filter_map(|i| match &i.kind {
                Kind::Onbuild(text) => Some(text.clone()),
                _ => None,
            })
            .collect();
        self.add_triggers(at, &texts, budget)
    }

    fn add_triggers(&mut self, at: usize, texts: &[String], budget: &mut Budget) -> Result<(), Diagnostic> {
        /// What an instruction takes beside its text, which it holds in several forms.
        const INSTRUCTION: usize = 1024;
        let span = self.nodes[at].span;
        let mut triggers = Vec::with_capacity(texts.len());
        for text in texts {
            budget.copies(INSTRUCTION + 4 * text.len()).map_err(|why| Diagnostic::error(why, span))?;
            triggers.push(parse_trigger(text, span)?);
        }
        for (number, trigger) in triggers.iter().enumerate() {
            self.sources(at, trigger, number, true)?;
        }
        self.nodes[at].triggers = triggers;
        Ok(())
    }

    fn own_sources(&mut self, at: usize, errors: &mut Vec<Diagnostic>) {
        let Some(stage) = self.nodes[at].stage else {
            return;
        };
        for (number, instruction) in stage.instructions.iter().enumerate() {
            if let Err(error) = self.sources(at, instruction, number, false) {
                errors.push(error);
            }
        }
    }

    /// Finds the nodes that an instruction reads.
    fn sources(
        &mut self,
        at: usize,
        instruction: &Instruction,
        number: usize,
        trigger: bool,
    ) -> Result<(), Diagnostic> {
        let place = |part| Place { trigger, instruction: number, part };
        match &instruction.kind {
            Kind::Copy(copy) => {
                if let Some(from) = &copy.from {
                    let source = self.by_number_or_name(from, instruction.span)?;
                    self.link(at, place(0), source);
                }
            }
            Kind::Run(run) => {
                for (part, written) in run.mounts.iter().enumerate() {
                    if let Some(from) = mount::from_of(written) {
                        let source = self.by_name(&from, instruction.span);
                        self.link(at, place(part), source);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn link(&mut self, at: usize, place: Place, source: usize) {
        self.nodes[at].sources.insert(place, source);
        self.need(source);
    }

    fn by_number_or_name(&mut self, from: &str, span: Span) -> Result<usize, Diagnostic> {
        match from.parse::<i64>() {
            Err(_) => Ok(self.by_name(from, span)),
            Ok(number) => usize::try_from(number).ok().filter(|n| *n < self.stage_count).ok_or_else(|| {
                let message =
                    format!("invalid stage index {number}: there are {} stages, counted from 0", self.stage_count);
                Diagnostic::error(message, span)
            }),
        }
    }

    fn by_name(&mut self, name: &str, span: Span) -> usize {
        if let Some(&at) = self.by_name.get(&name.to_lowercase()) {
            return at;
        }
        if let Some(&at) = self.others.get(name) {
            return at;
        }
        self.nodes.push(Node::new(None, name.to_owned(), span));
        let at = self.nodes.len() - 1;
        self.others.insert(name.to_owned(), at);
        at
    }
}

fn target(options: &Options, by_name: &HashMap<String, usize>, count: usize) -> Result<usize, Diagnostic> {
    let Some(name) = options.target.as_deref().filter(|t| !t.is_empty()) else {
        return count.checked_sub(1).ok_or_else(|| Diagnostic::error("no build stage in the Dockerfile", None));
    };
    by_name.get(&name.to_lowercase()).copied().ok_or_else(|| {
        let message = format!("target stage `{name}` could not be found");
        Diagnostic::error(message, None).suggest(name, by_name.keys().map(String::as_str))
    })
}

/// Expands one FROM.
fn node<'a>(
    stage: &'a Stage,
    parsed: &Parsed,
    globals: &Globals,
    target: &Platform,
    budget: &mut Budget,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Node<'a>, Diagnostic> {
    let fail = |why: String| Diagnostic::error(why, stage.span);
    let expander = Expander::new(parsed.directives.escape);
    let mut expand = |text: &str| expander.expand(text, &globals.env, budget).map_err(fail);
    let image = expand(&stage.from.image)?;
    arguments::undefined_in_from(&image.unmatched, parsed, globals, stage.span, warnings);
    if image.text.is_empty() {
        return Err(fail(format!("base name ({}) should not be blank", stage.from.image)));
    }
    let mut node = Node::new(Some(stage), image.text, stage.span);
    node.used_globals.extend(image.matched);
    let Some(written) = stage.from.platform.as_ref().filter(|written| !written.is_empty()) else {
        return Ok(node);
    };
    let platform = expand(written)?;
    arguments::undefined_in_from(&platform.unmatched, parsed, globals, stage.span, warnings);
    if platform.text.is_empty() {
        return Err(fail(format!("empty platform value from expression {written}")));
    }
    let parsed_platform = Platform::parse(&platform.text)
        .map_err(|e| fail(format!("failed to parse platform {}: {e}", platform.text)))?;
    let only_target = platform.matched.len() == 1 && platform.matched.contains("TARGETPLATFORM");
    if only_target && parsed_platform == *target {
        let message =
            format!("Setting platform to predefined {written} in FROM is redundant as this is the default behavior");
        warnings.push(Diagnostic::warning(&REDUNDANT_TARGET_PLATFORM, message, stage.span));
    }
    let constant = platform.matched.is_empty() && platform.unmatched.is_empty();
    let name = stage.from.name.as_deref().unwrap_or("");
    let says_so = name.contains(&parsed_platform.os) || name.contains(&parsed_platform.architecture);
    if constant && !says_so {
        let message = format!("FROM --platform flag should not use constant value \"{}\"", platform.text);
        warnings.push(Diagnostic::warning(&FROM_PLATFORM_FLAG_CONST_DISALLOWED, message, stage.span));
    }
    node.used_globals.extend(platform.matched);
    node.platform = Some(parsed_platform);
    Ok(node)
}

/// The names under which a named context may stand for an image: as written, and the forms with defaults left out or filled in.
pub fn image_forms(name: &str) -> Vec<String> {
    let mut forms = vec![name.to_owned()];
    if let Ok(reference) = name.parse::<Reference>() {
        let familiar = reference.familiar();
        let short = familiar.strip_suffix(":latest").unwrap_or(&familiar).to_owned();
        for form in [short, familiar, reference.to_string()] {
            if !forms.contains(&form) {
                forms.push(form);
            }
        }
    }
    forms
}
