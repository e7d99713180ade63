//! Several processes on one store.

use crate::{UNIQUE, built, lab};

#[test]
fn two_builds_of_one_dockerfile_run_a_step_once() {
    let Some(lab) = lab(&[]) else { return };
    let mount = "--mount=type=cache,id=runs,target=/c";
    lab.write(
        "app/Dockerfile",
        format!("FROM busybox\nRUN {mount} echo x >> /c/runs; sleep 1; {UNIQUE} > /id\nCOPY a /a\n"),
    );
    lab.write("app/a", "content\n");
    let start = |n: usize| {
        lab.xbuild(&["-t", &format!("app:{n}"), "-o", "type=image", "-o", &format!("out{n}"), "app"]).start()
    };
    let builds: Vec<_> = (0..3).map(start).collect();
    for build in builds {
        let done = build.wait();
        assert_eq!(done.code, 0, "{done}");
    }
    let layers = |n: usize| lab.xbuild(&["inspect", &format!("app:{n}")]).ok().json()[0]["RootFS"]["Layers"].clone();
    for n in 1..3 {
        assert_eq!(lab.read(&format!("out{n}/id")), lab.read("out0/id"));
        assert_eq!(lab.read(&format!("out{n}/a")), "content");
        assert_eq!(layers(n), layers(0));
    }
    lab.write("count/Dockerfile", format!("FROM busybox\nRUN {mount} wc -l < /c/runs > /count\n"));
    assert_eq!(built(&lab, "count", "count", &[]), "1");
    assert_eq!(lab.xbuild(&["store", "check"]).ok().out(), "0 problems");
}

#[test]
fn different_builds_share_a_store() {
    let Some(lab) = lab(&[]) else { return };
    let builds: Vec<_> = (0..4)
        .map(|n| {
            let name = format!("app{n}");
            lab.write(&format!("{name}/Dockerfile"), "FROM busybox\nCOPY a /a\nRUN cat /a > /b\nCMD cat /b\n");
            lab.write(&format!("{name}/a"), format!("{n}\n"));
            lab.xbuild(&["-t", &name, &name]).start()
        })
        .collect();
    // Collection runs meanwhile and must take nothing away.
    let prunes: Vec<_> = (0..3).map(|_| lab.xbuild(&["prune", "-f"]).start()).collect();
    for call in builds.into_iter().chain(prunes) {
        let done = call.wait();
        assert_eq!(done.code, 0, "{done}");
    }
    for n in 0..4 {
        assert_eq!(lab.xbuild(&["run", &format!("app{n}")]).ok().out(), n.to_string());
    }
    assert_eq!(lab.xbuild(&["store", "check"]).ok().out(), "0 problems");
}

#[test]
fn a_locked_cache_mount_has_one_user_at_a_time() {
    let Some(lab) = lab(&[]) else { return };
    let run = "if ! mkdir /c/in; then echo taken; exit 1; fi; sleep 0.3; rmdir /c/in; echo x >> /c/log";
    let start = |n: usize| {
        let name = format!("app{n}");
        let mount = "--mount=type=cache,id=one,sharing=locked,target=/c";
        lab.write(
            &format!("{name}/Dockerfile"),
            format!("FROM busybox\nRUN {mount} : {n}; {run}; wc -l < /c/log > /n\n"),
        );
        lab.xbuild(&["-o", &format!("out{n}"), &name]).start()
    };
    let builds: Vec<_> = (0..3).map(start).collect();
    for build in builds {
        let done = build.wait();
        assert_eq!(done.code, 0, "{done}");
    }
    let mut seen: Vec<_> = (0..3).map(|n| lab.read(&format!("out{n}/n"))).collect();
    seen.sort();
    assert_eq!(seen, ["1", "2", "3"]);
}
