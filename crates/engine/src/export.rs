//! Results → outputs.

use crate::event::{EventKind, Events, StepId};
use crate::request::{Destination, Output, OutputKind, Provenance, Request};
use crate::{EngineError, WholeFile, push};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use xbuild_cache::tree::{self, Ids, Marks, Node, TarOptions, Time, View};
use xbuild_cache::{Packing, Store, Tree, TreeId};
use xbuild_exporter::image::{Annotations, Bundle, Image};
use xbuild_exporter::layers::{self, LayerOptions, LayerTar};
use xbuild_exporter::{Content, Item, archive};
use xbuild_graph::Platform;
use xbuild_oci::{Digest, ImageConfig};

/// One platform's result.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    pub(crate) platform: Platform,
    pub(crate) tree: TreeId,
    pub(crate) config: ImageConfig,
    /// Statement about how it was made, if wanted.
    pub(crate) provenance: Option<serde_json::Value>,
}

/// Layer tars from a store's trees.
#[derive(Debug)]
pub(crate) struct StoreLayers<'a>(pub(crate) &'a Store);

impl LayerTar for StoreLayers<'_> {
    fn write_layer(&self, layer: &Tree, clamp: Option<i64>, mut out: &mut dyn Write) -> io::Result<()> {
        let options = TarOptions { clamp };
        let written = match layer.changes {
            // A copy or a layer of a base image is the same whatever it lies on.
            Some(_) => tree::write_layer(&layer.dirs, layer.marks, options, &mut out),
            None => {
                let below = self.0.dirs(layer.parent).map_err(io::Error::other)?;
                View::layers(&below, self.0.marks())
                    .and_then(|base| tree::write_changes(&layer.dirs, layer.marks, &base, options, &mut out))
            }
        };
        written.map_err(io::Error::other)
    }
}

/// Writes outputs of one build.
pub(crate) struct Exporter<'a> {
    pub(crate) store: &'a Store,
    pub(crate) request: &'a Request,
    pub(crate) built: &'a [Built],
    pub(crate) events: &'a Events,
    pub(crate) pusher: push::Pusher<'a>,
}

/// What an output gave, for the metadata file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exported {
    /// Digest of the manifest or index.
    pub(crate) digest: Option<Item>,
    /// Digest of the configuration, for one platform.
    pub(crate) config: Option<Digest>,
    pub(crate) names: Vec<String>,
}

