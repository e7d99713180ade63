//! The hot paths of a build, each as one function over an input that is made beforehand.
//!
//! `benches/time.rs` measures them with a clock, `benches/instructions.rs` by counting instructions. A cached rebuild is, in
//! this order: [`parse`], [`lower`], [`Context::digest`], [`solve`], [`Records::find`]; an export is [`Context::layer`] and [`pack`].

use std::convert::Infallible;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;
use xbuild_cache::tree::{Marks, NoDigests, StatIndex, TarOptions, View, write_layer};
use xbuild_cache::{NewRecord, Packing, Store, TreeId};
use xbuild_exporter::PackWriter;
use xbuild_frontend::{
    ImageRequest, MainContext, NamedContext, Options, Parsed, Plan, ResolveError, ResolvedImage, Resolver, SourceFile,
    ignore,
};
use xbuild_graph::{Graph, ImageSource, LocalSource, Platform, VertexId};
use xbuild_oci::{Document, ImageConfig, Reference};
use xbuild_solver::{CacheKey, Cancel, Limits, Task, Worker};

/// A Dockerfile of `stages` stages with `steps` steps each, and one that takes something of each.
pub fn dockerfile(stages: usize, steps: usize) -> String {
    let mut text = String::from("ARG VERSION=1\n");
    for stage in 0..stages {
        text += &format!("FROM base:${{VERSION}} AS s{stage}\nENV NAME=s{stage} OTHER=\"$VERSION and more\"\n");
        for step in 0..steps {
            text += &match step % 3 {
                0 => format!("COPY --chown=1:2 f{step}.txt /n{step}\n"),
                1 => format!("RUN --mount=type=cache,target=/c echo ${{NAME:-none}} {step} && true\n"),
                _ => format!("RUN <<EOF\necho {step}\necho more\nEOF\n"),
            };
        }
    }
    text += "FROM base\n";
    (0..stages).for_each(|stage| text += &format!("COPY --from=s{stage} /n0 /all/\n"));
    text
}

/// Text to tree.
pub fn parse(text: &str) -> Parsed {
    xbuild_frontend::parse(&SourceFile::new("Dockerfile", text.as_bytes().to_vec()))
}

/// Tree to graph.
pub fn lower(parsed: &Parsed) -> Plan {
    let options = Options::new(Platform::new("linux", "amd64", None));
    xbuild_frontend::lower(parsed, &options, &AnyImage).expect("the text is right")
}

/// Every image is there.
struct AnyImage;

impl Resolver for AnyImage {
    fn images(&self, requests: &[ImageRequest]) -> Vec<Result<ResolvedImage, ResolveError>> {
        let image = |request: &ImageRequest| ResolvedImage {
            source: ImageSource {
                reference: request.reference.clone(),
                manifest: String::new(),
                chain_id: request.reference.clone(),
                origin: String::new(),
                platform: Some(request.platform.clone()),
            },
            config: ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() },
        };
        requests.iter().map(|request| Ok(image(request))).collect()
    }

    fn named_context(&self, _: &str, _: &Platform) -> Result<Option<NamedContext>, ResolveError> {
        Ok(None)
    }

    fn main_context(&self) -> MainContext {
        MainContext::Local(LocalSource { name: "context".into(), excludes: Vec::new() })
    }
}

/// Answers at once that everything is recorded; leaves the solver's own work.
struct AllRecorded;

impl Worker for AllRecorded {
    type Output = u32;
    type Error = Infallible;

    fn source_key(&self, graph: &Graph, vertex: VertexId) -> Result<CacheKey, Infallible> {
        Ok(CacheKey(graph[vertex].op_digest.0))
    }

    fn local_digests(&self, graph: &Graph, vertex: VertexId) -> Result<Vec<Option<CacheKey>>, Infallible> {
        Ok(vec![Some(CacheKey([7; 32])); graph[vertex].inputs.len()])
    }

    fn find(&self, _: &Graph, _: VertexId, _: CacheKey) -> Result<Option<u32>, Infallible> {
        Ok(Some(1))
    }

    fn find_by_inputs(&self, _: &Graph, _: VertexId, _: CacheKey, _: &[u32]) -> Result<Option<u32>, Infallible> {
        Ok(Some(1))
    }

    fn run(&self, _: Task<'_, u32>) -> Result<u32, Infallible> {
        Ok(1)
    }
}

