//! Writing a cache: which steps it holds, their layers packed, the document.

use super::document::{self, CacheConfig, CacheInput, CacheLayer, CacheRecord, CacheResult, LayerAnnotations};
use super::import::{Found, Imports};
use super::layout::Layout;
use super::{CREATED, DIFF_ID};
use crate::EngineError;
use crate::event::{EventKind, Events, StepId};
use crate::export::StoreLayers;
use crate::image::layout_blob;
use crate::request::LocalCache;
use crate::worker::Output;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use xbuild_cache::{Packing, Store, Tree, TreeId};
use xbuild_exporter::layers::{self, Layer, LayerOptions};
use xbuild_exporter::{Content, Item, archive, image};
use xbuild_graph::{Graph, VertexId};
use xbuild_oci::{Descriptor, Digest, Manifest, MediaType};
use xbuild_solver::Solved;

/// New layers are packed as BuildKit packs them; layers that are there in another packing stay so.
const OPTIONS: LayerOptions = LayerOptions { packing: Packing::Gzip(6), force: false, clamp: None, oci: true };

/// Writes the caches of one build.
pub(crate) struct Saver<'a> {
    pub(crate) store: &'a Store,
    pub(crate) graph: &'a Graph,
    pub(crate) solved: &'a Solved<Output>,
    /// Caches that were read: what they have and this build did not bring is passed on.
    pub(crate) imports: &'a Imports,
    pub(crate) events: &'a Events,
}

/// What a step made, before anything is packed.
enum Made {
    /// Layers of the store, the lowest first, and when they were made.
    Trees(Vec<Tree>, Option<String>),
    /// Layers of another cache.
    Imported(Found),
}

/// What a step made, ready to be written.
struct Step {
    layers: Vec<Layer>,
    created: Option<String>,
}

/// Steps whose results are written.
type Steps = BTreeMap<VertexId, Step>;

