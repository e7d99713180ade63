use super::*;

#[test]
fn layers_merge_like_overlayfs() {
    if !needs_root("layers_merge_like_overlayfs") {
        return;
    }
    let (low, mid, top) = (dir(), dir(), dir());
    fill(
        low.path(),
        &[
            ("a", "low"),
            ("b", "low"),
            ("d/x", "low"),
            ("d/y", "low"),
            ("o/old", "low"),
            ("f/below", "low"),
            ("l", "-> a"),
        ],
    );
    fill(mid.path(), &[("a", "mid"), ("d/y", "mid"), ("d/z", "mid"), ("o/new", "mid"), ("f", "now a file")]);
    whiteout(&mid.path().join("b"));
    opaque(&mid.path().join("o"));
    fill(top.path(), &[("b", "again"), ("f/dir", "again a directory"), ("o/top", "top")]);
    whiteout(
        &top.path()
            .join("d/x")
            .parent()
            .map(|p| {
                fs::create_dir_all(p).expect("d");
                p.join("x")
            })
            .expect("x"),
    );
    let dirs = [top.path(), mid.path(), low.path()];
    let ours = View::layers(&dirs, Marks::Trusted).expect("view");
    let mount = dir();
    let lower = format!("lowerdir={}:{}:{}", top.path().display(), mid.path().display(), low.path().display());
    let data = std::ffi::CString::new(lower).expect("no zero");
    if rustix::mount::mount(
        "overlay",
        mount.path(),
        "overlay",
        rustix::mount::MountFlags::RDONLY,
        Some(data.as_c_str()),
    )
    .is_err()
    {
        return eprintln!("skipped layers_merge_like_overlayfs: overlay cannot be mounted here");
    }
    let theirs = lines(&View::layers(&[mount.path()], Marks::Plain).expect("view"));
    rustix::mount::unmount(mount.path(), rustix::mount::UnmountFlags::DETACH).expect("unmount");
    assert_eq!(lines(&ours), theirs);
    assert!(ours.lookup("f/below", true).expect("look up").is_none());
}

#[test]
fn links_stay_inside_the_root() {
    let root = dir();
    fill(
        root.path(),
        &[
            ("etc/passwd", "ours"),
            ("abs", "-> /etc"),
            ("up", "-> ../../../../etc/passwd"),
            ("loop", "-> loop"),
            ("d/l", "-> ../abs/passwd"),
        ],
    );
    let view = View::context(root.path(), None).expect("view");
    for path in ["abs/passwd", "up", "/d/l", "../../etc/passwd", "d/../abs/./passwd"] {
        let node = view.lookup(path, true).expect(path).expect(path);
        assert_eq!(node.path, Path::new("etc/passwd"), "{path}");
    }
    assert!(view.lookup("loop", true).is_err());
    assert_eq!(view.lookup("loop", false).expect("loop").expect("loop").meta.kind, Kind::Symlink);
    assert!(view.lookup("etc/passwd/x", true).expect("below a file").is_none());
}

#[test]
fn small_reads_are_bounded_and_never_wait() {
    let root = dir();
    fill(root.path(), &[("big", "0123456789")]);
    rustix::fs::mknodat(rustix::fs::CWD, root.path().join("fifo"), FileType::Fifo, Mode::from(0o600), 0).expect("fifo");
    let view = View::layers(&[root.path()], Marks::Trusted).expect("view");
    assert_eq!(view.read_small("big", 10).expect("fits"), Some(b"0123456789".to_vec()));
    assert!(view.read_small("big", 9).is_err());
    assert!(view.read_small("fifo", 9).is_err());
    assert!(view.read_small(".", 9).is_err());
    assert_eq!(view.read_small("none", 9).expect("absent"), None);
}

#[test]
fn ignored_paths_do_not_exist() {
    let root = dir();
    fill(root.path(), &[("seen", ""), ("hidden", ""), ("part/in", ""), ("part/out", ""), ("l", "-> hidden")]);
    let filter: Filter = std::sync::Arc::new(|path: &Path, _| match path.to_str() {
        Some("hidden" | "part/out") => Visibility::Hidden,
        Some("part") => Visibility::HiddenButDescend,
        _ => Visibility::Visible,
    });
    let view = View::context(root.path(), Some(filter)).expect("view");
    assert_eq!(show(&view).keys().collect::<Vec<_>>(), ["l", "part", "part/in", "seen"]);
    assert!(view.lookup("l", true).expect("look up").is_none());
    assert!(view.lookup("part/out", true).expect("look up").is_none());
}

#[test]
fn removing_never_follows_links() {
    let (keep, root) = (dir(), dir());
    fill(keep.path(), &[("precious", "")]);
    fill(root.path(), &[("t/a/b/c", ""), ("t/x", "")]);
    symlink(keep.path(), root.path().join("t/a/out")).expect("link");
    let mut deep = root.path().join("t");
    for _ in 0..300 {
        deep.push("d");
        fs::create_dir(&deep).expect("deep");
    }
    let fd = dir::open_root(root.path()).expect("open");
    remove_tree(std::os::fd::AsFd::as_fd(&fd), name("t")).expect("remove");
    remove_tree(std::os::fd::AsFd::as_fd(&fd), name("t")).expect("absence is no error");
    assert!(!root.path().join("t").exists());
    assert!(keep.path().join("precious").exists());
}

#[test]
fn two_may_remove_one_tree() {
    let dir = tempfile::tempdir().expect("directory");
    for _ in 0..20 {
        let top = dir.path().join("t");
        for n in 0..40 {
            std::fs::create_dir_all(top.join(format!("{n}/below/more"))).expect("directories");
        }
        let remove = || {
            let fd = std::fs::File::open(dir.path()).expect("open");
            remove_tree(std::os::fd::AsFd::as_fd(&fd), OsStr::new("t")).expect("remove");
        };
        std::thread::scope(|scope| {
            scope.spawn(remove);
            scope.spawn(remove);
        });
        assert!(!top.exists());
    }
}
