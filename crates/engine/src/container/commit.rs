//! Images of what containers have changed, and of archives.

use crate::export::StoreLayers;
use crate::{Engine, EngineError};
use std::io::Write;
use std::path::Path;
use xbuild_cache::tree::{self, Limits, Marks, TarOptions, View};
use xbuild_cache::{NewTree, Packing, TreeId};
use xbuild_exporter::Content;
use xbuild_exporter::image::Image;
use xbuild_exporter::layers::{LayerOptions, prepare};
use xbuild_frontend as frontend;
use xbuild_graph::{ImageSource, Platform};
use xbuild_oci::{Digest, Empty, History, ImageConfig, RunConfig};
use xbuild_runner::container::Found;
use xbuild_runner::container::config::Container;

/// What `commit` is asked for.
#[derive(Clone, Debug, Default)]
pub struct CommitRequest {
    /// Full name of the image; none for one without.
    pub name: Option<String>,
    /// Remark.
    pub message: String,
    /// Who made it.
    pub author: String,
    /// Dockerfile instructions.
    pub changes: Vec<String>,
}

/// Instructions that `--change` takes.
const CHANGES: [&str; 11] = [
    "CMD",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "ONBUILD",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

impl Engine {
    /// Makes an image of a container's files and settings; gives its id. The caller has paused the container.
    pub fn commit(&self, found: &Found, request: &CommitRequest) -> Result<Digest, EngineError> {
        super::changes::overlaid(found)?;
        let container = &found.container;
        let parent = TreeId::from(container.tree);
        let tree = self.layer_of(&found.directory.join("fs"), parent)?;
        let manifest: Digest = container.manifest.parse().map_err(|error| EngineError::Internal(format!("{error}")))?;
        let mut config = self.config_of(manifest)?;
        config.config = changed(&settings(container), &request.changes)?;
        config.author = Some(request.author.clone()).filter(|author| !author.is_empty());
        config.created = Some(self.now());
        config.history.push(History {
            created: config.created.clone(),
            created_by: container.command().join(" "),
            author: request.author.clone(),
            comment: request.message.clone(),
            empty_layer: false,
        });
        self.keep_image(config, tree, request.name.as_deref())
    }

    /// What is at an http or https address.
    pub fn download(&self, address: &str) -> Result<std::fs::File, EngineError> {
        let file = self.runtime()?.block_on(crate::http::fetch(self.net().http()?, self.store(), address))?;
        let path = self.store().blob_path(file.digest);
        std::fs::File::open(&path).map_err(|error| EngineError::io("open", &path, error))
    }

    /// Makes an image of one layer from an archive of files; gives its id.
    pub fn import(
        &self,
        input: std::fs::File,
        platform: &Platform,
        request: &CommitRequest,
    ) -> Result<Digest, EngineError> {
        let staging = self.store().staging()?;
        let files = staging.path().join("fs");
        std::fs::create_dir(&files).map_err(|error| EngineError::io("make", &files, error))?;
        let none = || View::layers::<&Path>(&[], Marks::Plain);
        let input =
            tree::decompress(input).map_err(|error| EngineError::io("read", Path::new("the archive"), error))?;
        tree::unpack_layer(input, &files, &none, self.store().marks(), Limits::default())?;
        let tree = self.store().add_tree(Some(staging), &NewTree::default())?;
        let created = self.now();
        let config = ImageConfig {
            created: Some(created.clone()),
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            variant: platform.variant.clone(),
            config: changed(&RunConfig::default(), &request.changes)?,
            history: vec![History {
                created: Some(created),
                comment: if request.message.is_empty() {
                    "Imported from -".to_owned()
                } else {
                    request.message.clone()
                },
                ..History::default()
            }],
            ..ImageConfig::default()
        };
        self.keep_image(config, tree, request.name.as_deref())
    }

    /// Writes all files of a container, as the container sees them without its mounts.
    pub fn export_container(&self, found: &Found, out: &mut impl Write) -> Result<(), EngineError> {
        let mut dirs = vec![found.directory.join("fs")];
        if !found.container.native {
            dirs.extend(self.store().dirs(TreeId::from(found.container.tree))?);
        }
        Ok(tree::write_root(&View::layers(&dirs, self.store().marks())?, None, out)?)
    }

    /// A layer of the store with a copy of these files.
    fn layer_of(&self, upper: &Path, parent: TreeId) -> Result<TreeId, EngineError> {
        let staging = self.store().staging()?;
        let files = staging.path().join("fs");
        std::fs::create_dir(&files).map_err(|error| EngineError::io("make", &files, error))?;
        let lower = self.store().dirs(parent)?;
        let marks = self.store().marks();
        let base = || View::layers(&lower, marks);
        let (reader, writer) = std::io::pipe().map_err(|error| EngineError::io("make", Path::new("a pipe"), error))?;
        std::thread::scope(|scope| {
            let packing = scope.spawn(move || {
                let mut writer = std::io::BufWriter::with_capacity(256 << 10, writer);
                let options = TarOptions { clamp: None };
                tree::write_changes(&[upper], marks, &base()?, options, &mut writer)?;
                writer.flush().map_err(tree::TreeError::Archive)
            });
            let unpacked = tree::unpack_layer(reader, &files, &base, marks, Limits::default());
            match packing.join() {
                Ok(Err(error)) if !is_unread(&error) => Err(EngineError::from(error)),
                _ => unpacked.map(drop).map_err(EngineError::from),
            }
        })?;
        let new = NewTree { parent: Some(parent), ..NewTree::default() };
        Ok(self.store().add_tree(Some(staging), &new)?)
    }

    fn config_of(&self, manifest: Digest) -> Result<ImageConfig, EngineError> {
        let wrong = |why: String| EngineError::Source(format!("the image {manifest} cannot be read: {why}"));
        let bytes = self.store().read_blob(manifest)?;
        match xbuild_oci::Document::parse(&bytes, "").map_err(|error| wrong(error.to_string()))? {
            xbuild_oci::Document::Manifest(manifest) => {
                let bytes = self.store().read_blob(manifest.config.digest)?;
                serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))
            }
            xbuild_oci::Document::Index(_) => Err(wrong("it is an index".to_owned())),
        }
    }

    /// Keeps an image of the files of `tree`; without a name, it goes by its id.
    fn keep_image(&self, config: ImageConfig, tree: TreeId, name: Option<&str>) -> Result<Digest, EngineError> {
        let options = LayerOptions { packing: Packing::Plain, force: false, clamp: None, oci: true };
        let layers = prepare(self.store(), &StoreLayers(self.store()), &self.store().layers(tree)?, options)?;
        let image = Image::new(config, layers, true, &Default::default());
        for item in [&image.config, &image.manifest] {
            if let Content::Bytes(bytes) = &item.content {
                self.store().put_blob(bytes)?;
            }
        }
        let manifest = image.manifest.digest();
        self.store().set_manifest_tree(manifest, tree)?;
        self.store().sync()?;
        match name {
            Some(name) => self.store().name_image(&[name.to_owned()], manifest)?,
            None => self.store().keep_unnamed(manifest)?,
        }
        Ok(image.config.digest())
    }
}

