//! The store after builds, prunes, and processes that were killed.

use crate::{UNIQUE, built, lab};
use rustix::process::Signal;
use std::time::Duration;
use xbuild_testkit::{Image, Lab};

fn check(lab: &Lab) {
    assert_eq!(lab.xbuild(&["store", "check"]).ok().out(), "0 problems");
}

/// The sum that `du` prints in its last line.
fn total(lab: &Lab) -> String {
    let text = lab.xbuild(&["du"]).ok().out();
    text.lines().last().and_then(|l| l.strip_prefix("Total:")).expect("du ends with a total").trim().to_owned()
}

#[test]
fn prune_removes_steps_and_a_build_makes_them_again() {
    let Some(lab) = lab(&[]) else { return };
    let dockerfile =
        format!("FROM busybox\nRUN --mount=type=cache,target=/c echo kept >> /c/f; {UNIQUE} > /id\nCOPY a /a\n");
    lab.write("app/Dockerfile", dockerfile);
    lab.write("app/a", "content\n");
    let first = built(&lab, "app", "id", &[]);
    assert_eq!(built(&lab, "app", "id", &[]), first, "the step is recorded");
    check(&lab);
    let du = lab.xbuild(&["du", "--verbose"]).ok().out();
    for part in ["Type:         regular", "Type:         exec.cachemount", "Reclaimable:  true"] {
        assert!(du.contains(part), "`{part}` is not in\n{du}");
    }

    lab.xbuild(&["prune", "-f", "--filter", "until=1h"]).ok();
    assert_eq!(built(&lab, "app", "id", &[]), first, "it was used just now");

    let removed = lab.xbuild(&["prune", "-f"]).ok().out();
    assert!(removed.lines().count() > 1 && removed.contains("Total:"), "{removed}");
    check(&lab);
    assert!(lab.xbuild(&["du"]).ok().out().contains("Reclaimable:\t0B"), "nothing is left to free");
    lab.xbuild(&["run", "--rm", "busybox", "true"]).ok();
    assert_ne!(built(&lab, "app", "id", &[]), first, "the step ran again");
    assert_eq!(lab.read("app.out/a"), "content");
    check(&lab);
}

#[test]
fn prune_leaves_a_store_that_is_small_enough() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", format!("FROM busybox\nRUN {UNIQUE} > /id\n"));
    let first = built(&lab, "app", "id", &[]);
    let before = total(&lab);
    assert_eq!(lab.xbuild(&["prune", "-f", "--keep-storage", "1g"]).ok().out(), "Total:\t0B");
    assert_eq!(total(&lab), before);
    assert_eq!(built(&lab, "app", "id", &[]), first);
}

#[test]
fn prune_keeps_what_a_named_image_needs() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", "FROM busybox\nRUN echo yes > /made\nRUN echo more > /more\nCMD cat /made /more\n");
    lab.xbuild(&["-t", "app", "app"]).ok();
    lab.xbuild(&["prune", "-f", "-a"]).ok();
    check(&lab);
    assert_eq!(lab.xbuild(&["run", "--rm", "app"]).ok().out(), "yes\nmore");
    lab.xbuild(&["save", "-o", "app.tar", "app"]).ok();
    assert_eq!(Image::only(&lab.path("app.tar")).text("made"), "yes");

    let before = total(&lab);
    lab.xbuild(&["rmi", "app"]).ok();
    lab.xbuild(&["prune", "-f"]).ok();
    assert_ne!(total(&lab), before);
    lab.xbuild(&["run", "--rm", "busybox", "true"]).ok();
    check(&lab);
}

#[test]
fn what_prune_threw_away_is_freed() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", "FROM busybox\nRUN head -c 1000000 /dev/zero > /zeros\n");
    lab.xbuild(&["app"]).ok();
    lab.xbuild(&["prune", "-f"]).ok();
    lab.xbuild(&["store", "sweep"]).ok();
    xbuild_testkit::wait_until("the trash is empty", || {
        std::fs::read_dir(lab.root().join("trash")).map_or(true, |mut dir| dir.next().is_none())
    });
    check(&lab);
}

