//! Answers the frontend's questions.

use crate::EngineError;
use crate::context::{Contexts, Named};
use crate::event::Events;
use crate::image::Images;
use std::collections::BTreeMap;
use std::sync::Mutex;
use xbuild_frontend::{ImageRequest, MainContext, NamedContext, ResolveError, ResolvedImage, Resolver};
use xbuild_graph::{HttpSource, LocalSource, Platform};

/// Resolves for one build.
pub(crate) struct BuildResolver<'a> {
    pub(crate) images: Images<'a>,
    pub(crate) events: &'a Events,
    /// `--build-context` by name.
    pub(crate) named: BTreeMap<String, Named>,
    /// Directories that the build may read, filled as they are asked for.
    pub(crate) contexts: &'a Mutex<Contexts>,
    pub(crate) main: LocalSource,
    /// Ask registries even for what is known.
    pub(crate) fresh: bool,
}

impl BuildResolver<'_> {
    fn image(&self, name: &str, platform: &Platform) -> Result<ResolvedImage, EngineError> {
        let shown = name.parse::<xbuild_oci::Reference>().map_or_else(|_| name.to_owned(), |r| r.to_string());
        self.events
            .step(&format!("[internal] load metadata for {shown}"), |_| self.images.resolve(name, platform, self.fresh))
    }

    fn named(&self, name: &str, named: &Named, platform: &Platform) -> Result<NamedContext, EngineError> {
        Ok(match named {
            Named::Directory(path) => {
                let mut contexts = self.contexts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let excludes = contexts.add_directory(name, path)?;
                NamedContext::Local(LocalSource { name: name.to_owned(), excludes })
            }
            Named::Layout { path, reference } => {
                NamedContext::Image(Box::new(self.images.resolve_layout(path, reference.as_deref(), platform)?))
            }
            Named::Image(image) => NamedContext::Image(Box::new(self.image(image, platform)?)),
            Named::Git(source) => NamedContext::Git(source.clone()),
            Named::Http(url) => NamedContext::Http(HttpSource { url: url.clone(), checksum: None, filename: None }),
            Named::Stage(stage) => NamedContext::Stage(stage.clone()),
        })
    }
}

impl Resolver for BuildResolver<'_> {
    fn images(&self, requests: &[ImageRequest]) -> Vec<Result<ResolvedImage, ResolveError>> {
        std::thread::scope(|scope| {
            let ask = |r| {
                scope.spawn(move || self.image(&ImageRequest::clone(r).reference, &r.platform).map_err(|e| said(&e)))
            };
            let threads: Vec<_> = requests.iter().map(ask).collect();
            let died = || Err(ResolveError { message: "the resolver died".into() });
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| died())).collect()
        })
    }

    fn named_context(&self, name: &str, platform: &Platform) -> Result<Option<NamedContext>, ResolveError> {
        let Some(named) = self.named.get(name) else {
            return Ok(None);
        };
        self.named(name, named, platform).map(Some).map_err(|e| said(&e))
    }

    fn main_context(&self) -> MainContext {
        MainContext::Local(self.main.clone())
    }
}

/// The whole chain of causes in one sentence.
fn said(error: &dyn std::error::Error) -> ResolveError {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        source = cause.source();
    }
    ResolveError { message }
}