/// A container's settings as an image's.
fn settings(container: &Container) -> RunConfig {
    let config = &container.config;
    let mut volumes: Vec<String> = config.volumes.iter().flatten().map(|(path, _)| path.clone()).collect();
    volumes.extend(container.mounts.iter().filter(|mount| mount.anonymous).map(|mount| mount.destination.clone()));
    RunConfig {
        user: config.user.clone(),
        exposed_ports: config.exposed_ports.keys().map(|port| (port.clone(), Empty {})).collect(),
        env: config.env.clone(),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        volumes: volumes.into_iter().map(|path| (path, Empty {})).collect(),
        working_dir: config.working_dir.clone(),
        labels: config.labels.clone(),
        stop_signal: config.stop_signal.clone(),
        healthcheck: config.healthcheck.clone(),
        shell: config.shell.clone(),
        ..RunConfig::default()
    }
}

/// Applies Dockerfile instructions, as a Dockerfile on an image with these settings would.
fn changed(config: &RunConfig, changes: &[String]) -> Result<RunConfig, EngineError> {
    if changes.is_empty() {
        return Ok(config.clone());
    }
    let mut text = "FROM image\n".to_owned();
    for change in changes {
        let word = change.split_whitespace().next().unwrap_or_default().to_uppercase();
        if !CHANGES.contains(&word.as_str()) {
            return Err(EngineError::Source(format!("{word} is not a valid change command")));
        }
        text.push_str(&change.replace('\n', " "));
        text.push('\n');
    }
    let wrong = |found: &[frontend::Diagnostic]| {
        let said = found.first().map(|one| one.message.clone()).unwrap_or_default();
        EngineError::Source(format!("--change: {said}"))
    };
    let source = frontend::SourceFile::new("change", text);
    let parsed = frontend::parse(&source);
    let base = Base { config: ImageConfig { config: config.clone(), ..ImageConfig::default() } };
    let plan =
        frontend::lower(&parsed, &frontend::Options::new(Platform::host()), &base).map_err(|found| wrong(&found))?;
    let mut changed = plan.images.into_iter().next().map(|image| image.config.config).unwrap_or_default();
    // A mark of Windows images that Dockerfiles of our kind leave alone.
    changed.args_escaped = false;
    changed.entrypoint = changed.entrypoint.filter(|entrypoint| !entrypoint.is_empty());
    Ok(changed)
}

