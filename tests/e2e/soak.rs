//! Many processes on one store at once, for a while: builds, cancels, kills, prunes, imports and exports.
//!
//! The suite has a short version. `XBUILD_SOAK=SECONDS` takes 24 workers for so long and then looks for what they left anywhere
//! on the machine, so nothing else should use sandboxes meanwhile.

use crate::lab;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use xbuild_testkit::{Done, Image, Lab, wait_until};

/// How long a run takes: so many rounds, or until then.
enum End {
    Rounds(usize),
    At(Instant),
}

/// One of those that use the store.
struct Worker<'a> {
    lab: &'a Lab,
    number: usize,
    token: &'a str,
    random: u64,
    failures: &'a Mutex<Vec<String>>,
}

impl Worker<'_> {
    /// A number below `limit` (xorshift).
    fn random(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn work(&mut self, end: &End) {
        let mut round = 0;
        while match end {
            End::Rounds(rounds) => round < *rounds,
            End::At(time) => Instant::now() < *time,
        } {
            round += 1;
            match self.random(16) {
                0..=5 => self.build(),
                6..=8 => self.interrupted(),
                9 => self.expect(&["prune", "-f"]),
                10 => self.expect(&["prune", "-f", "--keep-storage", "1m"]),
                11 => self.expect(&["prune", "-f", "-a", "--filter", "type=exec.cachemount"]),
                12 => self.expect(&["store", "sweep"]),
                13 => self.save_and_load(),
                14 => self.tag_and_run(),
                _ => self.import(),
            }
        }
    }

    /// One of a few projects that the workers share, in one of a few versions; the files are this worker's.
    fn project(&mut self) -> (String, String) {
        let (kind, version) = (self.random(4), self.random(6));
        let name = format!("w{}", self.number);
        let content = format!("{kind}-{version}");
        let token = self.token;
        let dockerfile = match kind {
            0 => "FROM busybox\nCOPY version /all\n".to_owned(),
            1 => format!("FROM busybox\nCOPY version /v\nRUN : {token}; cat /v > /all\n"),
            2 => format!(
                "FROM busybox AS one\nCOPY . /src\nRUN --mount=type=cache,target=/c : {token}; echo x >> /c/log; sleep 0.05\n\
                 FROM busybox AS two\nCOPY --from=one /src/many /many\nRUN : {token}; rm /many/f3\n\
                 FROM busybox\nCOPY --from=two /many /many\nCOPY --from=one /src/version /all\n"
            ),
            _ => format!("FROM busybox\nRUN : {token}; sleep 0.1; echo same > /same\nCOPY version /all\n"),
        };
        self.lab.write(&format!("{name}/Dockerfile"), dockerfile);
        self.lab.write(&format!("{name}/version"), &content);
        for n in 0..80 {
            self.lab.write(&format!("{name}/many/f{n}"), format!("{n}"));
        }
        self.lab.write(&format!("{name}/many/f9"), &content);
        (name, content)
    }

    fn build(&mut self) {
        let (name, content) = self.project();
        let out = format!("{name}.out");
        let archive = format!("{name}.tar");
        let (local, oci) = (format!("type=local,dest={out}"), format!("type=oci,dest={archive}"));
        let mut arguments = vec!["-t", &name, "-o", &local];
        if self.random(3) == 0 {
            arguments.extend(["-o", &oci, "-o", "type=image"]);
        }
        if self.random(8) == 0 {
            arguments.push("--no-cache");
        }
        arguments.push(&name);
        let _ = std::fs::remove_dir_all(self.lab.path(&out));
        let _ = std::fs::remove_file(self.lab.path(&archive));
        let done = self.lab.xbuild(&arguments).run();
        if !self.succeeded(&done) {
            return;
        }
        let made = std::fs::read_to_string(self.lab.path(&format!("{out}/all"))).unwrap_or_default();
        if made != content {
            self.fail(format!("`{made}` was built instead of `{content}`: {done}"));
        }
        if arguments.contains(&oci.as_str()) && Image::only(&self.lab.path(&archive)).text("all") != content {
            self.fail(format!("the image does not have `{content}`: {done}"));
        }
    }

    /// A build that a signal ends at some time, or that ends before.
    fn interrupted(&mut self) {
        let (name, _) = self.project();
        let signal = [Signal::KILL, Signal::KILL, Signal::INT, Signal::TERM][self.random as usize % 4];
        let output = format!("type=oci,dest={name}.cut.tar");
        let build = self.lab.xbuild(&["-o", &output, "-o", "type=image", "-t", &format!("{name}-cut"), &name]).start();
        std::thread::sleep(Duration::from_millis(self.random(400)));
        build.signal(signal);
        let done = build.wait();
        if done.stderr.contains("panicked") {
            self.fail(done.to_string());
        }
    }

    fn save_and_load(&mut self) {
        let (tag, archive) = (format!("saved:{}", self.number), format!("w{}.saved.tar", self.number));
        self.expect(&["tag", "busybox", &tag]);
        self.expect(&["save", "-o", &archive, &tag]);
        self.expect(&["rmi", &tag]);
        self.expect(&["load", "-i", &archive]);
        self.expect(&["rmi", &tag]);
    }

    fn tag_and_run(&mut self) {
        let tag = format!("run:{}", self.number);
        self.expect(&["tag", "busybox", &tag]);
        self.expect(&["run", "--rm", "--network=none", &tag, "sh", "-c", &format!(": {}; true", self.token)]);
        self.expect(&["rmi", &tag]);
    }

    fn import(&mut self) {
        let tag = format!("imported:{}", self.number);
        self.expect(&["import", "files.tar", &tag]);
        self.expect(&["rmi", &tag]);
    }

    fn expect(&self, arguments: &[&str]) {
        let done = self.lab.xbuild(arguments).run();
        self.succeeded(&done);
    }

    fn succeeded(&self, done: &Done) -> bool {
        if done.code != 0 {
            self.fail(done.to_string());
        }
        done.code == 0
    }

    fn fail(&self, why: String) {
        self.failures.lock().unwrap().push(format!("worker {}: {why}", self.number));
    }
}

