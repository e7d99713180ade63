use super::*;

pub(super) fn sources(root: &Path) {
    fill(
        root,
        &[
            ("top.txt", "top"),
            ("run.sh", "sh"),
            ("d/a.txt", "a"),
            ("d/b.md", "b"),
            ("d/sub/c.txt", "c"),
            ("d/sub/deep/e.txt", "e"),
        ],
    );
    fill(root, &[("x/y/a.txt", "xya"), ("x/z.txt", "xz"), ("link.txt", "-> top.txt"), ("linkdir", "-> d")]);
    chmod(&root.join("run.sh"), 0o755);
    for path in ["d", "d/sub", "d/sub/deep", "x", "x/y"] {
        chmod(&root.join(path), 0o755);
    }
    for path in ["top.txt", "d/a.txt", "d/b.md", "d/sub/c.txt", "d/sub/deep/e.txt", "x/y/a.txt", "x/z.txt"] {
        chmod(&root.join(path), 0o644);
    }
}

struct Case<'a> {
    name: &'a str,
    from: &'a [&'a str],
    options: CopyOptions<'a>,
    expect: &'a [&'a str],
}

#[test]
fn copies_go_where_buildkit_puts_them() {
    if !needs_root("copies_go_where_buildkit_puts_them") {
        return;
    }
    let (context, base) = (dir(), dir());
    sources(context.path());
    fill(
        base.path(),
        &[
            ("opt/tree/a.txt", "old"),
            ("opt/tree/keep", "k"),
            ("real/file", "old"),
            ("lnk", "-> /real"),
            ("filelink", "-> real/file"),
        ],
    );
    chmod(&base.path().join("opt"), 0o755);
    chmod(&base.path().join("opt/tree"), 0o700);
    chmod(&base.path().join("real"), 0o755);
    let mode = |text: &str| Some(ModeChange::parse(text).expect(text));
    let owner = Some(Ids { uid: 7, gid: 8 });
    let table = [
        Case { name: "file", from: &["/top.txt"], options: options("/asfile"), expect: &["asfile 644 0:0 top"] },
        Case {
            name: "file into directory",
            from: &["/top.txt"],
            options: options("/d/"),
            expect: &["d 755 0:0 Dir", "d/top.txt 644 0:0 top"],
        },
        Case {
            name: "file over file",
            from: &["/top.txt"],
            options: options("/filelink"),
            expect: &["real 755 0:0 Dir", "real/file 644 0:0 top"],
        },
        Case {
            name: "through link",
            from: &["/top.txt"],
            options: options("/lnk/"),
            expect: &["real 755 0:0 Dir", "real/top.txt 644 0:0 top"],
        },
        Case {
            name: "into existing",
            from: &["/top.txt"],
            options: options("/opt/tree"),
            expect: &["opt 755 0:0 Dir", "opt/tree 700 0:0 Dir", "opt/tree/top.txt 644 0:0 top"],
        },
        Case {
            name: "directory",
            from: &["/d/sub"],
            options: CopyOptions { owner, ..options("/n/e/w") },
            expect: &[
                "n 755 7:8 Dir",
                "n/e 755 7:8 Dir",
                "n/e/w 755 7:8 Dir",
                "n/e/w/c.txt 644 7:8 c",
                "n/e/w/deep 755 7:8 Dir",
                "n/e/w/deep/e.txt 644 7:8 e",
            ],
        },
        Case {
            name: "existing keeps owner",
            from: &["/d/sub/deep"],
            options: CopyOptions { owner, ..options("/opt/tree") },
            expect: &["opt 755 0:0 Dir", "opt/tree 700 0:0 Dir", "opt/tree/e.txt 644 7:8 e"],
        },
        Case {
            name: "mode number",
            from: &["/d/sub"],
            options: CopyOptions { mode: mode("1777"), ..options("/new") },
            expect: &["new 777 0:0 Dir", "new/c.txt 1777 0:0 c", "new/deep 1777 0:0 Dir", "new/deep/e.txt 1777 0:0 e"],
        },
        Case {
            name: "mode for parents",
            from: &["/top.txt"],
            options: CopyOptions { mode: mode("700"), ..options("/p1/f") },
            expect: &["p1 700 0:0 Dir", "p1/f 700 0:0 top"],
        },
        Case {
            name: "mode letters",
            from: &["/d/sub"],
            options: CopyOptions { mode: mode("+w,o="), ..options("/e") },
            expect: &["e 755 0:0 Dir", "e/c.txt 660 0:0 c", "e/deep 770 0:0 Dir", "e/deep/e.txt 660 0:0 e"],
        },
        Case {
            name: "link is followed",
            from: &["/link.txt"],
            options: options("/to/"),
            expect: &["to 755 0:0 Dir", "to/link.txt 644 0:0 top"],
        },
        Case { name: "wildcard", from: &["/*/*.md"], options: options("/g7"), expect: &["g7 644 0:0 b"] },
        Case {
            name: "wildcard directories",
            from: &["/*/sub"],
            options: options("/g5/"),
            expect: &["g5 755 0:0 Dir", "g5/c.txt 644 0:0 c", "g5/deep 755 0:0 Dir", "g5/deep/e.txt 644 0:0 e"],
        },
        Case { name: "no match", from: &["/*.none"], options: options("/x/"), expect: &[] },
        Case {
            name: "last wins",
            from: &["/top.txt", "/run.sh"],
            options: options("/one"),
            expect: &["one 755 0:0 sh"],
        },
        Case {
            name: "parents",
            from: &["/x/y/a.txt"],
            options: CopyOptions { parents: true, ..options("/p/") },
            expect: &["p 755 0:0 Dir", "p/x 755 0:0 Dir", "p/x/y 755 0:0 Dir", "p/x/y/a.txt 644 0:0 xya"],
        },
        Case {
            name: "pivot",
            from: &["/x/./y/a.txt", "/d/./sub/"],
            options: CopyOptions { parents: true, owner, mode: mode("700"), ..options("/p/") },
            expect: &[
                "p 700 7:8 Dir",
                "p/sub 700 7:8 Dir",
                "p/sub/c.txt 700 7:8 c",
                "p/sub/deep 700 7:8 Dir",
                "p/sub/deep/e.txt 700 7:8 e",
                "p/y 700 7:8 Dir",
                "p/y/a.txt 700 7:8 xya",
            ],
        },
        Case {
            name: "parents and stars",
            from: &["/**/c.txt", "/d/*/e.txt"],
            options: CopyOptions { parents: true, ..options("/p/") },
            expect: &["p 755 0:0 Dir", "p/d 755 0:0 Dir", "p/d/sub 755 0:0 Dir", "p/d/sub/c.txt 644 0:0 c"],
        },
    ];
    let view = View::context(context.path(), None).expect("context");
    let below = View::layers(&[base.path()], Marks::Trusted).expect("base");
    for case in table {
        let diff = copied(&below, &view, case.from, &case.options).expect(case.name);
        assert_eq!(lines(&View::layers(&[diff.path()], Marks::Trusted).expect("diff")), case.expect, "{}", case.name);
    }
}

