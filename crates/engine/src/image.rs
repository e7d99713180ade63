//! Images from outside: found, verified, brought into the store and unpacked.

use crate::EngineError;
use crate::event::{EventKind, Events, StepId};
use crate::net::Net;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use xbuild_cache::tree::{self, Base, Limits, Marks, TreeError, View};
use xbuild_cache::{NewTree, Packing, Staging, Store, StoreError, TreeId};
use xbuild_frontend::ResolvedImage;
use xbuild_graph::{ImageSource, Platform};
use xbuild_oci::{Descriptor, Digest, Document, ImageConfig, Index, Manifest, Reference, Sha256Writer};
use xbuild_registry::RegistryError;
use xbuild_solver::Cancel;

/// Deepest nesting of indexes.
const MAX_NESTING: usize = 4;
/// Largest configuration.
const CONFIG_MAX: u64 = 8 << 20;
/// Most layers, as overlayfs and Docker have it.
pub(crate) const LAYERS_MAX: usize = 500;

/// Where an image's documents and blobs are.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// An OCI layout directory.
    Layout(PathBuf),
    /// A registry's repository.
    Registry(Reference),
    /// The store alone.
    Store,
}

impl Origin {
    /// The form kept in [`ImageSource::origin`].
    fn to_text(&self) -> String {
        match self {
            Self::Layout(path) => format!("layout:{}", path.display()),
            Self::Registry(reference) => format!("registry:{reference}"),
            Self::Store => "store:".to_owned(),
        }
    }

    fn parse(text: &str) -> Result<Self, EngineError> {
        match text.split_once(':') {
            Some(("layout", path)) => Ok(Self::Layout(PathBuf::from(path))),
            Some(("registry", name)) => {
                Ok(Self::Registry(name.parse().map_err(|e| EngineError::Internal(format!("origin: {e}")))?))
            }
            Some(("store", _)) => Ok(Self::Store),
            _ => Err(EngineError::Internal(format!("an image has the origin `{text}`"))),
        }
    }
}

/// Finds and fetches images.
#[derive(Clone, Debug)]
pub(crate) struct Images<'a> {
    pub(crate) store: &'a Store,
    pub(crate) net: &'a Net,
    pub(crate) runtime: &'a tokio::runtime::Handle,
    /// Ends what waits for a registry.
    pub(crate) cancel: &'a Cancel,
}

