//! The store as its users see it.

use std::fs;
use std::io::Write;
use xbuild_cache::{Lease, NewRecord, NewTree, Packing, PruneFilter, Store, StoreError, TreeId};
use xbuild_oci::Digest;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("root")).unwrap();
    (dir, store)
}

fn tree(store: &Store, parent: Option<TreeId>, text: &str) -> TreeId {
    let staging = store.staging().unwrap();
    fs::create_dir(staging.path().join("fs")).unwrap();
    fs::write(staging.path().join("fs/file"), text).unwrap();
    store.add_tree(Some(staging), &NewTree { parent, ..NewTree::default() }).unwrap()
}

fn record(store: &Store, key: u8, tree: TreeId) {
    let new = NewRecord {
        key: [key; 32],
        op: [1; 32],
        result_key: None,
        inputs: "[]",
        tree,
        description: "RUN true",
        duration_ms: 1,
    };
    store.add_record(&new).unwrap();
}

#[test]
fn records_find_trees_again_after_reopening() {
    let (dir, store) = store();
    let base = tree(&store, None, "base");
    let top = tree(&store, Some(base), "top");
    record(&store, 7, top);
    drop(store);
    let store = Store::open(&dir.path().join("root")).unwrap();
    let found = store.find_record(&[7; 32]).unwrap().unwrap();
    assert_eq!(found.tree, top);
    let dirs = store.dirs(top).unwrap();
    let texts: Vec<_> = dirs.iter().map(|d| fs::read_to_string(d.join("file")).unwrap()).collect();
    assert_eq!(texts, ["top", "base"]);
    assert!(store.find_record(&[8; 32]).unwrap().is_none());
}

#[test]
fn prune_spares_what_a_live_session_made_and_what_images_hold() {
    let (dir, store) = store();
    let base = tree(&store, None, "base");
    record(&store, 1, base);
    let other = Store::open(&dir.path().join("root")).unwrap();
    let made = tree(&store, Some(base), "made while the other lives");
    record(&store, 2, made);
    std::thread::sleep(std::time::Duration::from_millis(5));
    store.prune(&PruneFilter { all: true, ..PruneFilter::default() }).unwrap();
    assert!(store.find_record(&[2; 32]).unwrap().is_some(), "made after the other session began");
    assert!(store.tree(base).is_ok(), "something stands on it");
    drop(other);
    let kept = tree(&store, None, "kept");
    let manifest = store.put_blob(br#"{"schemaVersion":2,"config":{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#).unwrap();
    store.set_manifest_tree(manifest, kept).unwrap();
    store.name_image(&["a:1".to_owned()], manifest).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(5));
    let pruned = store.prune(&PruneFilter { all: true, ..PruneFilter::default() }).unwrap();
    assert!(pruned.entries.contains(&format!("tree-{}", made.number())), "{pruned:?}");
    assert!(store.tree(made).is_err() && store.tree(base).is_err());
    assert!(store.tree(kept).is_ok());
    assert_eq!(store.check(false).unwrap(), []);
}

#[test]
fn a_blob_with_another_digest_leaves_nothing() {
    let (_dir, store) = store();
    let mut writer = store.write_blob().unwrap();
    writer.write_all(b"bytes").unwrap();
    let wrong = Digest::of(b"other");
    assert!(matches!(writer.finish(Some(wrong)), Err(StoreError::Digest { .. })));
    assert_eq!(store.has_blob(wrong).unwrap(), None);
    let digest = store.put_blob(b"bytes").unwrap();
    store.remember_packing(wrong, Packing::Gzip(6), digest, 5).unwrap();
    assert_eq!(store.packed(wrong, Packing::Gzip(6)).unwrap(), Some((digest, 5)));
    assert_eq!(store.packed(wrong, Packing::Gzip(9)).unwrap(), None);
    assert_eq!(store.read_blob(digest).unwrap(), b"bytes");
}

#[test]
fn check_names_and_repairs_damage() {
    let (dir, store) = store();
    let made = tree(&store, None, "x");
    record(&store, 1, made);
    let digest = store.put_blob(b"bytes").unwrap();
    fs::write(store.blob_path(digest), b"other").unwrap();
    fs::remove_dir_all(&store.dirs(made).unwrap()[0]).unwrap();
    assert_eq!(store.check(false).unwrap().len(), 2);
    store.check(true).unwrap();
    assert!(store.find_record(&[1; 32]).unwrap().is_none());
    drop(store);
    assert_eq!(Store::open(&dir.path().join("root")).unwrap().check(false).unwrap().len(), 0);
}

