//! Which steps run again.

use crate::{UNIQUE, built, lab};
use xbuild_testkit::Lab;

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