impl Images<'_> {
    /// Waits for a registry's answer, or for the end of the build.
    fn wait<T>(&self, answer: impl Future<Output = Result<T, RegistryError>>) -> Result<T, EngineError> {
        self.runtime.block_on(async {
            // Both arms are dropped whole: a blob that is left half-way is discarded by its owner.
            tokio::select! {
                answer = answer => Ok(answer?),
                () = self.cancel.wait() => Err(EngineError::Cancelled),
            }
        })
    }

    /// Resolves a name: first in the store, unless `fresh`, then in the registry.
    pub(crate) fn resolve(&self, name: &str, platform: &Platform, fresh: bool) -> Result<ResolvedImage, EngineError> {
        let reference: Reference =
            name.parse().map_err(|e: xbuild_oci::ReferenceError| EngineError::Source(e.to_string()))?;
        if !fresh && let Some(image) = self.store.image(&reference.to_string())? {
            return self.resolve_digest(&reference.to_string(), image.target, &Origin::Store, platform);
        }
        if let Some(digest) = reference.digest.filter(|_| !fresh)
            && self.store.has_blob(digest)?.is_some()
        {
            return self.resolve_digest(&reference.to_string(), digest, &Origin::Registry(reference), platform);
        }
        let fetched = self.wait(self.net.registry()?.manifest(&reference))?;
        let digest = self.store.put_blob(&fetched.bytes)?;
        Document::parse(&fetched.bytes, &fetched.media_type).map_err(|e| bad(name, &e))?;
        self.resolve_digest(&reference.to_string(), digest, &Origin::Registry(reference), platform)
    }

    /// Resolves an OCI layout, by tag, digest, or the only entry of its index.
    pub(crate) fn resolve_layout(
        &self,
        path: &Path,
        reference: Option<&str>,
        platform: &Platform,
    ) -> Result<ResolvedImage, EngineError> {
        let shown = format!("oci-layout://{}", path.display());
        let origin = Origin::Layout(path.to_owned());
        let bytes = read_bounded(&path.join("index.json"), Document::MAX_SIZE as u64)?;
        let Document::Index(index) = Document::parse(&bytes, "").map_err(|e| bad(&shown, &e))? else {
            return Err(EngineError::Source(format!("{shown}: index.json is not an index")));
        };
        let named = |d: &&Descriptor| match reference {
            None => true,
            Some(reference) if d.digest.to_string() == reference => true,
            Some(reference) => {
                let names = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
                names
                    .iter()
                    .filter_map(|n| d.annotations.get(*n))
                    .any(|n| n == reference || n.ends_with(&format!(":{reference}")))
            }
        };
        let entries: Vec<Descriptor> = index.manifests.iter().filter(named).cloned().collect();
        match entries.as_slice() {
            [] => Err(EngineError::Source(format!(
                "{shown}: nothing in its index is named `{}`",
                reference.unwrap_or("")
            ))),
            [one] => self.resolve_digest(&shown, one.digest, &origin, platform),
            several => {
                let index = Index { manifests: several.to_vec(), ..index };
                let chosen = choose(&index, platform).ok_or_else(|| no_match(&shown, platform))?;
                self.resolve_digest(&shown, chosen.digest, &origin, platform)
            }
        }
    }

    fn resolve_digest(
        &self,
        shown: &str,
        digest: Digest,
        origin: &Origin,
        platform: &Platform,
    ) -> Result<ResolvedImage, EngineError> {
        let mut digest = digest;
        for _ in 0..MAX_NESTING {
            let bytes = self.document(shown, digest, origin)?;
            match Document::parse(&bytes, "").map_err(|e| bad(shown, &e))? {
                Document::Index(index) => {
                    digest = choose(&index, platform).ok_or_else(|| no_match(shown, platform))?.digest;
                }
                Document::Manifest(manifest) => {
                    return self.resolve_manifest(shown, digest, &manifest, origin);
                }
            }
        }
        Err(EngineError::Source(format!("{shown}: its indexes are nested deeper than {MAX_NESTING}")))
    }

    fn resolve_manifest(
        &self,
        shown: &str,
        digest: Digest,
        manifest: &Manifest,
        origin: &Origin,
    ) -> Result<ResolvedImage, EngineError> {
        if manifest.config.size > CONFIG_MAX {
            return Err(EngineError::Source(format!("{shown}: its configuration has {} bytes", manifest.config.size)));
        }
        let bytes = self.config(shown, &manifest.config, origin)?;
        let config: ImageConfig = serde_json::from_slice(&bytes)
            .map_err(|e| EngineError::Source(format!("{shown}: its configuration cannot be read: {e}")))?;
        let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(EngineError::Source(format!(
                "{shown}: the manifest has {layers} layers, the configuration {diff_ids}"
            )));
        }
        if layers > LAYERS_MAX {
            return Err(EngineError::Source(format!(
                "{shown}: it has {layers} layers; at most {LAYERS_MAX} are taken"
            )));
        }
        let chain = config.rootfs.diff_ids.iter().fold(None, |below, id| Some(Digest::chain(below, *id)));
        let source = ImageSource {
            reference: shown.to_owned(),
            manifest: digest.to_string(),
            chain_id: chain.map(|c| c.to_string()).unwrap_or_default(),
            origin: origin.to_text(),
            platform: (!config.os.is_empty())
                .then(|| Platform::new(&config.os, &config.architecture, config.variant.as_deref())),
        };
        Ok(ResolvedImage { source, config })
    }

    /// A manifest or index, from the store or its origin; kept in the store.
    fn document(&self, shown: &str, digest: Digest, origin: &Origin) -> Result<Vec<u8>, EngineError> {
        self.small(shown, digest, || match origin {
            Origin::Layout(path) => read_bounded(&layout_blob(path, digest), Document::MAX_SIZE as u64),
            Origin::Registry(reference) => {
                let by_digest = Reference { tag: None, digest: Some(digest), ..reference.clone() };
                Ok(self.wait(self.net.registry()?.manifest(&by_digest))?.bytes)
            }
            Origin::Store => Err(EngineError::Source(format!("{shown}: {digest} is not in the store"))),
        })
    }

    /// A configuration, from the store or its origin; kept in the store.
    fn config(&self, shown: &str, config: &Descriptor, origin: &Origin) -> Result<Vec<u8>, EngineError> {
        self.small(shown, config.digest, || match origin {
            Origin::Layout(path) => read_bounded(&layout_blob(path, config.digest), CONFIG_MAX),
            Origin::Registry(reference) => {
                let mut bytes = Vec::new();
                let client = self.net.registry()?;
                self.wait(client.blob(reference, config, |chunk| bytes.write_all(chunk)))?;
                Ok(bytes)
            }
            Origin::Store => Err(EngineError::Source(format!("{shown}: {} is not in the store", config.digest))),
        })
    }

    fn small(
        &self,
        shown: &str,
        digest: Digest,
        fetch: impl FnOnce() -> Result<Vec<u8>, EngineError>,
    ) -> Result<Vec<u8>, EngineError> {
        if self.store.has_blob(digest)?.is_some()
            && let Ok(bytes) = self.store.read_blob(digest)
        {
            return Ok(bytes);
        }
        let bytes = fetch()?;
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(StoreError::Digest { what: format!("a document of {shown}"), found, expected: digest }.into());
        }
        self.store.put_blob(&bytes)?;
        Ok(bytes)
    }

    /// Brings all layers of an image into the store and unpacks them; layers that are there are not looked at again.
    pub(crate) fn unpack(&self, source: &ImageSource, events: &Events, step: StepId) -> Result<TreeId, EngineError> {
        let origin = Origin::parse(&source.origin)?;
        let digest: Digest = source.manifest.parse().map_err(|e| EngineError::Internal(format!("{e}")))?;
        let bytes = self.document(&source.reference, digest, &origin)?;
        let Ok(Document::Manifest(manifest)) = Document::parse(&bytes, "") else {
            return Err(EngineError::Internal(format!("{digest} is no manifest")));
        };
        if let Some(tree) =
            self.store.manifest_tree(digest)?.filter(|t| *t == TreeId::EMPTY || self.store.tree(*t).is_ok())
        {
            return Ok(tree);
        }
        let config = self.config(&source.reference, &manifest.config, &origin)?;
        let config: ImageConfig = serde_json::from_slice(&config).map_err(|e| EngineError::Internal(e.to_string()))?;
        let layers: Vec<(Descriptor, Digest)> = manifest.layers.into_iter().zip(config.rootfs.diff_ids).collect();
        self.unpack_layers(&layers, &origin, &source.reference, events, step)
    }

    /// Brings a chain of layers (blob and diff ID, the lowest first) into the store as a tree. `shown` names it in errors.
    pub(crate) fn unpack_layers(
        &self,
        layers: &[(Descriptor, Digest)],
        origin: &Origin,
        shown: &str,
        events: &Events,
        step: StepId,
    ) -> Result<TreeId, EngineError> {
        let (mut tree, mut known) = (TreeId::EMPTY, 0);
        let mut chain = None;
        for (_, diff_id) in layers {
            chain = Some(Digest::chain(chain, *diff_id));
            match chain.map(|c| self.store.tree_by_chain(c)).transpose()?.flatten() {
                Some(found) => (tree, known) = (found, known + 1),
                None => break,
            }
        }
        let job = Unpack { origin, shown, events, step, below: self.store.dirs(tree)? };
        let unpacked = self.unpack_all(&layers[known..], &job)?;
        for (staging, (_, diff_id)) in unpacked.into_iter().zip(&layers[known..]) {
            let new = NewTree { parent: Some(tree), diff_id: Some(*diff_id), ..NewTree::default() };
            tree = self.store.add_tree(Some(staging), &new)?;
        }
        Ok(tree)
    }

    /// Fetches and unpacks layers, several at once, each into a directory of its own.
    fn unpack_all(&self, layers: &[(Descriptor, Digest)], job: &Unpack<'_>) -> Result<Vec<Staging>, EngineError> {
        let next = AtomicUsize::new(0);
        let finished = Finished::new(layers.len());
        let threads = std::thread::available_parallelism().map_or(2, usize::from).max(2).min(layers.len());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((n, (layer, diff_id))) = nth(layers, &next) {
                        let result = self.unpack_one(layer, *diff_id, job, &|| {
                            finished.view_below(n, &job.below, self.store.marks())
                        });
                        if result.is_err() {
                            next.store(layers.len(), Ordering::Relaxed);
                        }
                        finished.set(n, result);
                    }
                });
            }
        });
        finished.into_results()
    }

    fn unpack_one(
        &self,
        layer: &Descriptor,
        diff_id: Digest,
        job: &Unpack<'_>,
        base: Base<'_>,
    ) -> Result<Staging, EngineError> {
        self.bring(layer, job.origin, job.shown, job.events, job.step)?;
        let path = self.store.blob_path(layer.digest);
        let file = std::fs::File::open(&path).map_err(|e| EngineError::io("open", &path, e))?;
        let (mut reader, packing) = decompressed(file).map_err(|e| EngineError::io("read", &path, e))?;
        let staging = self.store.staging()?;
        let target = staging.path().join("fs");
        std::fs::create_dir(&target).map_err(|e| EngineError::io("make", &target, e))?;
        let mut hashed = HashReader { inner: &mut reader, hash: Sha256Writer::new(std::io::sink()) };
        tree::unpack_layer(&mut hashed, &target, base, self.store.marks(), Limits::default())
            .map_err(|source| EngineError::Layer { layer: layer.digest, image: job.shown.to_owned(), source })?;
        std::io::copy(&mut hashed, &mut std::io::sink()).map_err(|e| EngineError::io("read", &path, e))?;
        let (_, found, _) = hashed.hash.finish();
        if found != diff_id {
            let what = format!("the unpacked layer {} of {}", layer.digest, job.shown);
            return Err(StoreError::Digest { what, found, expected: diff_id }.into());
        }
        // -100: packed by others, whatever level they took.
        let foreign = match packing {
            Packing::Gzip(_) => Packing::Gzip(-100),
            Packing::Zstd(_) => Packing::Zstd(-100),
            Packing::Plain => Packing::Plain,
        };
        self.store.remember_packing(diff_id, foreign, layer.digest, layer.size)?;
        Ok(staging)
    }

    /// Brings the blob of a layer into the store, verified.
    fn bring(
        &self,
        layer: &Descriptor,
        origin: &Origin,
        shown: &str,
        events: &Events,
        step: StepId,
    ) -> Result<(), EngineError> {
        if self.store.has_blob(layer.digest)?.is_some() {
            return Ok(());
        }
        let short: String = layer.digest.hex().chars().take(12).collect();
        let report = |current| {
            let kind = EventKind::Transfer { name: format!("sha256:{short}"), current, total: layer.size };
            events.send(step, kind);
        };
        let mut blob = self.store.write_blob()?;
        match origin {
            Origin::Registry(reference) => {
                let client = self.net.registry()?;
                let fetch = client.blob(reference, layer, |chunk| {
                    blob.write_all(chunk)?;
                    report(blob.size());
                    Ok(())
                });
                self.wait(fetch)?;
            }
            Origin::Layout(path) => {
                let from = layout_blob(path, layer.digest);
                let file = open_regular(&from)?;
                std::io::copy(&mut file.take(layer.size.saturating_add(1)), &mut blob)
                    .map_err(|e| EngineError::io("copy", &from, e))?;
                if blob.size() != layer.size {
                    return Err(EngineError::Source(format!(
                        "{shown}: the layer {} does not have the promised size of {} bytes",
                        layer.digest, layer.size
                    )));
                }
            }
            Origin::Store => {
                return Err(EngineError::Source(format!("{shown}: the layer {} is not in the store", layer.digest)));
            }
        }
        blob.finish(Some(layer.digest))?;
        Ok(())
    }
}