impl Saver<'_> {
    /// Writes the results of this build to a directory.
    pub(crate) fn save(&self, cache: &LocalCache) -> Result<(), EngineError> {
        self.events.step("exporting cache to client directory", |step| {
            self.note(step, "preparing build cache for export");
            let steps = self.pack(self.made(cache.all)?, cache.all)?;
            if steps.is_empty() {
                self.note(step, "skipping cache export for empty result");
                return Ok(());
            }
            self.write(cache, &steps, step)
        })
    }

    fn note(&self, step: StepId, text: &str) {
        self.events.send(step, EventKind::Note(text.to_owned()));
    }

    /// What is known of the results of all steps; without `all` only of those that are part of a target's layers.
    fn made(&self, all: bool) -> Result<BTreeMap<VertexId, Made>, EngineError> {
        let targets = self.target_trees()?;
        let mut made = BTreeMap::new();
        for id in self.graph.in_order() {
            let Some(result) = self.made_by(id)? else {
                continue;
            };
            let wanted = match &result {
                Made::Trees(trees, _) => trees.last().is_some_and(|t| all || targets.contains(&t.id)),
                Made::Imported(_) => true,
            };
            if wanted {
                made.insert(id, result);
            }
        }
        Ok(made)
    }

    fn target_trees(&self) -> Result<BTreeSet<TreeId>, EngineError> {
        let mut trees = BTreeSet::new();
        for output in &self.solved.outputs {
            if let Output::Tree(tree) = output {
                trees.extend(self.store.layers(*tree)?.into_iter().map(|t| t.id));
            }
        }
        Ok(trees)
    }

    /// The result of a step: of this build, else what is recorded under its key here or in a cache.
    fn made_by(&self, id: VertexId) -> Result<Option<Made>, EngineError> {
        let Some(key) = self.solved.keys.get(id.index()).copied().flatten() else {
            return Ok(None);
        };
        let record = self.store.find_made(&key.0)?;
        let created = record.map(|(_, ms)| time(ms));
        let tree = match self.solved.results.get(id.index()) {
            Some(Some(Output::Tree(tree))) => Some(*tree),
            _ => record.map(|(tree, _)| tree),
        };
        // A tree that was collected meanwhile is no result.
        let trees = tree.and_then(|tree| self.store.layers(tree).ok());
        if let Some(trees) = trees {
            return Ok(Some(Made::Trees(trees, created)));
        }
        Ok(self.imports.find(&key.0)?.map(Made::Imported))
    }

    /// Packs every layer once. Without `all`, what is only in another cache must be part of a target, too.
    fn pack(&self, made: BTreeMap<VertexId, Made>, all: bool) -> Result<Steps, EngineError> {
        let mut trees: BTreeMap<TreeId, Tree> = BTreeMap::new();
        for made in made.values() {
            if let Made::Trees(layers, _) = made {
                trees.extend(layers.iter().map(|t| (t.id, t.clone())));
            }
        }
        let trees: Vec<Tree> = trees.into_values().collect();
        let packed = layers::prepare(self.store, &StoreLayers(self.store), &trees, OPTIONS)?;
        let packed: HashMap<TreeId, Layer> = trees.iter().map(|t| t.id).zip(packed).collect();
        let (mut steps, mut elsewhere, mut here) = (Steps::new(), Vec::new(), BTreeSet::new());
        for (id, made) in made {
            match made {
                Made::Trees(trees, created) => {
                    let layers = trees.iter().filter_map(|t| packed.get(&t.id).cloned());
                    let layers: Vec<Layer> = layers.collect();
                    here.extend(chain_ids(layers.iter().map(|l| l.diff_id)));
                    steps.insert(id, Step { layers, created });
                }
                Made::Imported(found) => elsewhere.push((id, found)),
            }
        }
        for (id, found) in elsewhere {
            let part = found.chain_id().is_some_and(|chain| here.contains(&chain));
            if (all || part)
                && let Some(step) = passed_on(found)
            {
                steps.insert(id, step);
            }
        }
        Ok(steps)
    }

    /// Writes layers, document and manifest, and then the index that names them.
    fn write(&self, cache: &LocalCache, steps: &Steps, step: StepId) -> Result<(), EngineError> {
        let mut writer = Document::default();
        let links = self.links(steps);
        for id in self.graph.in_order() {
            if links.contains(&id) {
                let record = self.record(id, steps.get(&id), &mut writer);
                writer.add(id, record);
            }
        }
        let bytes = writer.config.encode().map_err(|e| EngineError::Internal(e.to_string()))?;
        let config = Item::of(document::MEDIA_TYPE, bytes);
        let manifest = Item::of(
            MediaType::OCI_MANIFEST,
            image::json(&Manifest {
                schema_version: 2,
                media_type: MediaType::OCI_MANIFEST.to_owned(),
                config: config.descriptor.clone(),
                layers: writer.items.iter().map(|i| i.descriptor.clone()).collect(),
                annotations: BTreeMap::new(),
            }),
        );
        let layout = Layout::open(&cache.path)?;
        for item in writer.items.iter().chain([&config, &manifest]) {
            layout
                .put(&item.descriptor, |out| archive::write_content(item, self.store, &StoreLayers(self.store), out))?;
        }
        layout.publish(&manifest.descriptor)?;
        self.note(step, &format!("writing cache image manifest {} done", manifest.digest()));
        Ok(())
    }

    /// Steps that get a record: those with results, and everything that they were made from.
    fn links(&self, steps: &Steps) -> BTreeSet<VertexId> {
        let mut links = BTreeSet::new();
        let mut open: Vec<VertexId> = steps.keys().copied().collect();
        while let Some(id) = open.pop() {
            if links.insert(id) {
                open.extend(self.graph[id].inputs.iter().map(|e| e.vertex));
            }
        }
        links
    }

    /// The record of a step whose inputs have theirs. A local directory has no key: it is named by its vertex.
    fn record(&self, id: VertexId, step: Option<&Step>, document: &mut Document) -> CacheRecord {
        let vertex = &self.graph[id];
        let key = self.solved.keys.get(id.index()).copied().flatten();
        let digest = key.map_or(vertex.digest.0, |key| key.0);
        let inputs = vertex.inputs.iter().map(|edge| {
            let link = document.records.get(&edge.vertex).copied();
            link.map(|link| vec![CacheInput { selector: String::new(), link }])
        });
        let inputs = inputs.collect();
        let top = step.and_then(|step| document.stack(step));
        let result = |layer| CacheResult { layer, created_at: step.and_then(|s| s.created.clone()) };
        CacheRecord {
            digest: Digest::from_bytes(digest).to_string(),
            inputs,
            results: top.map(result).into_iter().collect(),
            chains: Vec::new(),
        }
    }
}

