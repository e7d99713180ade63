//! The instructions of one stage, in order.

use super::layout::{Base, Layout, Place};
use super::names::{self, Naming};
use super::stage::{Lowering, Note, NoteKind, State};
use super::{Purpose, arguments};
use crate::rules::{MULTIPLE_INSTRUCTIONS_DISALLOWED, SECRETS_USED_IN_ARG_OR_ENV};
use crate::shell::{Expanded, Expander};
use crate::{Diagnostic, Instruction, Kind, brief};
use std::sync::Arc;
use xbuild_graph::{Edge, Meta, Platform, SourceOp, Span};
use xbuild_oci::History;

/// What the engine of BuildKit writes in the history, and tools look for.
const COMMENT: &str = "buildkit.dockerfile.v0";

/// A stage being lowered.
pub(super) struct Work<'l, 'a> {
    pub(super) lowering: &'l mut Lowering<'a>,
    pub(super) layout: &'l Layout<'l>,
    at: usize,
    states: &'l [Option<State>],
    pub(super) state: State,
    naming: Naming,
    ignore_cache: bool,
    /// Where CMD, ENTRYPOINT and HEALTHCHECK were last.
    pub(super) last: [Option<Span>; 3],
    pub(super) notes: Vec<Note>,
}

/// Instructions of which only the last counts; places in [`Work::last`].
#[derive(Clone, Copy)]
pub(super) enum Once {
    Cmd = 0,
    Entrypoint = 1,
    Healthcheck = 2,
}

impl<'l, 'a> Work<'l, 'a> {
    pub(super) fn new(
        lowering: &'l mut Lowering<'a>,
        layout: &'l Layout<'l>,
        at: usize,
        states: &'l [Option<State>],
    ) -> Self {
        let platform = layout.nodes[at].platform.as_ref().unwrap_or(&layout.platform);
        let state = State::empty(platform);
        Self {
            lowering,
            layout,
            at,
            states,
            state,
            naming: Naming::default(),
            ignore_cache: false,
            last: [None; 3],
            notes: Vec::new(),
        }
    }

    /// Sets the stage up on its base; `base` is the state of the stage that it stands on.
    pub(super) fn begin(&mut self, base: Option<State>) -> Result<(), Diagnostic> {
        let node = &self.layout.nodes[self.at];
        if let Some(base) = base {
            self.state = base;
        }
        self.name_steps();
        match &node.base {
            Base::Image(image) => {
                let config = &image.config;
                let own = match config.os.is_empty() {
                    true => self.state.platform.clone(),
                    false => Platform::new(&config.os, &config.architecture, config.variant.as_deref()),
                };
                let name = self.naming.next(&format!("FROM {}", image.source.reference));
                self.state = State::with_config(config.clone(), own);
                self.lowering.charge(self.state.bytes(), node.span)?;
                self.state.base = Some(Arc::clone(image));
                self.state.layers = vec![name.clone(); config.rootfs.diff_ids.len()];
                if !image.source.chain_id.is_empty() {
                    let source = SourceOp::Image(image.source.clone());
                    self.state.files = Some(self.lowering.source(source, &name, Some(node.span)));
                }
            }
            Base::Context(context) => {
                let as_base = self.layout.is_base(self.at);
                self.state.files = self.lowering.named(&node.image, context, as_base);
                self.state.keep_owner = as_base;
                self.state.layers = vec![format!("[context {}] load from client", node.image)];
            }
            _ => {}
        }
        self.state.config.config.on_build.clear();
        for name in &node.used_globals {
            self.note_global(name, node.span)?;
        }
        Ok(())
    }

