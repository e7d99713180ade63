//! Caches in directories: what one store wrote serves another.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use xbuild_cache::Packing;
use xbuild_engine::event::{Event, EventKind};
use xbuild_engine::request::{
    ContextInput, Destination, DockerfileInput, LocalCache, NoCache, Output, OutputKind, Provenance, Request,
};
use xbuild_engine::{Engine, EngineError};
use xbuild_graph::NetworkMode;
use xbuild_oci::Digest;
use xbuild_solver::Cancel;

type Done = Result<(), Box<dyn Error>>;

const TWO_STAGES: &str = "FROM scratch AS gen\nCOPY a /gen\nFROM scratch\nCOPY --from=gen /gen /gen\nCOPY b /b\n";

/// Names of steps, and what was said.
type Seen = (BTreeMap<u32, String>, Vec<String>);

/// A context with the files `a` and `b`, and room for stores and caches.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> std::io::Result<Self> {
        let place = Self(tempfile::tempdir()?);
        fs::create_dir(place.path("context"))?;
        fs::write(place.path("context/a"), "a")?;
        fs::write(place.path("context/b"), "b")?;
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn request(&self, dockerfile: &str) -> Request {
        Request {
            context: ContextInput::Directory(self.path("context")),
            dockerfile: DockerfileInput::Bytes(dockerfile.as_bytes().to_vec()),
            named_contexts: Vec::new(),
            tags: Vec::new(),
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            annotations: Vec::new(),
            platforms: Vec::new(),
            no_cache: NoCache::None,
            pull: false,
            network: NetworkMode::default(),
            allow: BTreeSet::new(),
            extra_hosts: Vec::new(),
            shm_size: None,
            ulimits: Vec::new(),
            cgroup_parent: String::new(),
            resources: Default::default(),
            secrets: BTreeMap::new(),
            ssh: BTreeMap::new(),
            outputs: Vec::new(),
            cache_to: Vec::new(),
            cache_from: Vec::new(),
            provenance: Provenance::Off,
            max_parallelism: 0,
            source_date_epoch: None,
            output_owner: None,
            docker_config: None,
        }
    }

    fn cache(&self, name: &str, all: bool) -> Vec<LocalCache> {
        vec![LocalCache { path: self.path(name), all }]
    }

    /// Builds on the store `store`; says which COPY steps had to run, and the warnings.
    fn build(&self, store: &str, request: &Request) -> Result<Vec<String>, EngineError> {
        let engine = Engine::open(&self.path(store), None, || (1_000_000, 0))?;
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let log = seen.clone();
        let sink = move |event: Event| {
            let Ok(mut log) = log.lock() else { return };
            match event.kind {
                EventKind::Named(name) => drop(log.0.insert(event.step.0, name)),
                EventKind::Started => {
                    let name = log.0.get(&event.step.0).cloned().unwrap_or_default();
                    if let Some((_, copy)) = name.split_once("COPY ") {
                        log.1.push(copy.to_owned());
                    }
                }
                EventKind::Warning { short, .. } => log.1.push(short),
                _ => {}
            }
        };
        engine.build(request, Arc::new(sink), &Cancel::new())?;
        let mut said = seen.lock().map(|log| log.1.clone()).unwrap_or_default();
        said.sort();
        Ok(said)
    }
}

fn blobs(cache: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(cache.join("blobs/sha256"))?;
    entries.map(|e| Ok(e?.path())).collect()
}

fn output(kind: OutputKind) -> Vec<Output> {
    vec![Output {
        kind,
        names: Vec::new(),
        packing: Packing::Gzip(6),
        force_compression: false,
        oci_media_types: None,
        rewrite_timestamp: false,
        annotations: BTreeMap::new(),
        platform_split: None,
    }]
}

fn none() -> Vec<String> {
    Vec::new()
}

#[test]
fn an_empty_store_is_served() -> Done {
    let place = Place::new()?;
    let mut first = place.request(TWO_STAGES);
    first.cache_to = place.cache("cache", true);
    let ran = place.build("one", &first)?;
    assert_eq!(ran, ["--from=gen /gen /gen", "a /gen", "b /b"]);

    let mut second = place.request(TWO_STAGES);
    second.cache_from = place.cache("cache", false);
    second.outputs = output(OutputKind::Local { dest: place.path("out"), delete: false });
    assert_eq!(place.build("two", &second)?, none());
    assert_eq!(fs::read_to_string(place.path("out/gen"))?, "a");
    assert_eq!(fs::read_to_string(place.path("out/b"))?, "b");
    // From now on the store has it.
    second.cache_from.clear();
    assert_eq!(place.build("two", &second)?, none());
    Ok(())
}

