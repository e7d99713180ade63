//! Trees of a user without rights on the machine: marks in `user.*`, mounts with `userxattr`.

use super::*;
use std::process::Command;

/// Set in the process that is root of its own user namespace only.
const INSIDE: &str = "XBUILD_TEST_USER_NAMESPACE";

/// Runs this test again in namespaces of its own. False if that is not possible here.
fn again_inside(test: &str) -> bool {
    let program = std::env::current_exe().expect("a test has a program");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount"]).arg(program).args(["--exact", test, "--nocapture"]);
    match command.env(INSIDE, "1").output() {
        Ok(done) if done.status.success() => true,
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(said.contains("unshare:"), "{said}\n{}", String::from_utf8_lossy(&done.stdout));
            eprintln!("skipped {test}: {said}");
            false
        }
        Err(why) => {
            eprintln!("skipped {test}: cannot start unshare: {why}");
            false
        }
    }
}

fn mount(lower: &[&Path], upper: &Path, work: &Path, at: &Path) {
    let lower = lower.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":");
    let options = format!("userxattr,lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
    let done = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(at).output();
    let done = done.expect("mount is there");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn overlays_of_users_show_what_views_show() {
    if std::env::var_os(INSIDE).is_none() {
        again_inside("tree::tests::rootless::overlays_of_users_show_what_views_show");
        return;
    }
    let (base, made, upper, work, at, flat) = (dir(), dir(), dir(), dir(), dir(), dir());
    for place in [&made, &upper, &at, &flat] {
        chmod(place.path(), 0o755);
    }
    let refused = rustix::fs::removexattr(base.path(), "trusted.overlay.probe");
    assert_eq!(refused, Err(rustix::io::Errno::PERM), "this is not the machine's root");
    fill(base.path(), &[("d/a", "a"), ("d/b", "b"), ("gone", ""), ("old/x", "x"), ("old/y", "y"), ("kind", "file")]);
    // A step in user space.
    let below = View::layers(&[base.path()], Marks::User).expect("base");
    let writer = DiffWriter::new(made.path(), &below, Marks::User).expect("writer");
    writer.remove(Path::new("/gone"), false, None).expect("remove");
    writer.remove(Path::new("/old"), false, None).expect("remove");
    writer.mkdir(Path::new("/old"), 0o755, false, None, None).expect("mkdir");
    writer.mkfile(Path::new("/old/new"), 0o644, b"new", None, None).expect("mkfile");
    writer.finish().expect("finish");
    // And one in an overlay.
    mount(&[made.path(), base.path()], upper.path(), work.path(), at.path());
    let two = View::layers(&[made.path(), base.path()], Marks::User).expect("view");
    let mounted = || lines(&View::layers(&[at.path()], Marks::Plain).expect("mount"));
    assert_eq!(mounted(), lines(&two));
    fs::remove_dir_all(at.path().join("d")).expect("remove");
    fs::create_dir(at.path().join("d")).expect("mkdir");
    fs::write(at.path().join("d/after"), "after").expect("write");
    fs::remove_file(at.path().join("kind")).expect("remove");
    fs::write(at.path().join("old/new"), "changed").expect("write");
    let three = View::layers(&[upper.path(), made.path(), base.path()], Marks::User).expect("view");
    assert_eq!(mounted(), lines(&three));
    // The layer of the overlay, taken elsewhere.
    let mut tar = Vec::new();
    write_layer(&[upper.path()], Marks::User, TarOptions::default(), &mut tar).expect("tar");
    let back = dir();
    unpack_layer(&mut tar.as_slice(), back.path(), &|| Ok(two.clone()), Marks::User, Limits::default())
        .expect("unpack");
    let again = View::layers(&[back.path(), made.path(), base.path()], Marks::User).expect("view");
    assert_eq!(lines(&again), lines(&three));
    flatten(&three, flat.path(), Fill::Link).expect("flatten");
    assert_eq!(lines(&View::layers(&[flat.path()], Marks::User).expect("flat")), lines(&three));
}

#[test]
fn owners_that_the_kernel_does_not_take_are_kept_beside_the_files() {
    if std::env::var_os(INSIDE).is_none() {
        again_inside("tree::tests::rootless::owners_that_the_kernel_does_not_take_are_kept_beside_the_files");
        return;
    }
    let owned = |uid, gid| Some(Ids { uid, gid });
    let (base, upper, step, back) = (dir(), dir(), dir(), dir());
    let none = View::layers::<&Path>(&[], Marks::User).expect("nothing");
    let writer = DiffWriter::new(base.path(), &none, Marks::User).expect("writer");
    writer.mkdir(Path::new("/d"), 0o755, false, owned(5, 6), None).expect("mkdir");
    writer.mkfile(Path::new("/d/f"), 0o600, b"f", owned(7, 70_000), None).expect("mkfile");
    writer.mkfile(Path::new("/d/roots"), 0o600, b"r", None, None).expect("mkfile");
    writer.symlink(OsStr::new("f"), Path::new("/d/l"), owned(9, 9), None).expect("symlink");
    writer.finish().expect("finish");
    // Above it, a directory that is copied up, and a file that gets another owner and one that becomes root's.
    let below = View::layers(&[base.path()], Marks::User).expect("base");
    let writer = DiffWriter::new(upper.path(), &below, Marks::User).expect("writer");
    writer.mkfile(Path::new("/d/new"), 0o600, b"n", owned(8, 8), None).expect("mkfile");
    writer.mkfile(Path::new("/d/new"), 0o600, b"n", owned(0, 0), None).expect("mkfile");
    writer.finish().expect("finish");
    // And a step of user 1000, who makes a file and changes one.
    fill(step.path(), &[("d/made", ""), ("d/f", "changed"), ("own/file", "")]);
    let two = View::layers(&[upper.path(), base.path()], Marks::User).expect("view");
    claim(&two, step.path(), 1000, 100).expect("claim");
    let three = View::layers(&[step.path(), upper.path(), base.path()], Marks::User).expect("view");
    let owner = |view: &View, path: &str| {
        let meta = view.require(path, false).expect(path).meta;
        (meta.uid, meta.gid)
    };
    for (path, whose) in
        [("/d", (5, 6)), ("/d/f", (7, 70_000)), ("/d/roots", (0, 0)), ("/d/l", (5, 6)), ("/d/new", (0, 0))]
    {
        assert_eq!(owner(&two, path), whose, "{path}");
    }
    for (path, whose) in [("/d/made", (1000, 100)), ("/d/f", (0, 0)), ("/own", (1000, 100)), ("/own/file", (1000, 100))]
    {
        assert_eq!(owner(&three, path), whose, "{path}");
    }
    // A layer has them, and nothing of where they were kept.
    let mut tar = Vec::new();
    write_layer(&[base.path()], Marks::User, TarOptions::default(), &mut tar).expect("tar");
    assert!(!String::from_utf8_lossy(&tar).contains("user.xbuild"));
    unpack_layer(&mut tar.as_slice(), back.path(), &|| Ok(none.clone()), Marks::User, Limits::default())
        .expect("unpack");
    let again = View::layers(&[back.path()], Marks::User).expect("view");
    assert_eq!(lines(&again), lines(&below));
}