    fn name_steps(&mut self) {
        let node = &self.layout.nodes[self.at];
        let stages = self.lowering.parsed.tree.stages.len();
        let numbered = format!("stage-{}", self.at);
        let number = self.at.to_string();
        let given = node.stage.and_then(|s| s.from.name.as_deref());
        let shown = match (node.stage, given) {
            (None, _) => "",
            (Some(_), Some(name)) => name,
            (Some(_), None) if stages > 1 => &numbered,
            (Some(_), None) => "",
        };
        let own = node.stage.map_or(&[][..], |s| &s.instructions);
        let counts =
            |i: &&Instruction| matches!(i.kind, Kind::Add(_) | Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_));
        let steps = node.triggers.iter().chain(own).filter(counts).count();
        let from = usize::from(matches!(node.base, Base::Image(_) | Base::Context(_)));
        let several = self.lowering.options.platforms.len() > 1;
        let platforms = several.then_some((&self.state.platform, &self.layout.platform));
        self.naming = Naming::new(shown, steps + from, platforms);
        self.ignore_cache = node.stage.is_some() && self.lowering.ignores_cache(&[given.unwrap_or(&numbered), &number]);
    }

    /// The base's triggers, then the stage's own instructions.
    pub(super) fn instructions(&mut self) -> Result<(), Diagnostic> {
        let layout = self.layout;
        let node = &layout.nodes[self.at];
        for (number, instruction) in node.triggers.iter().enumerate() {
            self.instruction(instruction, number, true)?;
        }
        let Some(stage) = node.stage.filter(|_| !node.replaced) else {
            return Ok(());
        };
        for (number, instruction) in stage.instructions.iter().enumerate() {
            self.instruction(instruction, number, false)?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> (State, Vec<Note>) {
        (self.state, self.notes)
    }

    fn instruction(&mut self, instruction: &Instruction, number: usize, trigger: bool) -> Result<(), Diagnostic> {
        let place = Place { trigger, instruction: number, part: 0 };
        match &instruction.kind {
            Kind::Add(copy) => self.copy(copy, instruction, place, true),
            Kind::Copy(copy) => self.copy(copy, instruction, place, false),
            Kind::Run(run) => self.run(run, instruction, place),
            Kind::Arg(list) => self.arg(list, instruction),
            Kind::Env(list) => self.env(list, instruction),
            _ => self.configure(instruction),
        }
    }

    /// The state of what COPY --from or a mount reads.
    pub(super) fn source_state(&self, place: Place) -> Option<&'l State> {
        let at = self.layout.nodes[self.at].sources.get(&place)?;
        self.states[*at].as_ref()
    }

    /// Expands a text in this stage's environment and notes variables that nothing sets.
    pub(super) fn expanded(&mut self, text: &str, span: Span) -> Result<Expanded, Diagnostic> {
        let expander = Expander::new(self.lowering.parsed.directives.escape);
        let done = expander
            .expand(text, &self.state.env, &mut self.lowering.budget)
            .map_err(|why| Diagnostic::error(format!("failed to process `{}`: {why}", brief::value(text)), span))?;
        if !done.unmatched.is_empty() {
            let warnings = &mut self.lowering.warnings;
            arguments::undefined(&done.unmatched, &self.state.env, &self.state.arguments, span, warnings);
        }
        Ok(done)
    }

    /// The text of [`Self::expanded`].
    pub(super) fn expand(&mut self, text: &str, span: Span) -> Result<String, Diagnostic> {
        self.expanded(text, span).map(|e| e.text)
    }

    /// Meta of the next numbered step.
    pub(super) fn meta(&mut self, text: &str, span: Span) -> Meta {
        let escape = self.lowering.parsed.directives.escape;
        let text = names::shown(text, &self.state.env, escape, &mut self.lowering.budget);
        Meta { name: self.naming.next(&text), span: Some(span), ignore_cache: self.ignore_cache }
    }

    /// Adds a history entry.
    ///
    /// # Errors
    /// More history than the whole Dockerfile may have.
    pub(super) fn commit(&mut self, created_by: String, layer: bool, span: Span) -> Result<(), Diagnostic> {
        self.lowering.charge(created_by.len(), span)?;
        self.state.config.history.push(History {
            created_by,
            comment: COMMENT.to_owned(),
            empty_layer: !layer,
            ..History::default()
        });
        Ok(())
    }

    /// Takes new files, which are a layer of their own.
    pub(super) fn set_files(&mut self, files: Edge, name: String) {
        self.state.files = Some(files);
        self.state.layers.push(name);
    }

    /// Notes the instruction that a later one of its kind makes useless.
    pub(super) fn once(&mut self, which: Once, name: &str, span: Span) {
        if let Some(before) = self.last[which as usize].replace(span) {
            let message = format!(
                "Multiple {name} instructions should not be used in the same stage because only the last one will be used"
            );
            self.lowering.warnings.push(Diagnostic::warning(&MULTIPLE_INSTRUCTIONS_DISALLOWED, message, before));
        }
    }

    fn secret_name(&mut self, instruction: &str, name: &str, span: Span) {
        if names_secret(name) {
            let message = format!("Do not use ARG or ENV instructions for sensitive data ({instruction} \"{name}\")");
            self.lowering.warnings.push(Diagnostic::warning(&SECRETS_USED_IN_ARG_OR_ENV, message, span));
        }
    }

    fn note_global(&mut self, name: &str, span: Span) -> Result<(), Diagnostic> {
        if self.lowering.purpose == Purpose::Describe {
            let value = self.layout.globals.env.get(name);
            self.lowering.charge(value.map_or(0, str::len), span)?;
            let value = value.map(str::to_owned);
            let kind = NoteKind::Global { name: name.to_owned(), value };
            self.notes.push(Note { kind, span });
        }
        Ok(())
    }

    fn arg(&mut self, list: &[(String, Option<String>)], instruction: &Instruction) -> Result<(), Diagnostic> {
        let span = instruction.span;
        let mut shown = Vec::with_capacity(list.len());
        for (name, default) in list {
            let name = self.expand(name, span)?;
            self.secret_name("ARG", &name, span);
            let given = self.lowering.options.build_args.get(&name).cloned();
            let global = self.layout.globals.env.get(&name).map(str::to_owned);
            let inherited = given.is_none() && default.is_none() && global.is_some();
            let value = match (given, default) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => Some(self.expand(default, span)?),
                (None, None) => global,
            };
            // The value is kept as a variable, as an argument and in a note.
            self.lowering.charge(3 * value.as_ref().map_or(0, String::len), span)?;
            if inherited {
                self.note_global(&name, span)?;
            } else {
                let description = description(&instruction.comments, &name);
                let kind = NoteKind::Argument { name: name.clone(), value: value.clone(), description };
                self.notes.push(Note { kind, span });
            }
            shown.push(match &value {
                Some(value) => format!("{name}={value}"),
                None => name.clone(),
            });
            if let Some(value) = &value {
                self.state.env.set(&name, value);
            }
            self.state.arguments.push((name, value));
        }
        self.commit(format!("ARG {}", shown.join(" ")), false, span)
    }

    fn env(&mut self, list: &[(String, String)], instruction: &Instruction) -> Result<(), Diagnostic> {
        let span = instruction.span;
        let mut pairs = Vec::with_capacity(list.len());
        for (name, value) in list {
            pairs.push((self.expand(name, span)?, self.expand(value, span)?));
        }
        let mut shown = "ENV".to_owned();
        for (name, value) in &pairs {
            if name.is_empty() {
                return Err(Diagnostic::error("ENV names can not be blank", span));
            }
            self.secret_name("ENV", name, span);
            shown.push_str(&format!(" {name}={value}"));
            self.state.set_env(name, value).map_err(|why| Diagnostic::error(why, span))?;
        }
        self.commit(shown, false, span)
    }
}

/// The part of a comment that describes `name`.
pub(crate) fn description(comments: &[String], name: &str) -> Option<String> {
    let about = |line: &String| line.strip_prefix(name)?.strip_prefix(' ').map(|d| d.trim().to_owned());
    comments.iter().find_map(about)
}

/// Whether a variable's name speaks of a secret and not of something public or of a file with it.
fn names_secret(name: &str) -> bool {
    const SECRET: [&str; 10] =
        ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
    const HARMLESS: [&str; 2] = ["public", "file"];
    let lower = name.to_lowercase();
    let has = |list: &[&str]| lower.split('_').any(|part| list.contains(&part));
    has(&SECRET) && !has(&HARMLESS)
}
