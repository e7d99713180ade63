//! `--call`: answers about a Dockerfile without building it.

use crate::build::{options, rendered};
use crate::context::Contexts;
use crate::event::Events;
use crate::request::Request;
use crate::{Engine, EngineError};
use std::sync::{Arc, Mutex};
use xbuild_frontend as frontend;

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
        let resolver = self.resolver(request, &loaded, &contexts, &events)?;
        let (parsed, options) = (&loaded.parsed, options(request));
        let failed = |d: Vec<frontend::Diagnostic>| rendered(&d, &loaded.source);
        let shown = |text: String, value: serde_json::Result<String>| match json {
            true => value.map(|v| v + "\n").map_err(|e| EngineError::Internal(e.to_string())),
            false => Ok(text),
        };
        match method {
            "outline" => {
                let answer = frontend::outline(parsed, &options, &resolver).map_err(failed)?;
                let text = shown(answer.to_text(), serde_json::to_string_pretty(&answer))?;
                Ok(Answer { text, success: true })
            }
            "targets" => {
                let answer = frontend::targets(parsed, &options).map_err(failed)?;
                let text = shown(answer.to_text(), serde_json::to_string_pretty(&answer))?;
                Ok(Answer { text, success: true })
            }
            _ => {
                let answer = frontend::check(parsed, &options, &resolver);
                let text = shown(answer.to_text(&loaded.source), serde_json::to_string_pretty(&answer))?;
                Ok(Answer { text, success: answer.exit_code() == 0 })
            }
        }
    }
}