/// The image that changes stand on.
struct Base {
    config: ImageConfig,
}

impl frontend::Resolver for Base {
    fn images(
        &self,
        requests: &[frontend::ImageRequest],
    ) -> Vec<Result<frontend::ResolvedImage, frontend::ResolveError>> {
        let one = |request: &frontend::ImageRequest| {
            Ok(frontend::ResolvedImage {
                source: ImageSource {
                    reference: request.reference.clone(),
                    platform: Some(request.platform.clone()),
                    manifest: String::new(),
                    chain_id: String::new(),
                    origin: String::new(),
                },
                config: self.config.clone(),
            })
        };
        requests.iter().map(one).collect()
    }

    fn named_context(&self, _: &str, _: &Platform) -> Result<Option<frontend::NamedContext>, frontend::ResolveError> {
        Ok(None)
    }

    fn main_context(&self) -> frontend::MainContext {
        frontend::MainContext::Local(xbuild_graph::LocalSource { name: "context".to_owned(), excludes: Vec::new() })
    }
}

/// Whether the other side has stopped reading, which knows why.
fn is_unread(error: &tree::TreeError) -> bool {
    matches!(error, tree::TreeError::Archive(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_instructions_of_dockerfiles() {
        let base = RunConfig {
            env: vec!["KEPT=1".to_owned()],
            entrypoint: Some(vec!["x".to_owned()]),
            ..RunConfig::default()
        };
        let changes = [
            "ENV ADDED=2",
            "CMD [\"cat\", \"/new\"]",
            "EXPOSE 8080/tcp",
            "LABEL who=me",
            "USER alice",
            "ENTRYPOINT []",
        ];
        let config = changed(&base, &changes.map(str::to_owned)).unwrap();
        assert!(config.env.contains(&"KEPT=1".to_owned()) && config.env.contains(&"ADDED=2".to_owned()));
        assert_eq!(config.cmd, Some(vec!["cat".to_owned(), "/new".to_owned()]));
        assert_eq!((config.user.as_str(), config.entrypoint), ("alice", None));
        assert!(config.exposed_ports.contains_key("8080/tcp") && config.labels["who"] == "me");
        assert!(changed(&base, &["RUN true".to_owned()]).is_err());
    }
}