#[test]
fn excludes_leave_out_and_keep_below() {
    let context = dir();
    sources(context.path());
    let view = View::context(context.path(), None).expect("context");
    let no_text = |path: &Path, is_dir: bool| match path.extension().is_some_and(|e| e == "txt") && !is_dir {
        true => Visibility::Hidden,
        false => Visibility::Visible,
    };
    let only_e = |path: &Path, is_dir: bool| match (path.ends_with("e.txt"), is_dir) {
        (true, _) => Visibility::Visible,
        (false, true) => Visibility::HiddenButDescend,
        (false, false) => Visibility::Hidden,
    };
    for (exclude, expect) in [
        (&no_text as Excludes<'_>, &["e", "e/b.md", "e/sub", "e/sub/deep"][..]),
        (&only_e, &["e", "e/sub", "e/sub/deep", "e/sub/deep/e.txt"]),
    ] {
        let diff =
            copied(&empty(), &view, &["/d"], &CopyOptions { excludes: Some(exclude), ..options("/e/") }).expect("copy");
        let view = View::layers(&[diff.path()], Marks::Trusted).expect("diff");
        assert_eq!(show(&view).keys().collect::<Vec<_>>(), expect);
    }
    let diff = copied(&empty(), &view, &["/top.txt"], &CopyOptions { excludes: Some(&no_text), ..options("/e/") })
        .expect("copy");
    assert!(diff.path().join("e/top.txt").exists(), "a source itself is never excluded");
}

#[test]
fn missing_and_unfit_are_named() {
    let (context, base) = (dir(), dir());
    sources(context.path());
    fill(base.path(), &[("file", ""), ("dir/top.txt/", ""), ("tree/sub", "-> /dir")]);
    let view = View::context(context.path(), None).expect("context");
    let below = View::layers(&[base.path()], Marks::Trusted).expect("base");
    let fail = |from: &str, to: &str| copied(&below, &view, &[from], &options(to)).expect_err(from).to_string();
    assert_eq!(fail("/nope.txt", "/x"), "\"/nope.txt\": not found");
    assert_eq!(fail("no/pe.txt", "/x"), "\"/no/pe.txt\": not found");
    assert!(fail("/d", "/file").contains("/file"));
    assert!(fail("/top.txt", "/file/").contains("not a directory"));
    assert!(fail("/top.txt", "/dir").contains("top.txt"));
    assert!(fail("/d", "/tree").contains("not a directory"));
}

#[test]
fn copy_from_shares_inodes_once() {
    if !needs_root("copy_from_shares_inodes_once") {
        return;
    }
    let tree = dir();
    fill(tree.path(), &[("o/f", "f"), ("o/g", "g")]);
    link_to(&tree.path().join("o/f"), &tree.path().join("o/hard"));
    chmod(&tree.path().join("o/f"), 0o4755);
    std::os::unix::fs::chown(tree.path().join("o/g"), Some(11), Some(12)).expect("chown");
    let view = View::layers(&[tree.path()], Marks::Trusted).expect("tree");
    let diff = dir();
    let writer = DiffWriter::new(diff.path(), &empty(), Marks::Trusted).expect("writer");
    let from = |path| CopySource::Path { view: &view, path: Path::new(path), wildcard: false, required: true };
    let keep = |to| CopyOptions { keep_owner: true, ..options(to) };
    writer.copy(&[from("/o")], &keep("/o")).expect("copy");
    writer.copy(&[from("/o/f")], &keep("/again")).expect("copy");
    writer
        .copy(&[from("/o/f")], &CopyOptions { owner: Some(Ids { uid: 1, gid: 2 }), ..options("/owned") })
        .expect("copy");
    writer.finish().expect("finish");
    let ino = |path: &Path| fs::metadata(path).expect("stat").ino();
    let at = |name: &str| ino(&diff.path().join(name));
    assert_eq!(at("o/g"), ino(&tree.path().join("o/g")));
    assert_eq!(at("o/f"), at("o/hard"));
    assert_ne!(at("again"), at("o/f"), "two copies are two files");
    let owned = fs::metadata(diff.path().join("owned")).expect("stat");
    assert_eq!((owned.uid(), owned.gid(), owned.mode() & 0o7777), (1, 2, 0o4755));
}

#[test]
fn contexts_are_copied_with_holes_times_and_links() {
    let context = dir();
    fill(context.path(), &[("t/a", "a"), ("t/old", "o")]);
    link_to(&context.path().join("t/a"), &context.path().join("t/b"));
    let sparse = fs::File::create(context.path().join("t/sparse")).expect("create");
    sparse.set_len(32 << 20).expect("grow");
    std::os::unix::fs::FileExt::write_at(&sparse, b"end", (32 << 20) - 3).expect("write");
    let at = Time { seconds: -300_000_000, nanos: 123_456_789 };
    rustix::fs::utimensat(rustix::fs::CWD, context.path().join("t/old"), &at.timestamps(), AtFlags::empty())
        .expect("utimes");
    let view = View::context(context.path(), None).expect("context");
    let diff = copied(&empty(), &view, &["/t"], &options("/t")).expect("copy");
    let meta = |name: &str| fs::metadata(diff.path().join(name)).expect("stat");
    assert_eq!(meta("t/a").ino(), meta("t/b").ino());
    assert_ne!(meta("t/a").ino(), fs::metadata(context.path().join("t/a")).expect("stat").ino());
    assert_eq!(mtime_of(&diff.path().join("t/old")), (-300_000_000, 123_456_789));
    assert!(meta("t/sparse").blocks() < 1000, "holes stay holes");
    assert_eq!(
        fs::read(context.path().join("t/sparse")).expect("read"),
        fs::read(diff.path().join("t/sparse")).expect("read")
    );
    assert_eq!(mtime_of(&diff.path().join("t")), mtime_of(&context.path().join("t")));
    let fixed = CopyOptions { mtime: Some(Time::from_seconds(99)), ..options("/t") };
    let diff = copied(&empty(), &view, &["/t"], &fixed).expect("copy");
    assert_eq!(mtime_of(&diff.path().join("t/old")), (99, 0));
    assert_eq!(mtime_of(&diff.path().join("t")), (99, 0));
}

#[test]
fn actions_make_hide_and_show() {
    if !needs_root("actions_make_hide_and_show") {
        return;
    }
    let (base, diff) = (dir(), dir());
    fill(
        base.path(),
        &[
            ("opt/tree/a", "a"),
            ("opt/tree/b", "b"),
            ("opt/other", ""),
            ("var/x.log", ""),
            ("var/y.log", ""),
            ("l", "-> opt"),
        ],
    );
    rustix::fs::utimensat(
        rustix::fs::CWD,
        base.path().join("opt"),
        &Time::from_seconds(77).timestamps(),
        AtFlags::empty(),
    )
    .expect("utimes");
    let below = View::layers(&[base.path()], Marks::Trusted).expect("base");
    let writer = DiffWriter::new(diff.path(), &below, Marks::Trusted).expect("writer");
    writer.mkdir(Path::new("/w/x"), 0o750, true, Some(Ids { uid: 3, gid: 4 }), None).expect("mkdir");
    writer.mkdir(Path::new("/l/tree"), 0o700, true, None, None).expect("exists");
    assert!(writer.mkdir(Path::new("/no/x"), 0o700, false, None, None).is_err());
    writer.mkfile(Path::new("/w/f"), 0o600, b"new", None, None).expect("mkfile");
    writer.symlink(name("f"), Path::new("/w/s"), None, None).expect("symlink");
    writer.remove(Path::new("/l/tree"), false, None).expect("remove");
    writer.remove(Path::new("/var/*.log"), false, Some(&simple_match)).expect("remove");
    assert!(writer.remove(Path::new("/gone"), false, None).is_err());
    writer.remove(Path::new("/gone"), true, None).expect("may be missing");
    writer.mkdir(Path::new("/opt/tree"), 0o711, true, None, None).expect("again");
    writer.finish().expect("finish");
    let merged = View::layers(&[diff.path(), base.path()], Marks::Trusted).expect("merged");
    let shown: Vec<String> = lines(&merged).into_iter().filter(|l| !l.starts_with("l ")).collect();
    let modes = |path: &str| fs::metadata(base.path().join(path)).expect("stat").mode() & 0o7777;
    assert_eq!(
        shown,
        [
            format!("opt {:o} 0:0 Dir", modes("opt")),
            format!("opt/other {:o} 0:0 ", modes("opt/other")),
            "opt/tree 711 0:0 Dir".into(),
            format!("var {:o} 0:0 Dir", modes("var")),
            "w 750 3:4 Dir".into(),
            "w/f 600 0:0 new".into(),
            "w/s 777 0:0 -> f".into(),
            "w/x 750 3:4 Dir".into(),
        ]
    );
    assert_eq!(mtime_of(&diff.path().join("opt")), (77, 0), "a copied-up directory keeps its time");
}

#[test]
fn files_swapped_for_links_are_not_followed() {
    let (context, outside) = (dir(), dir());
    fill(outside.path(), &[("secret", "s")]);
    fill(context.path(), &[("f", "f")]);
    let view = View::context(context.path(), None).expect("context");
    let node = view.require("f", true).expect("f");
    fs::remove_file(context.path().join("f")).expect("rm");
    symlink(outside.path().join("secret"), context.path().join("f")).expect("link");
    assert!(view.open_file(&node).is_err());
}

#[test]
fn capabilities_survive_without_chown() {
    if !needs_root("capabilities_survive_without_chown") {
        return;
    }
    let tree = dir();
    fill(tree.path(), &[("tool", "t")]);
    chmod(&tree.path().join("tool"), 0o755);
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set_xattr(&tree.path().join("tool"), "security.capability", &capability);
    let view = View::layers(&[tree.path()], Marks::Trusted).expect("tree");
    let mode = Some(ModeChange::Number(0o700));
    let has = |options: CopyOptions<'_>| {
        let diff = copied(&empty(), &view, &["/tool"], &options).expect("copy");
        let after = View::layers(&[diff.path()], Marks::Trusted).expect("diff");
        !after.xattrs(&after.require("t", true).expect("t")).expect("xattrs").is_empty()
    };
    assert!(has(options("/t")));
    assert!(has(CopyOptions { mode, ..options("/t") }));
    assert!(!has(CopyOptions { owner: Some(Ids { uid: 1, gid: 1 }), ..options("/t") }));
}