/// One image's unpacking.
struct Unpack<'a> {
    origin: &'a Origin,
    shown: &'a str,
    events: &'a Events,
    step: StepId,
    /// Directories of layers that were there already, top first.
    below: Vec<PathBuf>,
}

fn nth<'a, T>(items: &'a [T], next: &AtomicUsize) -> Option<(usize, &'a T)> {
    let n = next.fetch_add(1, Ordering::Relaxed);
    Some((n, items.get(n)?))
}

/// Layers that are done. Most do not look at those below; one that has a hard link to a lower layer waits for them.
struct Finished {
    results: Mutex<Vec<Option<Result<Staging, EngineError>>>>,
    changed: Condvar,
}

impl Finished {
    fn new(count: usize) -> Self {
        Self { results: Mutex::new((0..count).map(|_| None).collect()), changed: Condvar::new() }
    }

    fn set(&self, n: usize, result: Result<Staging, EngineError>) {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)[n] = Some(result);
        self.changed.notify_all();
    }

    /// The tree below layer `n`, once all of it is there. Lower layers were started before, so they end.
    fn view_below(&self, n: usize, below: &[PathBuf], marks: Marks) -> tree::Result<View> {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |r: &mut Vec<Option<Result<Staging, EngineError>>>| r[..n].iter().any(Option::is_none);
        let results = self.changed.wait_while(results, waiting).unwrap_or_else(PoisonError::into_inner);
        let mut dirs: Vec<PathBuf> = Vec::new();
        for result in results[..n].iter().rev().flatten() {
            match result {
                Ok(staging) => dirs.push(staging.path().join("fs")),
                Err(_) => {
                    return Err(TreeError::Archive(std::io::Error::other("a layer below could not be unpacked")));
                }
            }
        }
        dirs.extend_from_slice(below);
        View::layers(&dirs, marks)
    }

    fn into_results(self) -> Result<Vec<Staging>, EngineError> {
        let results = self.results.into_inner().unwrap_or_else(PoisonError::into_inner);
        let failed = |r: &Option<Result<Staging, EngineError>>| matches!(r, Some(Err(_)));
        let error_first = results.iter().position(failed);
        let mut staged = Vec::new();
        for (n, result) in results.into_iter().enumerate() {
            match result {
                Some(Err(error)) => return Err(error),
                Some(Ok(staging)) => staged.push(staging),
                None if error_first.is_some_and(|first| first > n) => {}
                None => return Err(EngineError::Internal("a layer was not unpacked".into())),
            }
        }
        Ok(staged)
    }
}