#[test]
fn max_has_every_stage_and_passes_on_what_it_did_not_need() -> Done {
    let place = Place::new()?;
    let mut first = place.request(TWO_STAGES);
    first.cache_to = place.cache("max", true);
    first.cache_to.extend(place.cache("min", false));
    place.build("one", &first)?;
    // A build that hits at its end and never looks at the first stage.
    let mut second = place.request(TWO_STAGES);
    second.cache_from = place.cache("max", false);
    second.cache_to = place.cache("again", true);
    second.cache_to.extend(place.cache("max", true));
    assert_eq!(place.build("two", &second)?, none());

    let other = TWO_STAGES.replace("/gen /gen", "/gen /other");
    for (cache, ran) in [
        ("max", &["--from=gen /gen /other", "b /b"][..]),
        ("again", &["--from=gen /gen /other", "b /b"]),
        ("min", &["--from=gen /gen /other", "a /gen", "b /b"]),
    ] {
        let mut third = place.request(&other);
        third.cache_from = place.cache(cache, false);
        assert_eq!(place.build(&format!("three-{cache}"), &third)?, ran, "{cache}");
    }
    Ok(())
}

#[test]
fn a_cache_does_not_grow() -> Done {
    let place = Place::new()?;
    let mut request = place.request(TWO_STAGES);
    request.cache_to = place.cache("cache", true);
    place.build("one", &request)?;
    let before = blobs(&place.path("cache"))?.len();
    for n in 0..3 {
        fs::write(place.path("context/b"), format!("changed {n}"))?;
        place.build("one", &request)?;
        assert_eq!(blobs(&place.path("cache"))?.len(), before);
    }
    Ok(())
}

#[test]
fn a_base_image_comes_from_the_cache() -> Done {
    let place = Place::new()?;
    let mut base = place.request("FROM scratch\nCOPY a /base\n");
    base.outputs = output(OutputKind::Oci { dest: Destination::Path(place.path("base")), tar: false });
    place.build("zero", &base)?;
    let named = ("base".to_owned(), format!("oci-layout://{}", place.path("base").display()));
    let mut first = place.request("FROM base\nCOPY b /b\n");
    first.named_contexts = vec![named.clone()];
    first.cache_to = place.cache("cache", true);
    assert_eq!(place.build("one", &first)?, ["b /b"]);
    let mut second = place.request("FROM base\nCOPY b /other\n");
    second.named_contexts = vec![named.clone()];
    second.cache_from = place.cache("cache", false);
    assert_eq!(place.build("two", &second)?, ["b /other"]);
    first.cache_to.clear();
    first.cache_from = place.cache("cache", false);
    assert_eq!(place.build("three", &first)?, none());

    // A cache that calls the result of the COPY the base: it is not believed.
    change_config(&place.path("cache"), |config| {
        let records = config["records"].as_array_mut().into_iter().flatten();
        for result in records.filter_map(|r| r.get_mut("layers")) {
            result[0]["layer"] = 1.into();
        }
    })?;
    second.outputs = output(OutputKind::Local { dest: place.path("out"), delete: false });
    assert_eq!(place.build("four", &second)?, ["b /other"]);
    assert!(place.path("out/base").exists() && !place.path("out/b").exists());
    Ok(())
}

/// Changes the document of a cache, and every digest that leads to it.
fn change_config(cache: &Path, change: impl FnOnce(&mut Value)) -> Done {
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        cache.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    };
    let read = |path: &Path| Ok::<Value, Box<dyn Error>>(serde_json::from_slice(&fs::read(path)?)?);
    let write = |value: &Value, descriptor: &mut Value| {
        let bytes = value.to_string().into_bytes();
        descriptor["digest"] = Digest::of(&bytes).to_string().into();
        descriptor["size"] = bytes.len().into();
        fs::write(blob(descriptor), bytes)
    };
    let mut index = read(&cache.join("index.json"))?;
    let mut manifest = read(&blob(&index["manifests"][0]))?;
    let mut config = read(&blob(&manifest["config"]))?;
    change(&mut config);
    write(&config, &mut manifest["config"])?;
    write(&manifest, &mut index["manifests"][0])?;
    Ok(fs::write(cache.join("index.json"), index.to_string())?)
}

#[test]
fn a_missing_cache_is_said_and_a_damaged_one_refused() -> Done {
    let place = Place::new()?;
    let mut request = place.request(TWO_STAGES);
    request.cache_from = place.cache("nowhere", false);
    let said = place.build("one", &request)?.join("\n");
    assert!(said.contains("local cache import at") && said.contains("nowhere not found"), "{said}");

    request.cache_from.clear();
    request.cache_to = place.cache("cache", true);
    place.build("one", &request)?;
    request.cache_to.clear();
    request.cache_from = place.cache("cache", false);
    let mut refused = 0;
    for (n, blob) in blobs(&place.path("cache"))?.into_iter().enumerate() {
        let bytes = fs::read(&blob)?;
        fs::write(&blob, vec![b'x'; bytes.len()])?;
        match place.build(&format!("damaged-{n}"), &request) {
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("the cache `"), "{text}");
                refused += 1;
            }
            // A layer that this target does not need.
            Ok(said) => assert_eq!(said, none()),
        }
        fs::write(&blob, bytes)?;
    }
    // Manifest, configuration, two layers.
    assert!(refused >= 4, "{refused}");
    Ok(())
}
