//! Trees → layer items. A diff ID or packed blob that is known is never made again.

use crate::pack::PackWriter;
use crate::{Content, ExportError, Item};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use xbuild_cache::{Packing, Store, Tree};
use xbuild_oci::{Descriptor, Digest, MediaType, Sha256Writer};

/// How layers are to be packed.
#[derive(Clone, Copy, Debug)]
pub struct LayerOptions {
    /// The packing of new layers.
    pub packing: Packing,
    /// Pack layers again that are there in another packing.
    pub force: bool,
    /// Later times become this, in seconds since 1970 (`rewrite-timestamp`).
    pub clamp: Option<i64>,
    /// OCI media types; Docker's otherwise.
    pub oci: bool,
}

/// A layer ready for a manifest.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Digest of its tar.
    pub diff_id: Digest,
    /// Its descriptor and bytes.
    pub item: Item,
}

/// Writes the tar of one layer: exactly the changes of `layer`, times clamped.
pub trait LayerTar: Sync {
    /// Writes to `out`. Equal layers give equal bytes.
    fn write_layer(&self, layer: &Tree, clamp: Option<i64>, out: &mut dyn Write) -> io::Result<()>;
}

/// Makes items of all layers of an image, several at once.
pub fn prepare(
    store: &Store,
    tar: &dyn LayerTar,
    layers: &[Tree],
    options: LayerOptions,
) -> Result<Vec<Layer>, ExportError> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(layers.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((n, layer)) =
                    { Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| Some((n, layers.get(n)?))) }
                {
                    let result = one(store, tar, layer, options);
                    done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(n, result);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).into_values().collect()
}

fn one(store: &Store, tar: &dyn LayerTar, layer: &Tree, options: LayerOptions) -> Result<Layer, ExportError> {
    if let (Some(diff_id), None) = (layer.diff_id, options.clamp)
        && let Some((packing, digest, size)) = existing(store, diff_id, options)?
    {
        let descriptor = describe(packing, options.oci, digest, size);
        return Ok(Layer { diff_id, item: Item { descriptor, content: Content::File(store.blob_path(digest)) } });
    }
    if options.packing == Packing::Plain {
        return plain(store, tar, layer, options);
    }
    let mut blob = PackWriter::new(store.write_blob()?, options.packing);
    let mut hash = Sha256Writer::new(&mut blob);
    write(tar, layer, options.clamp, &mut hash)?;
    let (_, diff_id, tar_size) = hash.finish();
    let (digest, size) = blob.finish().map_err(failed(layer))?.finish(None)?;
    if options.clamp.is_none() {
        store.set_tar(layer.id, diff_id, tar_size)?;
    }
    store.remember_packing(diff_id, options.packing, digest, size)?;
    let descriptor = describe(name_of(options.packing), options.oci, digest, size);
    Ok(Layer { diff_id, item: Item { descriptor, content: Content::File(store.blob_path(digest)) } })
}

/// An uncompressed layer is not stored: it is written from its tree when its bytes are wanted.
fn plain(store: &Store, tar: &dyn LayerTar, layer: &Tree, options: LayerOptions) -> Result<Layer, ExportError> {
    let (diff_id, size) = match (layer.diff_id, layer.tar_size, options.clamp) {
        (Some(diff_id), Some(size), None) => (diff_id, size),
        _ => {
            let mut hash = Sha256Writer::new(io::sink());
            write(tar, layer, options.clamp, &mut hash)?;
            let (_, diff_id, size) = hash.finish();
            if options.clamp.is_none() {
                store.set_tar(layer.id, diff_id, size)?;
            }
            (diff_id, size)
        }
    };
    let descriptor = describe("uncompressed", options.oci, diff_id, size);
    Ok(Layer { diff_id, item: Item { descriptor, content: Content::Layer { tree: layer.id, clamp: options.clamp } } })
}

