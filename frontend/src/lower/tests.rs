use super::*;
use crate::testing::{Fake, options, plan};
use crate::{NamedContext, SourceFile};
use xbuild_graph::{CopyAction, CopySource, ExecOp, FileAction, FileOp, LocalSource, MountKind, Op, SourceOp};

fn built(text: &str) -> Plan {
    plan(text, &options(), &Fake::default()).unwrap()
}

fn errors(text: &str) -> Vec<String> {
    let errors = plan(text, &options(), &Fake::default()).unwrap_err();
    errors.iter().map(Diagnostic::text).collect()
}

fn names(plan: &Plan) -> Vec<String> {
    let in_order = plan.graph.in_order().into_iter();
    in_order.map(|id| plan.graph[id].meta.name.clone()).collect()
}

fn history(plan: &Plan) -> Vec<String> {
    let history = plan.images[0].config.history.iter();
    history.skip(1).map(|h| h.created_by.clone()).collect()
}

fn execs(plan: &Plan) -> Vec<ExecOp> {
    let ops = plan.graph.in_order().into_iter().map(|id| plan.graph[id].op.clone());
    ops.filter_map(|op| match op {
        Op::Exec(exec) => Some(*exec),
        _ => None,
    })
    .collect()
}

fn copies(plan: &Plan) -> Vec<CopyAction> {
    let ops = plan.graph.in_order().into_iter().map(|id| plan.graph[id].op.clone());
    ops.filter_map(|op| match op {
        Op::File(FileOp { mut actions, .. }) => match actions.pop() {
            Some(FileAction::Copy(copy)) => Some(*copy),
            _ => None,
        },
        _ => None,
    })
    .collect()
}

#[test]
fn only_what_the_target_needs_is_resolved_and_lowered() {
    let fake = Fake::default();
    let text = "FROM a AS x\nRUN x\nFROM unneeded AS y\nRUN y\nFROM b\nCOPY --from=x /f /\nCOPY --from=c /g /\n";
    let plan = plan(text, &options(), &fake).unwrap();
    assert_eq!(fake.calls.borrow().len(), 1, "one call for all images");
    assert_eq!(fake.calls.borrow()[0], ["a linux/amd64", "b linux/amd64", "c linux/amd64"]);
    let names = names(&plan);
    assert!(names.contains(&"[stage-2 2/3] COPY --from=x /f /".to_owned()), "{names:?}");
    assert!(!names.iter().any(|n| n.contains("RUN y")));
}

#[test]
fn a_single_stage_has_no_name_in_the_progress() {
    assert_eq!(names(&built("FROM a\nRUN echo \"$PATH\" $x\n")), ["[1/2] FROM a", "[2/2] RUN echo \"/bin\" $x"]);
}

#[test]
fn platforms_share_one_graph() {
    let mut options = options();
    options.platforms = vec![Platform::new("linux", "amd64", None), Platform::new("linux", "arm64", None)];
    let fake = Fake::default();
    let text = "FROM --platform=$BUILDPLATFORM a AS tools\nRUN same\nFROM b\nCOPY --from=tools /x /x\n";
    let plan = plan(text, &options, &fake).unwrap();
    assert_eq!(fake.calls.borrow().len(), 1);
    assert_eq!((plan.images.len(), execs(&plan).len()), (2, 1));
    let names = names(&plan);
    assert!(names.contains(&"[linux/arm64 stage-1 2/2] COPY --from=tools /x /x".to_owned()), "{names:?}");
    assert_eq!(plan.images[1].config.architecture, "arm64");
}

#[test]
fn arguments_are_scoped_by_stage() {
    let mut options = options();
    options.build_args.insert("G".into(), "given".into());
    let text = "ARG G=g\nARG H=$G-h\nFROM a AS one\nARG G\nARG L=l\nRUN one\nFROM one\nARG H N\nRUN two\n";
    let plan = plan(text, &options, &Fake::default()).unwrap();
    let two = execs(&plan).pop().unwrap();
    assert_eq!(two.env, ["PATH=/bin", "G=given", "L=l", "H=given-h"]);
    assert_eq!(history(&plan).last().unwrap(), "RUN |4 G=given L=l H=given-h N= /bin/sh -c two # buildkit");
}

#[test]
fn proxies_reach_the_process_but_not_the_key() {
    let mut options = options();
    let text = "FROM a\nRUN x\n";
    let before = plan(text, &options, &Fake::default()).unwrap();
    options.build_args.insert("HTTP_PROXY".into(), "p".into());
    let after = plan(text, &options, &Fake::default()).unwrap();
    let last = |p: &Plan| p.graph[p.images[0].result.unwrap().vertex].digest;
    assert_eq!(last(&before), last(&after));
    assert_eq!(execs(&after)[0].proxy_env.0["http_proxy"], "p");
    assert_eq!(history(&before), history(&after));
}

