//! Values of secrets stay where they belong.

use crate::lab;
use std::path::Path;
use xbuild_testkit::{Image, Lab};

const VALUE: &str = "pGx7-do-not-tell-Zq93";

fn assert_untold(bytes: &[u8], what: &str) {
    let found = bytes.windows(VALUE.len()).any(|window| window == VALUE.as_bytes());
    assert!(!found, "the value is in {what}");
}

fn assert_no_file_tells(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            assert_no_file_tells(&entry.path());
        } else if kind.is_file() {
            assert_untold(&std::fs::read(entry.path()).unwrap(), &entry.path().display().to_string());
        }
        assert_untold(entry.file_name().as_encoded_bytes(), "the name of a file");
    }
}

/// Text of all `logs` of `--progress=rawjson`.
fn logs(rawjson: &str) -> String {
    let values = rawjson.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a line is JSON"));
    let logs = values.flat_map(|value| value["logs"].as_array().cloned().unwrap_or_default());
    let bytes: Vec<u8> = logs.flat_map(|log| base64(log["data"].as_str().expect("data is text"))).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |c: u8| DIGITS.iter().position(|d| *d == c).expect("a base64 digit");
    let digits: Vec<_> = text.trim_end_matches('=').bytes().map(digit).collect();
    let bits = digits.chunks(4).flat_map(|four| {
        let word = four.iter().enumerate().fold(0, |word, (n, d)| word | d << (18 - 6 * n));
        (0..four.len() - 1).map(move |n| u8::try_from(word >> (16 - 8 * n) & 0xff).expect("a byte"))
    });
    bits.collect()
}

fn build(lab: &Lab, flags: &[&str]) -> xbuild_testkit::Done {
    lab.write("secret.txt", VALUE);
    let secrets = ["--secret", "id=file,src=secret.txt", "--secret", "id=var,env=TOLD"];
    lab.xbuild(&["--progress=rawjson"]).args(&secrets).args(flags).arg("app").env("TOLD", VALUE).run()
}

#[test]
fn a_secret_is_in_no_file_image_or_message() {
    let Some(lab) = lab(&[]) else { return };
    let mounts = "--mount=type=secret,id=file --mount=type=secret,id=var,env=TOKEN";
    lab.write(
        "app/Dockerfile",
        format!(
            "FROM busybox\nRUN {mounts} test $(cat /run/secrets/file) = \"$TOKEN\" && echo ${{#TOKEN}} > /length\n\
             RUN ls /run/secrets; test -z \"$TOKEN\"\n"
        ),
    );
    let flags = ["-t", "app", "-o", "type=oci,dest=app.tar", "-o", "type=image", "--metadata-file", "meta.json"];
    let done = build(&lab, &[&flags[..], &["--provenance=mode=max"]].concat());
    assert_eq!(done.code, 0, "{done}");
    assert_untold(done.stderr.as_bytes(), "the progress");
    assert_untold(logs(&done.stderr).as_bytes(), "the logs");
    let images = Image::all(&lab.path("app.tar"));
    assert_eq!(images[0].text("length"), VALUE.len().to_string());
    for image in images {
        assert_untold(image.config.to_string().as_bytes(), "the configuration");
        assert_untold(image.manifest.to_string().as_bytes(), "the manifest");
        image.files().iter().for_each(|(path, entry)| assert_untold(&entry.data, path));
    }
    assert_untold(lab.read("meta.json").as_bytes(), "the metadata");
    assert_no_file_tells(&lab.root());
}

#[test]
fn a_failing_step_tells_only_what_run_printed() {
    let Some(lab) = lab(&[]) else { return };
    let mounts = "--mount=type=secret,id=file --mount=type=secret,id=var,env=TOKEN";
    lab.write(
        "app/Dockerfile",
        format!("FROM busybox\nRUN {mounts} cat /run/secrets/file > /leak; echo quiet; exit 3\n"),
    );
    let done = build(&lab, &[]);
    assert_eq!(done.code, 1, "{done}");
    assert_untold(done.stderr.as_bytes(), "what was said");
    let (json, _) = done.stderr.split_once("------").expect("the output is shown again");
    assert_eq!(logs(json).trim(), "quiet");
    lab.xbuild(&["store", "sweep"]).ok();
    assert_no_file_tells(&lab.root());
}

#[test]
fn a_printed_secret_is_hidden() {
    let Some(lab) = lab(&[]) else { return };
    let print = "cat /run/secrets/file; printf pGx7-do-; sleep 0.1; echo not-tell-Zq93 end; cat /run/secrets/file >&2";
    lab.write("app/Dockerfile", format!("FROM busybox\nRUN --mount=type=secret,id=file {print}; exit 1\n"));
    let done = build(&lab, &["-t", "app"]);
    assert_eq!(done.code, 1, "{done}");
    assert_untold(done.stderr.as_bytes(), "what was said");
    let (json, _) = done.stderr.split_once("------").expect("the output is shown again");
    let logs = logs(json);
    assert_untold(logs.as_bytes(), "the logs");
    assert!(logs.contains("*** end") && logs.matches("***").count() == 3, "{logs}");
    lab.xbuild(&["store", "sweep"]).ok();
    assert_no_file_tells(&lab.root());
}

#[test]
fn a_secret_is_no_part_of_the_key() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", format!("FROM busybox\nRUN --mount=type=secret,id=s {} > /id\n", crate::UNIQUE));
    lab.write("one", "1");
    lab.write("two", "2");
    let first = crate::built(&lab, "app", "id", &["--secret", "id=s,src=one"]);
    assert_eq!(crate::built(&lab, "app", "id", &["--secret", "id=s,src=two"]), first);
    assert_eq!(crate::built(&lab, "app", "id", &[]), first);
}