/// What builds make outside the store: control groups, and the host's ends of networks.
fn on_the_machine() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    groups(Path::new("/sys/fs/cgroup"), &mut found);
    for link in std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        found.insert(format!("link {}", link.file_name().display()));
    }
    found
}

fn groups(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.insert(format!("group {}", entry.path().display()));
            groups(&entry.path(), found);
        }
    }
}

#[test]
fn many_processes_use_one_store_for_a_while() {
    let Some(lab) = lab(&[]) else { return };
    let seconds: Option<u64> = std::env::var("XBUILD_SOAK").ok().map(|s| s.parse().expect("a number of seconds"));
    let (workers, end) = match seconds {
        Some(seconds) => (24, End::At(Instant::now() + Duration::from_secs(seconds))),
        None => (6, End::Rounds(4)),
    };
    let seed = std::env::var("XBUILD_SOAK_SEED").ok().map_or(0x1234_5678, |seed| seed.parse().expect("a number"));
    let token = lab.token();
    lab.write("files/f", "content");
    lab.tool("tar", &["-C", "files", "-cf", "files.tar", "."]).ok();
    let before = on_the_machine();
    let failures = Mutex::default();
    std::thread::scope(|scope| {
        for number in 0..workers {
            let random = (seed + number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut worker = Worker { lab: &lab, number, token: &token, random, failures: &failures };
            let end = &end;
            scope.spawn(move || worker.work(end));
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} failures, seed {seed}:\n{}", failures.len(), failures.join("\n\n"));
    lab.xbuild(&["store", "sweep"]).ok();
    lab.assert_no_traces(&token);
    assert_eq!(lab.xbuild(&["store", "check"]).ok().out(), "0 problems");
    for folder in ["staging", "trash"] {
        wait_until(&format!("`{folder}` is empty"), || {
            std::fs::read_dir(lab.root().join(folder)).unwrap().count() == 0
        });
    }
    for folder in ["tmp", "locks", "containers"] {
        let left: Vec<_> = std::fs::read_dir(lab.root().join(folder)).into_iter().flatten().flatten().collect();
        let left: Vec<_> = left.iter().filter(|e| !e.file_name().to_string_lossy().starts_with('.')).collect();
        assert!(folder != "locks" || left.len() < 2 * workers, "{left:?}");
        assert!(folder == "locks" || left.is_empty(), "{left:?}");
    }
    if seconds.is_some() {
        let new = || on_the_machine().difference(&before).cloned().collect::<Vec<_>>();
        let start = Instant::now();
        while !new().is_empty() && start.elapsed().as_secs() < 20 {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(new(), [""; 0], "left on the machine");
    }
}