#[test]
fn copies_are_one_action() {
    let plan = built("FROM a\nWORKDIR /w\nCOPY --chown=1:2 --chmod=u+x --exclude=*.o a b*/c <<E d/\n$PATH\nE\n");
    let copy = copies(&plan).pop().unwrap();
    assert_eq!(copy.destination, "/w/d/");
    assert_eq!(copy.sources.len(), 3);
    assert!(matches!(&copy.sources[1], CopySource::Path { path, wildcard: true, required: false } if path == "/b*/c"));
    assert!(matches!(&copy.sources[2], CopySource::Inline { name, data } if name == "E" && data == b"/bin\n"));
    assert_eq!(history(&plan)[1], "COPY --chown=1:2 --chmod=u+x a b*/c <<E d/ # buildkit");
}

#[test]
fn downloads_are_vertices() {
    let plan = built(
        "FROM scratch\nADD --checksum=sha256:0000000000000000000000000000000000000000000000000000000000000000 https://h/f.txt /d/\nADD --keep-git-dir https://h/r.git#v1:sub /g\n",
    );
    let sources: Vec<_> = plan
        .graph
        .in_order()
        .into_iter()
        .map(|id| plan.graph[id].op.clone())
        .filter(|o| matches!(o, Op::Source(_)))
        .collect();
    let has = |fits: fn(&SourceOp) -> bool| sources.iter().any(|s| matches!(s, Op::Source(op) if fits(op)));
    assert!(has(|s| matches!(s, SourceOp::Http(h) if h.filename.as_deref() == Some("f.txt") && h.checksum.is_some())));
    assert!(has(|s| matches!(s, SourceOp::Git(g) if g.keep_git_dir && g.subdir == "sub" && g.reference == "v1")));
}

#[test]
fn mounts_are_in_order_after_the_root() {
    let text = "FROM a AS x\nFROM scratch\nWORKDIR /w\nRUN --mount=from=x,source=s,target=t --mount=type=cache,target=/c/,sharing=locked \
                --mount=type=secret,id=k,env=K --mount=type=ssh --mount=type=tmpfs,target=/t,size=1m true\n";
    let exec = execs(&built(text)).pop().unwrap();
    let targets: Vec<_> = exec.mounts.iter().map(|m| (m.destination.as_str(), m.input)).collect();
    assert_eq!(
        targets,
        [("/", Some(0)), ("/w/t", Some(1)), ("/c", None), ("/run/buildkit/ssh_agent.0", None), ("/t", None)]
    );
    assert!(exec.mounts[1].readonly && exec.mounts[1].selector == "/s");
    assert!(matches!(&exec.mounts[2].kind, MountKind::Cache { id, mode: 0o755, .. } if id.0 == "/c"));
    assert!(matches!(exec.mounts[4].kind, MountKind::Tmpfs { size: Some(1_048_576) }));
    assert_eq!(exec.secret_env[0].name, "K");
    assert!(exec.env.contains(&"SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0".to_owned()));
}

#[test]
fn triggers_of_the_base_run_first() {
    let fake = Fake { on_build: vec!["COPY --from=other /x /y".into(), "ENV T=1".into()], ..Fake::default() };
    let plan = plan("FROM a\nRUN echo $T\n", &options(), &fake).unwrap();
    assert_eq!(fake.calls.borrow().len(), 2, "the trigger's image is asked for once it is known");
    assert_eq!(history(&plan)[0], "COPY /x /y # buildkit");
    let bad = Fake { on_build: vec!["FROM scratch".into()], ..Fake::default() };
    assert!(crate::testing::plan("FROM a", &options(), &bad).is_err());
}

#[test]
fn triggers_of_a_stage_run_in_those_on_it() {
    let plan = built("FROM a AS x\nONBUILD RUN one\nFROM x AS y\nFROM y\n");
    assert_eq!(execs(&plan).len(), 1);
    assert!(plan.images[0].config.config.on_build.is_empty());
}

#[test]
fn named_contexts_take_the_place_of_stages_and_images() {
    let mut fake = Fake::default();
    let local = NamedContext::Local(LocalSource { name: "dir".into(), excludes: vec![] });
    fake.contexts.insert("x".into(), local.clone());
    fake.contexts.insert("img".into(), local);
    let plan = plan("FROM missing AS X\nRUN never\nFROM img:latest\nCOPY --from=x /f /f\n", &options(), &fake).unwrap();
    assert!(execs(&plan).is_empty());
    assert!(fake.calls.borrow().is_empty());
    assert!(copies(&plan).iter().all(|c| !c.keep_owner));
    assert_eq!(copies(&plan).len(), 2, "one for the base, one for COPY");
    assert_eq!(plan.images[0].config.history.len(), 2, "the context's layer is told of too");
}

