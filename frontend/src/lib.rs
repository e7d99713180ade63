//! Dockerfile text → syntax tree → checked stages → instruction graph and image configurations. Pure: no I/O.
//!
//! [`parse`] reads the whole language and reports all problems at once; [`lower`] turns the stages that a target needs into one
//! [`Graph`](xbuild_graph::Graph) and an image configuration per platform, asking a [`Resolver`] for what lies outside.
//! [`check`], [`outline`] and [`targets`] answer `--call`.
//! [`ignore`] is `.dockerignore`, [`glob_match`] the wildcards of COPY.
//!
//! Nothing here reads files, the environment or the clock; equal inputs give equal graphs. Positions are byte spans of the
//! [`SourceFile`], turned into lines only when a [`Diagnostic`] is shown.

mod brief;
mod budget;
mod call;
mod diagnostic;
mod glob;
pub mod ignore;
mod lower;
mod parse;
mod resolve;
mod rules;
mod shell;
mod source;
mod suggest;
#[cfg(test)]
mod testing;

pub use call::{
    BuildError, CheckAnswer, Location, Outline, OutlineArgument, OutlineNeed, Position, Range, SourceInfo, Target,
    Targets, Violation, check, outline, targets,
};
pub use diagnostic::{Diagnostic, Edit, Severity, excerpt, render_plain};
pub use glob::{contains_wildcards, glob_match, glob_valid};
pub use lower::{Entitlement, GitReference, NoCache, Options, Plan, PlannedImage, image_forms, lower};
pub use parse::{Copy, Directives, From, Heredoc, Instruction, Kind, Parsed, Run, ShellForm, Stage, Tree, parse};
pub use resolve::{ImageRequest, MainContext, NamedContext, ResolveError, ResolvedImage, Resolver};
pub use rules::{CheckOptions, RULES, Rule};
pub use source::{MAX_LINE, MAX_SOURCE, SourceFile};
