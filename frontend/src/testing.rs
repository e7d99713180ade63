//! A resolver for tests: every image is there, contexts are those that a test names.

use crate::{
    Diagnostic, ImageRequest, MainContext, NamedContext, Options, Plan, ResolveError, ResolvedImage, Resolver,
    SourceFile, lower, parse,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use xbuild_graph::{ImageSource, LocalSource, Platform};
use xbuild_oci::{History, ImageConfig};

/// Answers for the frontend.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) contexts: BTreeMap<String, NamedContext>,
    pub(crate) on_build: Vec<String>,
    pub(crate) excludes: Vec<String>,
    /// The requests of each call.
    pub(crate) calls: RefCell<Vec<Vec<String>>>,
}

impl Resolver for Fake {
    fn images(&self, requests: &[ImageRequest]) -> Vec<Result<ResolvedImage, ResolveError>> {
        let names = requests.iter().map(|r| format!("{} {}", r.reference, r.platform));
        self.calls.borrow_mut().push(names.collect());
        requests.iter().map(|r| self.image(r)).collect()
    }

    fn named_context(&self, name: &str, _: &Platform) -> Result<Option<NamedContext>, ResolveError> {
        Ok(self.contexts.get(name).cloned())
    }

    fn main_context(&self) -> MainContext {
        MainContext::Local(LocalSource { name: "context".to_owned(), excludes: self.excludes.clone() })
    }
}

impl Fake {
    fn image(&self, request: &ImageRequest) -> Result<ResolvedImage, ResolveError> {
        if request.reference.starts_with("missing") {
            return Err(ResolveError { message: "not found".to_owned() });
        }
        let mut config = ImageConfig {
            os: request.platform.os.clone(),
            architecture: request.platform.architecture.clone(),
            variant: request.platform.variant.clone(),
            ..ImageConfig::default()
        };
        config.config.env = vec!["PATH=/bin".to_owned()];
        config.config.on_build.clone_from(&self.on_build);
        config.history.push(History { created_by: "base".to_owned(), ..History::default() });
        let digest = format!("sha256:{}", "0".repeat(64));
        config.rootfs.diff_ids = digest.parse().into_iter().collect();
        Ok(ResolvedImage {
            source: ImageSource {
                reference: request.reference.clone(),
                manifest: digest,
                chain_id: format!("{}/{}", request.reference, request.platform),
                origin: String::new(),
                platform: Some(request.platform.clone()),
            },
            config,
        })
    }
}

/// Options for `linux/amd64`.
pub(crate) fn options() -> Options {
    Options::new(Platform::new("linux", "amd64", None))
}

/// Lowers a text.
pub(crate) fn plan(text: &str, options: &Options, fake: &Fake) -> Result<Plan, Vec<Diagnostic>> {
    let source = SourceFile::new("Dockerfile", text);
    lower(&parse(&source), options, fake)
}