#[test]
fn nothing_is_collected_while_it_cannot_be_read_what_is_held() {
    let (dir, store) = store();
    let kept = tree(&store, None, "kept");
    let manifest = store.put_blob(br#"{"schemaVersion":2,"config":{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#).unwrap();
    store.set_manifest_tree(manifest, kept).unwrap();
    store.name_image(&["a:1".to_owned()], manifest).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(5));
    let prune = || store.prune(&PruneFilter { all: true, ..PruneFilter::default() });
    // A file that is there and cannot be read, for root, too.
    let unreadable = |path: &std::path::Path| {
        fs::rename(path, dir.path().join("aside")).unwrap();
        fs::create_dir(path).unwrap();
        assert!(matches!(prune(), Err(StoreError::Io { action: "read", .. })));
        fs::remove_dir(path).unwrap();
        fs::rename(dir.path().join("aside"), path).unwrap();
    };
    unreadable(&store.blob_path(manifest));
    let container = dir.path().join("root/containers/c");
    fs::create_dir_all(&container).unwrap();
    Lease { tree: kept, manifest }.write(&container).unwrap();
    unreadable(&container.join("lease"));
    prune().unwrap();
    assert!(store.tree(kept).is_ok());
    assert_eq!(store.check(false).unwrap(), []);
}

#[test]
fn another_format_is_refused() {
    let (dir, store) = store();
    drop(store);
    fs::write(dir.path().join("root/FORMAT"), "xbuild-store 99\n").unwrap();
    assert!(matches!(Store::open(&dir.path().join("root")), Err(StoreError::Format { .. })));
}

#[test]
fn a_lock_is_for_one_at_a_time() {
    let (_dir, store) = store();
    let held = store.try_lock("step-x").unwrap();
    assert!(held.is_some() && store.try_lock("step-x").unwrap().is_none());
    drop(held);
    assert!(store.lock("step-x", &|| false).unwrap().is_some());
}

#[test]
fn a_directory_of_two_trees_stays_until_both_are_gone() {
    let (dir, store) = store();
    let first = tree(&store, None, "first");
    record(&store, 1, first);
    let shared = store.dirs(first).unwrap();
    let staging = store.staging().unwrap();
    fs::create_dir(staging.path().join("fs")).unwrap();
    fs::write(staging.path().join("fs/new"), "new").unwrap();
    let reuse = shared.clone();
    let second = store.add_tree(Some(staging), &NewTree { reuse, ..NewTree::default() }).unwrap();
    assert_eq!(store.dirs(second).unwrap()[1..], shared);
    assert_eq!(store.made_before(&[1; 32], 8).unwrap(), [first]);
    let sizes = |store: &Store| -> Vec<u64> { store.usage().unwrap().iter().map(|u| u.size).collect() };
    let counted = sizes(&store);
    std::thread::sleep(std::time::Duration::from_millis(5));
    record(&store, 2, second);
    drop(store);
    let store = Store::open(&dir.path().join("root")).unwrap();
    let only_first = PruneFilter { all: true, description: Some("RUN true".into()), ..PruneFilter::default() };
    assert!(store.find_record(&[2; 32]).unwrap().is_some());
    // Used by a session that lives, the second record stays.
    let other = Store::open(&dir.path().join("root")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(5));
    other.find_record(&[2; 32]).unwrap().unwrap();
    let pruned = other.prune(&only_first).unwrap();
    assert_eq!(pruned.entries, ["tree-1"]);
    assert!(shared[0].join("file").exists(), "the second tree lists it");
    assert!(store.check(false).unwrap().is_empty());
    assert_eq!(sizes(&store), [counted.iter().sum::<u64>()], "it counts in the tree that is left");
}

#[test]
fn chains_are_read_whole_or_not_at_all() {
    let (_dir, store) = store();
    assert!(store.layers(TreeId::EMPTY).unwrap().is_empty());
    let mut ids = Vec::new();
    for n in 0..40 {
        ids.push(tree(&store, ids.last().copied(), &n.to_string()));
    }
    let found: Vec<_> = store.layers(ids[39]).unwrap().iter().map(|t| t.id).collect();
    assert_eq!(found, ids);
    assert!(matches!(store.layers(TreeId::from(99)), Err(StoreError::Missing(_))));
}