#[test]
fn unknown_things_are_errors_with_suggestions() {
    assert_eq!(errors("FROM missing:1"), ["missing:1: not found"]);
    assert_eq!(errors("FROM a AS build\nFROM missing-bild"), ["missing-bild: not found"]);
    let mut options = options();
    options.target = Some("biuld".into());
    let found = plan("FROM a AS build", &options, &Fake::default()).unwrap_err();
    assert_eq!(found[0].text(), "target stage `biuld` could not be found (did you mean build?)");
    assert!(errors("FROM a\nCOPY --from=3 x y")[0].contains("invalid stage index 3"));
    assert!(errors("FROM a AS x\nCOPY --from=x /x /y")[0].contains("circular dependency detected on stage: x"));
    assert!(errors("FROM a\nRUN --security=insecure x")[0].contains("security.insecure"));
    assert_eq!(errors("FROM a\nEXPOSE x\nFROM b\nCOPY --chmod=9 x y\nCOPY --from=0 a b").len(), 1);
}

#[test]
fn circles_of_stages_are_found() {
    let text = "FROM a AS x\nCOPY --from=y /x /y\nFROM a AS y\nRUN true\nCOPY --from=x /x /y\nFROM y\n";
    assert!(errors(text)[0].contains("circular"));
}

#[test]
fn no_cache_marks_the_steps_of_a_stage() {
    let mut options = options();
    options.no_cache = NoCache::Stages(vec!["X".into()]);
    let plan = plan("FROM a AS x\nRUN one\nFROM x\nRUN two\n", &options, &Fake::default()).unwrap();
    let marks: Vec<_> = plan.graph.in_order().into_iter().map(|id| plan.graph[id].meta.ignore_cache).collect();
    assert_eq!(marks, [false, true, false]);
}

#[test]
fn scratch_has_no_files() {
    let plan = built("FROM scratch\nENV A=b\n");
    assert_eq!(plan.images[0].result, None);
    assert!(plan.graph.is_empty());
    let exec = execs(&built("FROM scratch\nRUN [\"/x\"]\n")).pop().unwrap();
    assert_eq!(exec.mounts[0].input, None);
}

#[test]
fn scripts_with_a_shebang_are_mounted() {
    let exec = execs(&built("FROM a\nRUN <<E\n#!/bin/x\nE\n")).pop().unwrap();
    assert_eq!(exec.args, ["/bin/sh", "-c", "/dev/pipes/E"]);
    assert_eq!(exec.mounts[1].destination, "/dev/pipes");
    let exec = execs(&built("FROM a\nRUN <<-E\n\tx\n\tE\n")).pop().unwrap();
    assert_eq!(exec.args[2], "x\n");
}

proptest::proptest! {
    #[test]
    fn lowering_never_panics(parts in proptest::collection::vec("(FROM a AS x|FROM x|FROM \\$A|\nRUN |\nCOPY --from=x |\nCOPY |\nARG A=b|\nENV A=\\$A|\nEXPOSE |\nWORKDIR |\nUSER |\nONBUILD |--mount=type=cache,target=|/x| y|<<E\nE|\n)", 1..30)) {
        let text = format!("FROM a AS x\n{}", parts.concat());
        let _ = plan(&text, &options(), &Fake::default());
    }
}

#[test]
fn messages_quote_the_beginning_of_long_values() {
    let globals = million().replace("FROM a\n", "");
    let platform = format!("{globals}FROM --platform=$b a");
    let stages = [globals.clone() + "FROM $b", globals + "FROM a:$b", platform];
    let lines = [
        "STOPSIGNAL $b",
        "COPY --checksum=$b a b",
        "ADD --checksum=$b http://h/x /",
        "ARG c=${d:?$b}",
        "EXPOSE $b",
        "COPY [$b /",
    ];
    let in_stage = lines.map(|line| format!("{}{line}\n", million()));
    for text in stages.into_iter().chain(in_stage) {
        for error in plan(&text, &options(), &Fake::default()).unwrap_err() {
            assert!(error.text().len() < 1000, "{}", error.text());
        }
    }
    for warning in built(&format!("{}WORKDIR $b\n", million())).warnings {
        assert!(warning.text().len() < 1000);
    }
}

