//! What is said when something is wrong.

use crate::lab;

#[test]
fn a_failed_step_shows_where_it_is_and_what_it_printed() {
    let Some(lab) = lab(&[]) else { return };
    let dockerfile = "FROM busybox\nRUN echo fine\n\nRUN echo last words && \\\n    exit 7\nRUN echo never\n";
    lab.write("app/Dockerfile", dockerfile);
    let failed = lab.xbuild(&["--progress=plain", "app"]).exits(1);
    let failed = failed.says("Dockerfile:4").says("exit 7").says("exit code: 7").says("ERROR: failed to solve");
    let at_the_end = failed.stderr.rsplit_once("------\n > ").expect("the output of the step is shown again").1;
    assert!(at_the_end.contains("last words"), "{failed}");
    assert!(failed.stderr.lines().any(|l| l.contains(">>>") && l.contains("RUN echo last words")), "{failed}");
    assert!(!failed.stderr.contains("echo never\n#"), "{failed}");
    for mode in ["rawjson", "quiet", "none", "tty"] {
        let flag = format!("--progress={mode}");
        lab.xbuild(&[&flag, "app"]).exits(1).says("Dockerfile:4").says("exit code: 7");
    }
}

#[test]
fn all_errors_of_a_dockerfile_come_at_once() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", "FROM busybox AS base\nCOPPY a /a\nRUN --nosuch=1 true\nEXPOSE\nWORKDIR /w\nENV\n");
    let failed = lab.xbuild(&["app"]).exits(1);
    for line in 2..=6 {
        let found = failed.stderr.contains(&format!("Dockerfile:{line}"));
        assert_eq!(found, line != 5, "line {line} of {failed}");
    }
    let failed = failed.says("did you mean").says("and 3 more");
    assert!(!failed.stderr.contains("panicked"), "{failed}");
}

#[test]
fn what_is_copied_has_to_be_there() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", "FROM busybox\nRUN true\nCOPY missing.txt /m\n");
    lab.xbuild(&["app"]).exits(1).says("missing.txt").says("Dockerfile:3");
    lab.write("app/Dockerfile", "FROM busybox AS build\nFROM busybox\nCOPY --from=127.0.0.1:1/bulid /m /m\n");
    lab.xbuild(&["app"]).exits(1).says("bulid");
    lab.xbuild(&["-f", "none", "app"]).exits(1).says("none");
    lab.xbuild(&["nowhere"]).exits(1).says("nowhere");
    lab.write("app/Dockerfile", "FROM busybox AS base\n");
    lab.xbuild(&["--target", "bose", "app"]).exits(1).says("bose").says("base");
}

#[test]
fn a_wrong_command_line_has_docker_s_codes() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", "FROM busybox\n");
    // As docker has it: flags are told from what stands beside them.
    let wrong: [(&[&str], i32); 11] = [
        (&[], 1),
        (&["build"], 1),
        (&["build", "app", "second"], 1),
        (&["inspect"], 1),
        (&["tag", "one"], 1),
        (&["store", "nosuch"], 1),
        (&["run"], 1),
        (&["--nosuch", "app"], 125),
        (&["--progress=nosuch", "app"], 125),
        (&["ps", "--last", "x"], 125),
        (&["run", "--nosuch", "busybox"], 125),
    ];
    // An empty variable is one that is not set.
    let root = lab.root().display().to_string();
    let names = ["images", "--root", &root, "-q"];
    assert_eq!(lab.xbuild(&names).env("XBUILD_ROOT", "").env("BUILDKIT_PROGRESS", "").ok().out().lines().count(), 1);
    lab.xbuild(&["-o", "type=cacheonly", "app"]).env("BUILDKIT_PROGRESS", "").ok();
    for (arguments, code) in wrong {
        let done = lab.xbuild(arguments).exits(code);
        assert!(done.stdout.is_empty() && !done.stderr.is_empty(), "{done}");
    }
    let senseless: [&[&str]; 7] = [
        &["-o", "type=nosuch", "app"],
        &["-o", "type=oci,nosuch=1", "app"],
        &["-t", "UPPER/Case", "app"],
        &["--secret", "id=a,src=missing", "app"],
        &["--platform", "nosuch/", "app"],
        &["--allow", "nosuch", "app"],
        &["-o", "-", "-o", "-", "app"],
    ];
    for arguments in senseless {
        let done = lab.xbuild(arguments).exits(1).says("ERROR: ");
        assert!(!done.stderr.contains("panicked"), "{done}");
    }
    for flag in ["--help", "--version", "build --help", "help"] {
        let done = lab.xbuild(&flag.split(' ').collect::<Vec<_>>()).ok();
        assert!(!done.stdout.is_empty() && done.stderr.is_empty(), "{done}");
    }
}

#[test]
fn output_of_a_step_cannot_drive_the_terminal() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", "FROM busybox\nRUN printf 'a\\033]0;title\\007b\\033[2Jc\\n'; exit 1\n");
    for mode in ["plain", "tty"] {
        let done = lab.xbuild(&[&format!("--progress={mode}"), "app"]).exits(1);
        assert!(!done.stderr.contains("\u{1b}]0;") && !done.stderr.contains("\u{1b}[2J"), "{done:?}");
    }
}
