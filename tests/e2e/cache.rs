//! Which steps run again.

use crate::{UNIQUE, built, lab};
use xbuild_testkit::{Image, Lab};

#[test]
fn a_step_with_the_same_files_does_not_run_what_follows() {
    let Some(lab) = lab(&[]) else { return };
    let dockerfile = format!(
        "FROM busybox AS one\nCOPY f /f\nRUN grep -v '^#' /f > /out\n\
         FROM busybox\nCOPY --from=one /out /out\nRUN {UNIQUE} > /id\n"
    );
    lab.write("app/Dockerfile", dockerfile);
    lab.write("app/f", "# one\nvalue\n");
    let first = built(&lab, "app", "id", &[]);
    lab.write("app/f", "# two\nvalue\n");
    assert_eq!(built(&lab, "app", "id", &[]), first, "only a comment is different");
    lab.write("app/f", "# two\nother\n");
    assert_ne!(built(&lab, "app", "id", &[]), first);
    assert_eq!(lab.read("app.out/out"), "other");
}

#[test]
fn it_holds_in_one_stage_too() {
    let Some(lab) = lab(&[]) else { return };
    let run = "RUN --mount=type=bind,source=f,target=/f grep -v '^#' /f > /out";
    lab.write("app/Dockerfile", format!("FROM busybox\n{run}\nRUN {UNIQUE} > /id\n"));
    lab.write("app/f", "# one\nvalue\n");
    let first = built(&lab, "app", "id", &[]);
    lab.write("app/f", "# two\nvalue\n");
    assert_eq!(built(&lab, "app", "id", &[]), first, "only a comment is different");
    lab.write("app/f", "other\n");
    assert_ne!(built(&lab, "app", "id", &[]), first);
}

