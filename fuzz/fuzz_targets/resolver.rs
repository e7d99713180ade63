//! Answers for the frontend: every image is there and empty.

use xbuild_frontend::{ImageRequest, MainContext, NamedContext, ResolveError, ResolvedImage, Resolver};
use xbuild_graph::{ImageSource, LocalSource, Platform};
use xbuild_oci::ImageConfig;

pub struct Empty;

impl Resolver for Empty {
    fn images(&self, requests: &[ImageRequest]) -> Vec<Result<ResolvedImage, ResolveError>> {
        requests.iter().map(|request| Ok(image(request))).collect()
    }

    fn named_context(&self, _: &str, _: &Platform) -> Result<Option<NamedContext>, ResolveError> {
        Ok(None)
    }

    fn main_context(&self) -> MainContext {
        MainContext::Local(LocalSource { name: "context".to_owned(), excludes: vec!["*.md".to_owned()] })
    }
}

fn image(request: &ImageRequest) -> ResolvedImage {
    let mut config = ImageConfig { os: "linux".to_owned(), architecture: "amd64".to_owned(), ..ImageConfig::default() };
    config.config.env = vec!["PATH=/bin".to_owned(), "FROM_BASE=1".to_owned()];
    let source = ImageSource {
        reference: request.reference.clone(),
        manifest: String::new(),
        chain_id: request.reference.clone(),
        origin: String::new(),
        platform: Some(request.platform.clone()),
    };
    ResolvedImage { source, config }
}
