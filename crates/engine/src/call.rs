//! `--call`: answers about a Dockerfile without building it.

use crate::build::{options, rendered};
use crate::context::Contexts;
use crate::event::Events;
use crate::request::Request;
use crate::{Engine, EngineError};
use std::sync::{Arc, Mutex};
use xbuild_frontend as frontend;
use xbuild_solver::Cancel;

/// An answer for standard output.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The text, or JSON.
    pub text: String,
    /// Nothing was found wrong.
    pub success: bool,
}

impl Engine {
    /// Answers `check`, `outline` or `targets`.
    pub fn call(&self, method: &str, json: bool, request: &Request) -> Result<Answer, EngineError> {
        let events = Events::new(Arc::new(|_| {}));
        let loaded = self.load(request, &events)?;
        let contexts = Mutex::new(Contexts::default());
        let cancel = Cancel::new();
        let resolver = self.resolver(request, &loaded, &contexts, &events, &cancel)?;
        let (parsed, options) = (&loaded.parsed, options(request));
        let failed = |d: Vec<frontend::Diagnostic>| rendered(&d, &loaded.source);
        let (text, value, success) = match method {
            "outline" => {
                let answer = frontend::outline(parsed, &loaded.source, &options, &resolver).map_err(failed)?;
                (answer.text(), answer.json(), true)
            }
            "targets" => {
                let answer = frontend::targets(parsed, &loaded.source);
                (answer.text(), answer.json(), true)
            }
            _ => {
                let answer = frontend::check(parsed, &loaded.source, &options, &resolver);
                (answer.text(&loaded.source), answer.json(), answer.exit_code() == 0)
            }
        };
        Ok(Answer { text: if json { value + "\n" } else { text }, success })
    }
}