/// A blob of the layer that will do: any packing if none is forced, else the wanted one.
fn existing(
    store: &Store,
    diff_id: Digest,
    options: LayerOptions,
) -> Result<Option<(&'static str, Digest, u64)>, ExportError> {
    if let Some((digest, size)) = store.packed(diff_id, options.packing)? {
        return Ok(Some((name_of(options.packing), digest, size)));
    }
    if options.force || options.packing == Packing::Plain {
        return Ok(None);
    }
    let names = ["gzip", "zstd", "uncompressed"];
    let any = store.packings(diff_id)?.into_iter().find_map(|(packing, digest, size)| {
        let name = names.into_iter().find(|n| *n == packing)?;
        Some((name, digest, size))
    });
    Ok(any)
}

fn name_of(packing: Packing) -> &'static str {
    match packing {
        Packing::Plain => "uncompressed",
        Packing::Gzip(_) => "gzip",
        Packing::Zstd(_) => "zstd",
    }
}

fn describe(packing: &str, oci: bool, digest: Digest, size: u64) -> Descriptor {
    let media_type = match (packing, oci) {
        ("gzip", true) => MediaType::OCI_LAYER_GZIP,
        ("gzip", false) => MediaType::DOCKER_LAYER_GZIP,
        ("zstd", true) => MediaType::OCI_LAYER_ZSTD,
        ("zstd", false) => MediaType::DOCKER_LAYER_ZSTD,
        (_, true) => MediaType::OCI_LAYER,
        (_, false) => MediaType::DOCKER_LAYER,
    };
    Descriptor { media_type: media_type.to_owned(), digest, size, annotations: BTreeMap::new(), platform: None }
}

fn write(tar: &dyn LayerTar, layer: &Tree, clamp: Option<i64>, out: &mut dyn Write) -> Result<(), ExportError> {
    tar.write_layer(layer, clamp, out).map_err(failed(layer))
}

fn failed(layer: &Tree) -> impl FnOnce(io::Error) -> ExportError + use<> {
    let tree = layer.id.number();
    move |source| ExportError::Layer { tree, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xbuild_cache::{NewTree, Packing};

    /// A layer's tar that tells how often it was written.
    struct Counted(AtomicUsize);

    impl LayerTar for Counted {
        fn write_layer(&self, _: &Tree, clamp: Option<i64>, out: &mut dyn Write) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            out.write_all(if clamp.is_some() { b"clamped" } else { b"tar" })
        }
    }

    #[test]
    fn a_layer_is_written_once_for_each_packing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("root")).unwrap();
        let staging = store.staging().unwrap();
        std::fs::create_dir(staging.path().join("fs")).unwrap();
        let id = store.add_tree(Some(staging), &NewTree::default()).unwrap();
        let tar = Counted(AtomicUsize::new(0));
        let made = |packing, clamp, times| {
            let layers = [store.tree(id).unwrap()];
            let options = LayerOptions { packing, force: true, clamp, oci: true };
            let layer = prepare(&store, &tar, &layers, options).unwrap().remove(0);
            assert_eq!(tar.0.load(Ordering::Relaxed), times, "{packing:?} {clamp:?}");
            (layer.diff_id, layer.item.descriptor.size)
        };
        let plain = made(Packing::Plain, None, 1);
        assert_eq!(plain, (Digest::of(b"tar"), 3));
        assert_eq!(made(Packing::Plain, None, 1), plain);
        let gzip = made(Packing::Gzip(6), None, 2);
        assert_eq!(gzip.0, plain.0);
        assert_eq!(made(Packing::Gzip(6), None, 2), gzip);
        // Times are no part of what is remembered.
        assert_eq!(made(Packing::Plain, Some(0), 3), (Digest::of(b"clamped"), 7));
        assert_eq!(made(Packing::Plain, Some(0), 4), (Digest::of(b"clamped"), 7));
        assert_eq!(made(Packing::Plain, None, 4), plain);
    }
}
