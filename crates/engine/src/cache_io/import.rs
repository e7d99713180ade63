//! Reading caches: documents at the start of a build, layers when a step asks for them.

use super::document::{self, CacheConfig};
use super::{DIFF_ID, REF_NAME, TAG};
use crate::EngineError;
use crate::event::{EventKind, Events, StepId};
use crate::image::{Images, Origin, layout_blob, read_bounded};
use crate::request::LocalCache;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use xbuild_cache::{StoreError, TreeId};
use xbuild_oci::{Descriptor, Digest, Document};

/// Largest cache configuration: more than a hundred thousand records.
const CONFIG_MAX: u64 = 64 << 20;

/// The caches of a build.
#[derive(Debug, Default)]
pub(crate) struct Imports {
    caches: Vec<Import>,
    /// Steps that hit at once share layers: one brings them, the others find them.
    bringing: Mutex<()>,
}

/// One directory.
#[derive(Debug)]
struct Import {
    path: PathBuf,
    /// Its name in errors.
    shown: String,
    config: CacheConfig,
    by_key: HashMap<[u8; 32], usize>,
    blobs: HashMap<Digest, Descriptor>,
}

/// A result that a cache has.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The directory.
    pub(super) path: PathBuf,
    shown: String,
    /// Blob and diff ID, the lowest first.
    pub(super) layers: Vec<(Descriptor, Digest)>,
    /// When it was made.
    pub(super) created: Option<String>,
}

