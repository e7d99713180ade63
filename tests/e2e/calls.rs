//! `--call`: answers instead of builds.

use crate::lab;
use xbuild_graph::{FileAction, ImageSource, Op, Platform, llb};

#[test]
fn llb_of_a_build_is_its_graph() {
    let Some(lab) = lab(&[]) else { return };
    let dockerfile =
        "FROM busybox AS unused\nRUN false\nFROM busybox\nRUN --network=none true\nCOPY --chown=7 a b /d/\n";
    lab.write("app/Dockerfile", dockerfile);
    let done = lab.xbuild(&["build", "--call=llb", "app"]).ok();

    let mut asked = Vec::new();
    let mut image = |reference: &str, platform: &Platform| {
        asked.push(reference.to_owned());
        let (reference, platform) = (reference.to_owned(), Some(platform.clone()));
        Ok(ImageSource { reference, manifest: String::new(), chain_id: "x".into(), origin: String::new(), platform })
    };
    let (graph, result) = llb::decode(&done.stdout, &mut image).expect("a definition");
    assert_eq!(asked, ["docker.io/library/busybox:latest"]);
    let Op::File(copy) = &graph[result.vertex].op else { panic!("{:?}", graph[result.vertex]) };
    let paths = copy.actions.iter().map(|action| match action {
        FileAction::Copy(copy) => (format!("{:?}", copy.sources), copy.owner.as_ref().map(|o| o.user.clone())),
        other => panic!("{other:?}"),
    });
    let paths: Vec<_> = paths.collect();
    assert!(paths[0].0.contains("\"/a\"") && paths[1].0.contains("\"/b\""), "{paths:?}");
    assert!(paths.iter().all(|(_, owner)| owner.as_deref() == Some("7")), "{paths:?}");
    assert_eq!(graph.len(), 4, "the image, RUN, the context, COPY");

    let two = ["build", "--call=llb", "--platform", "linux/amd64,linux/arm64", "app"];
    assert!(lab.xbuild(&two).exits(1).stderr.contains("ask for one platform"));
    assert!(lab.xbuild(&["build", "--call=llb,format=json", "app"]).exits(1).stderr.contains("no JSON form"));
}