#[test]
fn copy_counts_by_what_it_selects() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", format!("FROM busybox\nCOPY src/*.txt /t/\nRUN {UNIQUE} > /id\n"));
    lab.write("app/.dockerignore", "src/ignored.txt\n");
    lab.write("app/src/a.txt", "a\n");
    let first = built(&lab, "app", "id", &[]);
    for other in ["src/a.md", "src/ignored.txt", "other/a.txt"] {
        lab.write(&format!("app/{other}"), "new\n");
        assert_eq!(built(&lab, "app", "id", &[]), first, "{other} is not selected");
    }
    lab.write("app/src/a.txt", "a\n");
    assert_eq!(built(&lab, "app", "id", &[]), first, "a new time alone does not count");
    lab.write("app/src/b.txt", "b\n");
    assert_ne!(built(&lab, "app", "id", &[]), first);
}

/// Two stages, and a last one that takes a file of each.
fn two_stages(lab: &Lab) {
    let dockerfile = format!(
        "FROM busybox AS one\nRUN {UNIQUE} > /one\nFROM busybox AS two\nRUN {UNIQUE} > /two\n\
         FROM scratch\nCOPY --from=one /one /\nCOPY --from=two /two /\n"
    );
    lab.write("app/Dockerfile", dockerfile);
}

#[test]
fn no_cache_runs_all_steps_again() {
    let Some(lab) = lab(&[]) else { return };
    two_stages(&lab);
    let build = |flags: &[&str]| (built(&lab, "app", "one", flags), lab.read("app.out/two"));
    let first = build(&[]);
    assert_eq!(build(&[]), first);
    let second = build(&["--no-cache"]);
    assert!(second.0 != first.0 && second.1 != first.1);
    assert_eq!(build(&[]), second, "what ran last is recorded");
    assert_eq!(build(&["--no-cache=false"]), second);
}

/// What stands above the stage is found by its own record and needs nothing below, as in BuildKit.
#[test]
fn no_cache_filter_leaves_recorded_steps_of_other_stages() {
    let Some(lab) = lab(&[]) else { return };
    two_stages(&lab);
    let build = |flags: &[&str]| (built(&lab, "app", "one", flags), lab.read("app.out/two"));
    let first = build(&[]);
    assert_eq!(build(&["--no-cache-filter", "two"]), first);
}

#[test]
fn no_cache_filter_of_the_target_runs_its_steps_again() {
    let Some(lab) = lab(&[]) else { return };
    two_stages(&lab);
    let first = built(&lab, "app", "two", &["--target", "two"]);
    assert_eq!(built(&lab, "app", "two", &["--target", "two", "--no-cache-filter", "one"]), first);
    assert_ne!(built(&lab, "app", "two", &["--target", "two", "--no-cache-filter", "one,two"]), first);
}

#[test]
fn a_failed_build_keeps_finished_steps() {
    let Some(lab) = lab(&[]) else { return };
    let write =
        |last: &str| lab.write("app/Dockerfile", format!("FROM busybox\nRUN {UNIQUE} > /id; cat /id\nRUN {last}\n"));
    write("exit 7");
    let failed = lab.xbuild(&["--progress=plain", "app"]).exits(1);
    write("true");
    let id = built(&lab, "app", "id", &[]);
    assert!(failed.stderr.contains(&id), "{id} is not in {failed}");
}

#[test]
fn a_changed_mode_or_argument_counts() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", format!("FROM busybox\nCOPY f /f\nARG A\nRUN {UNIQUE} > /id; stat -c %a /f > /mode\n"));
    lab.write("app/f", "value\n");
    let first = built(&lab, "app", "id", &["--build-arg", "A=1"]);
    assert_ne!(built(&lab, "app", "id", &["--build-arg", "A=2"]), first);
    assert_eq!(built(&lab, "app", "id", &["--build-arg", "A=1"]), first);
    lab.tool("chmod", &["755", "app/f"]).ok();
    assert_ne!(built(&lab, "app", "id", &["--build-arg", "A=1"]), first);
    assert_eq!(lab.read("app.out/mode"), "755");
}

/// Builds into an archive and reads its one image.
fn image(lab: &Lab, root: &std::path::Path, name: &str) -> Image {
    let output = format!("type=oci,dest={name}");
    let epoch = "1700000000";
    lab.xbuild(&["build", "-o", &output, "app"]).env("XBUILD_ROOT", root).env("SOURCE_DATE_EPOCH", epoch).ok();
    Image::only(&lab.path(name))
}

/// Directories in the store's `trees`.
fn trees(root: &std::path::Path) -> usize {
    std::fs::read_dir(root.join("trees")).expect("the store has trees").count()
}

#[test]
fn a_copy_after_another_is_what_a_first_copy_is() {
    let Some(lab) = lab(&[]) else { return };
    let run = "find . | sort > /list; cat gone d/f1 > /seen 2>&1; touch -d @1600000000 /list /seen";
    let dockerfile = format!("FROM busybox\nWORKDIR /app\nCOPY . .\nRUN {run}\n");
    lab.write("app/Dockerfile", dockerfile);
    lab.write("app/.dockerignore", "Dockerfile\n.dockerignore\n");
    for n in 0..200 {
        lab.write(&format!("app/d/f{n}"), format!("{n}\n"));
    }
    for name in ["gone", "old/file", "kind"] {
        lab.write(&format!("app/{name}"), "first\n");
    }
    image(&lab, &lab.root(), "first.tar");
    let disk = lab.tool("du", &["-s", lab.root().join("trees").to_str().expect("plain name")]).ok().out();
    lab.write("app/d/f1", "edited\n");
    lab.write("app/d/new", "new\n");
    for name in ["gone", "kind"] {
        std::fs::remove_file(lab.path(&format!("app/{name}"))).expect("the file is there");
    }
    std::fs::remove_dir_all(lab.path("app/old")).expect("the directory is there");
    lab.write("app/kind/now", "a directory\n");
    let second = image(&lab, &lab.root(), "second.tar");
    let other = lab.other_root("other");
    lab.load_busybox(&other);
    let fresh = image(&lab, &other, "fresh.tar");
    assert_eq!(second.diff_ids(), fresh.diff_ids());
    assert_eq!(second.id, fresh.id, "and with them the whole image");
    assert!(second.text("seen").contains("edited") && !second.text("list").contains("/old"));
    let kilobytes = |text: &str| text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
    let now = lab.tool("du", &["-s", lab.root().join("trees").to_str().expect("plain name")]).ok().out();
    let grown = kilobytes(&now).expect("a number") - kilobytes(&disk).expect("a number");
    assert!(grown < 200, "200 files were copied again: {grown} KiB more");
    lab.xbuild(&["store", "check"]).ok();
    // The first copy goes; what the second needs of it stays.
    lab.write("app/d/f1", "edited again\n");
    image(&lab, &lab.root(), "third.tar");
    let before = trees(&lab.root());
    lab.xbuild(&["prune", "-f", "--filter", "description~=RUN"]).ok();
    assert!(trees(&lab.root()) < before);
    lab.xbuild(&["store", "check"]).ok();
    assert_eq!(image(&lab, &lab.root(), "again.tar").diff_ids().len(), fresh.diff_ids().len());
    lab.xbuild(&["prune", "-af"]).ok();
    lab.xbuild(&["store", "check"]).ok();
    lab.load_busybox(&lab.root());
    assert!(image(&lab, &lab.root(), "last.tar").text("seen").contains("edited again"));
}
