//! Push to and pull from docker-registry.

use crate::lab;
use xbuild_testkit::{FileServer, Lab, Registry, Reply};

/// `tester` with the password `right-password`.
pub(crate) const USERS: &str = "tester:$2y$05$abcdefghijklmnopqrstuuBO.kmgTJhdt40M5ZyHgFmcpBdUb9aS.\n";
pub(crate) const RIGHT: &str = "dGVzdGVyOnJpZ2h0LXBhc3N3b3Jk";
const WRONG: &str = "dGVzdGVyOndyb25nLXBhc3N3b3Jk";

const BLOBS: &str = "/blobs/uploads/";
const MANIFESTS: &str = "/manifests/";

fn two_layers(lab: &Lab) {
    lab.write("app/Dockerfile", "FROM busybox\nCOPY a /a\nRUN cat /a > /b\nCMD [\"cat\", \"/b\"]\n");
    lab.write("app/a", "content\n");
}

#[test]
fn push_sends_only_blobs_that_are_missing() {
    let Some(lab) = lab(&["docker-registry"]) else { return };
    let registry = Registry::start();
    two_layers(&lab);
    let base = lab.xbuild(&["inspect", "busybox"]).ok().json()[0]["RootFS"]["Layers"].as_array().unwrap().len();
    let name = |tag: &str| format!("{}/app:{tag}", registry.host);

    lab.xbuild(&["-t", &name("1"), "--push", "app"]).ok();
    assert_eq!(registry.count("PUT", BLOBS), base + 2 + 1, "layers and a configuration\n{}", registry.log());
    assert_eq!(registry.count("PUT", MANIFESTS), 1);

    lab.xbuild(&["-t", &name("1"), "--push", "app"]).ok();
    assert_eq!(registry.count("PUT", BLOBS), base + 3, "nothing is new");

    let dockerfile = lab.read("app/Dockerfile");
    lab.write("app/Dockerfile", dockerfile + "\nCOPY a /c\n");
    lab.xbuild(&["-t", &name("2"), "--push", "app"]).ok();
    assert_eq!(registry.count("PUT", BLOBS), base + 3 + 2, "a layer and a configuration are new");
    assert_eq!(registry.count("PUT", "/manifests/2"), 1);
}

#[test]
fn push_of_a_stored_image_sends_what_a_build_pushes() {
    let Some(lab) = lab(&["docker-registry"]) else { return };
    let registry = Registry::start();
    two_layers(&lab);
    let name = format!("{}/app:1", registry.host);
    lab.xbuild(&["-t", &name, "app"]).ok();
    let id = lab.xbuild(&["inspect", &name]).ok().json()[0]["Id"].clone();
    let digest = lab.xbuild(&["push", &name]).ok().out();
    let digest = digest.strip_prefix("1: digest: ").expect("push prints tag and digest").to_owned();
    let sent = registry.count("PUT", BLOBS);

    lab.xbuild(&["push", &name]).ok();
    assert_eq!(registry.count("PUT", BLOBS), sent, "nothing is new");

    let other = lab.other_root("other");
    let pulled = lab.xbuild(&["pull", &name]).env("XBUILD_ROOT", &other).ok();
    assert!(pulled.out().contains(&digest), "{pulled}");
    let found = lab.xbuild(&["inspect", &name]).env("XBUILD_ROOT", &other).ok().json();
    assert_eq!(found[0]["Id"], id);
    let output = lab.xbuild(&["run", "--rm", &name]).env("XBUILD_ROOT", &other).ok();
    assert_eq!(output.out(), "content");
    lab.xbuild(&["store", "check"]).env("XBUILD_ROOT", &other).ok();
}

#[test]
fn an_empty_store_builds_from_a_pushed_image_and_asks_once() {
    let Some(lab) = lab(&["docker-registry"]) else { return };
    let registry = Registry::start();
    two_layers(&lab);
    let name = format!("{}/team/app:1", registry.host);
    lab.xbuild(&["-t", &name, "--push", "app"]).ok();

    let other = lab.other_root("other");
    lab.write("next/Dockerfile", format!("FROM {name}\nRUN cat /a /b > /both\n"));
    let build = || lab.xbuild(&["-o", "out", "next"]).env("XBUILD_ROOT", &other).ok();
    build();
    assert_eq!(lab.read("out/both"), "content\ncontent");
    let fetched = registry.count("GET", "/blobs/");
    assert!(fetched > 0, "the registry was asked");
    build();
    assert_eq!(registry.count("GET", "/blobs/"), fetched, "blobs are fetched once");
    lab.xbuild(&["store", "check"]).env("XBUILD_ROOT", &other).ok();
}

