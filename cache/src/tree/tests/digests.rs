use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

fn digest(root: &Path) -> TreeDigest {
    View::context(root, None).expect("context").digest("/", true, &NoDigests).expect("digest")
}

fn sample(root: &Path) {
    fill(root, &[("a", "1"), ("b", "22"), ("d/e/f", "333"), ("d/empty/", ""), ("l", "-> a")]);
    for path in ["a", "b", "d", "d/e", "d/e/f", "d/empty", ""] {
        chmod(&root.join(path), 0o755);
    }
}

#[test]
fn only_what_matters_changes_a_digest() {
    let (one, two) = (dir(), dir());
    sample(one.path());
    sample(two.path());
    let first = digest(one.path());
    rustix::fs::utimensat(rustix::fs::CWD, two.path().join("a"), &Time::from_seconds(1).timestamps(), AtFlags::empty())
        .expect("utimes");
    assert_eq!(digest(two.path()), first, "times and inodes do not matter");
    type Change<'a> = (&'a str, &'a dyn Fn(&Path));
    let changes: [Change<'_>; 7] = [
        ("content", &|r| fs::write(r.join("a"), "2").expect("write")),
        ("mode", &|r| chmod(&r.join("d/e/f"), 0o700)),
        ("directory mode", &|r| chmod(&r.join("d/empty"), 0o700)),
        ("name", &|r| fs::rename(r.join("b"), r.join("c")).expect("rename")),
        ("place", &|r| fs::rename(r.join("d/e/f"), r.join("d/f")).expect("rename")),
        ("empty directory", &|r| fs::remove_dir(r.join("d/empty")).expect("rmdir")),
        ("target", &|r| {
            fs::remove_file(r.join("l")).expect("rm");
            symlink("b", r.join("l")).expect("link");
        }),
    ];
    for (what, change) in changes {
        let other = dir();
        sample(other.path());
        change(other.path());
        assert_ne!(digest(other.path()), first, "{what}");
    }
}

#[test]
fn the_encoding_is_stable() {
    let root = dir();
    sample(root.path());
    let hex: String = digest(root.path()).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, GOLDEN, "cache keys hang on this: raise the version in the encoding when it changes");
}

const GOLDEN: &str = "c7bf996c2a108dd4957d092d34e60836c9f903d2db430afc58eda40818728e61";

#[test]
fn large_directories_hash_the_same_however_they_are_split() {
    let root = dir();
    for n in 0..3000 {
        fs::write(root.path().join(format!("f{n}")), n.to_string()).expect("write");
        if n % 100 == 0 {
            fill(root.path(), &[(&format!("d{n}/x"), "x")]);
        }
    }
    let first = digest(root.path());
    for threads in [1, 4] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
        assert_eq!(pool.install(|| digest(root.path())), first);
    }
}

struct Counting(StatIndex, AtomicUsize);

impl FileDigests for Counting {
    fn get(&self, key: &StatKey) -> Option<[u8; 32]> {
        self.0.get(key)
    }

    fn put(&self, key: &StatKey, digest: [u8; 32]) {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.put(key, digest);
    }
}

#[test]
fn the_index_saves_reading_and_sees_edits() {
    let (root, state) = (dir(), dir());
    sample(root.path());
    std::thread::sleep(std::time::Duration::from_millis(250));
    let index = state.path().join("index");
    let build = || {
        let files = Counting(StatIndex::open(&index).expect("open"), AtomicUsize::new(0));
        let digest = View::context(root.path(), None).expect("context").digest("/", true, &files).expect("digest");
        files.0.save().expect("save");
        (digest, files.1.into_inner())
    };
    let first = build();
    assert_eq!(first.1, 3);
    assert_eq!(build(), (first.0, 0));
    let before = fs::metadata(root.path().join("a")).expect("stat").modified().expect("time");
    fs::write(root.path().join("a"), "9").expect("write");
    fs::File::options().write(true).open(root.path().join("a")).expect("open").set_modified(before).expect("utimes");
    let edited = build();
    assert_ne!(edited.0, first.0, "same size, same mtime, other content");
    assert_eq!(edited.1, 1);
    assert_eq!(edited.0, digest(root.path()));
}

#[test]
fn selections_cover_what_is_copied() {
    let root = dir();
    sample(root.path());
    fill(root.path(), &[("w/x.txt", "x"), ("w/y.md", "y")]);
    let view = View::context(root.path(), None).expect("context");
    let no_md = |path: &Path, _: bool| {
        if path.extension().is_some_and(|e| e == "md") { Visibility::Hidden } else { Visibility::Visible }
    };
    let of = |path: &str, options: &CopyOptions<'_>| {
        let source =
            CopySource::Path { view: &view, path: Path::new(path), wildcard: path.contains('*'), required: true };
        selection_digest(&[source], options, &NoDigests)
    };
    let plain = options("/");
    let excluding = CopyOptions { excludes: Some(&no_md), ..options("/") };
    let parents = CopyOptions { parents: true, ..options("/") };
    let before = [of("/w", &plain), of("/w", &excluding), of("/w/*.txt", &plain), of("/w/x.txt", &parents)]
        .map(|d| d.expect("digest"));
    fs::write(root.path().join("w/y.md"), "changed").expect("write");
    chmod(&root.path().join("w"), 0o711);
    let after = [of("/w", &plain), of("/w", &excluding), of("/w/*.txt", &plain), of("/w/x.txt", &parents)]
        .map(|d| d.expect("digest"));
    let same: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a == b).collect();
    assert_eq!(same, [false, true, true, false], "parents keep the directory's mode, the others do not take it");
    assert_eq!(of("/gone", &plain).expect_err("missing").to_string(), "\"/gone\": not found");
    assert!(of("/none/x", &parents).is_err());
    assert_ne!(of("/*.none", &plain).expect("nothing"), of("/a", &plain).expect("a"));
}

#[test]
fn hidden_files_do_not_count() {
    let root = dir();
    sample(root.path());
    let filter: Filter = std::sync::Arc::new(|path: &Path, _| match path.to_str() {
        Some("d" | "d/e") => Visibility::HiddenButDescend,
        Some("d/e/f" | "d/empty" | "b") => Visibility::Hidden,
        _ => Visibility::Visible,
    });
    let of = || {
        View::context(root.path(), Some(filter.clone()))
            .expect("context")
            .digest("/", true, &NoDigests)
            .expect("digest")
    };
    let first = of();
    fs::write(root.path().join("d/e/f"), "changed").expect("write");
    fs::remove_file(root.path().join("b")).expect("rm");
    fs::remove_dir(root.path().join("d/empty")).expect("rmdir");
    assert_eq!(of(), first);
    fs::remove_dir_all(root.path().join("d")).expect("rm");
    assert_eq!(of(), first, "a directory kept only for its content is not there without");
}
