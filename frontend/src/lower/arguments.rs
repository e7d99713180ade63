//! Variables that exist without ENV: platforms, the stage, global ARG, proxies.

use super::Options;
use crate::budget::Budget;
use crate::rules::{INVALID_DEFAULT_ARG_IN_FROM, UNDEFINED_ARG_IN_FROM, UNDEFINED_VAR};
use crate::shell::{Environment, Expander};
use crate::{Diagnostic, Edit, Instruction, Kind, Parsed, Stage, suggest};
use std::collections::{BTreeMap, BTreeSet};
use xbuild_graph::{Platform, Span};
use xbuild_oci::Reference;

/// Global ARGs of one target platform.
#[derive(Clone, Debug)]
pub(super) struct Globals {
    /// Those with a value, the predefined ones included.
    pub(super) env: Environment,
    /// The predefined ones.
    pub(super) predefined: Environment,
}

impl Globals {
    /// Reads the ARGs before the first FROM.
    pub(super) fn new(
        parsed: &Parsed,
        options: &Options,
        platform: &Platform,
        budget: &mut Budget,
    ) -> Result<Self, Diagnostic> {
        let predefined = predefined(options, platform);
        let mut env = predefined.clone();
        for instruction in &parsed.tree.global_args {
            declare(instruction, parsed, &options.build_args, &mut env, budget)?;
        }
        Ok(Self { env, predefined })
    }
}

/// Adds the ARGs of one global instruction.
fn declare(
    instruction: &Instruction,
    parsed: &Parsed,
    given: &BTreeMap<String, String>,
    env: &mut Environment,
    budget: &mut Budget,
) -> Result<(), Diagnostic> {
    let Kind::Arg(arguments) = &instruction.kind else {
        return Ok(());
    };
    let expander = Expander::new(parsed.directives.escape);
    for (name, default) in arguments {
        let mut expand = |text: &str, env: &Environment| {
            expander.expand(text, env, budget).map(|e| e.text).map_err(|why| Diagnostic::error(why, instruction.span))
        };
        let name = expand(name, env)?;
        match (given.get(&name), default) {
            (Some(value), _) => env.set(&name, value),
            (None, Some(default)) => {
                let value = expand(default, env)?;
                env.set(&name, &value);
            }
            (None, None) => {}
        }
    }
    Ok(())
}

fn predefined(options: &Options, platform: &Platform) -> Environment {
    let mut env = Environment::default();
    let mut set = |name: &str, value: &str| {
        let given = options.build_args.get(name).map(String::as_str);
        env.set(name, given.unwrap_or(value));
    };
    for (prefix, p) in [("BUILD", &options.build_platform), ("TARGET", platform)] {
        set(&format!("{prefix}PLATFORM"), &p.to_string());
        set(&format!("{prefix}OS"), &p.os);
        set(&format!("{prefix}OSVERSION"), "");
        set(&format!("{prefix}ARCH"), &p.architecture);
        set(&format!("{prefix}VARIANT"), p.variant.as_deref().unwrap_or(""));
    }
    set("TARGETSTAGE", options.target.as_deref().filter(|t| !t.is_empty()).unwrap_or("default"));
    env
}

/// Proxy variables among the build arguments, in both cases; the lower-case one wins.
pub(super) fn proxies(given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    const NAMES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];
    let mut proxies = BTreeMap::new();
    for (name, value) in given {
        let lower = name.to_ascii_lowercase();
        if NAMES.contains(&lower.as_str()) {
            proxies.insert(lower.to_ascii_uppercase(), value.clone());
            proxies.insert(lower, value.clone());
        }
    }
    proxies
}

/// Notes variables of a FROM that no ARG declares.
pub(super) fn undefined_in_from(
    unmatched: &BTreeSet<String>,
    parsed: &Parsed,
    globals: &Globals,
    span: Span,
    warnings: &mut Vec<Diagnostic>,
) {
    let declared: BTreeSet<&str> = parsed
        .tree
        .global_args
        .iter()
        .flat_map(|i| match &i.kind {
            Kind::Arg(list) => list.as_slice(),
            _ => &[],
        })
        .map(|(name, _)| name.as_str())
        .collect();
    for name in unmatched.iter().filter(|n| !declared.contains(n.as_str())) {
        let message = format!("FROM argument '{name}' is not declared");
        let warning = Diagnostic::warning(&UNDEFINED_ARG_IN_FROM, message, span);
        let options = declared.iter().copied().chain(globals.env.names());
        warnings.push(warning.suggest(name, options));
    }
}

/// Notes variables of an instruction that nothing sets. Declared ARGs without a value do not count.
pub(super) fn undefined(
    unmatched: &BTreeSet<String>,
    env: &Environment,
    declared: &[(String, Option<String>)],
    span: Span,
    warnings: &mut Vec<Diagnostic>,
) {
    for name in unmatched {
        if declared.iter().any(|(d, _)| d == name) {
            continue;
        }
        let message = format!("Usage of undefined variable '${name}'");
        let mut warning = Diagnostic::warning(&UNDEFINED_VAR, message, span);
        let options = env.names().chain(declared.iter().map(|(d, _)| d.as_str()));
        warning.suggestion =
            suggest::nearest(name, options).map(|to| Box::new(Edit { from: format!("${name}"), to: format!("${to}") }));
        warnings.push(warning);
    }
}

/// Notes FROMs that are no image name when every global ARG has its default.
pub(super) fn bad_defaults(
    parsed: &Parsed,
    predefined: &Environment,
    budget: &mut Budget,
    warnings: &mut Vec<Diagnostic>,
) {
    let mut env = predefined.clone();
    for instruction in &parsed.tree.global_args {
        if declare(instruction, parsed, &BTreeMap::new(), &mut env, budget).is_err() {
            return;
        }
    }
    let expander = Expander::new(parsed.directives.escape);
    for Stage { from, span, .. } in &parsed.tree.stages {
        let Ok(image) = expander.expand(&from.image, &env, budget) else {
            return;
        };
        let is_stage = |name: &String| name.eq_ignore_ascii_case(&image.text);
        let stages = parsed.tree.stages.iter().filter_map(|s| s.from.name.as_ref());
        if image.text.parse::<Reference>().is_err() && !stages.into_iter().any(is_stage) {
            let message = format!("Default value for ARG {} results in empty or invalid base image name", from.image);
            warnings.push(Diagnostic::warning(&INVALID_DEFAULT_ARG_IN_FROM, message, *span));
        }
    }
}