/// A graph whose results are all recorded.
pub fn solve(plan: &Plan) -> usize {
    let graph = Arc::new(plan.graph.clone());
    let targets: Vec<VertexId> = plan.images.iter().filter_map(|image| Some(image.result?.vertex)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime can be made");
    let limits = Limits { execs: 4, lookups: 1 };
    let solved = xbuild_solver::solve(graph, &targets, Arc::new(AllRecorded), limits, Cancel::new(), &|_, _| {});
    runtime.block_on(solved).expect("everything is recorded").outputs.len()
}

/// A directory of files, a hundred to a directory, and what is remembered of it.
pub struct Context {
    dir: TempDir,
    index: Option<StatIndex>,
}

impl Context {
    /// Makes `files` files of `size` bytes; with an index that knows them if `known`.
    pub fn new(files: usize, size: usize, known: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        for n in 0..files {
            let folder = dir.path().join(format!("tree/d{}", n / 100));
            std::fs::create_dir_all(&folder).expect("a directory can be made");
            let content: Vec<u8> = (0..size).map(|at| (at * n % 251) as u8).collect();
            std::fs::write(folder.join(format!("file-{n}.txt")), content).expect("a file can be written");
        }
        let mut context = Self { dir, index: None };
        if known {
            // What changed just now is not remembered.
            std::thread::sleep(std::time::Duration::from_millis(150));
            let path = context.dir.path().join("index");
            let index = StatIndex::open(&path).expect("an index can be opened");
            context.view().digest("/", true, &index).expect("the directory can be read");
            index.save().expect("an index can be written");
            context.index = Some(StatIndex::open(&path).expect("an index can be opened"));
        }
        context
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn view(&self) -> View {
        View::context(&self.tree(), None).expect("the directory is there")
    }

    /// Walks and hashes; files that are known are not read.
    pub fn digest(&self) -> [u8; 32] {
        let digest = match &self.index {
            Some(index) => self.view().digest("/", true, index),
            None => self.view().digest("/", true, &NoDigests),
        };
        digest.expect("the directory can be read")
    }

    /// The tar of a layer with these files; its size.
    pub fn layer(&self) -> usize {
        let mut tar = Vec::new();
        write_layer(&[self.tree()], Marks::Plain, TarOptions::default(), &mut tar).expect("the files can be read");
        tar.len()
    }
}

/// Bytes that compress about as well as program text.
pub fn text(size: usize) -> Vec<u8> {
    let line = |n: usize| format!("static int value_{:x} = {};\n", n.wrapping_mul(2_654_435_761) % 65_521, n % 97);
    (0..).flat_map(|n| line(n).into_bytes()).take(size).collect()
}

/// Compresses; the size that comes out.
pub fn pack(bytes: &[u8], packing: Packing) -> usize {
    let mut writer = PackWriter::new(Vec::new(), packing);
    writer.write_all(bytes).expect("memory can be written");
    writer.finish().expect("memory can be written").len()
}

/// Ignore rules as projects have them.
pub fn ignore_rules() -> ignore::Matcher {
    let text = "# rules\n.git\nnode_modules\n**/*.o\n**/target\n!keep/**\ndocs/*.md\n*.tmp\nbuild-*/\n";
    let rules = ignore::parse(text.as_bytes()).expect("the rules are right");
    ignore::Matcher::new(&rules).expect("the rules are right")
}

/// How many of a thousand paths the rules hide.
pub fn ignored(rules: &ignore::Matcher) -> usize {
    (0..1000)
        .filter(|n| rules.excluded(&format!("src/module-{}/deep/er/file-{n}.{}", n % 7, ["c", "o", "tmp"][n % 3])))
        .count()
}

/// A store with records.
pub struct Records {
    _dir: TempDir,
    store: Store,
    keys: Vec<[u8; 32]>,
}

impl Records {
    /// Makes `count` records.
    pub fn new(count: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let store = Store::open(&dir.path().join("root")).expect("a store can be made");
        let key = |n: u64| {
            let mut key = [0; 32];
            key.chunks_exact_mut(8)
                .for_each(|part| part.copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()));
            key
        };
        let keys: Vec<_> = (1..=count).map(key).collect();
        for key in &keys {
            let new = NewRecord {
                key: *key,
                op: *key,
                result_key: None,
                inputs: "",
                tree: TreeId::EMPTY,
                description: "RUN true",
                duration_ms: 1,
            };
            store.add_record(&new).expect("a record can be added");
        }
        Self { _dir: dir, store, keys }
    }

    /// Finds all of them.
    pub fn find(&self) -> usize {
        self.keys.iter().filter(|key| self.store.find_record(key).is_ok_and(|found| found.is_some())).count()
    }
}

/// References as people write them.
pub const REFERENCES: &[&str] = &[
    "alpine",
    "library/debian:bookworm-slim",
    "ghcr.io/owner/project/image:v1.2.3",
    "localhost:5000/a/b@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
];

/// Parses them all.
pub fn references() -> usize {
    REFERENCES.iter().filter(|text| text.parse::<Reference>().is_ok()).count()
}

/// A manifest of `layers` layers.
pub fn manifest(layers: usize) -> Vec<u8> {
    let digest = |n: usize| format!("sha256:{n:064x}");
    let layer = |n| serde_json::json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(n), "size": 1000 + n});
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(0), "size": 100},
        "layers": (1..=layers).map(layer).collect::<Vec<_>>(),
    });
    manifest.to_string().into_bytes()
}

/// Parses a manifest.
pub fn document(bytes: &[u8]) -> Document {
    Document::parse(bytes, "").expect("the manifest is right")
}
