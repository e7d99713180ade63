//! Builds and containers that are told to end.

use crate::{built, lab};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// Far less than what RUN would sleep, far more than it takes.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_signal_ends_a_build_and_what_it_runs() {
    let Some(lab) = lab(&[]) else { return };
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let token = lab.token();
        let dockerfile =
            format!("FROM busybox\nRUN echo done > /done\nRUN trap '' INT TERM HUP; echo runs; sleep {token}\n");
        lab.write("app/Dockerfile", dockerfile);
        let mut build = lab.xbuild(&["--progress=plain", "-o", "out", "--iidfile", "iid", "app"]).start();
        build.wait_for(" runs\n");
        lab.wait_for_process(&token);
        let start = Instant::now();
        build.signal(signal);
        let done = build.wait();
        assert!(start.elapsed() < SOON, "{signal:?} took {:?}", start.elapsed());
        assert_eq!(done.code, 130, "{signal:?}: {done}");
        let done = done.says("cancelled");
        assert!(!done.stderr.contains("panicked"), "{done}");
        lab.assert_no_traces(&token);
        assert!(!lab.path("out").exists() && !lab.path("iid").exists());
    }
    assert_eq!(lab.xbuild(&["store", "check"]).ok().out(), "0 problems");
    lab.write("app/Dockerfile", "FROM busybox\nRUN echo done > /done\n");
    assert_eq!(built(&lab, "app", "done", &[]), "done");
}

#[test]
fn a_build_that_waits_for_anothers_step_can_be_cancelled() {
    let Some(lab) = lab(&[]) else { return };
    let token = lab.token();
    lab.write("app/Dockerfile", format!("FROM busybox\nRUN echo runs; sleep {token}\n"));
    let mut first = lab.xbuild(&["--progress=plain", "app"]).start();
    first.wait_for(" runs\n");
    let mut second = lab.xbuild(&["--progress=plain", "app"]).start();
    second.wait_for("RUN echo runs");
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    second.signal(Signal::INT);
    let done = second.wait();
    assert_eq!(done.code, 130, "{done}");
    assert!(start.elapsed() < SOON, "it took {:?}", start.elapsed());
    first.signal(Signal::INT);
    assert_eq!(first.wait().code, 130);
    lab.assert_no_traces(&token);
}

#[test]
fn a_signal_goes_to_the_process_of_a_container() {
    let Some(lab) = lab(&[]) else { return };
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let token = lab.token();
        let script = format!("trap 'exit 9' INT TERM; sleep {token} & wait");
        let container = lab.xbuild(&["run", "--rm", "--name", "web", "busybox", "sh", "-c", &script]).start();
        // The command line of xbuild has the token, too; what runs inside is a process with two arguments.
        xbuild_testkit::wait_until("the container runs", || processes(&["sleep", &token]) > 0);
        let start = Instant::now();
        container.signal(signal);
        let done = container.wait();
        assert!(start.elapsed() < SOON, "{signal:?} took {:?}", start.elapsed());
        if signal == Signal::KILL {
            // Nobody could pass it on: the container goes on without its command.
            assert!(processes(&["sleep", &token]) > 0);
            lab.xbuild(&["rm", "-f", "web"]).ok();
        } else {
            assert_eq!(done.code, 9, "{done}");
        }
        lab.assert_no_traces(&token);
    }
    assert_eq!(lab.xbuild(&["store", "check"]).ok().out(), "0 problems");
}

/// How many processes have exactly these arguments.
fn processes(arguments: &[&str]) -> usize {
    let line = arguments.iter().map(|a| format!("{a}\0")).collect::<String>();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| std::fs::read(entry.path().join("cmdline")).is_ok_and(|found| found == line.as_bytes())).count()
}

#[test]
fn an_interrupted_push_leaves_a_store_that_can_push_again() {
    let Some(lab) = lab(&["docker-registry"]) else { return };
    let registry = xbuild_testkit::Registry::start();
    let name = format!("{}/app:1", registry.host);
    lab.write("app/Dockerfile", "FROM busybox\nRUN head -c 8000000 /dev/urandom > /random\n");
    for (signal, delay) in [(Signal::INT, 150), (Signal::KILL, 250), (Signal::KILL, 400), (Signal::INT, 500)] {
        let build = lab.xbuild(&["-t", &name, "--push", "app"]).start();
        std::thread::sleep(Duration::from_millis(delay));
        build.signal(signal);
        let done = build.wait();
        assert!([0, 130, 128 + 9].contains(&done.code), "{done}");
    }
    lab.xbuild(&["-t", &name, "--push", "app"]).ok();
    let other = lab.other_root("other");
    lab.xbuild(&["run", &name, "test", "-s", "/random"]).env("XBUILD_ROOT", &other).ok();
    assert_eq!(lab.xbuild(&["store", "check"]).ok().out(), "0 problems");
}