#[test]
fn passwords_come_from_docker_config() {
    let Some(lab) = lab(&["docker-registry"]) else { return };
    let registry = Registry::with_users(USERS);
    two_layers(&lab);
    let name = format!("{}/app:1", registry.host);
    for (dir, auth) in [("right", RIGHT), ("wrong", WRONG)] {
        let config = format!(r#"{{"auths": {{"{}": {{"auth": "{auth}"}}}}}}"#, registry.host);
        lab.write(&format!("{dir}/config.json"), config);
    }
    let config = |name: &str| lab.path(name);
    let push = |dir: &str| lab.xbuild(&["-t", &name, "--push", "app"]).env("DOCKER_CONFIG", config(dir));

    for dir in ["wrong", "none"] {
        let failed = push(dir).exits(1).says("ERROR").says(&registry.host);
        let text = failed.stderr.to_lowercase();
        assert!(["401", "unauthorized", "denied", "credentials"].iter().any(|w| text.contains(w)), "{failed}");
        assert!(!failed.stderr.contains("wrong-password") && !failed.stderr.contains(WRONG), "{failed}");
    }
    assert_eq!(registry.count("PUT", ""), 0, "nothing came in");
    push("right").ok();

    let other = lab.other_root("other");
    let pull = |dir: &str| lab.xbuild(&["pull", &name]).env("XBUILD_ROOT", &other).env("DOCKER_CONFIG", config(dir));
    pull("wrong").exits(1).says("ERROR").says(&registry.host);
    pull("right").ok();

    lab.write("next/Dockerfile", format!("FROM {name}\nRUN cat /b > /c\n"));
    let third = lab.other_root("third");
    let build =
        |dir: &str| lab.xbuild(&["-o", "out", "next"]).env("XBUILD_ROOT", &third).env("DOCKER_CONFIG", config(dir));
    build("wrong").exits(1).says("ERROR").says(&registry.host);
    build("right").ok();
    assert_eq!(lab.read("out/c"), "content");
}

#[test]
fn a_missing_image_and_a_missing_registry_are_named() {
    let Some(lab) = lab(&["docker-registry"]) else { return };
    let registry = Registry::start();
    let missing = format!("{}/nothing:1", registry.host);
    lab.write("app/Dockerfile", format!("FROM {missing}\nRUN true\n"));
    lab.xbuild(&["app"]).exits(1).says(&missing).says("not found");
    lab.xbuild(&["pull", &missing]).exits(1).says(&missing);
    drop(registry);
    lab.xbuild(&["app"]).exits(1).says(&missing);
}

/// CVE-2020-15157: who a registry sends us to could name a service that gets the login.
#[test]
fn nobody_that_a_registry_leads_to_is_told_its_login() {
    let Some(lab) = lab(&[]) else { return };
    let (own, other, service) = (FileServer::start(), FileServer::start(), FileServer::start());
    let realm = service.put("/t", Reply::File(b"{\"token\":\"x\"}".to_vec()));
    let challenge = format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"s\"");
    let there = other.put("/there", Reply::Header(401, challenge));
    let manifest = own.put("/v2/app/manifests/1", Reply::Header(307, format!("Location: {there}")));
    let host = manifest.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap().to_owned();
    lab.write("docker/config.json", format!("{{\"auths\":{{\"{host}\":{{\"auth\":\"dTpwNHNz\"}}}}}}"));
    lab.xbuild(&["pull", &format!("{host}/app:1")]).env("DOCKER_CONFIG", lab.path("docker")).exits(1).says("/app:1");
    assert!(other.requests().iter().any(|request| request.contains("/there")), "{:?}", other.requests());
    assert_eq!(service.requests(), Vec::<String>::new());
}