#[test]
fn store_check_finds_networks_that_are_none() {
    let Some(lab) = lab(&[]) else { return };
    lab.xbuild(&["network", "ls"]).ok();
    std::fs::write(lab.root().join("networks/cut.json"), "").unwrap();
    lab.xbuild(&["network", "ls"]).exits(1).says("cut.json");
    let found = lab.xbuild(&["store", "check"]).exits(1).out();
    assert!(found.contains("cut.json"), "{found}");
    lab.xbuild(&["store", "check", "--repair"]).ok();
    check(&lab);
    lab.xbuild(&["network", "ls"]).ok();
}

#[test]
fn store_check_finds_and_repairs_damage() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", "FROM busybox\nRUN echo yes > /made\n");
    lab.xbuild(&["-t", "app", "-o", "type=oci,dest=app.tar", "app"]).ok();
    let mut blobs = Vec::new();
    files(&lab.root().join("blobs"), &mut blobs);
    for blob in &blobs {
        let mut bytes = std::fs::read(blob).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(blob, bytes).unwrap();
    }
    let found = lab.xbuild(&["store", "check"]).exits(1).out();
    assert!(found.lines().count() > blobs.len(), "{} damaged blobs:\n{found}", blobs.len());
    lab.xbuild(&["store", "check", "--repair"]).ok();
    check(&lab);
    lab.load_busybox(&lab.root());
    lab.xbuild(&["-o", "type=oci,dest=again.tar", "app"]).ok();
    assert_eq!(Image::only(&lab.path("again.tar")).text("made"), "yes");
    check(&lab);
}

fn files(dir: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() { files(&entry.path(), found) } else { found.push(entry.path()) }
    }
}

/// A Dockerfile with steps of all kinds; each round differs.
fn steps(lab: &Lab, round: usize, token: &str) {
    let dockerfile = format!(
        "FROM busybox AS one\nCOPY a /a\nRUN : {token}; cp /a /b; head -c 200000 /dev/urandom > /random\n\
         FROM busybox AS two\nRUN --mount=type=cache,target=/c : {token}; echo {round} >> /c/log; echo {round} > /two\n\
         FROM busybox\nCOPY --from=one /b /b\nCOPY --from=two /two /two\nRUN : {token}; cat /b /two > /all\n"
    );
    lab.write("app/Dockerfile", dockerfile);
    lab.write("app/a", format!("{round}\n"));
}

#[test]
fn a_killed_build_leaves_a_valid_store_and_nothing_that_runs() {
    let Some(lab) = lab(&[]) else { return };
    let token = lab.token();
    let output = ["-t", "app", "-o", "type=oci,dest=app.tar", "-o", "type=image", "app"];
    for (round, delay) in [3, 15, 30, 45, 60, 80, 100, 130, 170, 220, 300, 450].into_iter().enumerate() {
        steps(&lab, round, &token);
        let build = lab.xbuild(&output).start();
        std::thread::sleep(Duration::from_millis(delay));
        build.signal(Signal::KILL);
        build.wait();
        lab.assert_no_traces(&token);
        if lab.path("app.tar").exists() {
            Image::only(&lab.path("app.tar"));
        }
        check(&lab);
        if round % 3 == 2 {
            lab.xbuild(&output).ok();
            assert_eq!(Image::only(&lab.path("app.tar")).text("all"), format!("{round}\n{round}"));
        }
    }
    lab.xbuild(&["prune", "-f"]).ok();
    check(&lab);
}

#[test]
fn a_build_that_is_killed_in_run_starts_again() {
    let Some(lab) = lab(&[]) else { return };
    let token = lab.token();
    lab.write("slow/Dockerfile", format!("FROM busybox\nRUN echo before > /before\nRUN echo runs; sleep {token}\n"));
    let mut build = lab.xbuild(&["--progress=plain", "slow"]).start();
    build.wait_for(" runs\n");
    lab.wait_for_process(&token);
    build.signal(Signal::KILL);
    assert_eq!(build.wait().code, 128 + 9);
    lab.assert_no_traces(&token);
    check(&lab);
    lab.write("slow/Dockerfile", "FROM busybox\nRUN echo before > /before\nRUN cat /before > /after\n");
    assert_eq!(built(&lab, "slow", "after", &[]), "before");
    check(&lab);
}
