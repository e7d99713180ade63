use super::*;
use crate::tree::tar_read::TarReader;
use proptest::prelude::*;

fn tar_of(dirs: &[&Path], options: TarOptions) -> Vec<u8> {
    let mut out = Vec::new();
    write_layer(dirs, Marks::Trusted, options, &mut out).expect("layer");
    out
}

fn unpacked(tar: &[u8], base: &View) -> Result<TempDir> {
    let diff = dir();
    unpack_layer(tar, diff.path(), &|| Ok(base.clone()), Marks::Trusted, Limits::default())?;
    Ok(diff)
}

/// Everything a layer keeps, whiteouts and link groups included.
fn raw(root: &Path) -> Vec<String> {
    fn go(root: &Path, at: &Path, inodes: &mut Vec<u64>, out: &mut Vec<String>) {
        let mut names: Vec<_> =
            fs::read_dir(root.join(at)).expect("list").map(|e| e.expect("entry").file_name()).collect();
        names.sort();
        for name in names {
            let path = at.join(name);
            let full = root.join(&path);
            let meta = fs::symlink_metadata(&full).expect("stat");
            let group = inodes.iter().position(|i| *i == meta.ino()).unwrap_or_else(|| {
                inodes.push(meta.ino());
                inodes.len() - 1
            });
            let rest = if meta.is_dir() {
                let mut mark = [0; 8];
                format!("opaque {}", rustix::fs::getxattr(&full, "trusted.overlay.opaque", &mut mark[..]).is_ok())
            } else if meta.is_symlink() {
                fs::read_link(&full).expect("link").display().to_string()
            } else if meta.is_file() {
                {
                    let content = fs::read(&full).expect("read");
                    format!("{} {}", content.len(), blake3::hash(&content))
                }
            } else {
                format!("device {}", meta.rdev())
            };
            let mtime = if rest == "device 0" { 0 } else { meta.mtime() };
            out.push(format!("{path:?} {:o} {}:{} {mtime} {group} {rest}", meta.mode(), meta.uid(), meta.gid()));
            if meta.is_dir() {
                go(root, &path, inodes, out);
            }
        }
    }
    let mut out = Vec::new();
    go(root, Path::new(""), &mut Vec::new(), &mut out);
    out
}

#[derive(Clone, Debug)]
enum Made {
    File(Vec<u8>, u32),
    Dir(bool),
    Link(String),
    Hard,
    Whiteout,
    Fifo,
}

fn made() -> impl Strategy<Value = Made> {
    prop_oneof![
        (prop::collection::vec(any::<u8>(), 0..1500), 0_u32..0o10000).prop_map(|(c, m)| Made::File(c, m)),
        any::<bool>().prop_map(Made::Dir),
        "[a-z/.]{1,120}".prop_map(Made::Link),
        Just(Made::Hard),
        Just(Made::Whiteout),
        Just(Made::Fifo),
    ]
}

fn place(root: &Path, entries: &[(String, Made, i64, u32)]) {
    let mut parents = vec![root.to_path_buf()];
    let mut file = None;
    for (n, (name, made, mtime, id)) in entries.iter().enumerate() {
        let path = parents[n % parents.len()].join(name);
        if fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        match made {
            Made::File(content, mode) => {
                fs::write(&path, content).expect("write");
                std::os::unix::fs::chown(&path, Some(*id), Some(*id)).expect("chown");
                chmod(&path, *mode);
                file = Some(path.clone());
            }
            Made::Dir(mark) => {
                fs::create_dir(&path).expect("mkdir");
                if *mark {
                    opaque(&path);
                }
                parents.push(path.clone());
            }
            Made::Link(target) => symlink(target, &path).expect("link"),
            Made::Hard => match &file {
                Some(file) => link_to(file, &path),
                None => continue,
            },
            Made::Whiteout => {
                whiteout(&path);
                continue;
            }
            Made::Fifo => {
                rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from(0o640), 0).expect("fifo")
            }
        }
        let time = Time::from_seconds(*mtime).timestamps();
        rustix::fs::utimensat(rustix::fs::CWD, &path, &time, AtFlags::SYMLINK_NOFOLLOW).expect("utimes");
    }
    for path in parents.iter().skip(1) {
        let time = Time::from_seconds(1000).timestamps();
        rustix::fs::utimensat(rustix::fs::CWD, path, &time, AtFlags::SYMLINK_NOFOLLOW).expect("utimes");
    }
}

/// What is left of a layer when that is left out which says the same as `base`.
fn changes_of(upper: &Path, base: &Path) -> Vec<u8> {
    let below = View::layers(&[base], Marks::Trusted).expect("view");
    let mut out = Vec::new();
    write_changes(&[upper], Marks::Trusted, &below, TarOptions::default(), &mut out).expect("layer");
    out
}

fn names(tar: &[u8]) -> Vec<String> {
    let mut reader = TarReader::new(tar);
    std::iter::from_fn(|| reader.next().expect("entry"))
        .map(|entry| String::from_utf8_lossy(&entry.name).into_owned())
        .collect()
}