#[test]
fn a_required_secret_has_to_be_given() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", "FROM busybox\nRUN --mount=type=secret,id=wanted,required true\n");
    lab.xbuild(&["app"]).exits(1).says("wanted").says("Dockerfile:2");
    lab.xbuild(&["app"]).args(&["--secret", "id=wanted,env=V"]).env("V", "v").ok();
}

/// Command lines and environments of everything that runs below `main`, as far as they are anybody's business: not the
/// environment that the user gave `main`, nor that of RUN's own processes, which may have been given a secret.
fn assert_no_process_tells(main: u32) {
    let mut family = vec![main];
    let mut known = 0;
    while known < family.len() {
        let parent = family[known];
        known += 1;
        for task in std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            family.extend(children.split_ascii_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        }
    }
    let processes = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let mut helpers = 0;
    for pid in family {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert_untold(&command, &format!("a command line: {}", String::from_utf8_lossy(&command)));
        if pid != main && processes(pid) == processes(main) {
            assert_untold(&std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default(), "an environment");
            helpers += 1;
        }
    }
    assert!(helpers > 0, "the helper was looked at");
}

#[test]
fn no_process_tells_a_secret_while_it_is_in_use() {
    let Some(lab) = lab(&[]) else { return };
    let token = lab.token();
    let mounts = "--mount=type=secret,id=file --mount=type=secret,id=var,env=TOKEN --mount=type=bind,target=/ctx";
    let wait = format!(": {token}; echo \"ready $(cat /run/secrets/file | wc -c)\"; sleep 1000; exit 0");
    lab.write("app/Dockerfile", format!("FROM busybox\nRUN {mounts} sh -c '{wait}'\n"));
    lab.write("secret.txt", VALUE);
    let secrets = ["--secret", "id=file,src=secret.txt", "--secret", "id=var,env=TOLD"];
    let build = lab.xbuild(&["--progress=plain"]).args(&secrets).arg("app").env("TOLD", VALUE);
    let mut build = build.start();
    build.wait_for(&format!("ready {}", VALUE.len()));
    assert_no_process_tells(build.id());
    build.signal(rustix::process::Signal::INT);
    build.wait();
    lab.assert_no_traces(&token);
    assert_no_file_tells(&lab.root());
}

#[test]
fn what_knows_secrets_leaves_no_core_dump() {
    let Some(lab) = lab(&[]) else { return };
    let token = lab.token();
    lab.write(
        "app/Dockerfile",
        format!("FROM busybox\nRUN --mount=type=secret,id=s : {token}; echo $((6*7)); sleep 1000\n"),
    );
    lab.write("secret.txt", VALUE);
    let dumped = |script: &str, ready: &str| {
        let script = format!("ulimit -c unlimited; {script}; echo status $?");
        let mut shell =
            lab.tool("bash", &["-c", &script, "bash"]).arg(lab.program()).env("XBUILD_ROOT", lab.root()).start();
        if !ready.is_empty() {
            shell.wait_for(ready);
            let child = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", shell.id())).unwrap();
            let pid = rustix::process::Pid::from_raw(child.trim().parse().unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::ABORT).unwrap();
        }
        let done = shell.wait();
        assert!(done.out().contains("status 134"), "{done}");
        done.stderr.contains("core dumped")
    };
    if !dumped("bash -c 'kill -ABRT $$'", "") {
        return xbuild_testkit::skip("this machine makes no core dumps");
    }
    assert!(!dumped("\"$1\" --progress=plain --secret id=s,src=secret.txt app", " 42\n"), "it left a core dump");
    lab.assert_no_traces(&token);
}

#[test]
fn a_registry_password_stays_in_its_file() {
    let Some(lab) = lab(&["docker-registry"]) else { return };
    // `tester` with the password `right-password`.
    let registry = xbuild_testkit::Registry::with_users(crate::registry::USERS);
    let login = ["login", "-u", "tester", "--password-stdin", &registry.host];
    lab.xbuild(&login).env("DOCKER_CONFIG", lab.path("config")).input("right-password").ok();
    lab.write("app/Dockerfile", "FROM busybox\nRUN echo made > /made\n");
    let name = format!("{}/app:1", registry.host);
    let flags = ["-t", &name, "--push", "--provenance=mode=max", "--metadata-file", "meta.json"];
    let cache = ["--cache-to", "type=local,dest=cache"];
    let push = lab.xbuild(&flags).args(&cache).arg("app").env("DOCKER_CONFIG", lab.path("config")).ok();
    assert!(registry.count("PUT", "/manifests/") > 0, "the registry took it");
    let pull = lab.xbuild(&["pull", &name]).env("DOCKER_CONFIG", lab.path("config")).ok();
    for secret in ["right-password", crate::registry::RIGHT] {
        let untold = |bytes: &[u8], what: &str| {
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "`{secret}` is in {what}");
        };
        untold(push.stderr.as_bytes(), "what push said");
        untold(pull.stderr.as_bytes(), "what pull said");
        for dir in [lab.root(), lab.path("cache"), lab.home()] {
            let found = lab.tool("grep", &["-rlaF", secret]).arg(dir).run();
            assert_eq!((found.code, found.out()), (1, String::new()), "{found}");
        }
        untold(lab.read("meta.json").as_bytes(), "the metadata");
    }
}