struct HashReader<'a> {
    inner: &'a mut dyn Read,
    hash: Sha256Writer<std::io::Sink>,
}

impl Read for HashReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.write_all(&buffer[..n])?;
        Ok(n)
    }
}

/// Tells the compression by the first bytes.
fn decompressed(file: std::fs::File) -> std::io::Result<(Box<dyn Read>, Packing)> {
    let mut file = std::io::BufReader::with_capacity(256 << 10, file);
    let head = std::io::BufRead::fill_buf(&mut file)?;
    Ok(match head {
        [0x1f, 0x8b, ..] => (Box::new(flate2::bufread::MultiGzDecoder::new(file)), Packing::Gzip(0)),
        // Some writers put frames first that are to be skipped.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::Decoder::with_buffer(file)?;
            // 128 MiB: a larger window is a bomb.
            decoder.window_log_max(27)?;
            (Box::new(decoder), Packing::Zstd(0))
        }
        _ => (Box::new(file), Packing::Plain),
    })
}

/// The manifest for a platform: an exact one before one that runs, never an attestation.
fn choose<'a>(index: &'a Index, platform: &Platform) -> Option<&'a Descriptor> {
    let real = |d: &&Descriptor| d.platform.as_ref().is_none_or(|p| p.os != "unknown");
    let fit = |d: &'a Descriptor| {
        let Some(spec) = &d.platform else {
            return Some((100, d));
        };
        let own = Platform::new(&spec.os, &spec.architecture, spec.variant.as_deref());
        platform.accepts(&own).map(|distance| (distance, d))
    };
    index.manifests.iter().filter(real).filter_map(fit).min_by_key(|(distance, _)| *distance).map(|(_, d)| d)
}

