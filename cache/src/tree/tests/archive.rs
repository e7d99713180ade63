use super::*;
use std::io::Write;

/// One entry: type flag, name, link target, content.
type Raw<'a> = (u8, &'a str, &'a str, &'a [u8]);

fn header(flag: u8, name: &[u8], link: &[u8], size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"11040615310");
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[156] = flag;
    sum(&mut block);
    block
}

fn sum(block: &mut [u8; 512]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn tar(entries: &[Raw<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (flag, name, link, content) in entries {
        out.extend_from_slice(&header(*flag, name.as_bytes(), link.as_bytes(), content.len() as u64));
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.extend_from_slice(&[0; 1024]);
    out
}

fn record(text: &str) -> Vec<u8> {
    // Two digits are enough for the records here.
    format!("{} {text}\n", text.len() + 4).into_bytes()
}

fn unpack(tar: &[u8], into: &Path) -> Result<Unpacked> {
    unpack_layer(tar, into, &|| Ok(empty()), Marks::Trusted, Limits { bytes: 10_000, entries: 20 })
}

#[test]
fn malicious_layers_stay_inside_or_fail() {
    if !needs_root("malicious_layers_stay_inside_or_fail") {
        return;
    }
    let holder = dir();
    let canary = holder.path().join("canary");
    fs::create_dir(&canary).expect("canary");
    fs::write(canary.join("victim"), "untouched").expect("victim");
    let out = canary.to_str().expect("a plain path");
    let victim = format!("{out}/victim");
    let many: Vec<Raw<'_>> = vec![(b'0', "f", "", b""); 21];
    let big = [0_u8; 10_001];
    let table: Vec<(&str, Vec<Raw<'_>>, bool)> = vec![
        ("dot dot", vec![(b'0', "../canary/pwn", "", b"x")], false),
        ("dot dot inside", vec![(b'0', "a/../b", "", b"x")], true),
        ("absolute", vec![(b'0', &victim, "", b"x")], true),
        (
            "through absolute link",
            vec![(b'2', "l", out, b""), (b'0', "l/pwn", "", b"x"), (b'0', "l/victim", "", b"x")],
            true,
        ),
        ("through climbing link", vec![(b'2', "l", "../canary", b""), (b'0', "l/victim", "", b"x")], true),
        ("file over link", vec![(b'2', "l", &victim, b""), (b'0', "l", "", b"x")], true),
        ("directory over link", vec![(b'2', "l", out, b""), (b'5', "l/", "", b"")], true),
        ("hard link out", vec![(b'1', "h", &victim, b""), (b'0', "h", "", b"x")], false),
        ("hard link up", vec![(b'1', "h", "../canary/victim", b"")], false),
        ("hard link through link", vec![(b'2', "l", out, b""), (b'1', "h", "l/victim", b"")], false),
        ("hard link to link", vec![(b'2', "l", &victim, b""), (b'1', "h", "l", b""), (b'0', "h", "", b"x")], true),
        ("hard link to directory", vec![(b'5', "d/", "", b""), (b'1', "h", "d", b"")], false),
        ("hard link to itself", vec![(b'0', "h", "", b"x"), (b'1', "h", "h", b"")], true),
        ("whiteout of dot dot", vec![(b'0', "d/.wh...", "", b"")], false),
        ("whiteout of nothing", vec![(b'0', ".wh.", "", b"")], false),
        ("whiteout through link", vec![(b'2', "l", out, b""), (b'0', "l/.wh.victim", "", b"")], true),
        ("opaque through link", vec![(b'2', "l", out, b""), (b'0', "l/.wh..wh..opq", "", b"")], true),
        ("root is a file", vec![(b'0', "./", "", b"x")], false),
        ("old directory with content", vec![(0, "d/", "", b"x")], false),
        ("root is a link", vec![(b'2', ".", out, b"")], false),
        ("unknown type", vec![(b'Z', "z", "", b"")], false),
        ("hidden device", vec![(b'3', "z", "", b"")], false),
        ("too many", many, false),
        ("too big", vec![(b'0', "big", "", &big)], false),
        (
            "duplicate",
            vec![(b'0', "f", "", b"one"), (b'5', "f/", "", b""), (b'0', "f/x", "", b"y"), (b'0', "f", "", b"two")],
            true,
        ),
    ];
    for (case, entries, fine) in table {
        let root = holder.path().join("root");
        fs::create_dir(&root).expect("root");
        let result = unpack(&tar(&entries), &root);
        assert_eq!(result.is_ok(), fine, "{case}: {result:?}");
        assert_eq!(fs::read_to_string(canary.join("victim")).expect("victim"), "untouched", "{case}");
        assert_eq!(fs::read_dir(&canary).expect("list").count(), 1, "{case}");
        assert_eq!(fs::metadata(&canary).expect("stat").mode() & 0o7777, 0o755, "{case}");
        assert_eq!(fs::read_dir(holder.path()).expect("list").count(), 2, "{case}");
        fs::remove_dir_all(&root).expect("clean up");
    }
}

#[test]
fn damaged_archives_are_errors() {
    let good = tar(&[(b'0', "f", "", b"content")]);
    let change = |work: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        work(&mut bytes);
        unpack(&bytes, dir().path()).is_ok()
    };
    let again = |bytes: &mut Vec<u8>| {
        let mut block: [u8; 512] = bytes[..512].try_into().expect("a block");
        sum(&mut block);
        bytes[..512].copy_from_slice(&block);
    };
    assert!(change(&|_| {}));
    assert!(change(&|b| b.truncate(1024)), "a missing end mark is common");
    assert!(!change(&|b| b[0] = b'g'), "checksum");
    assert!(!change(&|b| b.truncate(515)), "cut in the content");
    assert!(!change(&|b| b.truncate(100)), "cut in the header");
    assert!(
        !change(&|b| {
            b[124..136].copy_from_slice(&[0xff; 12]);
            again(b)
        }),
        "negative size"
    );
    assert!(
        !change(&|b| {
            b[124..136].copy_from_slice(b"\x80\0\0\0\x80\0\0\0\0\0\0\0");
            again(b)
        }),
        "size of 2^63"
    );
    assert!(
        !change(&|b| {
            b[124..127].copy_from_slice(b"9x9");
            again(b)
        }),
        "rubbish size"
    );
    assert!(
        !change(&|b| {
            b[108..116].copy_from_slice(b"\x80\0\0\x01\0\0\0\0");
            again(b)
        }),
        "uid of 2^32"
    );
    assert!(
        !change(&|b| {
            b[108..116].copy_from_slice(b"\x80\0\0\0\xff\xff\xff\xff");
            again(b)
        }),
        "uid of -1"
    );
    let pax =
        |records: &[u8]| unpack(&tar(&[(b'x', "p", "", records), (b'0', "f", "", b"content")]), dir().path()).is_ok();
    assert!(pax(b"8 uid=7\n"));
    assert!(!pax(b"14 uid=5000000000\n"));
    assert!(!pax(b"18 uid=4294967296\n"));
    assert!(!pax(b"9 uid=7\n"));
    assert!(!pax(b"20 path=a\0b\nrubbish\n"));
}

#[test]
fn pax_size_counts_for_reading_and_skipping() {
    // The header says 0, PAX says 512: what looks like a header is content.
    let inner = header(b'0', b"hidden", b"", 0);
    let mut bytes = header(b'x', b"p", b"", 12).to_vec();
    bytes.extend_from_slice(b"12 size=512\n");
    bytes.resize(1024, 0);
    bytes.extend_from_slice(&header(b'0', b"f", b"", 0));
    bytes.extend_from_slice(&inner);
    bytes.extend_from_slice(&[0; 1024]);
    let root = dir();
    unpack(&bytes, root.path()).expect("unpack");
    assert_eq!(fs::read(root.path().join("f")).expect("f"), inner);
    assert!(!root.path().join("hidden").exists());
}

#[test]
fn foreign_marks_are_dropped() {
    if !needs_root("foreign_marks_are_dropped") {
        return;
    }
    let records = [record("SCHILY.xattr.trusted.overlay.opaque=y"), record("SCHILY.xattr.user.a=val")].concat();
    let root = dir();
    unpack(&tar(&[(b'x', "p", "", &records), (b'5', "d/", "", b"")]), root.path()).expect("unpack");
    let mut room = [0; 16];
    assert!(rustix::fs::getxattr(root.path().join("d"), "trusted.overlay.opaque", &mut room[..]).is_err());
    assert_eq!(rustix::fs::getxattr(root.path().join("d"), "user.a", &mut room[..]), Ok(3));
}

#[test]
fn gnu_tar_archives_with_holes_are_read() {
    let source = dir();
    let file = fs::File::create(source.path().join("sparse")).expect("create");
    std::os::unix::fs::FileExt::write_at(&file, b"one", 1 << 20).expect("write");
    std::os::unix::fs::FileExt::write_at(&file, b"two", 3 << 20).expect("write");
    file.set_len(8 << 20).expect("grow");
    let long = "n".repeat(90);
    fill(source.path(), &[(&format!("{long}/{long}/{long}"), "deep")]);
    for format in ["gnu", "pax", "posix --sparse-version=0.0", "posix --sparse-version=0.1"] {
        let mut words = format.split(' ');
        let mut command = std::process::Command::new("tar");
        command.arg("-cS").arg(format!("--format={}", words.next().expect("format"))).args(words);
        let Ok(output) = command.arg("-C").arg(source.path()).arg(".").output() else {
            return eprintln!("skipped gnu_tar_archives_with_holes_are_read: no tar");
        };
        assert!(output.status.success(), "{format}: {}", String::from_utf8_lossy(&output.stderr));
        let back = dir();
        unpack_layer(&output.stdout[..], back.path(), &|| Ok(empty()), Marks::Trusted, Limits::default())
            .expect(format);
        assert_eq!(
            fs::read(source.path().join("sparse")).expect("read"),
            fs::read(back.path().join("sparse")).expect("read"),
            "{format}"
        );
        assert!(fs::metadata(back.path().join("sparse")).expect("stat").blocks() < 200, "{format}");
        assert_eq!(
            fs::read_to_string(back.path().join(format!("{long}/{long}/{long}"))).expect("read"),
            "deep",
            "{format}"
        );
    }
}

#[test]
fn add_unpacks_what_is_an_archive() {
    if !needs_root("add_unpacks_what_is_an_archive") {
        return;
    }
    let context = dir();
    let plain = tar(&[
        (b'5', "top/", "", b""),
        (b'0', "top/file", "", b"in"),
        (b'2', "top/link", "file", b""),
        (b'1', "top/hard", "top/file", b""),
    ]);
    let write = |name: &str, bytes: &[u8]| fs::write(context.path().join(name), bytes).expect("write");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&plain).expect("gz");
    let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bz.write_all(&plain).expect("bz2");
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&plain).expect("xz");
    write("a.tar", &plain);
    write("b", &gz.finish().expect("gz"));
    write("c", &bz.finish().expect("bz2"));
    write("d", &xz.finish().expect("xz"));
    write("e", &zstd::encode_all(&plain[..], 1).expect("zstd"));
    write("text.tar.gz", b"only text\n");
    write("broken.gz", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]);
    write("empty.tar", b"");
    let view = View::context(context.path(), None).expect("context");
    let add = |from: &str| {
        let diff = copied(&empty(), &view, &[from], &CopyOptions { unpack: true, ..options("/t/") }).expect(from);
        let shown = lines(&View::layers(&[diff.path()], Marks::Trusted).expect("diff"));
        let same = |a: &str, b: &str| {
            fs::metadata(diff.path().join(a)).ok().map(|m| m.ino())
                == fs::metadata(diff.path().join(b)).ok().map(|m| m.ino())
        };
        assert!(same("t/top/file", "t/top/hard"));
        shown.into_iter().map(|l| l.split(' ').next().unwrap_or_default().to_string()).collect::<Vec<_>>()
    };
    for from in ["/a.tar", "/b", "/c", "/d", "/e"] {
        assert_eq!(add(from), ["t", "t/top", "t/top/file", "t/top/hard", "t/top/link"], "{from}");
    }
    for from in ["text.tar.gz", "broken.gz", "empty.tar"] {
        assert_eq!(add(from), ["t".to_string(), format!("t/{from}")], "{from}");
    }
}