impl Exporter<'_> {
    pub(crate) fn write(&self, output: &Output) -> Result<Exported, EngineError> {
        match &output.kind {
            OutputKind::CacheOnly => Ok(Exported::default()),
            OutputKind::Image { push, store } => self.image(output, *push, *store),
            OutputKind::Oci { dest, tar } => self.archive(output, dest, *tar, false),
            OutputKind::Docker { dest, tar } => self.archive(output, dest, *tar, true),
            OutputKind::Tar { dest } => self.step("exporting to client tarball", |_| self.tar(output, dest)),
            OutputKind::Local { dest, delete } => {
                self.step("exporting to client directory", |_| self.local(output, dest, *delete))
            }
        }
    }

    fn step<T>(&self, name: &str, work: impl FnOnce(StepId) -> Result<T, EngineError>) -> Result<T, EngineError> {
        self.events.step(name, work)
    }

    fn names(&self, output: &Output) -> Vec<String> {
        if output.names.is_empty() { self.request.tags.clone() } else { output.names.clone() }
    }

    /// Into the store under its names, and to the registry.
    fn image(&self, output: &Output, push: bool, keep: bool) -> Result<Exported, EngineError> {
        let names = self.names(output);
        if push && names.is_empty() {
            return Err(EngineError::Source("tag is needed when pushing to registry".into()));
        }
        let mut exported = Exported::default();
        if keep {
            exported = self.step("exporting to image", |step| self.keep(output, &names, step))?;
        }
        if push {
            exported = self.step("exporting to registry", |step| {
                let bundle = self.bundle(output, output.oci_media_types.unwrap_or(true), output.packing, step)?;
                self.store.sync()?;
                for name in &names {
                    self.events.send(step, EventKind::Note(format!("pushing manifest for {name}")));
                    self.pusher.push(name, &bundle, step)?;
                }
                Ok(summary(&bundle, names.clone()))
            })?;
        }
        Ok(exported)
    }

    /// Names an image in the store. Its layers stay trees: nothing is packed or copied.
    fn keep(&self, output: &Output, names: &[String], step: StepId) -> Result<Exported, EngineError> {
        let bundle = self.bundle(output, output.oci_media_types.unwrap_or(true), Packing::Plain, step)?;
        for item in bundle.items() {
            if let Content::Bytes(bytes) = &item.content {
                self.store.put_blob(bytes)?;
            }
        }
        for (image, built) in bundle.images.iter().zip(self.built) {
            if !output.rewrite_timestamp {
                self.store.set_manifest_tree(image.manifest.digest(), built.tree)?;
            }
        }
        if output.rewrite_timestamp {
            // Other bytes than those of the trees: they have to be kept as blobs.
            for item in bundle.items() {
                self.store_item(item)?;
            }
        }
        self.store.sync()?;
        self.store.name_image(names, bundle.root().digest())?;
        names.iter().for_each(|name| self.events.send(step, EventKind::Note(format!("naming to {name} done"))));
        Ok(summary(&bundle, names.to_vec()))
    }

    fn store_item(&self, item: &Item) -> Result<(), EngineError> {
        if self.store.has_blob(item.digest())?.is_some() {
            return Ok(());
        }
        let mut blob = self.store.write_blob()?;
        let path = self.store.blob_path(item.digest());
        archive::write_content(item, self.store, &StoreLayers(self.store), &mut blob)
            .map_err(|e| EngineError::io("write", &path, e))?;
        blob.finish(Some(item.digest()))?;
        Ok(())
    }

    fn archive(&self, output: &Output, dest: &Destination, tar: bool, docker: bool) -> Result<Exported, EngineError> {
        let name = if docker { "exporting to docker image format" } else { "exporting to oci image format" };
        self.step(name, |step| {
            let names = self.names(output);
            let oci = output.oci_media_types.unwrap_or(!docker);
            let bundle = self.bundle(output, oci, output.packing, step)?;
            if docker && bundle.images.len() > 1 {
                return Err(EngineError::Source(
                    "docker exporter does not currently support exporting manifest lists".into(),
                ));
            }
            let named = [archive::Named { bundle, names: names.clone() }];
            match (dest, tar) {
                (Destination::Path(path), false) => {
                    archive::write_directory(path, &named, docker, self.store, &StoreLayers(self.store))?
                }
                (dest, _) => {
                    let write = |out: &mut dyn Write| {
                        Ok(archive::write_tar(out, &named, docker, self.store, &StoreLayers(self.store))?)
                    };
                    to_destination(dest, write)?;
                }
            }
            let [archive::Named { bundle, .. }] = &named;
            self.events.send(step, EventKind::Note(format!("exporting manifest {} done", bundle.root().digest())));
            Ok(summary(bundle, names))
        })
    }

    /// Packs layers and assembles manifests of all platforms.
    fn bundle(&self, output: &Output, oci: bool, packing: Packing, step: StepId) -> Result<Bundle, EngineError> {
        self.events.send(step, EventKind::Note("exporting layers".into()));
        let clamp = self.request.source_date_epoch.filter(|_| output.rewrite_timestamp);
        let options = LayerOptions { packing, force: output.force_compression, clamp, oci };
        let attested = self.built.iter().any(|b| b.provenance.is_some());
        let mut images = Vec::new();
        for built in self.built {
            let annotations = annotations(self.request, output, &built.platform)?;
            let trees = self.store.layers(built.tree)?;
            let prepared = layers::prepare(self.store, &StoreLayers(self.store), &trees, options)?;
            // Annotations are OCI's; a manifest that has some is an OCI one.
            let oci = oci || !annotations.manifest.is_empty() || attested;
            let mut image = Image::new(built.config.clone(), prepared, oci, &annotations);
            if let Some(statement) = &built.provenance {
                let attached = crate::provenance::attach(&image, statement);
                image.attached.push(attached);
            }
            images.push(image);
        }
        let shared = annotations(self.request, output, &self.built[0].platform)?;
        let several = self.request.platforms.len() > 1 || !shared.index.is_empty();
        Ok(Bundle::new(images, oci || attested || !shared.index.is_empty(), several, &shared))
    }

    /// All files as one tar; those of several platforms in a directory each.
    fn tar(&self, output: &Output, dest: &Destination) -> Result<Exported, EngineError> {
        let clamp = self.request.source_date_epoch;
        let staging = self.store.staging()?;
        let view = match self.built {
            [built] if !self.split(output) => View::layers(&self.store.dirs(built.tree)?, self.store.marks())?,
            _ => {
                self.write_files(output, staging.path(), None)?;
                View::layers(&[staging.path()], Marks::Plain)?
            }
        };
        to_destination(dest, |mut out| Ok(tree::write_root(&view, clamp, &mut out)?))?;
        Ok(Exported::default())
    }

    fn local(&self, output: &Output, dest: &Path, delete: bool) -> Result<Exported, EngineError> {
        std::fs::create_dir_all(dest).map_err(|e| EngineError::io("make", dest, e))?;
        if delete {
            self.delete_others(output, dest)?;
        }
        self.write_files(output, dest, self.request.output_owner.map(|(uid, gid)| Ids { uid, gid }))?;
        Ok(Exported::default())
    }

    /// Copies the files of all platforms below `dest`: each into a directory of its own, or, if they are not split, all into
    /// `dest`, where no two may have a file of one name.
    fn write_files(&self, output: &Output, dest: &Path, owner: Option<Ids>) -> Result<(), EngineError> {
        let clamp = self.request.source_date_epoch.map(|seconds| Time { seconds, nanos: 0 });
        let split = self.split(output);
        let mut taken = BTreeMap::new();
        for built in self.built {
            let view = View::layers(&self.store.dirs(built.tree)?, self.store.marks())?;
            let mut target = dest.to_owned();
            if split {
                target.push(built.platform.directory());
                std::fs::create_dir_all(&target).map_err(|e| EngineError::io("make", &target, e))?;
            } else if self.built.len() > 1 {
                take_names(&view, &built.platform, &mut taken)?;
            }
            tree::export_to_directory(&view, &target, owner, clamp)?;
        }
        Ok(())
    }

    /// Removes below `dest` what the result does not have (`mode=delete`).
    fn delete_others(&self, output: &Output, dest: &Path) -> Result<(), EngineError> {
        let views = self.built.iter().map(|b| Ok(View::layers(&self.store.dirs(b.tree)?, self.store.marks())?));
        let views: Vec<View> = views.collect::<Result<_, EngineError>>()?;
        let roots = views.iter().map(|view| Ok((view, view.require("/", false)?)));
        let roots: Vec<(&View, Node)> = roots.collect::<Result<_, EngineError>>()?;
        if !self.split(output) {
            return keep_only(dest, &roots);
        }
        let places: Vec<String> = self.built.iter().map(|b| b.platform.directory()).collect();
        for (name, path, _) in entries(dest)? {
            match places.iter().position(|place| name == **place) {
                Some(n) => keep_only(&path, &roots[n..=n])?,
                None => remove(&path)?,
            }
        }
        Ok(())
    }

    fn split(&self, output: &Output) -> bool {
        output.platform_split.unwrap_or(self.request.platforms.len() > 1)
    }
}