#[test]
fn export_writes_to_a_directory() {
    let (tree, out) = (dir(), dir());
    fill(tree.path(), &[("a/f", "f"), ("l", "-> a/f")]);
    fill(out.path(), &[("a/mine", "m"), ("a/f", "old")]);
    let view = View::layers(&[tree.path()], Marks::Trusted).expect("tree");
    export_to_directory(&view, out.path(), None, Some(Time::from_seconds(5))).expect("export");
    assert_eq!(fs::read_to_string(out.path().join("a/f")).expect("read"), "f");
    assert!(out.path().join("a/mine").exists());
    assert_eq!(mtime_of(&out.path().join("a/f")), (5, 0));
    assert_eq!(fs::metadata(tree.path().join("a/f")).expect("stat").nlink(), 1, "nothing of the store is linked out");
}

#[test]
fn what_was_staged_is_taken_over_as_if_copied() {
    if !needs_root("what_was_staged_is_taken_over_as_if_copied") {
        return;
    }
    let (context, keep) = (dir(), dir());
    sources(context.path());
    link_to(&context.path().join("d/a.txt"), &context.path().join("x/second"));
    fs::write(context.path().join("big"), vec![7; 17 << 20]).expect("write");
    let holes = fs::File::create(context.path().join("holes")).expect("create");
    holes.set_len(1 << 20).expect("truncate");
    let view = View::context(context.path(), None).expect("context");
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], bool);
    let table: [Case<'_>; 6] = [
        ("into nothing", "/srv/app", &[("other/", "")], true),
        ("beside other files", "/srv/app", &[("srv/app/z", "z"), ("srv/app/top.txt", "old")], true),
        ("into the root", "/", &[("srv/app/z", "z")], true),
        ("through a link", "/lnk/app", &[("real/", ""), ("lnk", "-> /real")], true),
        ("over a directory of the name", "/srv", &[("srv/d/z", "z")], false),
        ("over a file", "/srv", &[("srv", "file")], false),
    ];
    let index = StatIndex::open(&keep.path().join("index")).expect("index");
    for (name, destination, files, expect) in table {
        let (base, staged, taken) = (dir(), dir(), dir());
        fill(base.path(), files);
        let below = View::layers(&[base.path()], Marks::Trusted).expect("base");
        let mode = Some(ModeChange::parse("u+x,go-w").expect("mode"));
        let options = CopyOptions { mode, ..options(destination) };
        let source = CopySource::Path { view: &view, path: Path::new("/"), wildcard: false, required: true };
        let writer = DiffWriter::new(staged.path(), &empty(), Marks::Trusted).expect("writer");
        let staging = CopyOptions { destination: Path::new("/"), digests: Some(&index), ..options.clone() };
        writer.copy(&[source], &staging).expect("stage");
        writer.finish().expect("finish");
        let hits = index.hits();
        let list = ListingWriter::new(keep.path());
        let (digest, all) = selection_listing(source, &options, &index, list, [0; 32]).expect("listing");
        assert_eq!(digest, selection_digest(&[source], &options, &NoDigests).expect("digest"), "{name}");
        assert_eq!(index.hits(), hits, "nothing is known from before");
        let node = view.require("/", true).expect("root");
        let writer = DiffWriter::new(taken.path(), &below, Marks::Trusted).expect("writer");
        let adopted = writer.adopt(staged.path(), &node, &options, &all.expect("a directory")).expect("adopt");
        assert_eq!(adopted, expect, "{name}");
        if adopted {
            writer.finish().expect("finish");
            let copied = copied(&below, &view, &["/"], &options).expect("copy");
            let tar = |dir: &Path| {
                let mut out = Vec::new();
                write_layer(&[dir], Marks::Trusted, TarOptions::default(), &mut out).expect("tar");
                out
            };
            assert!(tar(taken.path()) == tar(copied.path()), "another layer: {name}");
        }
    }
}