#[test]
fn a_layer_says_what_is_different_from_below() {
    if !needs_root("a_layer_says_what_is_different_from_below") {
        return;
    }
    let (base, upper) = (dir(), dir());
    let entry = |name: &str, made, time| (name.to_owned(), made, time, 0);
    let file = |text: &str| Made::File(text.as_bytes().to_vec(), 0o644);
    for root in [base.path(), upper.path()] {
        place(root, &[entry("d", Made::Dir(false), 0)]);
        place(root, &[entry("e", Made::Dir(false), 0)]);
    }
    let within = |root: &TempDir, name: &str| root.path().join(name);
    place(
        &within(&base, "d"),
        &[entry("same", file("1"), 7), entry("touched", file("1"), 7), entry("text", file("1"), 7)],
    );
    place(
        &within(&upper, "d"),
        &[entry("same", file("1"), 7), entry("touched", file("1"), 8), entry("text", file("2"), 7)],
    );
    assert_eq!(names(&changes_of(upper.path(), base.path())), ["d/", "d/text", "d/touched"]);

    // A second name is a file of its own, since the first is not in the layer.
    link_to(&within(&upper, "d/same"), &within(&upper, "e/second"));
    whiteout(&within(&upper, "e/never"));
    chmod(&within(&upper, "d"), 0o700);
    assert_eq!(names(&changes_of(upper.path(), base.path())), ["d/", "d/text", "d/touched", "e/", "e/second"]);

    opaque(&within(&upper, "d"));
    fs::remove_file(within(&upper, "d/touched")).expect("remove");
    let all = ["d/", "d/text", "d/.wh.touched", "e/", "e/second"];
    assert_eq!(names(&changes_of(upper.path(), base.path())), all, "what is hidden is named");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn layers_come_back_as_they_were(
        entries in prop::collection::vec(("[a-zA-Z0-9 ü._-]{1,130}".prop_filter("a name", |n| n != "." && n != ".." && !n.starts_with(".wh.") && n.len() < 250), made(), -2_000_000_000_i64..5_000_000_000, 0_u32..4_000_000_000), 0..30)
    ) {
        if !needs_root("layers_come_back_as_they_were") {
            return Ok(());
        }
        let diff = dir();
        place(diff.path(), &entries);
        let tar = tar_of(&[diff.path()], TarOptions::default());
        prop_assert_eq!(&tar, &tar_of(&[diff.path()], TarOptions::default()));
        let back = unpacked(&tar, &empty()).expect("unpack");
        prop_assert_eq!(raw(diff.path()), raw(back.path()));
        if let Ok(listing) = list_with_tar(&tar) {
            prop_assert_eq!(listing, raw(diff.path()).len() + raw(diff.path()).iter().filter(|l| l.ends_with("opaque true")).count());
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..4096), at in 0_usize..2048, good in any::<bool>()) {
        let mut tar = bytes;
        if good {
            let source = dir();
            fill(source.path(), &[("a/b", "content"), ("l", "-> a")]);
            let layer = tar_of(&[source.path()], TarOptions::default());
            let changed = tar.first().copied().unwrap_or(1);
            tar = layer;
            let at = at % tar.len();
            tar[at] ^= changed;
        }
        let _ = unpacked(&tar, &empty());
    }
}

/// Number of entries that GNU tar sees.
fn list_with_tar(tar: &[u8]) -> std::io::Result<usize> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), tar)?;
    let output = std::process::Command::new("tar").args(["--quoting-style=escape", "-tf"]).arg(file.path()).output()?;
    assert!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout.iter().filter(|b| **b == b'\n').count())
}

#[test]
fn stacked_diffs_are_one_layer() {
    if !needs_root("stacked_diffs_are_one_layer") {
        return;
    }
    let (base, first, second) = (dir(), dir(), dir());
    fill(base.path(), &[("d/in-base", ""), ("hidden/x", "")]);
    fill(first.path(), &[("d/a", "1"), ("d/b", "1"), ("gone", "1"), ("r/x", "1"), ("f", "file"), ("hidden/y", "")]);
    fill(second.path(), &[("d/b", "2"), ("f/now", "a directory"), ("r", "file")]);
    whiteout(&first.path().join("d/in-base"));
    opaque(&first.path().join("hidden"));
    whiteout(&second.path().join("d/a"));
    whiteout(&second.path().join("gone"));
    let below = View::layers(&[base.path()], Marks::Trusted).expect("base");
    let tar = tar_of(&[second.path(), first.path()], TarOptions { clamp: Some(9) });
    let back = unpacked(&tar, &below).expect("unpack");
    let merged = |dirs: &[&Path]| lines(&View::layers(dirs, Marks::Trusted).expect("view"));
    let both = merged(&[second.path(), first.path(), base.path()]);
    assert_eq!(merged(&[back.path(), base.path()]), both);
    for name in ["d/a", "gone"] {
        assert!(fs::symlink_metadata(back.path().join(name)).is_err(), "no whiteout of what never was: {name}");
    }
    assert!(
        fs::symlink_metadata(back.path().join("d/in-base")).is_ok(),
        "the lowest directory's marks are the layer's"
    );
    assert_eq!(mtime_of(&back.path().join("d/b")), (9, 0));
    let mut flat = Vec::new();
    write_root(
        &View::layers(&[second.path(), first.path(), base.path()], Marks::Trusted).expect("view"),
        None,
        &mut flat,
    )
    .expect("root tar");
    let flat = unpacked(&flat, &empty()).expect("unpack");
    assert_eq!(merged(&[flat.path()]), both);
}