#[test]
fn platforms_of_from_are_checked() {
    for bad in ["../../x", "linux/..", "linux/a/b/c", "linux/a,b", &"a/".repeat(2500)] {
        let errors = errors(&format!("FROM --platform={bad} a"));
        assert!(errors[0].starts_with("failed to parse platform "), "{}", errors[0]);
        assert!(errors[0].contains("is not a platform"), "{}", errors[0]);
    }
}

#[test]
fn unreadable_patterns_of_copies_are_errors() {
    for line in ["COPY q[1.txt a /o/", "COPY [\"a.txt\" \"/o\"]", "ADD [a /o/", "COPY --from=x a* b[ /o/"] {
        let source = SourceFile::new("Dockerfile", format!("FROM a\nRUN x\n{line}\n"));
        let errors = crate::lower(&crate::parse(&source), &options(), &Fake::default()).unwrap_err();
        assert!(errors[0].text().starts_with("syntax error in pattern `"), "{line}: {}", errors[0].text());
        assert_eq!(errors[0].at.map(|at| source.lines_of(at)), Some((3, 3)));
    }
}

/// A value of a million bytes in `b`, of a few thousand written ones.
fn million() -> String {
    format!("FROM a\nARG a={}\nARG b={}\n", "x".repeat(1000), "$a".repeat(1000))
}

#[test]
fn expanded_texts_are_limited_together() {
    let lines = |line: &str, times: usize| format!("{}{}", million(), line.repeat(times));
    let pairs = |keyword: &str| {
        let pairs: Vec<String> = (0..4000).map(|i| format!("l{i}=$b")).collect();
        lines(&format!("{keyword} {}\n", pairs.join(" ")), 1)
    };
    let one_stage = "the environment and the labels of the stage have more than 8 MiB";
    let everything = "the expanded text of all instructions has more than 64 MiB";
    let kept = "what all instructions keep of variables, ports, history and stages has more than 256 MiB";
    for (text, want) in [
        (pairs("LABEL"), one_stage),
        (pairs("ENV"), everything),
        (pairs("ARG"), everything),
        (lines("LABEL a=$b\n", 2000), everything),
        (lines("USER $b\n", 2000), everything),
        (lines("WORKDIR /$b\n", 2000), everything),
        (lines("VOLUME $b\n", 2000), everything),
        (lines("COPY $b /x\n", 2000), everything),
        (lines("RUN echo $b\n", 2000), kept),
        (lines("RUN --mount=type=cache,target=/$b x\n", 2000), everything),
        (lines("COPY <<E /x\n$b\nE\n", 2000), everything),
        (
            format!("ARG a={}\n{}FROM a\n", "x".repeat(1000), format!("ARG b={}\n", "$a".repeat(1000)).repeat(100)),
            everything,
        ),
        (format!("FROM a\nSHELL [\"{}\"]\n{}", "x".repeat(1 << 19), "CMD x\n".repeat(2000)), kept),
        (format!("FROM a\n{}", format!("WORKDIR {}\n", "x/".repeat(1000)).repeat(2000)), kept),
    ] {
        let errors = plan(&text, &options(), &Fake::default()).unwrap_err();
        assert!(errors[0].text().ends_with(want), "{} for `{want}`", errors[0].text());
        assert!(errors[0].at.is_some());
    }
}

#[test]
fn a_stage_is_copied_for_as_many_as_can_be_kept() {
    let steps = "RUN x\n".repeat(10_000);
    let users: String = (0..300).map(|i| format!("FROM s AS s{i}\n")).collect();
    let uses: String = (0..300).map(|i| format!("COPY --from=s{i} / /\n")).collect();
    assert!(errors(&format!("FROM a AS s\n{steps}{users}FROM a\n{uses}"))[0].contains("more than 256 MiB"));
    let triggers = "ONBUILD RUN x\n".repeat(1000);
    assert!(errors(&format!("FROM a AS s\n{triggers}{users}FROM a\n{uses}"))[0].contains("more than 256 MiB"));
}

#[test]
fn a_long_file_of_short_values_is_fine() {
    let mut text = "FROM a AS s0\nARG v=1.2.3\nENV A=a B=b C=$v PATH=/opt/bin:$PATH\n".to_owned();
    for i in 0..2500 {
        text.push_str(&format!("FROM s{i} AS s{}\nRUN echo $v {i}\nLABEL l{i}=$v\nCOPY f$v /d/$v/\n", i + 1));
    }
    let plan = built(&text);
    assert_eq!(plan.images[0].config.config.labels.len(), 2500);
    assert_eq!(execs(&plan).len(), 2500);
}
