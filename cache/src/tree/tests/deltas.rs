//! A layer of an earlier copy and its changes has the bytes of a fresh copy, and shows the same over its base.

use super::copying::sources;
use super::*;
use std::num::NonZeroU64;

/// Numbers that look random, and are the same each time.
struct Numbers(NonZeroU64);

impl Numbers {
    fn new(seed: u64) -> Numbers {
        Numbers(NonZeroU64::MIN.saturating_add(seed))
    }

    fn below(&mut self, end: u64) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0 = NonZeroU64::new(x).expect("the generator never gives zero");
        (x >> 11) % end
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).expect("small")]
    }
}

fn listing(view: &View, options: &CopyOptions<'_>, spill: &Path) -> Listing {
    let source = CopySource::Path { view, path: Path::new("/"), wildcard: false, required: true };
    let made = selection_listing(source, options, &NoDigests, ListingWriter::new(spill), [7; 32]).expect("listing");
    assert_eq!(made.0, selection_digest(&[source], options, &NoDigests).expect("digest"));
    made.1.expect("a directory has a listing")
}

fn tar(dirs: &[&Path]) -> Vec<u8> {
    let mut out = Vec::new();
    write_layer(dirs, Marks::Trusted, TarOptions::default(), &mut out).expect("tar");
    out
}

/// Saved and read again, as the next process sees it.
fn kept(listing: &Listing, dir: &Path) -> Listing {
    let path = dir.join(format!("listing-{}", fs::read_dir(dir).expect("list").count()));
    listing.save(&path).expect("save");
    Listing::open(&path).expect("open")
}

/// The directory of changes, if the earlier copy can stay.
fn delta(base: &View, context: &View, options: &CopyOptions<'_>, old: &Listing, new: &Listing) -> Option<TempDir> {
    let found = changes(old, new, 1000).expect("compare")?;
    if !fits(base, None, options.destination, &found, new).expect("fit") {
        return None;
    }
    Some(copied(base, context, &["/"], &CopyOptions { changes: Some(&found), ..options.clone() }).expect("delta"))
}