fn no_match(shown: &str, platform: &Platform) -> EngineError {
    EngineError::Source(format!("{shown}: no match for platform in manifest: {platform} not found"))
}

fn bad(shown: &str, error: &xbuild_oci::DocumentError) -> EngineError {
    EngineError::Source(format!("{shown}: {error}"))
}

pub(crate) fn layout_blob(path: &Path, digest: Digest) -> PathBuf {
    path.join("blobs/sha256").join(digest.hex())
}

/// Opens a file of a layout; a pipe or device there would hang the build.
fn open_regular(path: &Path) -> Result<std::fs::File, EngineError> {
    use std::os::unix::fs::OpenOptionsExt;
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = std::fs::File::options().read(true).custom_flags(nonblocking).open(path);
    let file = file.map_err(|e| EngineError::io("open", path, e))?;
    match file.metadata() {
        Ok(meta) if meta.is_file() => Ok(file),
        _ => Err(EngineError::Source(format!("`{}` is not a regular file", path.display()))),
    }
}

pub(crate) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, EngineError> {
    let meta = std::fs::metadata(path).map_err(|e| EngineError::io("open", path, e))?;
    if !meta.is_file() || meta.len() > max {
        return Err(EngineError::Source(format!("`{}` is not a file of at most {max} bytes", path.display())));
    }
    std::fs::read(path).map_err(|e| EngineError::io("read", path, e))
}