impl Imports {
    /// True if there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.caches.is_empty()
    }

    /// Reads the documents of caches. A directory that is not there is said and passed over.
    ///
    /// # Errors
    /// A directory that is damaged.
    pub(crate) fn load(caches: &[LocalCache], events: &Events) -> Result<Self, EngineError> {
        let mut imports = Self::default();
        for cache in caches {
            let name = format!("importing cache manifest from {}", cache.path.display());
            let import = events.step(&name, |step| match Import::open(&cache.path)? {
                Some(import) => Ok::<_, EngineError>(Some(import)),
                None => {
                    events.send(step, missing(&cache.path));
                    Ok(None)
                }
            })?;
            imports.caches.extend(import);
        }
        Ok(imports)
    }

    /// The layers recorded under a definition key, in the first cache that has them.
    pub(crate) fn find(&self, key: &[u8; 32]) -> Result<Option<Found>, EngineError> {
        for cache in &self.caches {
            if let Some(found) = cache.find(key)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Brings the layers of a result into the store.
    pub(crate) fn bring(
        &self,
        found: &Found,
        images: &Images<'_>,
        events: &Events,
        step: StepId,
    ) -> Result<TreeId, EngineError> {
        let _one = self.bringing.lock().unwrap_or_else(PoisonError::into_inner);
        let origin = Origin::Layout(found.path.clone());
        let tree = images.unpack_layers(&found.layers, &origin, &found.shown, events, step);
        tree.map_err(|e| {
            let why = chain_text(&e);
            EngineError::Source(format!("cannot take layers from {}: {why}", found.shown))
        })
    }
}

impl Found {
    /// Chain ID of the layers.
    pub(crate) fn chain_id(&self) -> Option<Digest> {
        let diff_ids = self.layers.iter().map(|(_, diff_id)| *diff_id);
        diff_ids.fold(None, |below, id| Some(Digest::chain(below, id)))
    }
}

impl Import {
    /// Opens a cache; `None` if there is none.
    fn open(path: &Path) -> Result<Option<Self>, EngineError> {
        let index = path.join("index.json");
        if !index.try_exists().map_err(|e| EngineError::io("open", &index, e))? {
            return Ok(None);
        }
        let shown = format!("the cache `{}`", path.display());
        let bytes = read_bounded(&index, Document::MAX_SIZE as u64)?;
        let Document::Index(index) = parse(&bytes, &shown)? else {
            return Err(damaged(&shown, "its index.json is not an index"));
        };
        let tagged = |d: &&Descriptor| d.annotations.get(REF_NAME).is_some_and(|tag| tag == TAG);
        let entry = index.manifests.iter().find(tagged);
        let entry = entry.ok_or_else(|| damaged(&shown, "nothing in its index has the tag `latest`"))?;
        let manifest = verified(path, &shown, entry, Document::MAX_SIZE as u64)?;
        // The older form is an index whose last entry is the configuration.
        let blobs = match parse(&manifest, &shown)? {
            Document::Manifest(manifest) => [manifest.layers, vec![manifest.config]].concat(),
            Document::Index(index) => index.manifests,
        };
        let config = blobs.iter().find(|d| d.media_type == document::MEDIA_TYPE);
        let config = config.ok_or_else(|| damaged(&shown, "it is an image, not a cache"))?;
        let bytes = verified(path, &shown, config, CONFIG_MAX)?;
        let config = CacheConfig::decode(&bytes).map_err(|e| damaged(&shown, e))?;
        Ok(Some(Self {
            path: path.to_owned(),
            shown,
            by_key: config.by_key(),
            config,
            blobs: blobs.into_iter().map(|d| (d.digest, d)).collect(),
        }))
    }

    fn find(&self, key: &[u8; 32]) -> Result<Option<Found>, EngineError> {
        let record = self.by_key.get(key).and_then(|n| self.config.records.get(*n));
        let Some(record) = record else {
            return Ok(None);
        };
        let (chain, created) = self.config.chain(record).map_err(|e| damaged(&self.shown, e))?;
        let layers = chain.into_iter().map(|at| self.layer(at)).collect::<Result<Vec<_>, _>>()?;
        Ok((!layers.is_empty()).then(|| Found { path: self.path.clone(), shown: self.shown.clone(), layers, created }))
    }

    /// Descriptor and diff ID of a layer.
    fn layer(&self, at: usize) -> Result<(Descriptor, Digest), EngineError> {
        let layer = self.config.layers.get(at);
        let layer = layer.ok_or_else(|| damaged(&self.shown, "a layer is not there"))?;
        let blob = self.blobs.get(&layer.blob).ok_or_else(|| {
            let why = format!("its manifest does not name the layer {}", layer.blob);
            damaged(&self.shown, why)
        })?;
        let annotated = blob.annotations.get(DIFF_ID).and_then(|text| text.parse().ok());
        let diff_id = layer.annotations.as_ref().and_then(|a| a.diff_id).or(annotated);
        let diff_id =
            diff_id.ok_or_else(|| damaged(&self.shown, format!("the layer {} has no diff ID", layer.blob)))?;
        Ok((blob.clone(), diff_id))
    }
}

fn missing(path: &Path) -> EventKind {
    let short = format!("local cache import at {} not found", path.display());
    EventKind::Warning { text: format!("{short}: there is no index.json; the build goes on without it"), short }
}

fn parse(bytes: &[u8], shown: &str) -> Result<Document, EngineError> {
    Document::parse(bytes, "").map_err(|e| damaged(shown, e))
}

fn damaged(shown: &str, why: impl std::fmt::Display) -> EngineError {
    EngineError::Source(format!("{shown} is damaged: {why}; remove it to build without it"))
}

/// The bytes of a small blob of a layout, checked.
fn verified(path: &Path, shown: &str, blob: &Descriptor, max: u64) -> Result<Vec<u8>, EngineError> {
    let bytes = read_bounded(&layout_blob(path, blob.digest), max).map_err(|e| damaged(shown, chain_text(&e)))?;
    match Digest::of(&bytes) {
        found if found == blob.digest => Ok(bytes),
        found => {
            Err(StoreError::Digest { what: format!("a document of {shown}"), found, expected: blob.digest }.into())
        }
    }
}

/// An error with its cause.
fn chain_text(error: &EngineError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
