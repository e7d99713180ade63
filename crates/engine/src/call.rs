//! `--call`: answers about a Dockerfile without building it.

use crate::build::{options, rendered};
use crate::context::Contexts;
use crate::event::Events;
use crate::request::Request;
use crate::{Engine, EngineError};
use std::sync::{Arc, Mutex};
use xbuild_frontend::{self as frontend, Plan};
use xbuild_graph::llb;
use xbuild_solver::Cancel;

/// An answer for standard output.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Text or JSON; of `llb` a protobuf message.
    pub bytes: Vec<u8>,
    /// Nothing was found wrong.
    pub success: bool,
}

impl Engine {
    /// Answers `check`, `outline`, `targets` or `llb`.
    pub fn call(&self, method: &str, json: bool, request: &Request) -> Result<Answer, EngineError> {
        let events = Events::new(Arc::new(|_| {}));
        let loaded = self.load(request, &events)?;
        let contexts = Mutex::new(Contexts::default());
        let cancel = Cancel::new();
        let resolver = self.resolver(request, &loaded, &contexts, &events, &cancel)?;
        let (parsed, options) = (&loaded.parsed, options(request));
        let failed = |d: Vec<frontend::Diagnostic>| rendered(&d, &loaded.source);
        let (text, value, success) = match method {
            "llb" => {
                let plan = frontend::lower(parsed, &options, &resolver).map_err(failed)?;
                return Ok(Answer { bytes: definition(&plan)?, success: true });
            }
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
        let text = if json { value + "\n" } else { text };
        Ok(Answer { bytes: text.into_bytes(), success })
    }
}

/// The one result of a plan as LLB.
fn definition(plan: &Plan) -> Result<Vec<u8>, EngineError> {
    let [image] = plan.images.as_slice() else {
        return Err(EngineError::Source("LLB has one result: ask for one platform".into()));
    };
    let result = image.result.ok_or_else(|| EngineError::Source("an image without files has no LLB".into()))?;
    llb::encode(&plan.graph, result).map_err(|error| EngineError::Source(error.to_string()))
}