#[test]
fn links_to_lower_layers_copy_up() {
    if !needs_root("links_to_lower_layers_copy_up") {
        return;
    }
    let (base, diff) = (dir(), dir());
    fill(base.path(), &[("p/file", "low")]);
    chmod(&base.path().join("p"), 0o711);
    fill(diff.path(), &[("p/file", "low")]);
    link_to(&diff.path().join("p/file"), &diff.path().join("q"));
    let tar = tar_of(&[diff.path()], TarOptions::default());
    // Only the link: drop the directory and the file from the front (two headers and a block of content).
    let tar = &tar[3 * 512..];
    let below = View::layers(&[base.path()], Marks::Trusted).expect("base");
    let back = unpacked(tar, &below).expect("unpack");
    let meta = |path: &str| fs::metadata(back.path().join(path)).expect("stat");
    assert_eq!(meta("p/file").ino(), meta("q").ino());
    assert_eq!(meta("p").mode() & 0o7777, 0o711, "an unlisted directory is as it is below");
    assert_eq!(fs::metadata(base.path().join("p/file")).expect("stat").nlink(), 1);
    assert!(unpacked(tar, &empty()).is_err());
}

#[test]
fn paths_longer_than_the_kernel_takes_work() {
    let context = dir();
    let part = "n".repeat(200);
    let mut at = dir::open_root(context.path()).expect("open");
    for _ in 0..40 {
        rustix::fs::mkdirat(&at, part.as_str(), Mode::from(0o755)).expect("mkdir");
        at = dir::open_dir(std::os::fd::AsFd::as_fd(&at), part.as_str()).expect("open");
    }
    rustix::fs::mknodat(&at, "f", FileType::RegularFile, Mode::from(0o644), 0).expect("file");
    rustix::fs::linkat(&at, "f", &at, "g", AtFlags::empty()).expect("link");
    rustix::fs::futimens(&at, &Time::from_seconds(7).timestamps()).expect("utimes");
    let view = View::context(context.path(), None).expect("context");
    let diff = copied(&empty(), &view, &["/"], &options("/")).expect("copy");
    let digest = |root: &Path| View::context(root, None).expect("view").digest("/", true, &NoDigests).expect("digest");
    chmod(context.path(), 0o755);
    assert_eq!(digest(diff.path()), digest(context.path()));
    let back = unpacked(&tar_of(&[diff.path()], TarOptions::default()), &empty()).expect("unpack");
    chmod(back.path(), 0o755);
    assert_eq!(digest(back.path()), digest(context.path()));
    for root in [diff.path(), back.path(), context.path()] {
        let fd = dir::open_root(root).expect("open");
        let deep: PathBuf = std::iter::repeat_n(part.as_str(), 40).collect();
        let bottom = dir::open_beneath(std::os::fd::AsFd::as_fd(&fd), &deep).expect("deep");
        assert_eq!(rustix::fs::fstat(&bottom).expect("stat").st_mtime, 7);
        remove_tree(std::os::fd::AsFd::as_fd(&fd), name(&part)).expect("remove");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_different_is_enough(
        entries in prop::collection::vec(("[a-f]{1,2}", made(), 0_i64..3, 0_u32..3), 0..30),
        same in 0..30_usize,
        more in prop::collection::vec(("[a-f]{1,2}", made(), 0_i64..3, 0_u32..3), 0..30),
    ) {
        if !needs_root("what_is_different_is_enough") {
            return Ok(());
        }
        let (base, upper) = (dir(), dir());
        let alone = |all: &[(String, Made, i64, u32)]| all.iter().filter(|e| !matches!(e.1, Made::Hard)).cloned().collect::<Vec<_>>();
        let entries = alone(&entries);
        place(base.path(), &entries);
        place(upper.path(), &[&entries[..same.min(entries.len())], &alone(&more)].concat());
        let back = unpacked(&changes_of(upper.path(), base.path()), &View::layers(&[base.path()], Marks::Trusted).expect("view")).expect("unpack");
        let shown = |top: &Path| {
            let mut out = Vec::new();
            write_root(&View::layers(&[top, base.path()], Marks::Trusted).expect("view"), None, &mut out).expect("root");
            out
        };
        prop_assert!(shown(upper.path()) == shown(back.path()));
    }
}