/// Notes the files of a platform; a name that another one has is an error.
fn take_names(view: &View, platform: &Platform, taken: &mut BTreeMap<PathBuf, Platform>) -> Result<(), EngineError> {
    let mut open = vec![view.require("/", false)?];
    while let Some(directory) = open.pop() {
        for node in view.read_dir(&directory)? {
            if node.meta.is_dir() {
                open.push(node);
            } else if let Some(other) = taken.insert(node.path.clone(), platform.clone()) {
                let path = node.path.display();
                let why = format!("cannot overwrite {path} from {other} with {platform} when split option is disabled");
                return Err(EngineError::Source(why));
            }
        }
    }
    Ok(())
}

/// Removes from a directory what none of the `kept` directories has, or has as something else.
fn keep_only(directory: &Path, kept: &[(&View, Node)]) -> Result<(), EngineError> {
    let mut wanted: BTreeMap<OsString, Vec<(&View, Node)>> = BTreeMap::new();
    for (view, node) in kept {
        for child in view.read_dir(node)? {
            let name = child.path.file_name().unwrap_or_default().to_owned();
            wanted.entry(name).or_default().push((view, child));
        }
    }
    for (name, path, is_dir) in entries(directory)? {
        match wanted.get(&name) {
            Some(nodes) if nodes.iter().any(|(_, n)| n.meta.is_dir() != is_dir) => remove(&path)?,
            Some(nodes) if is_dir => keep_only(&path, nodes)?,
            Some(_) => {}
            None => remove(&path)?,
        }
    }
    Ok(())
}

