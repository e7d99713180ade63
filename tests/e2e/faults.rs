//! Commands whose file operations fail, are cut short, find the disk full, or are the last thing before a kill.
//!
//! Whatever happens: the command ends well or says what is wrong, the store is sound, and the next build makes the right image.
//! A sample runs always. With `XBUILD_FAULTS=N` the first N operations of each kind and directory are the faulty ones in each
//! command, with a large N all of them; `XBUILD_FAULTS_STEP=NAME` picks one command.

use crate::lab;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use xbuild_testkit::{Call, Done, Fault, Image, Journal, Lab, with_fault};

/// Trials of each command in the sample.
const SAMPLE: usize = 4;

/// A command that meets faults, in a store where the ones before it have run.
struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
    /// What the context holds by then.
    version: &'static str,
}

const OUTPUT: &str = "type=oci,dest=OUT/app.tar,compression=zstd,rewrite-timestamp=true";
const STEPS: &[Step] = &[
    Step { name: "first build", arguments: &["-t", "app", "-o", OUTPUT, "-o", "type=image", "app"], version: "1" },
    Step { name: "rebuild", arguments: &["-t", "app", "-o", OUTPUT, "-o", "type=image", "app"], version: "1" },
    Step {
        name: "build of a change",
        arguments: &["-t", "app:2", "-o", OUTPUT, "-o", "type=image", "--cache-to", "type=local,dest=OUT/cache", "app"],
        version: "2",
    },
    Step { name: "local output", arguments: &["-o", "type=local,dest=OUT/files", "app"], version: "2" },
    Step { name: "tag", arguments: &["tag", "app:2", "other:3"], version: "2" },
    Step { name: "save", arguments: &["save", "-o", "OUT/saved.tar", "app:2"], version: "2" },
    Step { name: "load", arguments: &["load", "-i", "saved.tar"], version: "2" },
    Step { name: "import", arguments: &["import", "files.tar", "imported:1"], version: "2" },
    Step { name: "removal of a name", arguments: &["rmi", "app:2"], version: "2" },
    Step { name: "prune", arguments: &["prune", "-f"], version: "2" },
    Step { name: "sweep", arguments: &["store", "sweep"], version: "2" },
    Step { name: "repair", arguments: &["store", "check", "--repair"], version: "2" },
    Step { name: "container", arguments: &["run", "--rm", "other:3", "cat", "/all"], version: "2" },
];

const DOCKERFILE: &str = "\
FROM busybox AS one
COPY . /src
RUN --mount=type=cache,target=/c mkdir -p /made && cat /src/version > /made/version && echo x >> /c/log
FROM busybox AS two
WORKDIR /w
COPY <<EOF text
some text
EOF
RUN mkfifo pipe && ln -s text link && ln text hard && chown 3:4 text
FROM busybox
COPY --from=one /made /made
COPY --from=two --chown=5:6 /w /w
RUN cat /made/version /w/text > /all
";

/// The context of a version: more than a handful of files, so that the second copy is made of the first.
fn context(lab: &Lab, version: &str) {
    lab.write("app/Dockerfile", DOCKERFILE);
    lab.write("app/version", version);
    for n in 0..70 {
        lab.write(&format!("app/many/f{n}"), format!("file {n}\n"));
    }
}

/// A store to spoil, with a directory for outputs.
struct Trial<'a> {
    lab: &'a Lab,
    root: PathBuf,
    out: PathBuf,
}

impl<'a> Trial<'a> {
    /// On a copy of `from`.
    fn new(lab: &'a Lab, from: &Path, name: &str) -> Self {
        let (root, out) = (lab.other_root(&format!("trial-{name}")), lab.path(&format!("out-{name}")));
        remove(&root);
        remove(&out);
        std::fs::create_dir(&out).unwrap();
        lab.tool("cp", &["-a", "--reflink=auto"]).arg(from).arg(&root).ok();
        Self { lab, root, out }
    }

    fn call(&self, arguments: &[&str]) -> Call {
        let out = self.out.file_name().and_then(|n| n.to_str()).unwrap();
        let arguments: Vec<String> = arguments.iter().map(|a| a.replace("OUT", out)).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.lab.xbuild(&arguments).env("XBUILD_ROOT", &self.root).env("SOURCE_DATE_EPOCH", "1700000000")
    }

    /// The image that a build without faults makes here, or what it says instead.
    fn image(&self) -> Result<String, String> {
        let done = self.call(&["-o", &OUTPUT.replace("app.tar", "check.tar"), "app"]).run();
        match done.code {
            0 => Ok(Image::only(&self.out.join("check.tar")).digest),
            _ => Err(done.to_string()),
        }
    }

    /// Complaints about the store.
    fn problems(&self) -> String {
        let found = self.call(&["store", "check"]).run();
        if found.code == 0 { String::new() } else { found.to_string() }
    }
}

/// A program of the trial may still be freeing what it threw away.
fn remove(dir: &Path) {
    while let Err(e) = std::fs::remove_dir_all(dir) {
        if e.kind() == std::io::ErrorKind::NotFound {
            return;
        }
    }
}