fn paths_below(root: &Path) -> Vec<PathBuf> {
    let mut open = vec![root.to_path_buf()];
    let mut found = Vec::new();
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).expect("list").flatten() {
            if entry.file_type().expect("type").is_dir() {
                open.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// One change of a kind that people make.
fn change(root: &Path, numbers: &mut Numbers, round: u64) {
    let all = paths_below(root);
    let dirs: Vec<PathBuf> = all.iter().filter(|p| p.is_dir() && !p.is_symlink()).cloned().collect();
    let files: Vec<PathBuf> = all.iter().filter(|p| p.is_file() && !p.is_symlink()).cloned().collect();
    let (dir, file) = (numbers.pick(&dirs).clone(), numbers.pick(&files).clone());
    let new = dir.join(format!("new{round}"));
    match numbers.below(10) {
        0 | 1 => fs::write(&file, format!("edited in round {round}")).expect("write"),
        2 => fs::write(&new, "new").expect("write"),
        3 => fs::remove_file(&file).expect("remove"),
        4 if dirs.len() > 4 => fs::remove_dir_all(&dir).expect("remove"),
        5 => chmod(&file, 0o600 + u32::try_from(numbers.below(0o177)).expect("small")),
        6 => {
            fs::remove_file(&file).expect("remove");
            fill(&file, &[("inside/deep", "a directory where a file was")]);
        }
        7 if dirs.len() > 4 => {
            fs::remove_dir_all(&dir).expect("remove");
            fs::write(&dir, "a file where a directory was").expect("write");
        }
        8 => symlink("nowhere", &new).expect("link"),
        _ => {
            let times = rustix::fs::Timestamps {
                last_access: rustix::fs::Timespec { tv_sec: 5, tv_nsec: 0 },
                last_modification: rustix::fs::Timespec { tv_sec: i64::try_from(round).expect("small"), tv_nsec: 0 },
            };
            rustix::fs::utimensat(rustix::fs::CWD, &dir, &times, AtFlags::empty()).expect("touch");
        }
    }
}

#[test]
fn changes_over_an_earlier_copy_are_a_fresh_copy() {
    if !needs_root("changes_over_an_earlier_copy_are_a_fresh_copy") {
        return;
    }
    let mut deltas = 0;
    for seed in 0..12 {
        let (context, base, keep) = (dir(), dir(), dir());
        sources(context.path());
        // What the base has under the same names, the earlier copy must not hide.
        fill(base.path(), &[("opt/d/b.md", "base"), ("opt/d/other", "base"), ("opt/x/y/a.txt", "base")]);
        let mut numbers = Numbers::new(seed);
        let view = View::context(context.path(), None).expect("context");
        let below = View::layers(&[base.path()], Marks::Trusted).expect("base");
        let options = options("/opt");
        let old = kept(&listing(&view, &options, keep.path()), keep.path());
        let earlier = copied(&below, &view, &["/"], &options).expect("copy");
        for round in 0..6 {
            change(context.path(), &mut numbers, round);
            let new = listing(&view, &options, keep.path());
            let Ok(fresh) = copied(&below, &view, &["/"], &options) else {
                let found = changes(&old, &new, 1000).expect("compare").expect("few");
                let over = CopyOptions { changes: Some(&found), ..options.clone() };
                let fit = fits(&below, None, options.destination, &found, &new).expect("fit");
                assert!(!fit || copied(&below, &view, &["/"], &over).is_err(), "no error: seed {seed}, round {round}");
                break;
            };
            let Some(delta) = delta(&below, &view, &options, &old, &new) else { continue };
            deltas += 1;
            let place = format!("seed {seed}, round {round}");
            assert!(tar(&[delta.path(), earlier.path()]) == tar(&[fresh.path()]), "other layer: {place}");
            let shown = |dirs: &[&Path]| lines(&View::layers(dirs, Marks::Trusted).expect("view"));
            let both = shown(&[delta.path(), earlier.path(), base.path()]);
            assert_eq!(both, shown(&[fresh.path(), base.path()]), "{place}");
        }
    }
    assert!(deltas > 40, "only {deltas} of 72 were made of changes");
}

#[test]
fn a_change_costs_what_changed() {
    let (context, keep) = (dir(), dir());
    for n in 0..500 {
        fill(context.path(), &[(&format!("d{}/f{n}", n % 20), "content")]);
    }
    let view = View::context(context.path(), None).expect("context");
    let options = options("/");
    let old = listing(&view, &options, keep.path());
    fs::write(context.path().join("d3/f3"), "other").expect("write");
    let new = listing(&view, &options, keep.path());
    let found = changes(&old, &new, 2).expect("compare").expect("few");
    let delta = copied(&empty(), &view, &["/"], &CopyOptions { changes: Some(&found), ..options }).expect("delta");
    assert_eq!(paths_below(delta.path()), [delta.path().join("d3"), delta.path().join("d3/f3")]);
    assert!(changes(&old, &new, 1).expect("compare").is_none(), "a directory and a file are two");
}

#[test]
fn names_of_one_file_are_kept_together() {
    let (context, keep) = (dir(), dir());
    fill(context.path(), &[("a", "1"), ("c", "2"), ("d/e", "3")]);
    link_to(&context.path().join("a"), &context.path().join("d/b"));
    // A name elsewhere is no name of the selection.
    let outside = keep.path().join("outside");
    link_to(&context.path().join("c"), &outside);
    let view = View::context(context.path(), None).expect("context");
    let options = options("/");
    let old = listing(&view, &options, keep.path());
    let earlier = copied(&empty(), &view, &["/"], &options).expect("copy");
    fs::write(context.path().join("a"), "both").expect("write");
    fs::write(context.path().join("c"), "one").expect("write");
    fs::remove_file(outside).expect("remove");
    let new = listing(&view, &options, keep.path());
    let made = delta(&empty(), &view, &options, &old, &new).expect("delta");
    let fresh = copied(&empty(), &view, &["/"], &options).expect("copy");
    assert!(tar(&[made.path(), earlier.path()]) == tar(&[fresh.path()]));
    link_to(&context.path().join("a"), &context.path().join("third"));
    let third = listing(&view, &options, keep.path());
    assert!(changes(&old, &third, 1000).expect("compare").is_none(), "`third` alone would be another file");
}

#[test]
fn a_base_with_the_name_keeps_it() {
    let (context, base, keep) = (dir(), dir(), dir());
    fill(context.path(), &[("a", "1"), ("b", "2")]);
    fill(base.path(), &[("b", "base")]);
    let view = View::context(context.path(), None).expect("context");
    let below = View::layers(&[base.path()], Marks::Trusted).expect("base");
    let options = options("/");
    let old = listing(&view, &options, keep.path());
    fs::remove_file(context.path().join("b")).expect("remove");
    let new = listing(&view, &options, keep.path());
    let found = changes(&old, &new, 1000).expect("compare").expect("few");
    assert!(!fits(&below, None, Path::new("/"), &found, &new).expect("fit"), "a whiteout would hide the base's");
    assert!(fits(&empty(), None, Path::new("/"), &found, &new).expect("fit"));
}

#[test]
fn another_base_must_give_the_same_footing() {
    let (context, keep) = (dir(), dir());
    fill(context.path(), &[("a", "1"), ("d/f", "2")]);
    let view = View::context(context.path(), None).expect("context");
    let options = options("/app/here");
    let all = listing(&view, &options, keep.path());
    let found = changes(&all, &all, 0).expect("compare").expect("none");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], bool);
    let table: [Case<'_>; 7] = [
        ("the same", &[("app/here/", "")], true),
        ("another file there", &[("app/here/z", "z")], true),
        ("a file of the name", &[("app/here/a", "z")], true),
        ("a directory of the name", &[("app/here/d/z", "z")], true),
        ("a file where a directory is copied", &[("app/here/d", "z")], false),
        ("a link on the way", &[("other/here/", ""), ("app", "-> other")], false),
        ("nothing there", &[("app/", "")], false),
    ];
    let fix = |dir: &Path| {
        for path in paths_below(dir).into_iter().rev().filter(|p| p.is_dir() && !p.is_symlink()).chain([dir.into()]) {
            chmod(&path, 0o755);
            let time = rustix::fs::Timespec { tv_sec: 9, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, AtFlags::empty()).expect("touch");
        }
    };
    let earlier = dir();
    fill(earlier.path(), &[("app/here/", "")]);
    fix(earlier.path());
    let below = View::layers(&[earlier.path()], Marks::Trusted).expect("base");
    for (name, files, expect) in table {
        let other = dir();
        fill(other.path(), files);
        fix(other.path());
        let over = View::layers(&[other.path()], Marks::Trusted).expect("base");
        let fit = fits(&over, Some(&below), options.destination, &found, &all).expect("fit");
        assert_eq!(fit, expect, "{name}");
    }
}