/// Name, path, and whether it is a real directory.
fn entries(directory: &Path) -> Result<Vec<(OsString, PathBuf, bool)>, EngineError> {
    let failed = |e| EngineError::io("read", directory, e);
    let entry = |entry: io::Result<std::fs::DirEntry>| {
        let entry = entry.map_err(failed)?;
        Ok((entry.file_name(), entry.path(), entry.file_type().map_err(failed)?.is_dir()))
    };
    std::fs::read_dir(directory).map_err(failed)?.map(entry).collect()
}

fn remove(path: &Path) -> Result<(), EngineError> {
    let is_dir = path.symlink_metadata().is_ok_and(|m| m.is_dir());
    let removed = if is_dir { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    removed.map_err(|e| EngineError::io("remove", path, e))
}

fn summary(bundle: &Bundle, names: Vec<String>) -> Exported {
    let config = match bundle.images.as_slice() {
        [one] => Some(one.config.digest()),
        _ => None,
    };
    Exported { digest: Some(bundle.root().clone()), config, names }
}

/// Opens a file or standard output for one archive. A file appears whole or not at all.
fn to_destination(
    dest: &Destination,
    write: impl FnOnce(&mut dyn Write) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    match dest {
        Destination::Stdout => {
            let mut out = io::BufWriter::with_capacity(1 << 20, io::stdout().lock());
            write(&mut out)?;
            out.flush().map_err(|e| EngineError::io("write", Path::new("standard output"), e))
        }
        Destination::Path(path) => {
            let failed = |e| EngineError::io("write", path, e);
            let file = WholeFile::create(path, 0o666).map_err(failed)?;
            let mut out = io::BufWriter::with_capacity(1 << 20, file);
            write(&mut out)?;
            out.into_inner().map_err(|e| failed(e.into_error()))?.finish().map_err(failed)
        }
    }
}

/// Sorts `[level[platform]:]key=value` by level. A key may itself hold no colon before its `=`.
fn annotations(request: &Request, output: &Output, platform: &Platform) -> Result<Annotations, EngineError> {
    let own = output.annotations.iter().map(|(k, v)| format!("{k}={v}"));
    let mut out = Annotations::default();
    for text in request.annotations.iter().cloned().chain(own) {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| EngineError::Source(format!("invalid annotation \"{text}\": expected key=value")))?;
        let (levels, key) = key.rsplit_once(':').unwrap_or(("manifest", key));
        for level in levels.split(',') {
            let (level, only) = match level.split_once('[') {
                Some((level, only)) => (level, Some(only.trim_end_matches(']'))),
                None => (level, None),
            };
            if let Some(only) = only {
                let only =
                    Platform::parse(only).map_err(|e| EngineError::Source(format!("annotation \"{text}\": {e}")))?;
                if only != *platform {
                    continue;
                }
            }
            let map: &mut BTreeMap<String, String> = match level {
                "manifest" => &mut out.manifest,
                "index" => &mut out.index,
                "manifest-descriptor" => &mut out.manifest_descriptor,
                "index-descriptor" => &mut out.index_descriptor,
                other => {
                    return Err(EngineError::Source(format!("unknown annotation type \"{other}\" in \"{text}\"")));
                }
            };
            map.insert(key.to_owned(), value.to_owned());
        }
    }
    Ok(out)
}

/// `--provenance=false` and friends.
pub(crate) fn wants_provenance(request: &Request) -> bool {
    request.provenance != Provenance::Off
}
