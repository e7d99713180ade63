//! SLSA provenance, stored as BuildKit stores it: an in-toto statement as the only layer of a manifest beside the image's.

use crate::request::{Provenance, Request};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use xbuild_exporter::image::{Attached, Image, json as canonical};
use xbuild_exporter::{Content, Item};
use xbuild_graph::{Graph, Op, SourceOp};
use xbuild_oci::{Descriptor, Digest, ImageConfig, Manifest, MediaType, PlatformSpec};

/// Annotation of an attestation manifest's descriptor: digest of the manifest that it is about.
pub(crate) const SUBJECT: &str = "vnd.docker.reference.digest";
const PREDICATE: &str = "https://slsa.dev/provenance/v1";

/// The predicate about one build. Secrets are named at most; passwords of addresses are left out.
pub(crate) fn predicate(request: &Request, graph: &Graph, dockerfile: &str, started: &str, finished: &str) -> Value {
    let mut arguments = json!({});
    for (name, value) in &request.build_args {
        arguments[format!("build-arg:{name}")] = json!(crate::git::redacted(value));
    }
    let mut parameters = json!({"frontend": "dockerfile.v0", "args": arguments, "locals": [{"name": "context"}, {"name": "dockerfile"}]});
    if let Some(target) = &request.target {
        parameters["args"]["target"] = json!(target);
    }
    let secrets: Vec<Value> = request.secrets.keys().map(|id| json!({"id": id, "optional": true})).collect();
    if !secrets.is_empty() {
        parameters["secrets"] = json!(secrets);
    }
    let mut definition = json!({
        "buildType": "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md",
        "externalParameters": {"configSource": {"path": dockerfile}, "request": parameters},
        "internalParameters": {"builderPlatform": xbuild_graph::Platform::host().to_string()},
        "resolvedDependencies": dependencies(graph),
    });
    if request.provenance == Provenance::Max {
        definition["internalParameters"]["buildConfig"] = json!({"llbDefinition": steps(graph)});
    }
    json!({
        "buildDefinition": definition,
        "runDetails": {
            "builder": {"id": ""},
            "metadata": {
                "startedOn": started,
                "finishedOn": finished,
                "buildkit_completeness": {"request": true, "resolvedDependencies": false},
            },
        },
    })
}

fn dependencies(graph: &Graph) -> Vec<Value> {
    let of = |op: &Op| match op {
        Op::Source(SourceOp::Image(image)) => {
            let digest = image.manifest.trim_start_matches("sha256:");
            Some(json!({"uri": format!("pkg:docker/{}", image.reference), "digest": {"sha256": digest}}))
        }
        Op::Source(SourceOp::Git(git)) => Some(json!({"uri": crate::git::redacted(&git.remote)})),
        Op::Source(SourceOp::Http(http)) => Some(json!({"uri": crate::git::redacted(&http.url)})),
        _ => None,
    };
    graph.in_order().into_iter().filter_map(|id| of(&graph[id].op)).collect()
}

fn steps(graph: &Graph) -> Vec<Value> {
    let one = |id| {
        let vertex = &graph[id];
        let inputs: Vec<String> =
            vertex.inputs.iter().map(|e| format!("step{}:{}", e.vertex.index(), e.output)).collect();
        json!({"id": format!("step{}", id.index()), "name": crate::git::redacted(&vertex.meta.name), "inputs": inputs})
    };
    graph.in_order().into_iter().map(one).collect()
}

/// Makes the manifest that carries the statement about `image`.
pub(crate) fn attach(image: &Image, predicate: &Value) -> Attached {
    let subject = image.manifest.digest();
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": PREDICATE,
        "subject": [{"name": "_", "digest": {"sha256": subject.hex()}}],
        "predicate": predicate,
    });
    let bytes = canonical(&statement);
    let mut layer = Descriptor::of(MediaType::IN_TOTO, &bytes);
    layer.annotations.insert("in-toto.io/predicate-type".into(), PREDICATE.into());
    let layer = Item { descriptor: layer, content: Content::Bytes(bytes) };
    let mut config = ImageConfig { architecture: "unknown".into(), os: "unknown".into(), ..ImageConfig::default() };
    config.rootfs.diff_ids = vec![layer.digest()];
    let config = Item::of(MediaType::OCI_CONFIG, canonical(&config));
    let manifest = Manifest {
        schema_version: 2,
        media_type: MediaType::OCI_MANIFEST.to_owned(),
        config: config.descriptor.clone(),
        layers: vec![layer.descriptor.clone()],
        annotations: BTreeMap::new(),
    };
    let mut manifest = Item::of(MediaType::OCI_MANIFEST, canonical(&manifest));
    manifest.descriptor.platform =
        Some(PlatformSpec { architecture: "unknown".into(), os: "unknown".into(), ..PlatformSpec::default() });
    manifest.descriptor.annotations = annotations(subject);
    Attached { manifest, items: vec![layer, config] }
}

/// The predicate that [`attach`] attached.
pub(crate) fn predicate_of(attached: &Attached) -> Option<Value> {
    let statement = attached.items.iter().find(|i| i.descriptor.media_type == MediaType::IN_TOTO)?;
    let Content::Bytes(bytes) = &statement.content else { return None };
    serde_json::from_slice::<Value>(bytes).ok()?.get("predicate").cloned()
}

fn annotations(subject: Digest) -> BTreeMap<String, String> {
    BTreeMap::from([
        (SUBJECT.to_owned(), subject.to_string()),
        ("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned()),
    ])
}