#[test]
fn a_damaged_listing_is_none() {
    let (context, keep) = (dir(), dir());
    fill(context.path(), &[("a", "1"), ("d/f", "2")]);
    let view = View::context(context.path(), None).expect("context");
    let all = listing(&view, &options("/"), keep.path());
    let path = keep.path().join("saved");
    all.save(&path).expect("save");
    let whole = fs::read(&path).expect("read");
    fs::write(context.path().join("d/f"), "3").expect("write");
    let new = listing(&view, &options("/"), keep.path());
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x11;
        fs::write(&path, &bytes).expect("write");
        // Refused, or everything that it says is still true.
        let Some(damaged) = Listing::open(&path) else { continue };
        if let Ok(Some(found)) = changes(&damaged, &new, 1000) {
            assert_eq!(found, changes(&all, &new, 1000).expect("compare").expect("few"), "{at}");
        }
    }
    fs::write(&path, &whole[..whole.len() / 2]).expect("write");
    assert!(Listing::open(&path).is_none());
}

#[test]
fn long_listings_go_to_a_file() {
    let (context, keep) = (dir(), dir());
    let view = View::context(context.path(), None).expect("context");
    let writer = ListingWriter::new(keep.path());
    let meta = view.require("/", true).expect("root").meta;
    let mut last = None;
    for n in 0..40 {
        let mut block = super::super::listing::BlockWriter::default();
        for file in 0..2000 {
            let name = format!("{n:02}-a-rather-long-name-of-a-file-{file:06}");
            let meta = Meta { kind: Kind::File, ..meta };
            block.add(name.as_bytes(), &meta, meta.mtime, &[n; 32], None);
        }
        last = Some(writer.append(block).expect("append"));
    }
    let (block, value) = last.expect("some");
    let long = writer.finish(block, value, [0; 32]);
    let long = kept(&long, keep.path());
    assert_eq!(long.read(block, &value).expect("read").iter().count(), 2000);
    assert!(fs::metadata(keep.path().join("listing-0")).expect("stat").len() > 7 << 20);
}