#[test]
fn add_resolves_links_inside_the_destination() {
    if !needs_root("add_resolves_links_inside_the_destination") {
        return;
    }
    let (context, base, outside) = (dir(), dir(), dir());
    let out = outside.path().to_str().expect("a plain path");
    fs::write(
        context.path().join("a.tar"),
        tar(&[
            (b'2', "esc", out, b""),
            (b'0', "esc/pwn", "", b"x"),
            (b'0', "old/f", "", b"new"),
            (b'1', "old/h", "old/f", b""),
        ]),
    )
    .expect("tar");
    fill(base.path(), &[("x/old/f", "old"), ("x/old/g", "kept")]);
    let view = View::context(context.path(), None).expect("context");
    let below = View::layers(&[base.path()], Marks::Trusted).expect("base");
    let diff = copied(&below, &view, &["/a.tar"], &CopyOptions { unpack: true, ..options("/x/") }).expect("add");
    assert_eq!(fs::read_dir(outside.path()).expect("list").count(), 0);
    let merged = View::layers(&[diff.path(), base.path()], Marks::Trusted).expect("merged");
    assert_eq!(merged.read_small("x/old/h", 9).expect("read"), Some(b"new".to_vec()));
    assert_eq!(merged.read_small("x/old/g", 9).expect("read"), Some(b"kept".to_vec()));
    let evil = context.path().join("b.tar");
    fs::write(evil, tar(&[(b'0', "../pwn", "", b"x")])).expect("tar");
    assert!(copied(&below, &view, &["/b.tar"], &CopyOptions { unpack: true, ..options("/x/") }).is_err());
}