#[test]
fn a_sweep_shortens_a_long_log() {
    let (dir, store) = store();
    let log = || fs::metadata(dir.path().join("root/index.db-wal")).unwrap().len();
    for n in 0..60 {
        record(&store, n, tree(&store, None, &n.to_string()));
    }
    assert!(log() > 256 << 10, "{}", log());
    assert!(store.needs_sweep());
    store.sweep().unwrap();
    assert_eq!(log(), 0);
    assert!(!store.needs_sweep());
    // It cannot be cut while somebody reads, and that is no error.
    let reader = rusqlite::Connection::open(dir.path().join("root/index.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM records;").unwrap();
    for n in 60..120 {
        record(&store, n, tree(&store, None, &n.to_string()));
    }
    store.sweep().unwrap();
    assert!(log() > 0);
    assert!(store.find_record(&[100; 32]).unwrap().is_some());
}

#[test]
fn an_index_of_the_version_before_is_taken_over() {
    let (dir, store) = store();
    let made = tree(&store, None, "old");
    record(&store, 1, made);
    drop(store);
    let db = rusqlite::Connection::open(dir.path().join("root/index.db")).unwrap();
    db.execute_batch(
        "ALTER TABLE trees DROP COLUMN changes; ALTER TABLE trees DROP COLUMN flat;
         ALTER TABLE trees DROP COLUMN tar_size; PRAGMA user_version=1;",
    )
    .unwrap();
    drop(db);
    let store = Store::open(&dir.path().join("root")).unwrap();
    assert_eq!(store.find_record(&[1; 32]).unwrap().unwrap().tree, made);
    assert!(store.tree(made).unwrap().changes.is_none());
    drop(store);
    let db = rusqlite::Connection::open(dir.path().join("root/index.db")).unwrap();
    db.execute_batch("PRAGMA user_version=1000;").unwrap();
    assert!(matches!(Store::open(&dir.path().join("root")), Err(StoreError::Format { .. })), "a newer one is refused");
}

#[test]
fn a_packed_layer_that_a_session_was_told_of_stays_while_it_lives() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let layer = Digest::of(b"layer");
    let first = Store::open(&root).unwrap();
    let digest = first.put_blob(b"bytes").unwrap();
    first.remember_packing(layer, Packing::Gzip(6), digest, 5).unwrap();
    drop(first);
    // Marks of use are in milliseconds.
    std::thread::sleep(std::time::Duration::from_millis(5));
    let exporting = Store::open(&root).unwrap();
    assert_eq!(exporting.packed(layer, Packing::Gzip(6)).unwrap(), Some((digest, 5)));
    let pruning = Store::open(&root).unwrap();
    pruning.prune(&PruneFilter { all: true, ..PruneFilter::default() }).unwrap();
    assert_eq!(exporting.read_blob(digest).unwrap(), b"bytes");
    drop((exporting, pruning));
    std::thread::sleep(std::time::Duration::from_millis(5));
    let pruning = Store::open(&root).unwrap();
    pruning.prune(&PruneFilter { all: true, ..PruneFilter::default() }).unwrap();
    assert_eq!(pruning.has_blob(digest).unwrap(), None);
    assert!(!pruning.blob_path(digest).exists());
}

#[test]
fn what_died_sessions_left_without_a_row_goes_with_the_next_check() {
    let (dir, store) = store();
    let kept = tree(&store, None, "kept");
    let trees = dir.path().join("root/trees");
    fs::create_dir_all(trees.join("1-2a-7/fs")).unwrap();
    let named: Vec<_> =
        fs::read_dir(&trees).unwrap().map(|e| e.unwrap().file_name()).filter(|n| n != "1-2a-7").collect();
    let own = named[0].to_str().unwrap().rsplit_once('-').unwrap().0;
    fs::create_dir_all(trees.join(format!("{own}-999/fs"))).unwrap();
    assert_eq!(store.check(false).unwrap(), []);
    assert!(!trees.join("1-2a-7").exists(), "its session has ended");
    assert!(trees.join(format!("{own}-999")).exists(), "it may get its row yet");
    assert!(store.tree(kept).is_ok());
}

#[test]
fn a_new_store_is_opened_by_many_at_once() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().expect("temp dir");
        let opened = std::thread::scope(|scope| {
            let all: Vec<_> = (0..6).map(|_| scope.spawn(|| Store::open(dir.path()).map(drop))).collect();
            all.into_iter().map(|one| one.join().expect("no panic")).collect::<Result<Vec<_>, StoreError>>()
        });
        opened.expect("all of them");
    }
}
