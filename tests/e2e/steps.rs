//! What RUN, COPY and ADD find and leave.

use crate::{UNIQUE, built, lab};

#[test]
fn cache_mounts_that_began_otherwise_are_others() {
    let Some(lab) = lab(&[]) else { return };
    let step =
        |keys: &str| format!("RUN --mount=type=cache,id=one,target=/c{keys} echo x >> /c/log; wc -l < /c/log >> /n\n");
    let steps =
        ["", "", ",uid=5", ",mode=0700", ",from=busybox", ",from=busybox", ",sharing=private"].map(step).concat();
    lab.write("app/Dockerfile", format!("FROM busybox\n{steps}"));
    assert_eq!(built(&lab, "app", "n", &[]).split_whitespace().collect::<String>(), "1211123");
}

#[test]
fn the_id_of_a_cache_mount_is_not_in_the_key() {
    let Some(lab) = lab(&[]) else { return };
    let write = |keys: &str| {
        lab.write("app/Dockerfile", format!("FROM busybox\nRUN --mount=type=cache,target=/c{keys} {UNIQUE} > /id\n"))
    };
    write(",id=one");
    let first = built(&lab, "app", "id", &[]);
    write(",id=two,sharing=locked");
    assert_eq!(built(&lab, "app", "id", &[]), first);
    write("");
    assert_ne!(built(&lab, "app", "id", &[]), first, "one without an id is another step");
}

#[test]
fn a_link_in_the_context_is_mounted_as_what_it_leads_to() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/real/f", "linked\n");
    lab.tool("ln", &["-s", "real", "app/link"]).ok();
    lab.tool("ln", &["-s", "real/f", "app/file"]).ok();
    let mounts = "--mount=source=link,target=/c --mount=source=file,target=/f";
    lab.write("app/Dockerfile", format!("FROM busybox\nRUN {mounts} cat /c/f /f > /out\n"));
    assert_eq!(built(&lab, "app", "out", &[]), "linked\nlinked");
}

#[test]
fn archives_keep_their_owners() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/f", "f\n");
    lab.tool("tar", &["-C", "app", "--owner=7", "--group=8", "-cf", "app/f.tar", "f"]).ok();
    let stat = "stat -c '%u:%g' /made /made/f | xargs > /out";
    lab.write("app/Dockerfile", format!("FROM busybox\nADD --chown=1:2 f.tar /made/\nRUN {stat}\n"));
    assert_eq!(built(&lab, "app", "out", &[]), "1:2 7:8");
}

#[test]
fn an_empty_home_is_none() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", "FROM busybox\nENV HOME=\nRUN echo $HOME > /out\nCMD echo $HOME\n");
    assert_eq!(built(&lab, "app", "out", &[]), "/root");
    lab.xbuild(&["-t", "app", "app"]).ok();
    assert_eq!(lab.xbuild(&["run", "--rm", "app"]).ok().out(), "/root");
}

#[test]
fn a_cache_that_began_with_an_image_is_apart_from_it() {
    let Some(lab) = lab(&[]) else { return };
    let mount = "--mount=type=cache,from=one,source=/etc,target=/c";
    lab.write(
        "app/Dockerfile",
        format!(
            "FROM busybox AS one\nRUN echo first > /etc/f\nFROM busybox\n\
             RUN {mount} echo second >> /c/f; chmod 600 /c/f\nRUN {mount} cat /c/f > /seen\n\
             COPY --from=one /etc/f /f\nRUN stat -c %a /f >> /f\n"
        ),
    );
    lab.xbuild(&["-o", "type=local,dest=out", "app"]).ok();
    assert_eq!(std::fs::read_to_string(lab.path("out/seen")).unwrap(), "first\nsecond\n");
    assert_eq!(std::fs::read_to_string(lab.path("out/f")).unwrap(), "first\n644\n");
}

#[test]
fn mounts_lie_in_each_other_in_any_order() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/s/f", "inner");
    lab.write(
        "app/Dockerfile",
        "FROM busybox\n\
         RUN --mount=target=/m/s,source=s --mount=type=tmpfs,target=/m cat /m/s/f > /a\n\
         RUN --mount=target=/m,source=s --mount=target=/m,source=s/f cat /m > /b\n",
    );
    lab.xbuild(&["-o", "type=local,dest=out", "app"]).ok();
    assert_eq!(std::fs::read_to_string(lab.path("out/a")).unwrap(), "inner");
    assert_eq!(std::fs::read_to_string(lab.path("out/b")).unwrap(), "inner");
}