/// What is wrong after a command met a fault; nothing if all is well.
fn judge(trial: &Trial<'_>, fault: Fault, done: &Done, journal: &Journal, model: &str) -> Result<(), String> {
    let failed = done.code != 0;
    let said = done.stderr.to_lowercase();
    if said.contains("panicked") || said.contains("internal error") || said.contains("bug") {
        return Err(format!("it says that it is broken: {done}"));
    }
    match fault {
        _ if !journal.hit && failed => return Err(format!("it failed without a fault: {done}")),
        Fault::Kill => {}
        _ if failed && !said.contains("error") => return Err(format!("no clear error: {done}")),
        Fault::Full if failed && !said.contains("no space left") => return Err(format!("no cause given: {done}")),
        // SQLite takes a log that it cannot make for one that it may not write.
        Fault::Io if failed && !["input/output error", "i/o error", "readonly"].iter().any(|w| said.contains(w)) => {
            return Err(format!("no cause given: {done}"));
        }
        _ => {}
    }
    let problems = trial.problems();
    if !problems.is_empty() {
        return Err(format!("the store is damaged: {problems}\nafter {done}"));
    }
    let image = trial.image().map_err(|said| format!("the next build fails: {said}\nafter {done}"))?;
    if image != model {
        return Err(format!("the next build makes {image} instead of {model}, after {done}"));
    }
    let problems = trial.problems();
    if !problems.is_empty() {
        return Err(format!("the store is damaged after the next build: {problems}\nafter {done}"));
    }
    Ok(())
}

/// Which operations meet which fault: `most` of each kind, or a few that are spread evenly.
fn wanted(calls: &[String], most: Option<usize>) -> Vec<(Fault, usize)> {
    const FAULTS: [Fault; 4] = [Fault::Io, Fault::Full, Fault::Short, Fault::Kill];
    let fits = |fault, call: &str| fault != Fault::Short || call.starts_with("write");
    let Some(most) = most else {
        let spread = (0..SAMPLE).map(|n| (FAULTS[n % 4], (n * calls.len() + calls.len() / 2) / SAMPLE));
        return spread.filter(|(fault, at)| fits(*fault, &calls[*at])).map(|(fault, at)| (fault, at + 1)).collect();
    };
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut wanted = Vec::new();
    for (at, call) in calls.iter().enumerate() {
        let dir = Path::new(call).parent().map_or(call.as_str(), |dir| dir.to_str().unwrap());
        let kind = dir.split('/').map(|name| if name.contains(|c: char| c.is_ascii_digit()) { "N" } else { name });
        let count = seen.entry(kind.collect::<Vec<_>>().join("/")).or_default();
        *count += 1;
        if *count <= most {
            wanted.extend(FAULTS.into_iter().filter(|fault| fits(*fault, call)).map(|fault| (fault, at + 1)));
        }
    }
    wanted
}

/// All trials of a step.
fn trials(lab: &Lab, before: &Path, step: &Step, most: Option<usize>) -> Vec<String> {
    let sound = Trial::new(lab, before, "sound");
    let places = [sound.root.as_path(), sound.out.as_path()];
    let (done, journal) = with_fault(sound.call(step.arguments), &places, Fault::Io, 0);
    assert_eq!(done.code, 0, "{}: {done}", step.name);
    let model = sound.image().unwrap_or_else(|said| panic!("{}, without a fault: {said}", step.name));
    let wanted = wanted(&journal.calls, most);
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = |name: &str| {
        while let Some(&(fault, at)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
            let trial = Trial::new(lab, before, name);
            let (done, journal) = with_fault(trial.call(step.arguments), &[&trial.root, &trial.out], fault, at);
            if let Err(why) = judge(&trial, fault, &done, &journal, &model) {
                let call = journal.calls.get(at - 1).map_or("nothing", String::as_str);
                failures.lock().unwrap().push(format!("{}, {fault:?} at {at}, {call}: {why}", step.name));
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| work("a"));
        work("b");
    });
    eprintln!("{}: {} operations, {} trials", step.name, journal.calls.len(), wanted.len());
    failures.into_inner().unwrap()
}

#[test]
fn faults_of_the_file_system_leave_a_sound_store() {
    let Some(lab) = lab(&[]) else { return };
    let most = std::env::var("XBUILD_FAULTS").ok().map(|most| most.parse().expect("a number"));
    let only = std::env::var("XBUILD_FAULTS_STEP").ok();
    let before = lab.other_root("before");
    let mut failures = Vec::new();
    for step in STEPS {
        context(&lab, step.version);
        remove(&before);
        lab.tool("cp", &["-a", "--reflink=auto"]).arg(lab.root()).arg(&before).ok();
        if only.as_deref().is_none_or(|only| only == step.name) {
            failures.extend(trials(&lab, &before, step, most));
        }
        // The step itself, for those that follow.
        std::fs::create_dir_all(lab.path("done")).unwrap();
        let arguments: Vec<String> = step.arguments.iter().map(|a| a.replace("OUT", "done")).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        lab.xbuild(&arguments).env("SOURCE_DATE_EPOCH", "1700000000").ok();
        if step.name == "save" {
            std::fs::copy(lab.path("done/saved.tar"), lab.path("saved.tar")).unwrap();
            lab.tool("tar", &["-C", "done/files", "-cf", "files.tar", "."]).ok();
        }
    }
    assert!(failures.is_empty(), "{} trials failed:\n{}", failures.len(), failures.join("\n\n"));
}