/// The document while it grows.
#[derive(Default)]
struct Document {
    config: CacheConfig,
    /// Positions of records.
    records: HashMap<VertexId, usize>,
    /// Positions of layers, by what is below and their blob.
    layers: HashMap<(i64, Digest), usize>,
    /// Blobs, each once.
    items: Vec<Item>,
    known: BTreeSet<Digest>,
}

impl Document {
    fn add(&mut self, id: VertexId, record: CacheRecord) {
        self.records.insert(id, self.config.records.len());
        self.config.records.push(record);
    }

    /// Adds the layers of a step that are not there yet; the position of the topmost.
    fn stack(&mut self, step: &Step) -> Option<usize> {
        let mut top = None;
        for layer in &step.layers {
            let parent = top.and_then(|n| i64::try_from(n).ok()).unwrap_or(-1);
            let known = self.layers.get(&(parent, layer.item.digest())).copied();
            top = Some(known.unwrap_or_else(|| self.layer(parent, layer, step.created.clone())));
        }
        top
    }

    fn layer(&mut self, parent: i64, layer: &Layer, created_at: Option<String>) -> usize {
        let at = self.config.layers.len();
        let blob = &layer.item.descriptor;
        self.layers.insert((parent, blob.digest), at);
        if self.known.insert(blob.digest) {
            let mut item = layer.item.clone();
            let created = created_at.clone().map(|text| (CREATED.to_owned(), text));
            let diff_id = (DIFF_ID.to_owned(), layer.diff_id.to_string());
            item.descriptor.annotations = created.into_iter().chain([diff_id]).collect();
            self.items.push(item);
        }
        self.config.layers.push(CacheLayer {
            blob: blob.digest,
            parent,
            annotations: Some(LayerAnnotations {
                media_type: blob.media_type.clone(),
                diff_id: Some(layer.diff_id),
                size: blob.size,
                created_at,
            }),
        });
        at
    }
}

/// A result of another cache, unless it lost a blob.
fn passed_on(found: Found) -> Option<Step> {
    let layer = |(descriptor, diff_id): (Descriptor, Digest)| {
        let path = layout_blob(&found.path, descriptor.digest);
        let whole = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() == descriptor.size);
        let item = Item { descriptor, content: Content::File(path) };
        whole.then_some(Layer { diff_id, item })
    };
    let layers = found.layers.into_iter().map(layer).collect::<Option<Vec<_>>>()?;
    Some(Step { layers, created: found.created })
}

/// Chain IDs of a stack of layers.
fn chain_ids(diff_ids: impl Iterator<Item = Digest>) -> impl Iterator<Item = Digest> {
    diff_ids.scan(None, |below, diff_id| {
        let chain = Digest::chain(*below, diff_id);
        *below = Some(chain);
        Some(chain)
    })
}

/// Milliseconds since 1970 as text.
fn time(ms: i64) -> String {
    let nanos = u32::try_from(ms.rem_euclid(1000)).unwrap_or(0) * 1_000_000;
    crate::time::rfc3339(ms.div_euclid(1000), nanos)
}
